//! Who may go where. Asked three times with growing evidence: the claim, the sighting, the addresses.
//!
//! ```text
//! Claim --by_claim--> Expectation --by_sighting--> Clearance --by_address--> Permit
//!            `--- a network rule: Straight(Clearance), nothing to peek ---'
//! ```
//!
//! The only maker of a [`Clearance`], without which nothing is resolved, and of a [`Permit`], without which
//! nothing is dialled. Precedence: network deny, network allow, application deny, application allow, else
//! denied. No clock, no socket, no log; what changes from outside is handed in ([`kept`], [`OwnAddresses`]).

pub mod explain;
pub mod guard;
pub mod hosts;
pub mod kept;
mod nearest;
mod own;
pub mod paths;
pub mod pattern;
pub mod prefixes;
pub mod rule;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::Ipv6Net;
use tokio::time::Instant;

use crate::answers::Answers;
use crate::claim::{Asker, Claim, Target, Via};
use crate::ending::{Hint, Reason, Refusal, Stage};
use crate::name::{Host, HostName};
use crate::peek::client_hello::{ClientHello, Sni};
use crate::peek::http_head::{Overrides, RequestHead, RequestTarget};
use crate::peek::{Expected, Sighting};
use guard::Judgement;
use hosts::{HostIndex, PatternId};
use kept::Kept;
use own::Own;
pub use own::OwnAddresses;
use rule::{Action, AppProtocol, AppRule, Ech, InnerName, NetKind, NetRule, Reach};

/// The compiled policy.
#[derive(Debug)]
pub struct Policy {
    apps: Vec<AppRule>,
    app_hosts: HostIndex,
    nets: Vec<NetRule>,
    net_hosts: HostIndex,
    /// What application rules that allow expect on a port.
    ports: HashMap<u16, Expected>,
    nat64: Option<Ipv6Net>,
    own: Arc<OwnAddresses>,
}

/// What the claim leaves to be shown by the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Expectation {
    expected: Expected,
}

impl Expectation {
    #[must_use]
    pub const fn expected(&self) -> Expected {
        self.expected
    }

    fn admits(self, sighting: &Sighting) -> Result<(), Refusal> {
        match sighting {
            Sighting::Tls(_) if !self.expected.tls => Err(Refusal::new(Reason::BadRequest, Stage::Peek)),
            Sighting::Http(_) if !self.expected.http => Err(Refusal::new(Reason::NotTls, Stage::Peek)),
            Sighting::Tls(_) | Sighting::Http(_) => Ok(()),
        }
    }
}

/// The way on after the claim.
#[derive(Clone, Debug)]
pub enum Passage {
    /// The bytes must show a name.
    Peek(Expectation),
    /// A network rule covers the claim: nothing to peek.
    Straight(Clearance),
}

/// Leave to resolve one name, or to use one literal address. Made by [`Policy`] alone.
#[derive(Clone, Debug)]
pub struct Clearance {
    destination: Destination,
    port: u16,
    /// The client's address family goes first.
    prefers_v6: bool,
    /// Where the client wanted to go itself, where that is known.
    dst: Option<IpAddr>,
    asker: Asker,
    /// Never empty; in the order of the configuration.
    grants: Vec<Grant>,
}

/// What a clearance is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Name(HostName),
    Literal(IpAddr),
}

/// One rule that allows, and how it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grant {
    App {
        rule: u32,
        pattern: PatternId,
    },
    NetAddress {
        rule: u32,
    },
    /// A name that egret keeps resolved for the rule.
    NetKept {
        rule: u32,
    },
    NetName {
        rule: u32,
        pattern: PatternId,
    },
}

impl Clearance {
    #[must_use]
    pub const fn destination(&self) -> &Destination {
        &self.destination
    }

    #[must_use]
    pub const fn is_name(&self) -> bool {
        matches!(self.destination, Destination::Name(_))
    }

    /// Where the client wanted to go itself, where that is known.
    #[must_use]
    pub const fn dst(&self) -> Option<IpAddr> {
        self.dst
    }

    /// The authorized client.
    #[must_use]
    pub fn client(&self) -> IpAddr {
        self.asker.ip.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
    }
}

/// Leave to dial these addresses and no other. Made by [`Policy::by_address`] alone.
#[derive(Clone, Debug)]
pub struct Permit {
    destination: Destination,
    addresses: Vec<SocketAddr>,
    because: Because,
}

impl Permit {
    /// The judged addresses, in the order to try them.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    #[must_use]
    pub const fn because(&self) -> &Because {
        &self.because
    }

    /// Whether this is leave for what another one was given for: the same name or literal, by the same rule, to
    /// the same addresses.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let sorted = |permit: &Self| {
            let mut addresses = permit.addresses.clone();
            addresses.sort_unstable();
            addresses
        };
        self.destination == other.destination && self.because == other.because && sorted(self) == sorted(other)
    }
}

/// The rule behind a decision, for the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Because {
    pub rule: Arc<str>,
    pub pattern: Option<String>,
}

/// What is known about a connection when its name is judged.
#[derive(Clone, Copy, Debug)]
struct Evidence<'a> {
    asker: &'a Asker,
    port: u16,
    protocol: AppProtocol,
    alpn: Option<&'a [Box<[u8]>]>,
    ech: bool,
    inner: InnerName,
    /// `None` before a request has been read.
    request: Option<Request<'a>>,
}

/// What rules may ask of a plain HTTP request.
#[derive(Clone, Copy, Debug)]
struct Request<'a> {
    /// `None`: any method (`explain`).
    method: Option<&'a str>,
    /// As sent, with its query; a request without one fits no rule with `paths`.
    path: Option<&'a str>,
    overrides: Overrides,
    upgrades: bool,
}

impl<'a> From<&'a RequestHead> for Request<'a> {
    fn from(head: &'a RequestHead) -> Self {
        Self {
            method: Some(&head.method),
            path: head.path(),
            overrides: head.overrides,
            upgrades: head.upgrade.is_some(),
        }
    }
}

/// How far a name got through the rules that list it; the furthest one is the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Listed,
    Source,
    Port,
    Method,
    Path,
    Upgrade,
    Alpn,
}

impl Policy {
    /// Compiles checked rules.
    #[must_use]
    pub fn compile(apps: Vec<AppRule>, nets: Vec<NetRule>, nat64: Option<Ipv6Net>, own: Arc<OwnAddresses>) -> Self {
        let written = || apps.iter().flat_map(|rule| &rule.fqdns).map(|pattern| pattern.as_str().len());
        let mut app_hosts = HostIndex::with_capacity(written().count(), written().sum());
        let mut ports: HashMap<u16, Expected> = HashMap::new();
        let mut apps = apps;
        for (id, rule) in (0..).zip(&mut apps) {
            // The index keeps the text; a second copy per pattern would double a large list.
            for pattern in std::mem::take(&mut rule.fqdns) {
                app_hosts.add(&pattern, id);
            }
            for app in rule.protocols.iter().filter(|_| rule.action == Action::Allow) {
                let expected = ports.entry(app.port).or_insert(Expected { tls: false, http: false });
                match app.protocol {
                    AppProtocol::Https => expected.tls = true,
                    AppProtocol::Http => expected.http = true,
                }
            }
        }
        let mut net_hosts = HostIndex::default();
        for (id, rule) in (0..).zip(&nets) {
            for pattern in &rule.fqdns {
                net_hosts.add(pattern, id);
            }
        }
        Self { apps, app_hosts, nets, net_hosts, ports, nat64, own }
    }

    /// Rules and patterns, for the start-up screen.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let decides =
            |pattern: &u32| self.apps.get(self.app_hosts.rule(*pattern) as usize).is_some_and(AppRule::decides);
        let rules = self.apps.iter().filter(|rule| rule.decides()).count() + self.nets.len();
        (rules, self.app_hosts.ids().filter(decides).count() + self.net_hosts.len())
    }

    /// A name and port that any client may reach by TLS, for the start-up screen.
    #[must_use]
    pub fn example(&self) -> Option<(&str, u16)> {
        self.app_hosts.ids().find_map(|pattern| {
            let rule = self.apps.get(self.app_hosts.rule(pattern) as usize)?;
            let text = self.app_hosts.text(pattern);
            let plain = !text.starts_with('.') && !text.contains(['*', '?', '[', '{']);
            let open = rule.action == Action::Allow && rule.sources.is_everyone() && plain;
            let port = rule.protocols.iter().find(|app| app.protocol == AppProtocol::Https)?.port;
            open.then_some((text, port))
        })
    }

    /// Judges what a client asks for, before its bytes are read.
    ///
    /// # Errors
    /// A refusal at stage `name` or `network`.
    pub fn by_claim(&self, claim: &Claim) -> Result<Passage, Refusal> {
        let asker = &claim.asker();
        match &claim.target {
            Target::Unnamed => Ok(Passage::Peek(self.expectation(claim.port))),
            Target::Name(name) => {
                let grants = self.net_by_name(asker, name, |rule| rule.takes_tcp(claim.port));
                if !grants.is_empty() {
                    return Ok(Passage::Straight(clearance(claim, Destination::Name(name.clone()), grants)));
                }
                self.expect_name(asker, name, claim.port, claim.via).map(Passage::Peek)
            }
            Target::Address(dst) => {
                let ip = dst.0.ip();
                let grants = self.net_by_address(asker, ip, claim.port)?;
                if !grants.is_empty() {
                    return Ok(Passage::Straight(clearance(claim, Destination::Literal(ip), grants)));
                }
                if claim.via == Via::Absolute {
                    return Err(Refusal::new(Reason::IpLiteral, Stage::Name));
                }
                if self.ports.contains_key(&claim.port) {
                    return Ok(Passage::Peek(self.expectation(claim.port)));
                }
                Err(Refusal::new(Reason::NoRule, Stage::Network).with(self.address_hint(
                    asker,
                    ip,
                    claim.port,
                    NetKind::Tcp,
                )))
            }
        }
    }

    /// Judges what the bytes show. May narrow what the claim left open, never widen it.
    ///
    /// # Errors
    /// A refusal at stage `name` or `http`.
    pub fn by_sighting(
        &self,
        claim: &Claim,
        expectation: Expectation,
        sighting: &Sighting,
    ) -> Result<Clearance, Refusal> {
        expectation.admits(sighting)?;
        let claimed_address = matches!(claim.target, Target::Address(_));
        let base = Evidence {
            asker: &claim.asker(),
            port: claim.port,
            protocol: AppProtocol::Http,
            alpn: None,
            ech: false,
            inner: InnerName::Same,
            request: None,
        };
        let (seen, evidence) = match sighting {
            Sighting::Tls(hello) => {
                let evidence =
                    Evidence { protocol: AppProtocol::Https, alpn: Some(&hello.alpn), ech: hello.ech, ..base };
                let seen = match (name_of_hello(hello), claim.name()) {
                    // Some clients send none for names that they find odd.
                    (Err(refusal @ Refusal { reason: Reason::NoSni, .. }), Some(claimed)) => {
                        let grants = self.judge(claimed, &Evidence { inner: InnerName::Optional, ..evidence });
                        let grants = grants.map_err(|_| refusal)?;
                        return Ok(clearance(claim, Destination::Name(claimed.clone()), grants));
                    }
                    (seen, _) => seen,
                };
                let by_address = |refusal| if claimed_address { nearest::by_address(refusal) } else { refusal };
                (seen.map_err(by_address)?, evidence)
            }
            Sighting::Http(head) => {
                (name_of_request(head, claim)?, Evidence { request: Some(Request::from(&**head)), ..base })
            }
        };
        let Some(claimed) = claim.name().filter(|claimed| *claimed != seen) else {
            return Ok(clearance(claim, Destination::Name(seen.clone()), self.judge(seen, &evidence)?));
        };
        let other = Evidence { inner: InnerName::AnyListed, ..evidence };
        let mismatch = |_| Refusal::new(Reason::NameMismatch, Stage::Name);
        // `sni: any_listed` is about TLS; a Host that is not the one asked for is never meant.
        if evidence.protocol == AppProtocol::Http {
            return Err(mismatch(()));
        }
        let grants = self.judge(claimed, &other).map_err(|_| mismatch(()))?;
        self.judge(seen, &evidence)?;
        Ok(clearance(claim, Destination::Name(claimed.clone()), grants))
    }

    /// Judges the addresses behind a clearance. All of them: an answer that mixes permitted and denied ones
    /// is refused whole.
    ///
    /// # Errors
    /// A refusal at stage `address`, from the first rule that would have allowed the name.
    pub fn by_address(&self, clearance: &Clearance, answers: &Answers) -> Result<Permit, Refusal> {
        let mut first = None;
        for grant in &clearance.grants {
            match self.addresses_for(*grant, clearance, answers) {
                Ok(addresses) => {
                    return Ok(Permit {
                        destination: clearance.destination.clone(),
                        addresses: interleave(addresses, clearance.port, clearance.prefers_v6),
                        because: self.because(*grant),
                    });
                }
                Err(refusal) => {
                    first.get_or_insert(refusal);
                }
            }
        }
        Err(first.unwrap_or(Refusal::new(Reason::Internal, Stage::Address)))
    }

    /// Network rules, in the order of the configuration.
    #[must_use]
    pub fn network_rules(&self) -> &[NetRule] {
        &self.nets
    }

    /// Application rules, without their names.
    #[must_use]
    pub fn application_rules(&self) -> &[AppRule] {
        &self.apps
    }

    #[must_use]
    pub fn own(&self) -> &OwnAddresses {
        &self.own
    }

    #[must_use]
    pub const fn nat64(&self) -> Option<Ipv6Net> {
        self.nat64
    }

    /// The names to keep resolved, each with the leave to do so.
    pub fn kept(&self) -> impl Iterator<Item = (Arc<Kept>, Clearance)> + '_ {
        let mut seen: Vec<&Arc<Kept>> = Vec::new();
        let all = (0..).zip(&self.nets).flat_map(|(id, rule)| rule.kept.iter().map(move |kept| (id, kept)));
        all.filter_map(move |(id, kept)| {
            // One name may be kept twice, for rules that lead to different places.
            if seen.iter().any(|other| Arc::ptr_eq(other, kept)) {
                return None;
            }
            seen.push(kept);
            let clearance = Clearance {
                destination: Destination::Name(kept.name().clone()),
                port: 0,
                prefers_v6: false,
                dst: None,
                asker: Asker::at(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
                grants: vec![Grant::NetKept { rule: id }],
            };
            Some((Arc::clone(kept), clearance))
        })
    }

    /// Takes over what another policy has found for the names that both keep, as far as this one lets them lead there.
    pub fn inherit(&self, old: &Self) {
        for (kept, clearance) in self.kept() {
            // By any rule: each may let the name lead elsewhere, and this one to all of those places.
            let known = old.nets.iter().flat_map(|rule| &rule.kept).filter(|other| other.name() == kept.name());
            let mut addresses: BTreeMap<IpAddr, Instant> = BTreeMap::new();
            for (ip, seen) in known.flat_map(|other| other.addresses()) {
                let last = addresses.entry(ip).or_insert(seen);
                *last = seen.max(*last);
            }
            addresses.retain(|ip, _| self.by_address(&clearance, &Answers::literal(*ip)).is_ok());
            kept.set(addresses.into_iter().collect());
        }
    }

    /// Whom the rule of this name is for, where that is not everyone.
    #[must_use]
    pub fn whom(&self, rule: &str) -> Option<String> {
        let apps = self.apps.iter().map(|app| (&app.name, &app.sources));
        let mut all = apps.chain(self.nets.iter().map(|net| (&net.name, &net.sources)));
        let (_, sources) = all.find(|(name, _)| ***name == *rule)?;
        (!sources.is_everyone()).then(|| sources.to_string())
    }

    /// The rule a clearance rests on, for the record of what is refused later.
    #[must_use]
    pub fn because_of(&self, clearance: &Clearance) -> Option<Because> {
        clearance.grants.first().map(|grant| self.because(*grant))
    }

    /// What a port's rules expect; where none uses it, both, so that the record can still tell the name.
    fn expectation(&self, port: u16) -> Expectation {
        Expectation { expected: self.ports.get(&port).copied().unwrap_or(Expected { tls: true, http: true }) }
    }

    /// Whether a named claim could pass with some bytes, and which.
    fn expect_name(&self, asker: &Asker, name: &HostName, port: u16, via: Via) -> Result<Expectation, Refusal> {
        let judged = |protocol| {
            let inner = InnerName::Same;
            let evidence = Evidence { asker, port, protocol, alpn: None, ech: false, inner, request: None };
            self.judge(name, &evidence)
        };
        // Absolute-form is plain HTTP already.
        let tls = if via == Via::Absolute { None } else { Some(judged(AppProtocol::Https)) };
        let http = judged(AppProtocol::Http);
        match (tls, http) {
            (Some(Err(tls)), Err(http)) => Err(further(tls, http)),
            (None, Err(http)) => Err(http),
            (tls, http) => {
                Ok(Expectation { expected: Expected { tls: matches!(tls, Some(Ok(_))), http: http.is_ok() } })
            }
        }
    }

    /// Application deny, then application allow.
    fn judge(&self, name: &HostName, evidence: &Evidence<'_>) -> Result<Vec<Grant>, Refusal> {
        let mut grants: Vec<Grant> = Vec::new();
        let mut denied = None;
        let mut closed: Option<(u32, &Arc<str>, &Arc<str>)> = None;
        let mut missed: Option<(Progress, Grant)> = None;
        self.app_hosts.matches(name, |pattern| {
            let id = self.app_hosts.rule(pattern);
            let Some(rule) = self.apps.get(id as usize).filter(|rule| !rule.excepts(name)) else { return };
            let grant = Grant::App { rule: id, pattern };
            match (&rule.action, conditions(rule, evidence)) {
                (Action::Deny, Ok(())) => denied = Some(grant),
                (Action::Deny, Err(_)) => {}
                (Action::Close(why), _) if rule.sources.include(evidence.asker) => {
                    // The first in the file, as everywhere.
                    if closed.is_none_or(|(first, ..)| id < first) {
                        closed = Some((id, &rule.name, why));
                    }
                }
                (Action::Close(_), _) => {}
                (Action::Allow, Ok(())) => grants.push(grant),
                (Action::Allow, Err(progress)) => {
                    if missed.is_none_or(|(furthest, _)| progress > furthest) {
                        missed = Some((progress, grant));
                    }
                }
            }
        });
        if let Some(grant) = denied {
            return Err(self.refusal_by(Reason::RuleDenied, Stage::Name, grant));
        }
        if grants.is_empty() {
            let mut refusal = self.miss(name, evidence, missed);
            if let (Some(hint), Some((_, rule, why)), None) = (&mut refusal.hint, closed, missed) {
                hint.nearest = Some(if why.starts_with("expected") {
                    // Nothing depends on it, so there is nothing to mend.
                    hint.fix = None;
                    why.to_string()
                } else {
                    format!("rule {rule} is closed: {why}")
                });
            }
            return Err(refusal);
        }
        // First in the file, first asked where its addresses may lead; a wildcard's twin counts once.
        grants.sort_by_key(|grant| grant.rule());
        grants.dedup_by_key(|grant| grant.rule());
        Ok(grants)
    }

    fn miss(&self, name: &HostName, evidence: &Evidence<'_>, missed: Option<(Progress, Grant)>) -> Refusal {
        let Some((progress, grant)) = missed else {
            return Refusal::new(Reason::NoRule, Stage::Name).with(self.name_hint(name, evidence));
        };
        let reason = match progress {
            Progress::Listed => Reason::SourceNotAllowed,
            Progress::Source => Reason::PortNotAllowed,
            Progress::Port => Reason::AlpnNotAllowed,
            Progress::Method => Reason::MethodNotAllowed,
            Progress::Path => Reason::PathNotAllowed,
            Progress::Upgrade => Reason::UpgradeDenied,
            Progress::Alpn if evidence.ech => Reason::EchDenied,
            Progress::Alpn => Reason::NameMismatch,
        };
        let of_request = matches!(progress, Progress::Method | Progress::Path | Progress::Upgrade);
        let stage = if of_request { Stage::Http } else { Stage::Name };
        let mut refusal = self.refusal_by(reason, stage, grant);
        if let Some(hint) = &mut refusal.hint {
            hint.nearest = self.why_missed(grant, progress, evidence);
        }
        refusal
    }

    fn refusal_by(&self, reason: Reason, stage: Stage, grant: Grant) -> Refusal {
        let Because { rule, pattern } = self.because(grant);
        Refusal::new(reason, stage).with(Hint { rule: Some(rule), pattern, ..Hint::default() })
    }

    fn because(&self, grant: Grant) -> Because {
        let rule = match grant {
            Grant::App { rule, .. } => self.apps.get(rule as usize).map(|r| &r.name),
            Grant::NetAddress { rule } | Grant::NetKept { rule } | Grant::NetName { rule, .. } => {
                self.nets.get(rule as usize).map(|r| &r.name)
            }
        };
        let pattern = match grant {
            Grant::App { pattern, .. } => Some(self.app_hosts.text(pattern).to_owned()),
            Grant::NetName { pattern, .. } => Some(self.net_hosts.text(pattern).to_owned()),
            Grant::NetAddress { .. } | Grant::NetKept { .. } => None,
        };
        Because { rule: rule.map_or_else(|| Arc::from("?"), Arc::clone), pattern }
    }

    /// Network deny, then network allow, for a literal address.
    fn net_by_address(&self, asker: &Asker, ip: IpAddr, port: u16) -> Result<Vec<Grant>, Refusal> {
        if let Some(grant) = self.net_denies(asker, ip, port) {
            return Err(self.refusal_by(Reason::RuleDenied, Stage::Network, grant));
        }
        let ip = guard::meant(ip, self.nat64);
        Ok(self.net_rules(asker, Action::Allow, |rule| rule.takes_tcp(port) && rule.covers(ip)).collect())
    }

    fn net_denies(&self, asker: &Asker, ip: IpAddr, port: u16) -> Option<Grant> {
        let covered = |rule: &NetRule| guard::spellings(ip, self.nat64).iter().any(|ip| rule.covers(*ip));
        self.net_rules(asker, Action::Deny, |rule| rule.takes_tcp(port) && covered(rule)).next()
    }

    /// Rules by address that fit, in the order of the configuration.
    fn net_rules(&self, asker: &Asker, action: Action, fits: impl Fn(&NetRule) -> bool) -> impl Iterator<Item = Grant> {
        let asked = move |rule: &NetRule| rule.sources.include(asker);
        let all = (0..).zip(&self.nets);
        all.filter(move |(_, rule)| rule.action == action && asked(rule) && fits(rule))
            .map(|(rule, _)| Grant::NetAddress { rule })
    }

    /// Network rules that list a name, in the order of the configuration.
    fn net_by_name(&self, asker: &Asker, name: &HostName, fits: impl Fn(&NetRule) -> bool) -> Vec<Grant> {
        let mut found: Vec<Grant> = Vec::new();
        self.net_hosts.matches(name, |pattern| {
            let id = self.net_hosts.rule(pattern);
            let Some(rule) = self.nets.get(id as usize) else { return };
            if rule.sources.include(asker) && fits(rule) {
                found.push(Grant::NetName { rule: id, pattern });
            }
        });
        found.sort_by_key(|grant| grant.rule());
        found
    }

    /// The address that a rule wants to find among the answers.
    fn verified(&self, grant: Grant, clearance: &Clearance) -> Option<IpAddr> {
        let Grant::App { rule, .. } = grant else { return None };
        clearance.dst.filter(|_| self.apps.get(rule as usize).is_some_and(|rule| rule.verify))
    }

    fn addresses_for(&self, grant: Grant, clearance: &Clearance, answers: &Answers) -> Result<Vec<IpAddr>, Refusal> {
        let mut net = None;
        let reach = match grant {
            Grant::App { rule, .. } => self.apps.get(rule as usize).map(|r| &r.reach),
            Grant::NetName { rule, .. } | Grant::NetKept { rule } => self.nets.get(rule as usize).map(|r| &r.reach),
            // A literal leads where the rule's own destinations say, and nowhere else. The longest of its
            // prefixes opens what any of them would.
            Grant::NetAddress { rule } => self.nets.get(rule as usize).map(|r| {
                let literal = answers.addresses.first().map(|ip| guard::meant(*ip, self.nat64));
                let kept = literal.is_some_and(|ip| r.kept.iter().any(|kept| kept.contains(ip)));
                match literal.and_then(|ip| r.destinations.longest(ip)) {
                    None if kept => &r.reach,
                    prefix => &*net.insert(Reach { public: false, prefixes: prefix.into_iter().collect() }),
                }
            }),
        };
        let Some(reach) = reach else { return Err(Refusal::new(Reason::Internal, Stage::Address)) };
        let mut good = Vec::with_capacity(answers.addresses.len());
        let (mut worst, mut closed) = (None, None);
        for ip in &answers.addresses {
            let meant = guard::meant(*ip, self.nat64);
            // What is only kept is judged against denials when a client dials it.
            let asks = !matches!(grant, Grant::NetKept { .. });
            if let Some(grant) = self.net_denies(&clearance.asker, *ip, clearance.port).filter(|_| asks) {
                return Err(self.refusal_by(Reason::RuleDenied, Stage::Address, grant));
            }
            let named =
                reach.prefixes.iter().any(|net| net.addr() == meant && net.prefix_len() == net.max_prefix_len());
            let own = guard::spellings(*ip, self.nat64).map(|ip| self.own.own(SocketAddr::new(ip, clearance.port)));
            match own.into_iter().flatten().max() {
                Some(Own::Always) => worst = Some(Reason::OwnAddress),
                Some(Own::UnlessNamed) if !named => worst = Some(Reason::OwnAddress),
                _ => match guard::judge(*ip, reach, self.nat64) {
                    Judgement::Permitted => good.push(*ip),
                    Judgement::Denied => {
                        worst = worst.or(Some(Reason::AddressDenied));
                        closed.get_or_insert(*ip);
                    }
                },
            }
        }
        let reason = match worst {
            None if !good.is_empty() => {
                let verified = self.verified(grant, clearance);
                return match verified {
                    None => Ok(good),
                    Some(dst) if good.contains(&dst) => Ok(vec![dst]),
                    Some(_) => Err(self.refusal_by(Reason::DstNotInDns, Stage::Address, grant)),
                };
            }
            None => Reason::AddressDenied,
            Some(_) if !good.is_empty() => Reason::AddressMixed,
            Some(reason) => reason,
        };
        let mut refusal = self.refusal_by(reason, Stage::Address, grant);
        if let (Some(hint), Some(ip)) = (&mut refusal.hint, closed) {
            hint.nearest = Some(format!("{ip} is {}; the rule's `addresses` do not open it", guard::class(ip)));
        }
        Err(refusal)
    }
}

impl Grant {
    const fn rule(self) -> u32 {
        match self {
            Self::App { rule, .. }
            | Self::NetAddress { rule }
            | Self::NetKept { rule }
            | Self::NetName { rule, .. } => rule,
        }
    }
}

fn clearance(claim: &Claim, destination: Destination, grants: Vec<Grant>) -> Clearance {
    let dst = match &claim.target {
        Target::Address(dst) => Some(dst.0.ip()),
        Target::Name(_) | Target::Unnamed => None,
    };
    let prefers_v6 = dst.unwrap_or_else(|| claim.client.ip()).is_ipv6();
    Clearance { destination, port: claim.port, prefers_v6, dst, asker: claim.asker(), grants }
}

/// A rule's conditions in their order; how far it got where one is not met.
fn conditions(rule: &AppRule, evidence: &Evidence<'_>) -> Result<(), Progress> {
    if !rule.sources.include(evidence.asker) {
        return Err(Progress::Listed);
    }
    let on_port = |app: &rule::AppPort| app.port == evidence.port && app.protocol == evidence.protocol;
    let any_port = rule.protocols.is_empty() && rule.action == Action::Deny;
    if !any_port && !rule.protocols.iter().any(on_port) {
        return Err(Progress::Source);
    }
    if let (Some(allowed), Some(offered)) = (&rule.alpn, evidence.alpn)
        && !offered.iter().all(|p| allowed.contains(p))
    {
        return Err(Progress::Port);
    }
    if let Some(request) = evidence.request {
        let has = |all: &Vec<Box<str>>| request.method.is_none_or(|method| all.iter().any(|one| **one == *method));
        let methods = rule.methods.as_ref().is_none_or(has);
        let paths = rule.paths.as_ref().is_none_or(|all| {
            request.path.and_then(paths::normal).is_some_and(|plain| all.iter().any(|path| path.fits(&plain)))
        });
        // A rule that asks for either is about the request's first line, and so is what it allows.
        let asks = rule.methods.is_some() || rule.paths.is_some();
        if !methods || (asks && request.overrides.method) {
            return Err(Progress::Method);
        }
        if !paths || (asks && request.overrides.path) {
            return Err(Progress::Path);
        }
        if request.upgrades && !rule.websocket && rule.action == Action::Allow {
            return Err(Progress::Upgrade);
        }
    }
    let hidden = evidence.ech && rule.ech == Ech::Deny;
    let other_name = evidence.inner != InnerName::Same && rule.inner != evidence.inner;
    if rule.action == Action::Allow && (hidden || other_name) { Err(Progress::Alpn) } else { Ok(()) }
}

/// Of two refusals of one name under two protocols, the one that got further.
fn further(a: Refusal, b: Refusal) -> Refusal {
    let rank = |refusal: &Refusal| match refusal.reason {
        Reason::RuleDenied => 3,
        Reason::PortNotAllowed => 2,
        Reason::SourceNotAllowed => 1,
        _ => 0,
    };
    if rank(&b) > rank(&a) { b } else { a }
}

fn name_of_hello(hello: &ClientHello) -> Result<&HostName, Refusal> {
    let refuse = |reason| Err(Refusal::new(reason, Stage::Name));
    if hello.esni {
        return refuse(Reason::EsniDenied);
    }
    match &hello.sni {
        Sni::Name(name) => Ok(name),
        Sni::Absent => refuse(Reason::NoSni),
        Sni::Address(_) => refuse(Reason::IpLiteral),
        Sni::Malformed { .. } => refuse(Reason::BadSni),
    }
}

fn name_of_request<'a>(head: &'a RequestHead, claim: &Claim) -> Result<&'a HostName, Refusal> {
    let refuse = |reason| Refusal::new(reason, Stage::Http);
    if matches!(head.target, RequestTarget::Authority(_)) {
        return Err(refuse(Reason::MethodNotAllowed));
    }
    let authority = head.authority().map_err(refuse)?;
    // Only a proxy expects a target with a host. Where none is spoken to, two recipients may not agree on which counts.
    if claim.via != Via::Absolute && !head.host_agrees() {
        return Err(refuse(Reason::AmbiguousRequest));
    }
    if authority.port.is_some_and(|port| port != claim.port) {
        return Err(refuse(Reason::AmbiguousRequest));
    }
    match &authority.host {
        Host::Name(name) => Ok(name),
        Host::Address(_) => Err(Refusal::new(Reason::IpLiteral, Stage::Name)),
    }
}

/// RFC 8305 §4: families in turn, the preferred one first.
fn interleave(addresses: Vec<IpAddr>, port: u16, v6_first: bool) -> Vec<SocketAddr> {
    let (first, second): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(|ip| ip.is_ipv6() == v6_first);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut out = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return out;
        }
        out.extend(pair.into_iter().flatten().map(|ip| SocketAddr::new(ip, port)));
    }
}

#[cfg(test)]
mod tests;
