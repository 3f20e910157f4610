//! Asking what stands behind a name: once per name and time, under one deadline.
//!
//! Owns upstreams, zones and the answers' lifetimes. Answers nothing without a [`Clearance`], so a name that
//! no rule lists is never asked for; whether an address is good is policy's to say.

mod cache;
mod chain;
mod upstreams;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_net::{DnsError, NetError, NoRecords};
use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};
use tokio::time::Instant;

use crate::answers::Answers;
use crate::config::DnsSettings;
use crate::ending::{Reason, Refusal, Stage};
use crate::metrics::Metrics;
use crate::name::HostName;
use crate::policy::{Clearance, Destination};
use cache::{Cache, Kept};
pub use upstreams::UpstreamError;
use upstreams::{Group, Upstreams, is_absence};

/// An answer of one family only, where the other failed: kept this long at most, so that a passing fault
/// does not hide half a service.
const HALF_ANSWER: Duration = Duration::from_secs(30);

/// How old an answer must be before a client's doubt of it is worth a question.
const MOMENT: Duration = Duration::from_secs(2);

/// How long the second family may take once the first has answered (RFC 8305 §3 waits for less).
const SECOND_FAMILY: Duration = Duration::from_millis(500);

/// The one place where names become addresses.
#[derive(Debug)]
pub struct Resolver {
    upstreams: Upstreams,
    cache: Cache,
    deadline: Duration,
    settings: DnsSettings,
    metrics: Arc<Metrics>,
}

/// One family's part of an answer.
type Family = Result<(Vec<IpAddr>, Duration), Failure>;

/// Why one question brought no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    reason: Reason,
    /// How long to believe it, where the upstream said so.
    ttl: Option<Duration>,
}

impl Failure {
    const fn of(reason: Reason) -> Self {
        Self { reason, ttl: None }
    }
}

impl Resolver {
    /// Builds the upstreams; asks nothing yet, so that egret starts while they are down.
    ///
    /// # Errors
    /// [`UpstreamError`] where the system has no resolver to offer, or an authority file holds no certificate.
    pub fn new(
        settings: DnsSettings,
        deadline: Duration,
        remember: Duration,
        metrics: Arc<Metrics>,
    ) -> Result<Self, UpstreamError> {
        let upstreams = Upstreams::build(&settings, deadline)?;
        Ok(Self { upstreams, cache: Cache::new(remember), deadline, settings, metrics })
    }

    /// The servers asked by default, for the start-up screen.
    #[must_use]
    pub fn described(&self) -> String {
        self.upstreams.described()
    }

    /// The addresses behind a clearance: a literal stands for itself, a name is looked up.
    ///
    /// # Errors
    /// A refusal at stage `dns`, after `limits.dns` at the latest.
    pub async fn resolve(&self, clearance: &Clearance) -> Result<Answers, Refusal> {
        let name = match clearance.destination() {
            Destination::Literal(ip) => return Ok(Answers::literal(*ip)),
            Destination::Name(name) => name,
        };
        if let Some(kept) = self.cache.get(name, Instant::now()) {
            self.metrics.dns_cached();
            return kept.map_err(|reason| Refusal::new(reason, Stage::Dns));
        }
        let found = self.look_up(name).await?;
        // Where clients bring an address of their own, it may be one of an earlier answer.
        if clearance.dst().is_some() {
            self.cache.remember(name, &found.addresses, Instant::now());
        }
        Ok(found)
    }

    /// The same, from the upstreams, whatever is known; but not of a name that was answered a moment ago, however many
    /// clients would have it otherwise.
    ///
    /// # Errors
    /// As [`Resolver::resolve`].
    pub async fn resolve_again(&self, clearance: &Clearance) -> Result<Answers, Refusal> {
        let asked = match clearance.destination() {
            Destination::Literal(_) => true,
            Destination::Name(name) => self.cache.answered_within(name, MOMENT, Instant::now()),
        };
        if asked { self.resolve(clearance).await } else { self.resolve_anew(clearance).await }
    }

    /// The same, from the upstreams, whatever is known.
    ///
    /// # Errors
    /// As [`Resolver::resolve`].
    pub async fn resolve_anew(&self, clearance: &Clearance) -> Result<Answers, Refusal> {
        match clearance.destination() {
            Destination::Literal(ip) => Ok(Answers::literal(*ip)),
            Destination::Name(name) => {
                let found = self.look_up(name).await?;
                self.cache.remember(name, &found.addresses, Instant::now());
                Ok(found)
            }
        }
    }

    /// Whether an address was answered for the name of a clearance, not too long ago.
    #[must_use]
    pub fn remembers(&self, clearance: &Clearance, ip: IpAddr) -> bool {
        match clearance.destination() {
            Destination::Literal(_) => false,
            Destination::Name(name) => self.cache.remembers(name, ip, Instant::now()),
        }
    }

    async fn look_up(&self, name: &HostName) -> Result<Answers, Refusal> {
        let refuse = |reason| Refusal::new(reason, Stage::Dns);
        // Seldom, and large: most connections find their answer here and carry nothing of it.
        let found = Box::pin(self.ask(name)).await;
        self.metrics.dns_asked(found.as_ref().err().map(|failure| failure.reason));
        let (kept, ttl): (Kept, Duration) = match found {
            Ok(answers) => {
                let ttl = answers.ttl.clamp(self.settings.min_ttl, self.settings.max_ttl);
                (Ok(Answers { ttl, ..answers }), ttl)
            }
            // What nobody answered is not kept: the next client may find the upstream back.
            Err(Failure { reason: Reason::DnsTimeout, .. }) => return Err(refuse(Reason::DnsTimeout)),
            Err(failure) => {
                let ttl = failure.ttl.unwrap_or(self.settings.min_ttl).min(self.settings.negative_ttl);
                (Err(failure.reason), ttl)
            }
        };
        self.cache.put(name, kept.clone(), Instant::now() + ttl);
        kept.map_err(refuse)
    }

    async fn ask(&self, name: &HostName) -> Result<Answers, Failure> {
        let group = self.upstreams.group_for(name);
        // A trailing dot: no search list ever applies.
        let question = Name::from_ascii(format!("{name}.")).map_err(|_| Failure::of(Reason::BadDns))?;
        let v4 = one_family(group, &question, RecordType::A, self.deadline);
        let v6 = one_family(group, &question, RecordType::AAAA, self.deadline);
        tokio::pin!(v4, v6);
        let (one, other) = tokio::select! {
            v4 = &mut v4 => { let grace = grace(&v4, self.deadline); (v4, within(grace, v6).await) }
            v6 = &mut v6 => { let grace = grace(&v6, self.deadline); (v6, within(grace, v4).await) }
        };
        together(one, other)
    }
}

/// How long the second family may still take: an answer in hand is not kept waiting for a server that drops
/// the other question.
fn grace(first: &Family, deadline: Duration) -> Duration {
    if first.is_ok() { deadline.min(SECOND_FAMILY) } else { deadline }
}

async fn within(time: Duration, family: impl Future<Output = Family>) -> Family {
    tokio::time::timeout(time, family).await.unwrap_or(Err(Failure::of(Reason::DnsTimeout)))
}

async fn one_family(group: &Group, question: &Name, kind: RecordType, deadline: Duration) -> Family {
    match group.lookup(Query::query(question.clone(), kind), Instant::now() + deadline).await {
        Ok(response) => chain::follow(question, kind, &response.answers).map_err(Failure::of),
        Err(error) => failure(&error),
    }
}

/// What an error of the client library means; an absence is an empty answer.
fn failure(error: &NetError) -> Family {
    let fail = |reason| Err(Failure::of(reason));
    match error {
        NetError::Dns(DnsError::NoRecordsFound(NoRecords { negative_ttl, .. })) if is_absence(error) => {
            let ttl = negative_ttl.map(|seconds| Duration::from_secs(seconds.into()));
            Err(Failure { reason: Reason::NoSuchName, ttl })
        }
        NetError::Dns(_) => fail(Reason::DnsFailed),
        // Nobody answered: a closed port, no route, no time. Which one is the operator's to see, in the log.
        NetError::Timeout | NetError::NoConnections | NetError::Io(_) | NetError::Busy => {
            tracing::debug!(%error, "no DNS upstream answered");
            fail(Reason::DnsTimeout)
        }
        _ => fail(Reason::BadDns),
    }
}

/// A and AAAA are one answer. A failed half does not hide the other; two absences are an absence.
fn together(v4: Family, v6: Family) -> Result<Answers, Failure> {
    let (half, failure) = match (v4, v6) {
        (Ok((mut addresses, ttl)), Ok((more, other))) => {
            addresses.extend(more);
            return Ok(Answers { addresses, ttl: ttl.min(other) });
        }
        (Ok(half), Err(failure)) | (Err(failure), Ok(half)) => (half, failure),
        (Err(a), Err(b)) => return Err(worse(a, b)),
    };
    let (addresses, ttl) = half;
    let ttl = if failure.reason == Reason::NoSuchName { ttl } else { ttl.min(HALF_ANSWER) };
    Ok(Answers { addresses, ttl })
}

/// An absence speaks only where both are absent: half a failure may hide an address.
fn worse(a: Failure, b: Failure) -> Failure {
    match (a.reason, b.reason) {
        (Reason::NoSuchName, Reason::NoSuchName) => Failure { ttl: a.ttl.max(b.ttl), ..a },
        (Reason::NoSuchName, _) => b,
        _ => a,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(ip: &str, seconds: u64) -> Family {
        Ok((vec![ip.parse().unwrap()], Duration::from_secs(seconds)))
    }

    const fn failed(reason: Reason) -> Family {
        Err(Failure { reason, ttl: None })
    }

    #[test]
    fn two_families_are_one_answer() {
        let both = together(found("192.0.2.1", 60), found("2001:db8::1", 5)).unwrap();
        assert_eq!((both.addresses.len(), both.ttl), (2, Duration::from_secs(5)));
        let half = together(found("192.0.2.1", 600), failed(Reason::NoSuchName)).unwrap();
        assert_eq!(half.ttl, Duration::from_secs(600));
        let half = together(failed(Reason::DnsFailed), found("2001:db8::1", 600)).unwrap();
        assert_eq!(half.ttl, HALF_ANSWER);
        let reason = |a, b| together(failed(a), failed(b)).unwrap_err().reason;
        assert_eq!(reason(Reason::NoSuchName, Reason::NoSuchName), Reason::NoSuchName);
        assert_eq!(reason(Reason::NoSuchName, Reason::DnsTimeout), Reason::DnsTimeout);
        assert_eq!(reason(Reason::DnsFailed, Reason::NoSuchName), Reason::DnsFailed);
    }
}
