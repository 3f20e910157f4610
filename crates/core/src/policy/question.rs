//! Questions of DNS clients: which names may be asked for, what may be answered, and what an answer teaches.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::Policy;
use super::evidence::Evidence;
use super::hosts::{HostIndex, PatternId};
use super::judge::{Votes, further};
use super::nearest::ports;
use super::permit::{Clearance, Destination, Grant, Lesson, LessonUse, MatchedRule, QuestionClearance, Steers};
use crate::answers::Answers;
use crate::claim::{Source, Transport};
use crate::learned::Known;
use crate::name::HostName;
use crate::outcome::{Hint, Reason, Refusal, Stage};
use crate::rule::guard::{self, Judgement};
use crate::rule::pattern::Pattern;
use crate::rule::{Action, AppPort, AppProtocol, AppRule, LearnedName, Reach, Sources};

impl Policy {
    /// Judges a question for a name: it may be asked where some rule lists the name for this client, on whatever port.
    ///
    /// # Errors
    /// A refusal at stage `name`.
    pub fn by_question(&self, source: &Source, name: &HostName) -> Result<QuestionClearance, Refusal> {
        let mut grants = self.net_by_name(source, name, |_| true);
        let refusal = self.app_grants(source, name, &mut grants).err();
        match grants.first() {
            None if refusal.as_ref().is_none_or(|refusal| refusal.reason == Reason::NoRule) => {
                Err(self.listed_for_others(name).or(refusal).unwrap_or(Refusal::new(Reason::NoRule, Stage::Name)))
            }
            Some(first) => Ok(QuestionClearance {
                is_wild: !grants.iter().any(|grant| self.text_of(*grant) == Some(name.as_str())),
                name: name.clone(),
                target: None,
                source: source.clone(),
                matched: self.matched_rule(*first),
                grants,
            }),
            None => Err(refusal.unwrap_or(Refusal::new(Reason::NoRule, Stage::Name))),
        }
    }

    /// Leave to ask about the keys of a zone above listed names, or of one that aliases led through.
    #[must_use]
    pub fn for_keys_of(&self, source: &Source, zone: &HostName) -> QuestionClearance {
        QuestionClearance {
            is_wild: false,
            name: zone.clone(),
            target: None,
            source: source.clone(),
            matched: MatchedRule { rule: "dns.dnssec".into(), pattern: None },
            grants: Vec::new(),
        }
    }

    /// The refusal of a name that a network rule lists for other clients.
    fn listed_for_others(&self, name: &HostName) -> Option<Refusal> {
        let grants = self.net_by_name(&Source::anybody(), name, |_| true);
        let first = grants.first()?;
        let sources = &self.nets.get(first.rule() as usize)?.sources;
        let mut refusal = self.refusal_by(Reason::SourceNotAllowed, Stage::Name, *first);
        if let Some(hint) = &mut refusal.hint {
            hint.nearest = hint.rule.as_ref().map(|rule| format!("rule {rule} allows it, for {sources}"));
        }
        Some(refusal)
    }

    /// Adds the application rules that could use a name on one of their ports, or let it be asked for and no more.
    fn app_grants(&self, source: &Source, name: &HostName, grants: &mut Vec<Grant>) -> Result<(), Refusal> {
        let mut matched: Vec<PatternId> = Vec::new();
        self.app_hosts.matches(name, |pattern| matched.push(pattern));
        let rule_of = |pattern: &PatternId| {
            self.apps.get(self.app_hosts.rule(*pattern) as usize).filter(|rule| !rule.excepts(name))
        };
        let mut ports: Vec<AppPort> =
            matched.iter().filter_map(rule_of).flat_map(|rule| &rule.protocols).copied().collect();
        ports.sort_by_key(|app| (app.port, app.protocol as u8));
        ports.dedup();
        if ports.is_empty() {
            ports.push(AppPort { protocol: AppProtocol::Https, port: 443 });
        }
        let before = grants.len();
        let mut best = Refusal::new(Reason::NoRule, Stage::Name);
        for AppPort { protocol, port } in ports {
            let (evidence, mut votes) = (Evidence::of(source, protocol, port), Votes::default());
            matched.iter().for_each(|pattern| votes.count(self, name, &evidence, *pattern));
            match self.outcome_of(votes, name, &evidence) {
                Ok(more) => grants.extend(more),
                Err(refusal) => best = further(refusal, best),
            }
        }
        let is_denied = grants.len() == before && best.reason == Reason::RuleDenied;
        let is_asked = |rule: &AppRule| rule.is_dns_only() && rule.sources.include(source);
        let asked = matched.iter().filter(|pattern| !is_denied && rule_of(pattern).is_some_and(is_asked));
        grants.extend(asked.map(|pattern| Grant::App { rule: self.app_hosts.rule(*pattern), pattern: *pattern }));
        if let Some(found) = grants.get_mut(before..) {
            found.sort_by_key(|grant| grant.rule());
        }
        grants.dedup_by_key(|grant| (matches!(grant, Grant::App { .. }), grant.rule()));
        if grants.len() == before { Err(best) } else { Ok(()) }
    }

    /// Whether some rule lists names under this one for the client, so that it exists, however little there is at it.
    #[must_use]
    pub fn is_above_listed(&self, source: &Source, name: &HostName) -> bool {
        self.is_above(source, name, |_| true)
    }

    /// Whether some rule's pattern for the client is under this very zone: what is above a wildcard inside a pattern is not.
    #[must_use]
    pub fn is_zone_above_listed(&self, source: &Source, zone: &HostName) -> bool {
        self.is_above(source, zone, |pattern| pattern == zone.as_str())
    }

    /// Whether one of the patterns above those that rules list for the client fits a name, and is meant.
    fn is_above(&self, source: &Source, name: &HostName, is_meant: impl Fn(&str) -> bool) -> bool {
        let (above, sources) = self.above();
        let mut is_above = false;
        above.matches(name, |pattern| {
            let of = sources.get(above.rule(pattern) as usize);
            is_above |= is_meant(above.text(pattern)) && of.is_some_and(|of| of.include(source));
        });
        is_above
    }

    /// Does now what the first question would have to wait for.
    pub fn prepare_for_questions(&self) {
        let _ = self.above();
    }

    /// The names above those that rules allow, and in place of a rule: for which clients.
    fn above(&self) -> &(HostIndex, Vec<Sources>) {
        self.above.get_or_init(|| {
            let allows = |rule: &&AppRule| rule.action == Action::Allow;
            let app = |pattern| {
                let rule = self.apps.get(self.app_hosts.rule(pattern) as usize).filter(allows)?;
                Some((self.app_hosts.text(pattern), &rule.sources))
            };
            let net = |pattern| {
                let rule = self.nets.get(self.net_hosts.rule(pattern) as usize)?;
                Some((self.net_hosts.text(pattern), &rule.sources))
            };
            let listed = self.app_hosts.ids().filter_map(app).chain(self.net_hosts.ids().filter_map(net));
            let (mut seen, mut above): (HashSet<(&str, u32)>, HostIndex) = (HashSet::new(), HostIndex::default());
            let mut all: Vec<Sources> = Vec::new();
            for (text, sources) in listed {
                // The patterns of a rule stand together.
                let at = all.iter().rposition(|other| other == sources).unwrap_or_else(|| {
                    all.push(sources.clone());
                    all.len() - 1
                });
                let Ok(at) = u32::try_from(at) else { continue };
                // What is above a name that was seen was seen.
                let parents = std::iter::successors(parent(text), |text| parent(text));
                for text in parents.take_while(|text| seen.insert((text, at))) {
                    if let Ok(pattern) = Pattern::parse(text) {
                        above.add(&pattern, at);
                    }
                }
            }
            (above, all)
        })
    }

    /// Judges the names that an answer leads through: one that a rule denies spoils the answer.
    ///
    /// # Errors
    /// A refusal at stage `name`.
    pub fn by_alias(&self, clearance: &QuestionClearance, target: &HostName) -> Result<(), Refusal> {
        let mut denied = None;
        self.app_hosts.matches(target, |pattern| {
            let rule = self.app_hosts.rule(pattern);
            let denies = |rule: &AppRule| {
                rule.action == Action::Deny && rule.sources.include(&clearance.source) && !rule.excepts(target)
            };
            if self.apps.get(rule as usize).is_some_and(denies) {
                denied = Some(Grant::App { rule, pattern });
            }
        });
        let Some(grant) = denied else { return Ok(()) };
        let mut refusal = self.refusal_by(Reason::RuleDenied, Stage::Name, grant);
        if let Some(hint) = &mut refusal.hint {
            hint.nearest = Some(format!("the name leads to {target} (CNAME), which the rule denies"));
        }
        Err(refusal)
    }

    /// Judges the addresses of an answer: all must be where some rule lets the name lead, or in `local`.
    ///
    /// # Errors
    /// A refusal at stage `address`.
    pub fn by_answer(
        &self,
        clearance: &QuestionClearance,
        addresses: &[IpAddr],
        local: &[IpNet],
    ) -> Result<(), Refusal> {
        let reaches = clearance.grants.iter().filter_map(|grant| match *grant {
            Grant::App { rule, .. } => Some(&self.apps.get(rule as usize)?.reach),
            other => Some(&self.nets.get(other.rule() as usize)?.reach),
        });
        let public = Reach::default();
        let fits = |reach: &Reach, ip: IpAddr| guard::judge(ip, reach, self.nat64) == Judgement::Permitted;
        let is_local = |ip: IpAddr| {
            let ip = guard::effective(ip, self.nat64);
            local.iter().any(|net| net.contains(&ip))
        };
        let fitting = |reach: &Reach| addresses.iter().filter(|ip| fits(reach, **ip) || is_local(**ip)).count();
        let best =
            reaches.chain(std::iter::once(&public).filter(|_| !local.is_empty())).map(fitting).max().unwrap_or(0);
        if best == addresses.len() {
            return Ok(());
        }
        let reason = if best == 0 { Reason::AddressDenied } else { Reason::AddressMixed };
        let MatchedRule { rule, pattern } = clearance.matched.clone();
        let nearest = "the answer has addresses that are not public; list their range in dns.local_ranges, or in the rule's addresses";
        let hint = Hint { rule: Some(rule), pattern, nearest: Some(nearest.to_owned()), ..Hint::default() };
        Err(Refusal::new(reason, Stage::Address).with(hint))
    }

    /// How a name is answered with a synthetic address; `None`: with its own, which nothing uses, or a rule wants.
    #[must_use]
    pub fn steers(&self, clearance: &QuestionClearance) -> Option<Steers> {
        if !self.steered_names.include(&clearance.name) {
            return None;
        }
        let mut steers = None;
        for grant in &clearance.grants {
            let none = Steers { is_claimed: false, is_forwarded: false };
            match *grant {
                Grant::App { rule, .. } => {
                    let rule = self.apps.get(rule as usize).filter(|rule| !rule.is_dns_only());
                    if rule.is_none() {
                        continue;
                    }
                    steers.get_or_insert(none).is_claimed = self.is_claimed(&clearance.name);
                }
                _ => steers.get_or_insert(none).is_forwarded = true,
            }
        }
        steers
    }

    /// Whether some rule, whichever clients it is for, judges a name by the claim alone.
    #[must_use]
    pub fn is_claimed(&self, name: &HostName) -> bool {
        let claims = |rule: &AppRule| {
            rule.action == Action::Allow && rule.protocols.iter().any(|app| app.protocol == AppProtocol::Tcp)
        };
        let mut is_claimed = false;
        self.app_hosts.matches(name, |pattern| {
            is_claimed |= self.apps.get(self.app_hosts.rule(pattern) as usize).is_some_and(claims);
        });
        is_claimed
    }

    /// Whether clients that use a name may be led to listeners that read it in the bytes at these ports: some application rule
    /// has one of them, and no network rule lists the name, whose flows would come there, too.
    #[must_use]
    pub fn is_read_at(&self, clearance: &QuestionClearance, ports: &[AppPort]) -> bool {
        let reads = |grant: &Grant| match *grant {
            Grant::App { rule, .. } => {
                self.apps.get(rule as usize).is_some_and(|rule| rule.protocols.iter().any(|app| ports.contains(app)))
            }
            _ => false,
        };
        let is_app = |grant: &Grant| matches!(grant, Grant::App { .. });
        !self.steered_names.exempt(&clearance.name)
            && clearance.grants.iter().all(is_app)
            && clearance.grants.iter().any(reads)
    }

    /// Those of a name's addresses that every network rule which lists it lets it lead to: what is behind a synthetic address
    /// is the same for all clients.
    #[must_use]
    pub fn forwardable(&self, name: &HostName, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let rules = self.net_by_name(&Source::anybody(), name, |_| true);
        let rules = rules.iter().filter_map(|grant| self.nets.get(grant.rule() as usize));
        let mut reaches: Vec<&Reach> = rules.map(|rule| &rule.reach).collect();
        let public = Reach::default();
        if reaches.is_empty() {
            // For a rule to come.
            reaches.push(&public);
        }
        let permits = |reach: &&Reach, ip| guard::judge(ip, reach, self.nat64) == Judgement::Permitted;
        let leads = |ip: &&IpAddr| {
            let is_own = guard::equivalents(**ip, self.nat64).into_iter().any(|ip| self.own.own(ip, None).is_some());
            !is_own && reaches.iter().all(|reach| permits(reach, **ip))
        };
        addresses.iter().filter(leads).copied().collect()
    }

    /// The network rules that an answer opens for the name, each with its ports.
    #[must_use]
    pub fn opened_by(&self, clearance: &QuestionClearance) -> Vec<String> {
        let nets = clearance.grants.iter().filter(|grant| !matches!(grant, Grant::App { .. }));
        let nets = nets.filter_map(|grant| self.nets.get(grant.rule() as usize));
        nets.map(|rule| format!("{} {}", rule.name, ports(&rule.ports))).collect()
    }

    /// Whether some application rule of the name would let all of these addresses be dialled.
    #[must_use]
    pub fn could_dial(&self, clearance: &QuestionClearance, addresses: &[IpAddr]) -> bool {
        let answers =
            Answers { addresses: addresses.to_vec(), ttl: Duration::ZERO, is_stale: false, from_servers: true };
        let opens = |grant: &&Grant| match **grant {
            Grant::App { rule, .. } => self.apps.get(rule as usize).is_some_and(|rule| !rule.is_dns_only()),
            _ => false,
        };
        let mut grants = clearance.grants.iter().filter(opens);
        grants.any(|grant| self.judge_addresses(&clearance.to_learn(*grant), &answers, Known::nothing()).is_ok())
    }

    /// Whether some rule of the name uses a port.
    #[must_use]
    pub fn opens(&self, clearance: &QuestionClearance, port: u16) -> bool {
        clearance.grants.iter().any(|grant| match *grant {
            Grant::App { rule, .. } => {
                self.apps.get(rule as usize).is_some_and(|rule| rule.protocols.iter().any(|app| app.port == port))
            }
            other => {
                let takes = |transport| {
                    self.nets.get(other.rule() as usize).is_some_and(|rule| rule.takes(transport, Some(port)))
                };
                takes(Transport::Tcp) || takes(Transport::Udp)
            }
        })
    }

    /// What an answer teaches: the name, for each rule that goes by addresses it was answered with, as far as that rule may
    /// use all of them.
    #[must_use]
    pub fn taught(&self, clearance: &QuestionClearance, addresses: &[IpAddr]) -> Vec<Lesson> {
        let reach = |grant: &Grant| match *grant {
            Grant::App { rule, .. } => self.apps.get(rule as usize).filter(|rule| rule.verify).map(|rule| &rule.reach),
            other => self.nets.get(other.rule() as usize).map(|rule| &rule.reach),
        };
        let mut answers = None;
        let mut taught: Vec<Lesson> = Vec::new();
        for grant in clearance.grants.iter().filter(|_| !addresses.is_empty()) {
            let Some(reach) = reach(grant) else { continue };
            let (kept, by) = match *grant {
                Grant::NetName { rule, pattern } if self.net_hosts.text(pattern) == clearance.name.as_str() => {
                    (Grant::NetKept { rule }, LessonUse::Network)
                }
                Grant::NetName { rule, .. } => (Grant::NetKept { rule }, LessonUse::Wildcard),
                other => (other, LessonUse::Destination),
            };
            let MatchedRule { rule, .. } = self.matched_rule(*grant);
            let lesson = Lesson { name: LearnedName::new(clearance.name.clone(), reach.clone()), rule, by };
            // Network rules come first.
            if taught.iter().any(|other| other.name == lesson.name) {
                continue;
            }
            let answers = answers.get_or_insert_with(|| Answers {
                addresses: addresses.to_vec(),
                ttl: Duration::ZERO,
                is_stale: false,
                from_servers: true,
            });
            if self.judge_addresses(&clearance.to_learn(kept), answers, Known::nothing()).is_ok() {
                taught.push(lesson);
            }
        }
        taught
    }
}

/// A pattern without its first label.
fn parent(text: &str) -> Option<&str> {
    text.split_once('.').map(|(_, parent)| parent)
}

impl QuestionClearance {
    /// As if egret itself would use the name by one rule.
    fn to_learn(&self, grant: Grant) -> Clearance {
        Clearance {
            destination: Destination::Name(self.name.clone()),
            transport: Transport::Tcp,
            port: None,
            prefers_v6: false,
            dst: None,
            source: self.source.clone(),
            grants: vec![grant],
        }
    }
}
