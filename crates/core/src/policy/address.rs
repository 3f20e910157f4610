//! Judging the addresses behind a clearance.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use super::Policy;
use super::evidence::Flow;
use super::own_addresses::Own;
use super::permit::{Clearance, Destination, Grant, Permit};
use crate::answers::Answers;
use crate::claim::Source;
use crate::learned::Known;
use crate::outcome::{Reason, Refusal, Stage};
use crate::rule::guard::{self, Judgement};
use crate::rule::{LearnedName, Reach};

impl Policy {
    /// Judges the addresses behind a clearance. All of them: an answer that mixes permitted and denied ones
    /// is refused whole.
    ///
    /// # Errors
    /// A refusal at stage `address`, from the first rule that would have allowed the name.
    pub fn by_address(&self, clearance: &Clearance, answers: &Answers, known: Known<'_>) -> Result<Permit, Refusal> {
        let (grant, addresses) = self.judge_addresses(clearance, answers, known)?;
        let port = clearance.port.ok_or(Refusal::new(Reason::Internal, Stage::Address))?;
        Ok(Permit {
            destination: clearance.destination.clone(),
            addresses: interleave(addresses, port, clearance.prefers_v6),
            because: self.matched_rule(grant),
        })
    }

    /// Judges the addresses of a name that a rule keeps resolved, as [`Policy::by_address`] does.
    ///
    /// # Errors
    /// As [`Policy::by_address`].
    pub fn by_kept_answer(&self, clearance: &Clearance, answers: &Answers) -> Result<Vec<IpAddr>, Refusal> {
        self.judge_addresses(clearance, answers, Known::nothing()).map(|(_, addresses)| addresses)
    }

    /// The first grant by which the addresses may be used, and those that may.
    pub(super) fn judge_addresses(
        &self,
        clearance: &Clearance,
        answers: &Answers,
        known: Known<'_>,
    ) -> Result<(Grant, Vec<IpAddr>), Refusal> {
        let mut first = None;
        for grant in &clearance.grants {
            let judged = self.judge_all(*grant, clearance, answers, known);
            match judged.and_then(|good| self.verify(*grant, clearance, good, known)) {
                Ok(addresses) => return Ok((*grant, addresses)),
                Err(refusal) => first = first.or(Some(refusal)),
            }
        }
        Err(first.unwrap_or(Refusal::new(Reason::Internal, Stage::Address)))
    }

    /// What an answer teaches of the client's own destinations: the names for which a rule wants to find one, as far as all
    /// of the answer may be used by that rule.
    #[must_use]
    pub fn learnable(&self, clearance: &Clearance, answers: &Answers) -> Vec<LearnedName> {
        let verifying = clearance.grants.iter().filter(|grant| self.wants(**grant, clearance).is_some());
        let good = verifying.filter(|grant| self.judge_all(**grant, clearance, answers, Known::nothing()).is_ok());
        good.filter_map(|grant| self.learned_name(*grant, clearance)).collect()
    }

    fn learned_name(&self, grant: Grant, clearance: &Clearance) -> Option<LearnedName> {
        let Destination::Name(name) = &clearance.destination else { return None };
        Some(LearnedName::new(name.clone(), self.apps.get(grant.rule() as usize)?.reach.clone()))
    }

    /// Only the client's own destination, where a rule wants it to be the name's: now, or as it was learned.
    fn verify(
        &self,
        grant: Grant,
        clearance: &Clearance,
        good: Vec<IpAddr>,
        known: Known<'_>,
    ) -> Result<Vec<IpAddr>, Refusal> {
        let Some(dst) = self.wants(grant, clearance) else { return Ok(good) };
        let was_learned = || self.learned_name(grant, clearance).is_some_and(|name| known.has(&name, dst));
        // What was learned once is judged as it stands now.
        let may_still = || self.judge_all(grant, clearance, &Answers::literal(dst), known).is_ok();
        if good.contains(&dst) || (was_learned() && may_still()) {
            return Ok(vec![dst]);
        }
        Err(self.refusal_by(Reason::DstNotInDns, Stage::Address, grant))
    }

    /// The address that a rule wants to find among the answers.
    fn wants(&self, grant: Grant, clearance: &Clearance) -> Option<IpAddr> {
        let Grant::App { rule, .. } = grant else { return None };
        clearance.dst.filter(|_| self.apps.get(rule as usize).is_some_and(|rule| rule.verify))
    }

    /// Where a rule lets its names, or a literal, lead.
    fn reach_of(&self, grant: Grant, source: &Source, answers: &Answers, known: Known<'_>) -> Option<Cow<'_, Reach>> {
        match grant {
            Grant::App { rule, .. } => Some(Cow::Borrowed(&self.apps.get(rule as usize)?.reach)),
            Grant::NetName { rule, .. } | Grant::NetKept { rule } => {
                Some(Cow::Borrowed(&self.nets.get(rule as usize)?.reach))
            }
            // A literal leads where the rule's own destinations say, and nowhere else. The longest of its
            // prefixes opens what any of them would.
            Grant::NetAddress { rule: id } => {
                let rule = self.nets.get(id as usize)?;
                let literal = answers.addresses.first().map(|ip| guard::effective(*ip, self.nat64));
                let is_learned = literal.is_some_and(|ip| self.leads_by_name(id, rule, source, ip, known));
                let prefix = literal.and_then(|ip| rule.destinations.longest(ip));
                let nowhere = Reach { public: false, prefixes: Vec::new() };
                let mut reach = if is_learned { rule.reach.clone() } else { nowhere };
                reach.prefixes.extend(prefix);
                Some(Cow::Owned(reach))
            }
        }
    }

    /// The addresses, where all of them may be used by a rule.
    fn judge_all(
        &self,
        grant: Grant,
        clearance: &Clearance,
        answers: &Answers,
        known: Known<'_>,
    ) -> Result<Vec<IpAddr>, Refusal> {
        let Clearance { source, transport, port, .. } = clearance;
        let flow = Flow { source, transport: *transport, port: *port };
        let reach =
            self.reach_of(grant, source, answers, known).ok_or(Refusal::new(Reason::Internal, Stage::Address))?;
        let mut good = Vec::with_capacity(answers.addresses.len());
        let (mut worst, mut closed) = (None, None);
        for ip in &answers.addresses {
            let effective = guard::effective(*ip, self.nat64);
            // What is only kept is judged against denials when a client dials it.
            let asks = !matches!(grant, Grant::NetKept { .. });
            if let Some(grant) = self.net_denies(flow, *ip).filter(|_| asks) {
                return Err(self.refusal_by(Reason::RuleDenied, Stage::Address, grant));
            }
            let named =
                reach.prefixes.iter().any(|net| net.addr() == effective && net.prefix_len() == net.max_prefix_len());
            let own = guard::equivalents(*ip, self.nat64).map(|ip| self.own.own(ip, *port));
            match own.into_iter().flatten().max() {
                Some(Own::Always) => worst = Some(Reason::OwnAddress),
                Some(Own::UnlessNamed) if !named => worst = Some(Reason::OwnAddress),
                _ => match guard::judge(*ip, &reach, self.nat64) {
                    Judgement::Permitted => good.push(*ip),
                    Judgement::Denied => {
                        worst = worst.or(Some(Reason::AddressDenied));
                        closed.get_or_insert(*ip);
                    }
                },
            }
        }
        let reason = match worst {
            None if !good.is_empty() => return Ok(good),
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
