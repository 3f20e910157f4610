//! Judging a claim, and then what the bytes show.

use std::net::IpAddr;
use std::sync::Arc;

use super::evidence::{Evidence, Flow, Progress, Request, conditions};
use super::hosts::PatternId;
use super::permit::{Clearance, Destination, Expectation, Grant, MatchedRule, Passage};
use super::{Policy, nearest};
use crate::claim::{Claim, Source, Target, Via};
use crate::learned::Known;
use crate::name::{Host, HostName};
use crate::outcome::{Reason, Refusal, Stage};
use crate::rule::{Action, AppProtocol, InnerName, LearnedName, NetRule, guard};
use crate::wire::client_hello::{ClientHello, Sni};
use crate::wire::http::{RequestHead, RequestTarget};
use crate::wire::{Expected, Sighting};

impl Policy {
    /// Judges what a client asks for, before its bytes are read.
    ///
    /// # Errors
    /// A refusal at stage `name` or `network`.
    pub fn by_claim(&self, claim: &Claim, known: Known<'_>) -> Result<Passage, Refusal> {
        match &claim.target {
            Target::Unnamed => Ok(Passage::Peek(self.expectation(claim.port))),
            Target::Name(name) => {
                let source = claim.source();
                let flow = Flow::of(claim, &source);
                let grants = self.net_by_name(&source, name, |rule| rule.takes(flow.transport, flow.port));
                if !grants.is_empty() {
                    return Ok(Passage::Passthrough(clearance(claim, source, Destination::Name(name.clone()), grants)));
                }
                let by_claim = match self.by_claimed_name(&source, name, claim) {
                    Some(Ok(grants)) => {
                        let destination = Destination::Name(name.clone());
                        return Ok(Passage::Passthrough(clearance(claim, source, destination, grants)));
                    }
                    Some(Err(refusal)) => Some(refusal),
                    None => None,
                };
                let expected = self.expect_name(&source, name, claim.port, claim.via);
                expected.map(Passage::Peek).map_err(|by_bytes| match by_claim {
                    Some(by_claim) => further(by_claim, by_bytes),
                    None => by_bytes,
                })
            }
            Target::Address(dst) => {
                let (source, ip) = (claim.source(), dst.0.ip());
                let flow = Flow::of(claim, &source);
                let grants = self.net_by_address(flow, ip, known)?;
                if !grants.is_empty() {
                    return Ok(Passage::Passthrough(clearance(claim, source, Destination::Literal(ip), grants)));
                }
                if claim.via == Via::Absolute {
                    return Err(Refusal::new(Reason::IpLiteral, Stage::Name));
                }
                if self.ports.contains_key(&claim.port) {
                    return Ok(Passage::Peek(self.expectation(claim.port)));
                }
                Err(Refusal::new(Reason::NoRule, Stage::Network).with(self.address_hint(flow, ip, known)))
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
        let source = claim.source();
        let base = Evidence::of(&source, AppProtocol::Http, claim.port);
        let (seen, evidence) = match sighting {
            Sighting::Tls(hello) => {
                let evidence =
                    Evidence { protocol: AppProtocol::Https, alpn: Some(&hello.alpn), ech: hello.ech, ..base };
                let seen = match (name_of_hello(hello), claim.name()) {
                    // Some clients send none for names that they find odd.
                    (Err(refusal @ Refusal { reason: Reason::NoSni, .. }), Some(claimed)) => {
                        let grants = self.judge(claimed, &Evidence { inner: InnerName::Optional, ..evidence });
                        let grants = grants.map_err(|_| refusal)?;
                        return Ok(clearance(claim, source, Destination::Name(claimed.clone()), grants));
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
            let grants = self.judge(seen, &evidence)?;
            return Ok(clearance(claim, source, Destination::Name(seen.clone()), grants));
        };
        let other = Evidence { inner: InnerName::AnyListed, ..evidence };
        let mismatch = |_| Refusal::new(Reason::NameMismatch, Stage::Name);
        // `sni: any_listed` is about TLS; a Host that is not the one asked for is never meant.
        if evidence.protocol == AppProtocol::Http {
            return Err(mismatch(()));
        }
        let grants = self.judge(claimed, &other).map_err(|_| mismatch(()))?;
        self.judge(seen, &evidence)?;
        Ok(clearance(claim, source, Destination::Name(claimed.clone()), grants))
    }

    /// Judges a name by the claim alone, where rules do so at its port. A request that is the claim itself is judged as a
    /// request.
    fn by_claimed_name(&self, source: &Source, name: &HostName, claim: &Claim) -> Option<Result<Vec<Grant>, Refusal>> {
        let is_judged = claim.via != Via::Absolute && self.claimed_ports.contains(&claim.port);
        is_judged.then(|| self.judge(name, &Evidence::of(source, AppProtocol::Tcp, claim.port)))
    }

    /// What a port's rules expect; where none uses it, both, so that the record can still tell the name.
    fn expectation(&self, port: u16) -> Expectation {
        Expectation { expected: self.ports.get(&port).copied().unwrap_or(Expected { tls: true, http: true }) }
    }

    /// Whether a named claim could pass with some bytes, and which.
    fn expect_name(&self, source: &Source, name: &HostName, port: u16, via: Via) -> Result<Expectation, Refusal> {
        let judged = |protocol| self.judge(name, &Evidence::of(source, protocol, port));
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
    pub(super) fn judge(&self, name: &HostName, evidence: &Evidence<'_>) -> Result<Vec<Grant>, Refusal> {
        let mut votes = Votes::default();
        self.app_hosts.matches(name, |pattern| votes.count(self, name, evidence, pattern));
        self.outcome_of(votes, name, evidence)
    }

    pub(super) fn outcome_of(
        &self,
        votes: Votes<'_>,
        name: &HostName,
        evidence: &Evidence<'_>,
    ) -> Result<Vec<Grant>, Refusal> {
        let Votes { mut grants, denied, closed, missed } = votes;
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
}

/// What the application rules that list a name say of it.
#[derive(Debug, Default)]
pub(super) struct Votes<'a> {
    grants: Vec<Grant>,
    denied: Option<Grant>,
    /// The first closed rule, its name and why.
    closed: Option<(u32, &'a Arc<str>, &'a Arc<str>)>,
    /// The rule that came closest.
    missed: Option<(Progress, Grant)>,
}

impl<'a> Votes<'a> {
    #[inline]
    pub(super) fn count(&mut self, policy: &'a Policy, name: &HostName, evidence: &Evidence<'_>, pattern: PatternId) {
        let id = policy.app_hosts.rule(pattern);
        let Some(rule) = policy.apps.get(id as usize).filter(|rule| !rule.excepts(name)) else { return };
        let grant = Grant::App { rule: id, pattern };
        match (&rule.action, conditions(rule, evidence)) {
            (Action::Deny, Ok(())) => self.denied = Some(grant),
            (Action::Deny, Err(_)) => {}
            (Action::Close(why), _) if rule.sources.include(evidence.source) => {
                // The first in the file, as everywhere.
                if self.closed.is_none_or(|(first, ..)| id < first) {
                    self.closed = Some((id, &rule.name, why));
                }
            }
            (Action::Close(_), _) => {}
            (Action::Allow, Ok(())) => self.grants.push(grant),
            (Action::Allow, Err(progress)) => {
                if self.missed.is_none_or(|(furthest, _)| progress > furthest) {
                    self.missed = Some((progress, grant));
                }
            }
        }
    }
}

/// Network rules.
impl Policy {
    /// Network deny, then network allow, for a literal address.
    pub(super) fn net_by_address(&self, flow: Flow<'_>, ip: IpAddr, known: Known<'_>) -> Result<Vec<Grant>, Refusal> {
        if let Some(grant) = self.net_denies(flow, ip) {
            return Err(self.refusal_by(Reason::RuleDenied, Stage::Network, grant));
        }
        let ip = guard::effective(ip, self.nat64);
        Ok(self.net_rules(flow, Action::Allow, |id, rule| self.covers(id, rule, flow.source, ip, known)).collect())
    }

    /// A denial names no names: what has been learned does not matter to it.
    pub(super) fn net_denies(&self, flow: Flow<'_>, ip: IpAddr) -> Option<Grant> {
        let covered =
            |_, rule: &NetRule| guard::equivalents(ip, self.nat64).iter().any(|ip| rule.destinations.contains(*ip));
        self.net_rules(flow, Action::Deny, covered).next()
    }

    /// Whether an address is one of a rule's destinations, or stands for one of its names.
    pub(super) fn covers(&self, id: u32, rule: &NetRule, source: &Source, ip: IpAddr, known: Known<'_>) -> bool {
        rule.destinations.contains(ip) || self.leads_by_name(id, rule, source, ip, known)
    }

    /// Whether an address stands for one of a rule's names.
    pub(super) fn leads_by_name(&self, id: u32, rule: &NetRule, source: &Source, ip: IpAddr, known: Known<'_>) -> bool {
        let lists = |name: &LearnedName| {
            let mut is_listed = false;
            self.net_hosts.matches(name.name(), |pattern| is_listed |= self.net_hosts.rule(pattern) == id);
            let is_for = name.asker().is_none_or(|asker| source.ip.is_none_or(|ip| ip == asker));
            is_listed && is_for && *name.reach() == rule.reach && self.steered_names.admit(name.name(), ip)
        };
        rule.kept.iter().any(|name| known.has(name, ip) && self.steered_names.admit(name.name(), ip))
            || (rule.fqdns.len() > rule.kept.len() && known.stands_for(ip).iter().any(lists))
    }

    /// Rules by address that fit, in the order of the configuration.
    fn net_rules(
        &self,
        flow: Flow<'_>,
        action: Action,
        covers: impl Fn(u32, &NetRule) -> bool,
    ) -> impl Iterator<Item = Grant> {
        let fits = move |rule: &NetRule| rule.sources.include(flow.source) && rule.takes(flow.transport, flow.port);
        let all = (0..).zip(&self.nets);
        all.filter(move |(id, rule)| rule.action == action && fits(rule) && covers(*id, rule))
            .map(|(rule, _)| Grant::NetAddress { rule })
    }

    /// The rule of the first grant.
    pub(super) fn first_of(&self, grants: &[Grant]) -> Result<MatchedRule, Refusal> {
        let first = grants.first().ok_or(Refusal::new(Reason::Internal, Stage::Name))?;
        Ok(self.matched_rule(*first))
    }

    /// Network rules that list a name, in the order of the configuration.
    pub(super) fn net_by_name(&self, source: &Source, name: &HostName, fits: impl Fn(&NetRule) -> bool) -> Vec<Grant> {
        let mut found: Vec<Grant> = Vec::new();
        self.net_hosts.matches(name, |pattern| {
            let id = self.net_hosts.rule(pattern);
            let Some(rule) = self.nets.get(id as usize) else { return };
            if rule.sources.include(source) && fits(rule) {
                found.push(Grant::NetName { rule: id, pattern });
            }
        });
        found.sort_by_key(|grant| grant.rule());
        found
    }
}

pub(super) fn clearance(claim: &Claim, source: Source, destination: Destination, grants: Vec<Grant>) -> Clearance {
    let dst = match &claim.target {
        Target::Address(dst) => Some(dst.0.ip()),
        Target::Name(_) | Target::Unnamed => None,
    };
    let prefers_v6 = dst.unwrap_or_else(|| claim.client.ip()).is_ipv6();
    let (transport, port) = (claim.transport, Some(claim.port));
    Clearance { destination, transport, port, prefers_v6, dst, source, grants }
}

/// Of two refusals of one name under two protocols, the one that got further.
pub(super) fn further(a: Refusal, b: Refusal) -> Refusal {
    let rank = |refusal: &Refusal| match refusal.reason {
        Reason::RuleDenied => 3,
        Reason::PortNotAllowed => 2,
        Reason::SourceNotAllowed => 1,
        _ => 0,
    };
    if rank(&b) > rank(&a) { b } else { a }
}

pub(super) fn name_of_hello(hello: &ClientHello) -> Result<&HostName, Refusal> {
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

pub(super) fn name_of_request<'a>(head: &'a RequestHead, claim: &Claim) -> Result<&'a HostName, Refusal> {
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
