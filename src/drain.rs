//! Broadcasts to every live connection: drain, abort or re-authorize. And the wait until the last one has ended.
//!
//! ```text
//! Drain --guard()--> DrainGuard, held by each session
//! stop(grace):  Stopping ... the last guard is dropped, or grace is over: Cut ... the last guard is dropped
//! ```
//! A connection ends its drain by dropping its guard; there is no counter to forget.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::Context;
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// The owner's side.
#[derive(Debug)]
pub struct Drain {
    phases: Arc<Phases>,
    guards: mpsc::Sender<()>,
    gone: mpsc::Receiver<()>,
}

/// What has begun.
#[derive(Debug, Default)]
struct Phases {
    stopping: CancellationToken,
    /// Wakes every guard that listens, after one of the following has changed: reading those is enough then, and no guard
    /// queues for a lock.
    call: Notify,
    is_cut: AtomicBool,
    reviews: AtomicU32,
    /// Held during a broadcast, and while a guard begins to listen: one that begins amid a broadcast would be woken by it,
    /// and miss the next.
    calling: RwLock<()>,
}

/// Held by every connection that a drain waits for.
#[derive(Clone, Debug)]
pub struct DrainGuard {
    phases: Arc<Phases>,
    /// Dropped with the guard; the channel closes with the last one.
    _presence: mpsc::Sender<()>,
}

/// Asks every live connection to re-authorize itself.
#[derive(Clone, Debug)]
pub struct Reauthorizer(Arc<Phases>);

/// Sees the phase without being waited for.
#[derive(Clone, Debug)]
pub struct Watcher(CancellationToken);

impl Drain {
    #[must_use]
    pub fn new() -> Self {
        let (guards, gone) = mpsc::channel(1);
        Self { phases: Arc::default(), guards, gone }
    }

    #[must_use]
    pub fn guard(&self) -> DrainGuard {
        DrainGuard { phases: Arc::clone(&self.phases), _presence: self.guards.clone() }
    }

    #[must_use]
    pub fn watcher(&self) -> Watcher {
        Watcher(self.phases.stopping.clone())
    }

    #[must_use]
    pub fn reauthorizer(&self) -> Reauthorizer {
        Reauthorizer(Arc::clone(&self.phases))
    }

    /// Asks every connection to finish; after `grace`, or when `hurry` is ready, aborts it. Returns when the last one has
    /// ended.
    pub async fn stop(self, grace: Duration, hurry: impl Future<Output = ()>) {
        let Self { phases, guards, mut gone } = self;
        phases.stopping.cancel();
        drop(guards);
        // Nothing is ever sent: the end of the channel is the message.
        let patience = async {
            tokio::select! {
                () = tokio::time::sleep(grace) => {}
                () = hurry => {}
            }
        };
        tokio::select! {
            _ = gone.recv() => return,
            () = patience => {}
        }
        phases.call(|| phases.is_cut.store(true, Ordering::Release));
        let _ = gone.recv().await;
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl DrainGuard {
    /// Returns once nothing new should begin.
    pub fn stopping(&self) -> impl Future<Output = ()> + '_ {
        self.phases.stopping.cancelled()
    }

    /// Whether nothing may go on.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.phases.is_cut.load(Ordering::Acquire)
    }

    /// Returns once nothing may go on.
    pub async fn cut(&self) {
        let mut call = self.call();
        while !self.is_cut() {
            call.await;
            call = self.call();
        }
    }

    /// How often re-authorization has been requested.
    #[must_use]
    pub fn reviews(&self) -> u32 {
        self.phases.reviews.load(Ordering::Acquire)
    }

    /// Completes at the next broadcast.
    pub fn call(&self) -> Notified<'_> {
        self.phases.call.notified()
    }

    /// Has a task that polls other things too woken by every broadcast from now on; it looks at [`DrainGuard::is_cut`] and
    /// [`DrainGuard::reviews`] afterwards. `heard`: what this has left there.
    pub fn listen<'a>(&'a self, mut call: Pin<&mut Notified<'a>>, heard: &mut Option<u32>, cx: &mut Context<'_>) {
        if *heard != Some(self.reviews()) {
            let _nobody_calls = self.phases.calling.read().unwrap_or_else(PoisonError::into_inner);
            *heard = Some(self.reviews());
            call.set(self.call());
            let _ = call.as_mut().poll(cx);
        }
    }
}

impl Reauthorizer {
    pub fn ask(&self) {
        self.0.call(|| self.0.reviews.fetch_add(1, Ordering::Release));
    }
}

impl Phases {
    fn call<T>(&self, what: impl FnOnce() -> T) {
        let _calling = self.calling.write().unwrap_or_else(PoisonError::into_inner);
        what();
        self.call.notify_waiters();
    }
}

impl Watcher {
    #[must_use]
    pub fn is_serving(&self) -> bool {
        !self.0.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    #[tokio::test(start_paused = true)]
    async fn stopping_waits_for_the_last_guest_and_then_no_longer() {
        let drain = Drain::new();
        let (polite, stubborn, watcher) = (drain.guard(), drain.guard(), drain.watcher());
        assert!(watcher.is_serving());
        let begun = tokio::time::Instant::now();
        let stopping = tokio::spawn(drain.stop(Duration::from_secs(30), std::future::pending()));
        polite.stopping().await;
        assert!(!watcher.is_serving());
        drop(polite);
        stubborn.cut().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(30));
        assert!(!stopping.is_finished());
        drop(stubborn);
        stopping.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_without_connections_does_not_wait() {
        let begun = tokio::time::Instant::now();
        Drain::new().stop(Duration::from_secs(30), std::future::pending()).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    /// Guards that are polled all the time during a broadcast, and then never again but for the next one.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_call_that_comes_while_a_guard_begins_to_listen_is_heard() {
        const GUESTS: u32 = 100;
        let drain = Drain::new();
        let (busy, heard_all) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let begin = Arc::new(Notify::new());
        for _ in 0..GUESTS {
            let (guard, busy, heard_all, begin) = (drain.guard(), busy.clone(), heard_all.clone(), begin.clone());
            tokio::spawn(async move {
                let work = async {
                    loop {
                        begin.notified().await;
                        while busy.load(Ordering::Relaxed) {
                            tokio::task::yield_now().await;
                        }
                    }
                };
                let (mut work, mut call, mut heard, mut reviewed) = (pin!(work), pin!(guard.call()), None, 0);
                poll_fn(|cx| {
                    guard.listen(call.as_mut(), &mut heard, cx);
                    let now = guard.reviews();
                    heard_all.fetch_add(now - std::mem::replace(&mut reviewed, now), Ordering::Relaxed);
                    let _: Poll<()> = work.as_mut().poll(cx);
                    if guard.is_cut() { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            });
        }
        let reauthorizer = drain.reauthorizer();
        let all_heard = async |calls: u32| {
            let heard = async {
                while heard_all.load(Ordering::Relaxed) < GUESTS * calls {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), heard)
                .await
                .unwrap_or_else(|_| panic!("call {calls} is not heard by all"));
        };
        for round in 0..200 {
            busy.store(true, Ordering::Relaxed);
            begin.notify_waiters();
            tokio::task::yield_now().await;
            reauthorizer.ask();
            busy.store(false, Ordering::Relaxed);
            all_heard(2 * round + 1).await;
            reauthorizer.ask();
            all_heard(2 * round + 2).await;
        }
        drain.stop(Duration::ZERO, std::future::pending()).await;
    }
}
