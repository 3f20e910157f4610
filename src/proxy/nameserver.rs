//! Answers DNS clients: what some rule lists for them, and nothing else.
//!
//! A question takes the walk of a connection and turns back with an answer: policy by name, servers, policy by alias and
//! address. What network rules shall know of it they know before the client does.

mod allowance;
mod novelty;
mod reply;
pub mod settings;
mod shape;
pub mod tcp;
mod teach;
pub mod udp;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use foldhash::quality::RandomState;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{Name as DnsName, RData, Record, RecordType};
use moka::sync::Cache;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::services::Services;
use crate::budget::{Budget, Share};
use crate::dns::{Records, absolute};
use crate::learn::steering::Steering;
use crate::netfilter::conntrack;
use crate::record::QuestionName;
use egret_core::claim::{ClientAddr, Source, network_of};
use egret_core::name::HostName;
use egret_core::outcome::{Hint, Reason, Refusal, Stage};
use egret_core::policy::{MatchedRule, Policy, QuestionClearance, Steers};
use egret_core::steered::Wanted;
use egret_core::wire::dns::{DnsQuery, Name, Unreadable};
use novelty::Novelty;
use reply::{ExtendedError, MOST_OVER_UDP, Reply};
use settings::{NameserverSettings, RefusedNames, is_of_dnssec};
use shape::{Judge, Shaped, host};
use teach::Teacher;

/// What an entry takes beside its name and its records, in bytes.
const READY: usize = 400;

/// The largest message that is read, in bytes.
const LARGEST: usize = 4096;

/// Stub resolvers wait five seconds, and would not read an answer that leaves then.
const PATIENCE_OF_CLIENTS: Duration = Duration::from_secs(4);

/// RFC 1035 §3.2.4, RFC 1035 §3.2.5.
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

/// How long an answer whose time is nearly over is kept as clients read it: a new one is on its way.
const MOMENT: Duration = Duration::from_millis(100);

/// How often it is said that questions come back.
const WARNS_EVERY: Duration = Duration::from_secs(60);

/// Targets of aliases that are known, and zones that signed answers led through; for how long their keys may be asked for.
const MOST_ZONES: u64 = 65_536;
const ZONES_LAST: Duration = Duration::from_secs(24 * 3600);

/// How often flows to synthetic addresses are looked at, which is a look at every forwarded flow.
const FLOWS_EVERY: Duration = Duration::from_secs(30);
/// Names with such flows that are asked for at once.
const AT_ONCE: usize = 32;

/// Keeps names resolved that flows go to by synthetic addresses, until there is no nameserver: their clients may begin
/// others, and not ask again.
pub async fn keep_steered(nameserver: Weak<Nameserver>) {
    loop {
        let every = nameserver.upgrade().map(|nameserver| FLOWS_EVERY.min(nameserver.teacher.acknowledged()));
        let Some(every) = every else { return };
        tokio::time::sleep(every).await;
        let Some(nameserver) = nameserver.upgrade() else { return };
        let Services { steering: Some(steering), table: Some(_), .. } = &*nameserver.services else { return };
        let pool = steering.pool();
        let looked = tokio::task::spawn_blocking(move || conntrack::in_use(|ip| pool.contains(ip)));
        match looked.await {
            Ok(Ok(used)) => {
                let mut asking = JoinSet::new();
                // A question of anybody's renews what it has opened for all.
                let asker = |client| Some(client).filter(|_| nameserver.settings.opens_for_asker);
                let used: HashSet<_> = used.into_iter().map(|(client, ip)| (asker(client), ip)).collect();
                for (asker, ip) in used {
                    let Some(name) = steering.name(ip) else { continue };
                    // Whatever comes of asking, the address stays the name's.
                    let _ = steering.keep(&name);
                    let source = asker.map_or_else(Source::anybody, Source::at);
                    if asking.len() >= AT_ONCE {
                        asking.join_next().await;
                    }
                    asking.spawn(Arc::clone(&nameserver).renew(source, name, ip.is_ipv6()));
                }
                asking.join_all().await;
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot read which synthetic addresses flows go to"),
            // The runtime ends.
            Err(_) => return,
        }
    }
}

/// One `dns` listener, but for its sockets.
#[derive(Debug)]
pub struct Nameserver {
    /// Its name in the log, such as `dns:0.0.0.0:53`.
    pub name: Arc<str>,
    services: Arc<Services>,
    settings: NameserverSettings,
    /// Questions that are being answered: the client that asks most makes room.
    questions: Arc<Budget>,
    novelty: Novelty,
    teacher: Teacher,
    /// When it was last said that questions come back.
    warned_of_loop: Mutex<Option<Instant>>,
    /// What aliases in answers lead to, for which class of clients, and whose they are.
    targets: Cache<(HostName, Option<u64>), HostName, RandomState>,
    /// Zones that signed answers led through.
    zones: Cache<HostName, (), RandomState>,
    /// What clients have been answered, bounded in bytes.
    ready: Cache<ReadyKey, Ready, RandomState>,
}

/// An answer, and when servers gave it.
#[derive(Clone, Debug)]
struct Answer {
    reply: Arc<Reply>,
    answered: Option<Instant>,
}

impl Answer {
    fn of(reply: Reply) -> Self {
        Self { reply: Arc::new(reply), answered: None }
    }

    /// A message of at most `room` bytes to a client's.
    fn write(&self, query: &DnsQuery, message: &[u8], room: usize) -> Vec<u8> {
        let age = self.answered.map(|answered| answered.elapsed()).unwrap_or_default();
        let mut out = Vec::with_capacity(message.len() + self.reply.len());
        self.reply.write(query, message, room, age, &mut out);
        out
    }
}

/// Why a question is not answered with records, and how that is said.
struct Denial {
    refusal: Refusal,
    reply: Reply,
}

/// What can be said of a question without asking servers.
enum Prompt {
    Answer(Answer),
    Ask(Box<Judged>),
}

/// A question that may be asked of servers.
struct Judged {
    policy: Arc<Policy>,
    clearance: QuestionClearance,
    kind: RecordType,
    /// Whether the client wants signatures, and may have them.
    is_signed: bool,
    /// Whose question it is: a client's, or where many ask through one forwarder, that of the name.
    holder: IpAddr,
    /// What its answer is kept as; `None`: it is not.
    key: Option<ReadyKey>,
    since: Instant,
}

/// A question as clients of one class ask it under one policy: they are all answered alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ReadyKey {
    name: HostName,
    kind: RecordType,
    is_signed: bool,
    class: u64,
    policy: u64,
}

/// An answer that was judged and taught.
#[derive(Clone, Debug)]
struct Ready {
    answer: Answer,
    until: Instant,
}

impl Nameserver {
    #[must_use]
    pub fn new(name: Arc<str>, services: Arc<Services>, settings: NameserverSettings) -> Self {
        let questions = Budget::new(services.limits.dns_questions);
        let teacher = Teacher::new(Arc::clone(&services), settings.clone());
        let novelty = Novelty::new(services.limits.dns_new_names);
        let weight = |key: &ReadyKey, ready: &Ready| {
            u32::try_from(READY + key.name.as_str().len() + ready.answer.reply.len()).unwrap_or(u32::MAX)
        };
        let ready = Cache::builder().max_capacity(services.limits.dns_cache as u64 / 4).weigher(weight);
        let ready = ready.build_with_hasher(RandomState::default());
        let warned_of_loop = Mutex::default();
        let targets = Cache::builder().max_capacity(MOST_ZONES).time_to_live(settings.stands(Duration::ZERO));
        let targets = targets.build_with_hasher(RandomState::default());
        let zones = Cache::builder().max_capacity(MOST_ZONES).time_to_live(ZONES_LAST);
        let zones = zones.build_with_hasher(RandomState::default());
        Self { name, services, settings, questions, novelty, teacher, warned_of_loop, targets, zones, ready }
    }

    /// What can be said of a question without asking servers.
    fn at_once(&self, query: &DnsQuery, message: &[u8], client: SocketAddr) -> Prompt {
        let (since, client) = (Instant::now(), ClientAddr(client));
        let is_signed = self.settings.is_intact && query.edns.is_some_and(|edns| edns.dnssec_ok);
        // Resolvers ask for the root's servers as they start.
        if query.name == Name::Root
            && !is_of_dnssec(RecordType::from(query.kind))
            && query.class == CLASS_IN
            && query.edns.is_none_or(|edns| edns.version == 0)
        {
            return Prompt::Answer(Answer::of(Reply::bare(ResponseCode::NoError, None)));
        }
        let judged = subject(query).and_then(|(name, kind)| self.judge(&name, (kind, is_signed), client, since));
        let judged = judged.and_then(|prompt| match prompt {
            Prompt::Ask(judged) => {
                self.not_sent(message.get(query.question.clone()), client).map(|()| Prompt::Ask(judged))
            }
            answer => Ok(answer),
        });
        judged.unwrap_or_else(|denial| Prompt::Answer(self.deny(query, message, client, since, denial)))
    }

    /// Refuses a question of egret's own, which would wait for itself.
    fn not_sent(&self, question: Option<&[u8]>, client: ClientAddr) -> Result<(), Denial> {
        if !question.is_some_and(|question| self.services.dns.has_sent(question)) {
            return Ok(());
        }
        let client = client.ip();
        let nearest = format!(
            "this is egret's own question, which {client} has sent back: a server of dns.upstreams or dns.zones asks egret; let it ask another one"
        );
        let mut warned = self.warned_of_loop.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|last: Instant| last.elapsed() >= WARNS_EVERY) {
            *warned = Some(Instant::now());
            tracing::error!("DNS questions go in a circle: {nearest}");
        }
        Err(unanswered(
            Refusal::new(Reason::DnsFailed, Stage::Dns).with(Hint { nearest: Some(nearest), ..Hint::default() }),
        ))
    }

    /// Asks servers.
    async fn ask(&self, judged: &Judged, query: &DnsQuery, message: &[u8], client: SocketAddr) -> Answer {
        let client = ClientAddr(client);
        match self.resolve(judged).await {
            Ok(answer) => {
                self.services.access_log.metrics().dns_answered();
                answer
            }
            Err(denial) => self.deny(query, message, client, judged.since, denial),
        }
    }

    /// Room for a question that is asked of servers; `None` where its holder, or all together, have too many.
    fn room_for(&self, judged: &Judged) -> Option<Share> {
        let mut share = self.questions.share(judged.holder);
        share.grow(1).is_ok().then_some(share)
    }

    /// Asks servers for as long as the question keeps its room, and writes at most `room` bytes.
    async fn reply(
        &self,
        (judged, share): (&Judged, Share),
        query: &DnsQuery,
        message: &[u8],
        client: SocketAddr,
        room: usize,
    ) -> Vec<u8> {
        let eviction = share.eviction();
        tokio::select! {
            answer = self.ask(judged, query, message, client) => answer.write(query, message, room),
            () = eviction.evicted() => self.busy(query, message, client),
        }
    }

    /// What the sender of a message that holds no question reads, if anything.
    fn unreadable(&self, unreadable: Unreadable, client: SocketAddr) -> Option<Vec<u8>> {
        let reply = unreadable.reply()?;
        self.refuse(client, &Refusal::at_claim(Reason::BadRequest, &unreadable.to_string()));
        Some(reply.to_vec())
    }

    /// Logs a message that is too large to be read; its sender has no answer.
    fn too_large(&self, client: SocketAddr) {
        let why = format!("the message has more than {LARGEST} bytes; questions need some hundred");
        self.refuse(client, &Refusal::at_claim(Reason::BadRequest, &why));
    }

    /// Logs a refusal of what holds no question.
    fn refuse(&self, client: SocketAddr, refusal: &Refusal) {
        self.services.access_log.dns(&self.name, ClientAddr(client), None, Instant::now(), refusal);
    }

    /// There are too many questions of this client, or of all.
    fn busy(&self, query: &DnsQuery, message: &[u8], client: SocketAddr) -> Vec<u8> {
        let denial = unanswered(Refusal::new(Reason::RateLimited, Stage::Limit));
        let answer = self.deny(query, message, ClientAddr(client), Instant::now(), denial);
        answer.write(query, message, query.udp_room(MOST_OVER_UDP))
    }

    /// Judges a question, or finds the answer that clients of its class have been given.
    fn judge(
        &self,
        name: &HostName,
        (kind, is_signed): (RecordType, bool),
        client: ClientAddr,
        since: Instant,
    ) -> Result<Prompt, Denial> {
        let (policy, number) = self.services.policy.numbered();
        let source = self.source(client);
        let key = policy.class_of(&source);
        let key = key.map(|class| ReadyKey { name: name.clone(), kind, is_signed, class, policy: number });
        if let Some(ready) = key.as_ref().and_then(|key| self.ready.get(key)).filter(|ready| since < ready.until) {
            self.services.access_log.metrics().dns_answered();
            return Ok(Prompt::Answer(ready.answer));
        }
        if let Some(answer) = (kind == RecordType::PTR).then(|| self.reverse(&policy, &source, name)).flatten() {
            return Ok(Prompt::Answer(answer));
        }
        let by_name = policy.by_question(&source, name).or_else(|refusal| match refusal.reason {
            Reason::NoRule => self.through_alias(&policy, &source, name).ok_or(refusal),
            _ => Err(refusal),
        });
        let clearance = match by_name {
            Ok(clearance) => clearance,
            Err(Refusal { reason: Reason::NoRule, .. })
                if is_of_dnssec(kind) && self.has_keys(&policy, &source, name) =>
            {
                policy.for_keys_of(&source, name)
            }
            // Resolvers ask for what is above a name on their way to it.
            Err(Refusal { reason: Reason::NoRule, .. }) if policy.is_above_listed(&source, name) => {
                self.services.access_log.metrics().dns_answered();
                return Ok(Prompt::Answer(Answer::of(self.empty(name, ResponseCode::NoError, self.soa(name)))));
            }
            Err(refusal) => return Err(self.refused(policy.is_above_listed(&source, name), name, refusal)),
        };
        if !self.settings.answers(kind) {
            let words = not_answered(kind);
            let rule = Some(Arc::clone(&clearance.matched_rule().rule));
            let hint = Hint { rule, nearest: Some(words), ..Hint::default() };
            return Err(self.filtered(name, Refusal::new(Reason::QtypeDenied, Stage::Name).with(hint)));
        }
        if let Some(wildcard) = may_be_told(&clearance)
            && !self.novelty.permits(name, wildcard, network_of(client.ip()), since)
        {
            return Err(unanswered(too_many_new(&clearance)));
        }
        let holder =
            if self.settings.is_forwarder(client.ip()) { self.teacher.holder_of(name.as_str()) } else { client.ip() };
        Ok(Prompt::Ask(Box::new(Judged { policy, clearance, kind, is_signed, holder, key, since })))
    }

    /// Asks for a name as its clients would.
    async fn renew(self: Arc<Self>, source: Source, name: HostName, is_v6: bool) {
        let policy = self.services.policy.get();
        let Ok(clearance) = policy.by_question(&source, &name) else { return };
        let kind = if is_v6 { RecordType::AAAA } else { RecordType::A };
        let holder = self.teacher.holder_of(name.as_str());
        let (is_signed, key, since) = (false, None, Instant::now());
        let judged = Judged { policy, clearance, kind, is_signed, holder, key, since };
        // What it led to before stays open until its time is over.
        drop(self.resolve(&judged).await);
    }

    /// Asks servers, and keeps the answer for clients of the same class.
    async fn resolve(&self, judged: &Judged) -> Result<Answer, Denial> {
        let Judged { policy, clearance, kind, is_signed, holder, key, .. } = judged;
        let name = clearance.name();
        let asking = self.services.dns.records(clearance, (*kind, *is_signed), *holder);
        let in_time = timeout_at(judged.since + PATIENCE_OF_CLIENTS, asking).await;
        let late = |_| Err(Refusal::new(Reason::DnsTimeout, Stage::Dns));
        let records = in_time.unwrap_or_else(late).map_err(unanswered)?;
        if may_be_told(clearance).is_some() && records.set.code == ResponseCode::NoError {
            self.novelty.know(name);
        }
        // A disk that hangs keeps no question.
        let telling = timeout_at(judged.since + PATIENCE_OF_CLIENTS, self.tell(policy, clearance, *kind, &records));
        let late = |_| Err(unanswered(Refusal::new(Reason::Internal, Stage::Limit)));
        let answer = telling.await.unwrap_or_else(late)?;
        // What opens for one client is not another one's to read.
        let is_own = self.settings.opens_for_asker && clearance.is_for_network();
        if let Some(key) = key.as_ref().filter(|_| !records.is_stale && !is_own) {
            // In the last tenth of its time a question is seen, and has the name asked for again.
            let now = Instant::now();
            let [nearly, over] = [records.life * 9 / 10, records.life].map(|life| records.answered + life);
            let until = if now < nearly { nearly } else { over.min(now + MOMENT) };
            let until = until.min(now + self.teacher.acknowledged());
            self.ready.insert(key.clone(), Ready { answer: answer.clone(), until });
        }
        Ok(answer)
    }

    /// Shapes and teaches an answer.
    async fn tell(
        &self,
        policy: &Policy,
        clearance: &QuestionClearance,
        kind: RecordType,
        records: &Records,
    ) -> Result<Answer, Denial> {
        let name = clearance.name();
        let question =
            absolute(clearance.asked()).map_err(|_| unanswered(Refusal::new(Reason::Internal, Stage::Dns)))?;
        let steering = self.services.steering.as_ref();
        let steered = steering.and_then(|steering| Some((steering, policy.steers(clearance)?)));
        // What is signed is changed by nothing.
        let is_intact = self.settings.is_intact && records.set.is_signed() && !leads_on(kind);
        let steered = steered.filter(|_| !is_intact);
        let own =
            self.settings.own_answers.as_ref().filter(|own| policy.is_read_at(clearance, &own.ports) && !is_intact);
        let has_hints = steered.is_none() && own.is_none();
        let judge = Judge { policy, clearance, settings: &self.settings, has_hints, is_intact };
        let Shaped { code, answers, authorities, addresses } =
            judge.shape(&question, kind, &records.set).map_err(|refusal| {
                if refusal.stage == Stage::Dns { unanswered(refusal) } else { self.filtered(name, refusal) }
            })?;
        let is_address = matches!(kind, RecordType::A | RecordType::AAAA) && !addresses.is_empty();
        let steered = steered.filter(|_| is_address).and_then(|(steering, steers)| {
            let behind = policy.forwardable(name, &addresses);
            let leads_somewhere =
                (steers.is_forwarded && !behind.is_empty()) || policy.could_dial(clearance, &addresses);
            leads_somewhere.then_some((steering, steers, behind))
        });
        let own = own.filter(|_| is_address && policy.could_dial(clearance, &addresses));
        let ttl = answers.iter().map(|record| record.ttl).min().unwrap_or(0);
        let record = |ip| Record::from_rdata(question.clone(), ttl, address_data(ip));
        let answers = match steered {
            None if own.is_some() => {
                let of_kind = |ip: &IpAddr| ip.is_ipv6() == (kind == RecordType::AAAA);
                own.iter().flat_map(|own| &own.addresses).copied().filter(of_kind).map(record).collect()
            }
            Some((steering, steers, behind)) => {
                let address = self.steer(steering, steers, clearance, kind).await.map_err(unanswered)?;
                if let Some(address) = address {
                    let taught = self.teacher.teach_steered(policy, clearance, address, &behind, records.life).await;
                    taught.map_err(unanswered)?;
                }
                address.map(record).into_iter().collect()
            }
            None => {
                self.teacher.teach(policy, clearance, &addresses, records.life).await.map_err(unanswered)?;
                answers
            }
        };
        if is_intact {
            // A client that validates the answer asks for the keys of every zone on its way.
            let owners = answers.iter().filter_map(|record| host(&record.name));
            let zones = owners.flat_map(|owner| owner.suffixes().filter_map(zone).collect::<Vec<_>>());
            zones.for_each(|zone| self.zones.insert(zone, ()));
        }
        if is_intact || self.settings.keeps_chain {
            self.lead_on(policy, clearance, &answers);
        }
        let authorities = match (answers.is_empty(), authorities.is_empty()) {
            (true, true) => self.soa(name).into_iter().collect(),
            _ => authorities,
        };
        let reply = Reply::of(&question, kind, code, answers, authorities);
        let reply = reply.ok_or_else(|| unanswered(Refusal::new(Reason::BadDns, Stage::Dns)))?;
        let reply = if records.is_stale { reply.stale() } else { reply };
        Ok(Answer { reply: Arc::new(reply), answered: Some(records.answered) })
    }

    /// The synthetic address that stands for a name, in place of its own; `None`: the pool has none of the family.
    async fn steer(
        &self,
        steering: &Steering,
        steers: Steers,
        clearance: &QuestionClearance,
        kind: RecordType,
    ) -> Result<Option<IpAddr>, Refusal> {
        let wanted = Wanted {
            name: clearance.name().clone(),
            wildcard: clearance.wildcard().map(Into::into),
            asker: clearance.source().ip.map(network_of),
            is_claimed: steers.is_claimed,
        };
        steering.address(&wanted, kind == RecordType::AAAA).await
    }

    /// The answer to a question for the name of a synthetic address; `None`: it is about another one.
    fn reverse(&self, policy: &Policy, source: &Source, name: &HostName) -> Option<Answer> {
        let steering = self.services.steering.as_ref()?;
        let question = absolute(name).ok()?;
        let net = question.parse_arpa_name().ok().filter(|net| steering.pool().contains(net.network()))?;
        let found = steering.name(net.addr()).filter(|_| net.prefix_len() == net.max_prefix_len());
        // Other clients' names are theirs.
        let found = found.filter(|found| policy.by_question(source, found).is_ok());
        let ttl = u32::try_from(self.settings.refused_ttl.as_secs()).unwrap_or(u32::MAX);
        let record = |found| Some(Record::from_rdata(question.clone(), ttl, RData::PTR(PTR(absolute(found).ok()?))));
        let reply = found
            .as_ref()
            .and_then(record)
            .and_then(|record| Reply::of(&question, RecordType::PTR, ResponseCode::NoError, vec![record], Vec::new()));
        self.services.access_log.metrics().dns_answered();
        Some(Answer::of(reply.unwrap_or_else(|| self.empty(name, ResponseCode::NXDomain, self.soa(name)))))
    }

    /// Whom a question is judged for: a forwarder's, for anybody.
    fn source(&self, client: ClientAddr) -> Source {
        let ip = client.ip();
        if self.settings.is_forwarder(ip) { Source::anybody() } else { Source::at(ip) }
    }

    /// Remembers what the aliases in an answer lead to: clients of the class may ask for that, too.
    fn lead_on(&self, policy: &Policy, clearance: &QuestionClearance, answers: &[Record]) {
        let targets = answers.iter().filter_map(|record| match &record.data {
            RData::CNAME(target) => host(&target.0),
            _ => None,
        });
        let class = policy.class_of(clearance.source());
        targets.for_each(|target| self.targets.insert((target, class), clearance.name().clone()));
    }

    /// Leave to ask for what an alias in an answer leads to, where its name may still be asked for.
    fn through_alias(&self, policy: &Policy, source: &Source, target: &HostName) -> Option<QuestionClearance> {
        let name = self.targets.get(&(target.clone(), policy.class_of(source)))?;
        Some(policy.by_question(source, &name).ok()?.through(target.clone()))
    }

    /// Whether a client may ask for the keys of a zone: it needs them to validate what is passed on unchanged.
    fn has_keys(&self, policy: &Policy, source: &Source, zone: &HostName) -> bool {
        self.settings.is_intact
            && (zone.as_str().is_empty() || policy.is_zone_above_listed(source, zone) || self.zones.contains_key(zone))
    }

    /// A name that may not be asked for does not exist, unless names under it do: then it has nothing.
    fn refused(&self, is_above: bool, name: &HostName, refusal: Refusal) -> Denial {
        let code = match self.settings.refused {
            _ if is_above => ResponseCode::NoError,
            RefusedNames::NoName => ResponseCode::NXDomain,
            RefusedNames::Refused => ResponseCode::Refused,
        };
        let error = ExtendedError::blocked(refusal.reason);
        let soa = if code == ResponseCode::Refused { None } else { self.soa(name) };
        Denial { reply: self.empty(name, code, soa).with(error), refusal }
    }

    /// A name that may be asked for, and has nothing of the kind.
    fn filtered(&self, name: &HostName, refusal: Refusal) -> Denial {
        // What servers and the guard found out is not a client's to know.
        let reason = if refusal.stage.is_spoken() { refusal.reason } else { Reason::Unreachable };
        let reply = self.empty(name, ResponseCode::NoError, self.soa(name)).with(ExtendedError::filtered(reason));
        Denial { reply, refusal }
    }

    fn empty(&self, name: &HostName, code: ResponseCode, soa: Option<Record>) -> Reply {
        let reply = absolute(name)
            .ok()
            .and_then(|name| Reply::of(&name, RecordType::A, code, Vec::new(), soa.into_iter().collect()));
        reply.unwrap_or_else(|| Reply::bare(code, None))
    }

    /// An SOA record of egret's own: for how long clients may keep that there is nothing (RFC 2308 §5).
    fn soa(&self, name: &HostName) -> Option<Record> {
        let ttl = u32::try_from(self.settings.refused_ttl.as_secs()).unwrap_or(u32::MAX);
        let zone = absolute(name).ok()?.base_name();
        let [server, mailbox] = ["egret.invalid.", "nobody.invalid."].map(DnsName::from_ascii);
        let soa = SOA::new(server.ok()?, mailbox.ok()?, 1, 3600, 600, 86_400, ttl);
        Some(Record::from_rdata(zone, ttl, RData::SOA(soa)))
    }

    fn deny(&self, query: &DnsQuery, message: &[u8], client: ClientAddr, since: Instant, denial: Denial) -> Answer {
        let Denial { refusal, reply } = denial;
        let raw;
        let name = match &query.name {
            Name::Host(name) => QuestionName::Name(name),
            Name::Root => QuestionName::Raw(b"."),
            Name::Odd(_) => {
                raw = text_of(message.get(query.question.clone()).unwrap_or_default());
                QuestionName::Raw(&raw)
            }
        };
        self.services.access_log.dns(&self.name, client, Some(&name), since, &refusal);
        Answer::of(reply)
    }
}

const fn address_data(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// Whether records of a kind lead to other names and addresses, so that they are never passed on unseen.
const fn leads_on(kind: RecordType) -> bool {
    matches!(kind, RecordType::HTTPS | RecordType::SVCB | RecordType::SRV)
}

fn zone(text: &str) -> Option<HostName> {
    HostName::from_wire(text.as_bytes()).ok()
}

/// The wildcard by whose names a client might tell something. With `filter: off` every name would be one.
fn may_be_told(clearance: &QuestionClearance) -> Option<&str> {
    clearance.wildcard().filter(|wildcard| *wildcard != "*")
}

/// What a question is about, where it can be answered at all.
fn subject(query: &DnsQuery) -> Result<(HostName, RecordType), Denial> {
    let denied = |reason, code| {
        let refusal = Refusal::new(reason, Stage::Claim);
        Denial { reply: Reply::bare(code, Some(ExtendedError::blocked(reason))), refusal }
    };
    if query.edns.is_some_and(|edns| edns.version > 0) {
        return Err(denied(Reason::BadRequest, ResponseCode::BADVERS));
    }
    if ![CLASS_IN, CLASS_ANY].contains(&query.class) {
        return Err(denied(Reason::BadRequest, ResponseCode::Refused));
    }
    match &query.name {
        Name::Host(name) => Ok((name.clone(), RecordType::from(query.kind))),
        Name::Root if is_of_dnssec(RecordType::from(query.kind)) => {
            Ok((HostName::root(), RecordType::from(query.kind)))
        }
        Name::Root => Err(denied(Reason::NoRule, ResponseCode::NoError)),
        Name::Odd(_) => Err(denied(Reason::BadHost, ResponseCode::NXDomain)),
    }
}

/// More is said in new names than an allowance of `limits.dns_new_names` covers.
fn too_many_new(clearance: &QuestionClearance) -> Refusal {
    let MatchedRule { rule, pattern } = clearance.matched_rule().clone();
    let nearest = "the client asks for more new names under the wildcard than limits.dns_new_names allows; data can be sent by such names";
    let hint = Hint { rule: Some(rule), pattern, nearest: Some(nearest.to_owned()), ..Hint::default() };
    Refusal::new(Reason::RateLimited, Stage::Limit).with(hint)
}

/// There is no answer, for now.
fn unanswered(refusal: Refusal) -> Denial {
    Denial { reply: Reply::bare(ResponseCode::ServFail, Some(ExtendedError::unanswered(refusal.reason))), refusal }
}

/// Why records of a kind are not answered. Those from 128 to 255 are operations (RFC 6895 §3.1).
fn not_answered(kind: RecordType) -> String {
    let number = u16::from(kind);
    let name = match kind {
        RecordType::Unknown(_) => format!("TYPE{number}"),
        known => known.to_string(),
    };
    match number {
        0 | 41 | 128..=255 => format!("{name} is not a kind of record that a name has"),
        _ => format!("{name} records are not answered; list the kind in dns.types where clients need it"),
    }
}

/// A question's name as text, without its lengths. A dot amid a label is escaped (RFC 4343 §2.1).
fn text_of(question: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut rest = question;
    while let Some((len, more)) = rest.split_first().filter(|(len, _)| **len > 0) {
        let Some((label, more)) = more.split_at_checked(usize::from(*len)) else { break };
        for byte in label {
            text.extend((*byte == b'.').then_some(b'\\'));
            text.push(*byte);
        }
        text.push(b'.');
        rest = more;
    }
    text
}
