//! Answers from what is known, or else from servers: one look-up for each question, however many clients wait for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::cache::{Cache, Keepable, Known, Question};
use super::no_answer::NoAnswer;
use crate::budget::{Budget, Share};
use crate::metrics::Metrics;
use egret_core::outcome::{Reason, Refusal, Stage};

/// What is being asked, by question.
type PendingLookups<K, V> = Arc<Mutex<HashMap<K, Pending<V>, RandomState>>>;

/// Where the outcome of a look-up will be; `None` until then.
type Pending<V> = watch::Receiver<Option<Outcome<V>>>;

/// How a look-up ended.
#[derive(Clone, Debug)]
enum Outcome<V> {
    Found(Result<V, NoAnswer>),
    /// It made room for another client's.
    Evicted,
}

/// How long a request waits for a new answer while it has an old one (RFC 8767 §5).
const PATIENCE: Duration = Duration::from_millis(1800);

/// Questions of one kind.
#[derive(Debug)]
pub(super) struct Lookups<K, V> {
    cache: Arc<Cache<K, V>>,
    pending: PendingLookups<K, V>,
    /// How many look-ups there may be (`limits.lookups`): each takes sockets that no connection is counted for.
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
    deadline: Duration,
}

/// What is known of a question, and whether it will do.
#[derive(Debug)]
pub(super) enum AtOnce<V> {
    Settled(Result<V, NoAnswer>),
    /// Servers must be asked. What is old will do for want of a new answer.
    Open(Option<V>),
}

impl<K: Question, V: Keepable> Lookups<K, V> {
    pub(super) fn new(cache: Arc<Cache<K, V>>, budget: Arc<Budget>, metrics: Arc<Metrics>, deadline: Duration) -> Self {
        Self { cache, pending: Arc::default(), budget, metrics, deadline }
    }

    /// What is known now. An old answer will do where no server answers, or what would fail has just failed. One whose time
    /// is nearly over is asked for again, on behalf of the client, if any, that wants it now.
    pub(super) fn at_once<F>(
        &self,
        question: &K,
        client: Option<IpAddr>,
        is_failing: impl FnOnce() -> bool,
        ask: impl Fn() -> F,
    ) -> AtOnce<V>
    where
        F: Future<Output = Result<V, NoAnswer>> + Send + 'static,
    {
        match self.cache.get(question, Instant::now()) {
            Known::Answer(answer) => {
                self.metrics.dns_cached();
                AtOnce::Settled(Ok(answer))
            }
            Known::Aging(answer) => {
                self.metrics.dns_cached();
                // Where there is no room for it, the next question waits as it would have.
                let _ = client.and_then(|client| self.join(question, client, ask));
                AtOnce::Settled(Ok(answer))
            }
            Known::Failure(failure) => {
                self.metrics.dns_cached();
                AtOnce::Settled(Err(failure))
            }
            Known::Stale(answer, failure) if failure.is_some() || is_failing() => {
                self.metrics.dns_stale();
                AtOnce::Settled(Ok(answer))
            }
            Known::Stale(answer, _) => AtOnce::Open(Some(answer)),
            Known::Nothing => AtOnce::Open(None),
        }
    }

    /// A new answer; the old one, if any, where no new one comes in time. An absence is as good as a new answer.
    ///
    /// # Errors
    /// As [`Lookups::look_up`].
    pub(super) async fn look_up_or<F>(
        &self,
        question: &K,
        client: IpAddr,
        old: Option<V>,
        ask: impl Fn() -> F,
    ) -> Result<V, Refusal>
    where
        F: Future<Output = Result<V, NoAnswer>> + Send + 'static,
    {
        let Some(old) = old else { return self.look_up(question, client, ask).await };
        let refusal = match timeout(PATIENCE, self.look_up(question, client, ask)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(refusal)) => Some(refusal),
            Err(_) => None,
        };
        let stands_in = |refusal: &Refusal| match refusal.stage {
            Stage::Limit => true,
            _ => matches!(self.cache.get(question, Instant::now()), Known::Stale(..)),
        };
        match refusal {
            Some(refusal) if !stands_in(&refusal) => Err(refusal),
            _ => {
                self.metrics.dns_stale();
                Ok(old)
            }
        }
    }

    /// Joins the look-up that is under way, or begins the one that `ask` makes. Its place is counted for `client`.
    ///
    /// # Errors
    /// A refusal at stage `dns`; at stage `limit` where the client has too many look-ups under way for as long.
    pub(super) async fn look_up<F>(&self, question: &K, client: IpAddr, ask: impl Fn() -> F) -> Result<V, Refusal>
    where
        F: Future<Output = Result<V, NoAnswer>> + Send + 'static,
    {
        let until = Instant::now() + self.deadline;
        let mut has_waited = false;
        loop {
            let mut freed = std::pin::pin!(self.budget.freed());
            freed.as_mut().enable();
            let Some((mut pending, has_begun)) = self.join(question, client, &ask) else {
                // All slots are in use, and no client holds more of them than this one.
                has_waited = true;
                if timeout_at(until, freed).await.is_err() {
                    return Err(Refusal::new(Reason::RateLimited, Stage::Limit));
                }
                continue;
            };
            if has_waited && !has_begun {
                // It was woken for a slot that another look-up can use.
                self.budget.pass_on();
            }
            let outcome = match timeout_at(until, pending.wait_for(Option::is_some)).await {
                // Its own time for the servers was too short.
                Err(_) if has_waited => return Err(Refusal::new(Reason::RateLimited, Stage::Limit)),
                Err(_) => return Err(Refusal::new(Reason::DnsTimeout, Stage::Dns)),
                // Its task is lost.
                Ok(Err(_)) => return Err(Refusal::new(Reason::Internal, Stage::Dns)),
                Ok(Ok(outcome)) => outcome.clone(),
            };
            if let Some(Outcome::Found(found)) = outcome {
                return found.map_err(Refusal::from);
            }
        }
    }

    /// The look-up of a question, and whether it has begun by this; `None` where there is no room for it.
    fn join<F>(&self, question: &K, client: IpAddr, ask: impl Fn() -> F) -> Option<(Pending<V>, bool)>
    where
        F: Future<Output = Result<V, NoAnswer>> + Send + 'static,
    {
        let mut all = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pending) = all.get(question) {
            return Some((pending.clone(), false));
        }
        let mut share = self.budget.share(client);
        share.grow(1).ok()?;
        let (done, pending) = watch::channel(None);
        all.insert(question.clone(), pending.clone());
        let guard = LookupGuard { pending: Arc::clone(&self.pending), question: question.clone(), share };
        let asking = ask();
        tokio::spawn(async move {
            let eviction = guard.share.eviction();
            let outcome = tokio::select! {
                found = asking => Outcome::Found(found),
                () = eviction.evicted() => Outcome::Evicted,
            };
            // Removed before the outcome is published, so that waiters start a new look-up.
            drop(guard);
            done.send_replace(Some(outcome));
        });
        Some((pending, true))
    }
}

/// Takes a look-up off the list when it has ended, however it did.
struct LookupGuard<K: Eq + Hash, V> {
    pending: PendingLookups<K, V>,
    question: K,
    share: Share,
}

impl<K: Eq + Hash, V> Drop for LookupGuard<K, V> {
    fn drop(&mut self) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.question);
    }
}
