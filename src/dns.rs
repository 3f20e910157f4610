//! Asking what stands behind a name: once per name and time, under one deadline.
//!
//! Owns upstreams, zones and the answers' lifetimes. Answers nothing without a [`Clearance`] or a [`QuestionClearance`], so a
//! name that no rule lists is never asked for; whether an address is good is policy's to say.

mod cache;
pub mod chain;
mod hosts_file;
mod lookups;
mod no_answer;
mod records;
mod sent;
mod server;
pub mod settings;
mod trouble;
mod udp;
mod upstreams;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::time::Instant;

use crate::budget::Budget;
use crate::metrics::Metrics;
use cache::Cache;
use egret_core::answers::Answers;
use egret_core::name::HostName;
use egret_core::outcome::{Reason, Refusal};
use egret_core::policy::{Clearance, Destination, QuestionClearance};
pub use hosts_file::{Hosts, HostsFile};
use lookups::{AtOnce, Lookups};
use no_answer::NoAnswer;
use records::RecordQuestion;
pub use records::{RecordSet, Records, absolute};
use server::Asked;
use settings::DnsSettings;
use trouble::{Absence, Trouble};
pub use upstreams::UpstreamError;
use upstreams::{Group, Unanswered, Upstreams};

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
    context: Arc<LookupContext>,
    /// A name's addresses, for what will be dialled.
    names: Lookups<HostName, Answers>,
    /// What DNS clients ask.
    records: Lookups<RecordQuestion, Records>,
}

/// What a look-up needs.
#[derive(Debug)]
struct LookupContext {
    upstreams: Upstreams,
    cache: Arc<Cache<HostName, Answers>>,
    record_cache: Arc<Cache<RecordQuestion, Records>>,
    settings: DnsSettings,
    limits: DnsLimits,
    metrics: Arc<Metrics>,
}

/// The bounds of name resolution.
#[derive(Clone, Copy, Debug)]
pub struct DnsLimits {
    /// Of one look-up.
    pub deadline: Duration,
    /// Names that are looked up at once on behalf of clients.
    pub lookups: usize,
    /// Bytes of answers that are kept.
    pub cache: usize,
}

/// One family's part of an answer.
type Family = Result<(Vec<IpAddr>, Duration), Failure>;

/// Why one question brought no addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    why: NoAnswer,
    /// How long to believe it, where the upstream said so.
    ttl: Option<Duration>,
    /// The other family's addresses must not be used either: a part of the answer is refused.
    spoils: bool,
    /// No server answered at all.
    is_silence: bool,
    /// The name does not exist, whatever kind of address is asked for (RFC 8020).
    is_no_name: bool,
}

impl Failure {
    fn of(reason: Reason, words: &str) -> Self {
        Self { why: NoAnswer::of(reason, words), ttl: None, spoils: false, is_silence: false, is_no_name: false }
    }

    const fn reason(&self) -> Reason {
        self.why.reason
    }
}

impl From<Unanswered> for Failure {
    fn from(Unanswered { trouble, words }: Unanswered) -> Self {
        let why = NoAnswer { is_passing: trouble.is_passing(), ..NoAnswer::of(trouble.reason(), &words) };
        let is_no_name = matches!(trouble, Trouble::NoName(_));
        Self { why, ttl: trouble.ttl(), spoils: false, is_silence: trouble.is_silence(), is_no_name }
    }
}

impl Resolver {
    /// Builds the upstreams; asks nothing yet, so that egret starts while they are down.
    ///
    /// # Errors
    /// [`UpstreamError`] where the system has no resolver to offer, or an authority file holds no certificate.
    pub fn new(settings: DnsSettings, limits: DnsLimits, metrics: Arc<Metrics>) -> Result<Self, UpstreamError> {
        let upstreams = Upstreams::build(&settings, limits.deadline)?;
        // The last quarter is for answers in the form that clients read.
        let cache = Arc::new(Cache::new(limits.cache / 4, settings.stale));
        let record_cache = Arc::new(Cache::new(limits.cache / 2, settings.stale));
        let budget = Budget::new(limits.lookups);
        let names = Lookups::new(Arc::clone(&cache), Arc::clone(&budget), Arc::clone(&metrics), limits.deadline);
        let records = Lookups::new(Arc::clone(&record_cache), budget, Arc::clone(&metrics), limits.deadline);
        let context = Arc::new(LookupContext { upstreams, cache, record_cache, settings, limits, metrics });
        Ok(Self { context, names, records })
    }

    /// The servers asked by default, for the start-up screen.
    #[must_use]
    pub fn described(&self) -> String {
        self.context.upstreams.described()
    }

    /// Whether some server that is asked in the clear is at this place.
    pub fn asks(&self, is_there: impl Fn(SocketAddr) -> bool) -> bool {
        self.context.upstreams.are_at(is_there)
    }

    /// Whether a question, as a client wrote it, is egret's own: some server has sent it back.
    #[must_use]
    pub fn has_sent(&self, question: &[u8]) -> bool {
        self.context.upstreams.have_sent(question)
    }

    /// The addresses behind a clearance: a literal stands for itself, a name is looked up.
    ///
    /// # Errors
    /// A refusal at stage `dns`, after `limits.dns` at the latest; at stage `limit` where the client has too many
    /// look-ups under way for as long.
    pub async fn resolve(&self, clearance: &Clearance) -> Result<Answers, Refusal> {
        let name = match clearance.destination() {
            Destination::Literal(ip) => return Ok(Answers::literal(*ip)),
            Destination::Name(name) => name,
        };
        if let Some(answers) = self.context.of_hosts(name) {
            return Ok(answers);
        }
        let (client, ask) = (clearance.client(), || self.look_up_of(name));
        let old = match self.names.at_once(name, client, || self.context.is_failing(name), ask) {
            AtOnce::Settled(known) => return Ok(known?),
            AtOnce::Open(old) => old,
        };
        match client {
            None => self.resolve_anew(clearance).await,
            Some(client) => Box::pin(self.names.look_up_or(name, client, old, ask)).await,
        }
    }

    /// What servers say to a question of a DNS client, with signatures or without, or the configuration's own entries. A
    /// look-up is counted for `client`.
    ///
    /// # Errors
    /// As [`Resolver::resolve`].
    pub async fn records(
        &self,
        clearance: &QuestionClearance,
        (kind, is_signed): (RecordType, bool),
        client: IpAddr,
    ) -> Result<Records, Refusal> {
        let question = RecordQuestion { name: clearance.asked().clone(), kind, is_signed };
        if let Some(records) = self.context.records_of_hosts(&question) {
            return Ok(records);
        }
        let ask = || {
            let (context, question) = (Arc::clone(&self.context), question.clone());
            async move { context.look_up_records(&question).await }
        };
        let is_failing = || self.context.is_failing(&question.name);
        let old = match self.records.at_once(&question, Some(client), is_failing, ask) {
            AtOnce::Settled(known) => return Ok(known?),
            AtOnce::Open(old) => old,
        };
        self.records.look_up_or(&question, client, old, ask).await
    }

    /// The same, from the upstreams, whatever is known; but not of a name that was answered a moment ago, however many
    /// clients would have it otherwise.
    ///
    /// # Errors
    /// As [`Resolver::resolve`].
    pub async fn resolve_again(&self, clearance: &Clearance) -> Result<Answers, Refusal> {
        let cache = &self.context.cache;
        let is_new = |name| cache.answered_within(name, MOMENT, Instant::now());
        match (clearance.destination(), clearance.client()) {
            (Destination::Name(name), Some(client)) if self.context.of_hosts(name).is_none() && !is_new(name) => {
                Box::pin(self.look_up(name, client)).await
            }
            _ => self.resolve(clearance).await,
        }
    }

    /// The same, from the upstreams, whatever is known, and on behalf of no client.
    ///
    /// # Errors
    /// As [`Resolver::resolve`].
    pub async fn resolve_anew(&self, clearance: &Clearance) -> Result<Answers, Refusal> {
        match clearance.destination() {
            Destination::Literal(ip) => Ok(Answers::literal(*ip)),
            Destination::Name(name) => {
                if let Some(answers) = self.context.of_hosts(name) {
                    return Ok(answers);
                }
                Ok(self.context.look_up(name).await?)
            }
        }
    }

    /// Looks whether files have changed that name servers, or that answer themselves.
    pub fn refresh(&self) {
        self.context.upstreams.refresh();
        self.context.settings.hosts.iter().for_each(|hosts| hosts.refresh("dns"));
    }

    /// Joins the look-up of a name that is under way, or begins one.
    async fn look_up(&self, name: &HostName, client: IpAddr) -> Result<Answers, Refusal> {
        self.names.look_up(name, client, || self.look_up_of(name)).await
    }

    fn look_up_of(&self, name: &HostName) -> impl Future<Output = Result<Answers, NoAnswer>> + Send + use<> {
        let (context, name) = (Arc::clone(&self.context), name.clone());
        async move { context.look_up(&name).await }
    }
}

impl LookupContext {
    /// What the configuration says, or the hosts file, which is never older than the file.
    fn of_hosts(&self, name: &HostName) -> Option<Answers> {
        let of_file = || Some(self.settings.hosts.as_ref()?.get().get(name)?.to_vec());
        let addresses = self.settings.entries.get(name).map(<[_]>::to_vec).or_else(of_file)?;
        Some(Answers { addresses, ttl: self.settings.min_ttl, is_stale: false, from_servers: false })
    }

    /// The same of a DNS client's question.
    fn records_of_hosts(&self, question: &RecordQuestion) -> Option<Records> {
        let Answers { addresses, ttl, .. } = self.of_hosts(&question.name)?;
        let name = absolute(&question.name).ok()?;
        let of_kind = addresses.into_iter().filter_map(|ip| match (ip, question.kind) {
            (IpAddr::V4(ip), RecordType::A) => Some(RData::A(ip.into())),
            (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(ip.into())),
            _ => None,
        });
        let seconds = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        let answers = of_kind.map(|data| Record::from_rdata(name.clone(), seconds, data)).collect();
        let set = Arc::new(RecordSet { code: ResponseCode::NoError, answers, soa: None, authorities: Vec::new() });
        Some(Records { set, answered: Instant::now(), life: ttl, is_stale: false })
    }

    fn is_failing(&self, name: &HostName) -> bool {
        self.upstreams.group_for(name).is_failing()
    }

    /// Counts what came of a look-up.
    fn count<T>(&self, found: &Result<T, Failure>) {
        let (reason, is_silence) = match found {
            Ok(_) => (None, false),
            Err(failure) => (Some(failure.reason()), failure.is_silence),
        };
        self.metrics.dns_asked(reason, is_silence);
    }

    async fn look_up_records(&self, question: &RecordQuestion) -> Result<Records, NoAnswer> {
        let found = self.ask_records(question).await;
        self.count(&found);
        match found {
            Ok((set, life)) => {
                let records = Records { set: Arc::new(set), answered: Instant::now(), life, is_stale: false };
                self.record_cache.answered(question, records.clone(), records.answered);
                Ok(records)
            }
            Err(Failure { why, is_silence: true, .. }) => Err(why),
            Err(Failure { why, ttl, .. }) => {
                self.record_cache.failed(question, why.clone(), Instant::now() + self.negative_life(ttl));
                Err(why)
            }
        }
    }

    /// An absence is an answer here, with its own time.
    async fn ask_records(&self, question: &RecordQuestion) -> Result<(RecordSet, Duration), Failure> {
        let name = absolute(&question.name).map_err(|error| Failure::of(Reason::BadDns, &error))?;
        let group = self.upstreams.group_for(&question.name);
        let is_signed = question.is_signed;
        let asked = Asked { query: Query::query(name, question.kind), is_signed };
        let absent = |code, absence: Absence| {
            let life = self.negative_life(absence.ttl);
            (RecordSet::absent(code, is_signed, absence), life)
        };
        match group.lookup(asked, Instant::now() + self.limits.deadline).await {
            Ok(response) => {
                let DnsSettings { min_ttl, max_ttl, .. } = self.settings;
                let bounds = [min_ttl, max_ttl].map(|ttl| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX));
                let set = RecordSet::of(response, is_signed, bounds);
                let life = set.shortest().unwrap_or(min_ttl);
                Ok((set, life))
            }
            Err(Unanswered { trouble: Trouble::NoName(absence), .. }) => Ok(absent(ResponseCode::NXDomain, absence)),
            Err(Unanswered { trouble: Trouble::NoRecord(absence), .. }) => Ok(absent(ResponseCode::NoError, absence)),
            Err(unanswered) => Err(unanswered.into()),
        }
    }

    /// How long a failure or an absence is believed (RFC 2308 §5).
    fn negative_life(&self, ttl: Option<Duration>) -> Duration {
        ttl.unwrap_or(self.settings.min_ttl).min(self.settings.negative_ttl)
    }

    async fn look_up(&self, name: &HostName) -> Result<Answers, NoAnswer> {
        let found = self.ask(name).await;
        self.count(&found);
        match found {
            Ok(answers) => {
                let ttl = answers.ttl.clamp(self.settings.min_ttl, self.settings.max_ttl);
                let answers = Answers { ttl, ..answers };
                self.cache.answered(name, answers.clone(), Instant::now());
                Ok(answers)
            }
            // Silence is not cached: the upstream may be back for the next client.
            Err(Failure { why, is_silence: true, .. }) => Err(why),
            Err(Failure { why, ttl, .. }) => {
                self.cache.failed(name, why.clone(), Instant::now() + self.negative_life(ttl));
                Err(why)
            }
        }
    }

    async fn ask(&self, name: &HostName) -> Result<Answers, Failure> {
        let group = &self.upstreams.group_for(name);
        let deadline = self.limits.deadline;
        let question = absolute(name).map_err(|error| Failure::of(Reason::BadDns, &error))?;
        let v4 = one_family(group, &question, RecordType::A, deadline);
        let v6 = one_family(group, &question, RecordType::AAAA, deadline);
        tokio::pin!(v4, v6);
        let (one, other) = tokio::select! {
            v4 = &mut v4 => { let grace = grace(&v4, deadline); (v4, within(grace, v6).await) }
            v6 = &mut v6 => { let grace = grace(&v6, deadline); (v6, within(grace, v4).await) }
        };
        together(one, other).map_err(|mut failure| {
            if !name.as_str().contains('.') {
                let hint =
                    "a name of one label; search lists are the client's business, so have it ask for the full name";
                failure.why.words = format!("{}; `{name}` is {hint}", failure.why.words).into();
            }
            failure
        })
    }
}

/// How long the second family may still take: an answer in hand is not kept waiting for a server that drops
/// the other question.
fn grace(first: &Family, deadline: Duration) -> Duration {
    let is_known = match first {
        Ok(_) => true,
        Err(failure) => failure.is_no_name,
    };
    if is_known { deadline.min(SECOND_FAMILY) } else { deadline }
}

async fn within(time: Duration, family: impl Future<Output = Family>) -> Family {
    let late = || Failure {
        is_silence: true,
        ..Failure::of(Reason::DnsTimeout, "the question for the other address family was not answered in time")
    };
    tokio::time::timeout(time, family).await.unwrap_or_else(|_| Err(late()))
}

async fn one_family(group: &Group, question: &Name, kind: RecordType, deadline: Duration) -> Family {
    match group.lookup(Query::query(question.clone(), kind).into(), Instant::now() + deadline).await {
        Ok(response) => chain::follow(question, kind, &response.answers).map_err(|reason| Failure {
            spoils: reason == Reason::BadDns,
            ..Failure::of(reason, chain::words(reason))
        }),
        Err(unanswered) => Err(unanswered.into()),
    }
}

/// A and AAAA are one answer. A failed half does not hide the other; two absences are an absence.
fn together(v4: Family, v6: Family) -> Result<Answers, Failure> {
    let (half, failure) = match (v4, v6) {
        (Ok((mut addresses, ttl)), Ok((more, other))) => {
            addresses.extend(more);
            if addresses.len() > chain::MAX_ADDRESSES {
                return Err(Failure::of(Reason::BadDns, chain::words(Reason::BadDns)));
            }
            return Ok(Answers { addresses, ttl: ttl.min(other), is_stale: false, from_servers: true });
        }
        (Err(failure @ Failure { spoils: true, .. }), _) | (_, Err(failure @ Failure { spoils: true, .. })) => {
            return Err(failure);
        }
        (Ok(half), Err(failure)) | (Err(failure), Ok(half)) => (half, failure),
        (Err(a), Err(b)) => return Err(worse(a, b)),
    };
    let (addresses, ttl) = half;
    let ttl = if failure.reason() == Reason::NoSuchName { ttl } else { ttl.min(HALF_ANSWER) };
    Ok(Answers { addresses, ttl, is_stale: false, from_servers: true })
}

/// An absence speaks only where both are absent: half a failure may hide an address.
fn worse(a: Failure, b: Failure) -> Failure {
    match (a.reason(), b.reason()) {
        (Reason::NoSuchName, Reason::NoSuchName) => Failure { ttl: a.ttl.max(b.ttl), ..a },
        _ if a.is_no_name => a,
        _ if b.is_no_name => b,
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

    fn failed(reason: Reason) -> Family {
        Err(Failure::of(reason, ""))
    }

    #[test]
    fn two_families_are_one_answer() {
        let both = together(found("192.0.2.1", 60), found("2001:db8::1", 5)).unwrap();
        assert_eq!((both.addresses.len(), both.ttl), (2, Duration::from_secs(5)));
        let half = together(found("192.0.2.1", 600), failed(Reason::NoSuchName)).unwrap();
        assert_eq!(half.ttl, Duration::from_secs(600));
        let half = together(failed(Reason::DnsFailed), found("2001:db8::1", 600)).unwrap();
        assert_eq!(half.ttl, HALF_ANSWER);
        let spoilt = Err(Failure { spoils: true, ..Failure::of(Reason::BadDns, "") });
        assert_eq!(together(spoilt.clone(), found("2001:db8::1", 60)).unwrap_err().reason(), Reason::BadDns);
        assert_eq!(together(found("192.0.2.1", 60), spoilt).unwrap_err().reason(), Reason::BadDns);
        assert!(together(found("192.0.2.1", 60), failed(Reason::BadDns)).is_ok(), "a server that knows no AAAA");
        let many = |n: u8| Ok(((0..n).map(|n| IpAddr::from([192, 0, 2, n])).collect(), Duration::ZERO));
        assert_eq!(together(many(200), many(57)).unwrap_err().reason(), Reason::BadDns);
        let reason = |a, b| together(failed(a), failed(b)).unwrap_err().reason();
        assert_eq!(reason(Reason::NoSuchName, Reason::NoSuchName), Reason::NoSuchName);
        assert_eq!(reason(Reason::NoSuchName, Reason::DnsTimeout), Reason::DnsTimeout);
        assert_eq!(reason(Reason::DnsFailed, Reason::NoSuchName), Reason::DnsFailed);
        let no_name = || Err(Failure { is_no_name: true, ..Failure::of(Reason::NoSuchName, "") });
        assert_eq!(together(no_name(), failed(Reason::DnsFailed)).unwrap_err().reason(), Reason::NoSuchName);
        assert_eq!(together(failed(Reason::DnsTimeout), no_name()).unwrap_err().reason(), Reason::NoSuchName);
        assert!(together(found("192.0.2.1", 60), no_name()).is_ok(), "a server that says so of what it does not know");
    }
}
