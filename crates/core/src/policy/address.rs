//! Judging the addresses behind a clearance.

use std::net::{IpAddr, SocketAddr};

use super::Policy;
use super::own_addresses::Own;
use super::permit::{Clearance, Grant, Permit};
use crate::answers::Answers;
use crate::outcome::{Reason, Refusal, Stage};
use crate::rule::guard::{self, Judgement, Reach};

impl Policy {
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
                        because: self.matched_rule(*grant),
                    });
                }
                Err(refusal) => {
                    first.get_or_insert(refusal);
                }
            }
        }
        Err(first.unwrap_or(Refusal::new(Reason::Internal, Stage::Address)))
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
                let literal = answers.addresses.first().map(|ip| guard::effective(*ip, self.nat64));
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
            let meant = guard::effective(*ip, self.nat64);
            // What is only kept is judged against denials when a client dials it.
            let asks = !matches!(grant, Grant::NetKept { .. });
            if let Some(grant) = self.net_denies(&clearance.source, *ip, clearance.port).filter(|_| asks) {
                return Err(self.refusal_by(Reason::RuleDenied, Stage::Address, grant));
            }
            let named =
                reach.prefixes.iter().any(|net| net.addr() == meant && net.prefix_len() == net.max_prefix_len());
            let own = guard::equivalents(*ip, self.nat64).map(|ip| self.own.own(SocketAddr::new(ip, clearance.port)));
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
