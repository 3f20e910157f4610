//! Which client may go where. Asked three times with growing evidence: the claim, the sighting, the addresses.
//!
//! ```text
//! Claim --by_claim--> Expectation --by_sighting--> Clearance --by_address--> Permit
//!            `--- a network rule: Passthrough(Clearance), nothing to peek ---'
//! ```
//!
//! The only maker of a [`Clearance`], without which nothing is resolved, and of a [`Permit`], without which
//! nothing is dialled. Precedence: network deny, network allow, application deny, application allow, else
//! denied. No clock, no socket, no log; what changes from outside is handed in ([`Known`](crate::learned::Known),
//! [`OwnAddresses`]).

mod address;
mod evidence;
pub mod explain;
pub mod hosts;
mod judge;
mod nearest;
mod own_addresses;
mod permit;
mod question;
mod steered_names;
mod wild;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use ipnet::Ipv6Net;

use crate::claim::{Source, Transport};
use crate::outcome::{Hint, Reason, Refusal, Stage};
use crate::rule::rules::Rules;
use crate::rule::{Action, AppProtocol, AppRule, LearnedName, NetRule, Sources};
use crate::wire::Expected;
use hosts::HostIndex;
pub use own_addresses::OwnAddresses;
use permit::Grant;
pub use permit::{
    Clearance, Destination, Expectation, Lesson, LessonUse, MatchedRule, Passage, Permit, QuestionClearance, Steers,
};
pub use steered_names::SteeredNames;
pub use wild::Wild;

/// The compiled policy.
#[derive(Debug)]
pub struct Policy {
    apps: Vec<AppRule>,
    app_hosts: HostIndex,
    nets: Vec<NetRule>,
    net_hosts: HostIndex,
    /// What application rules that allow expect on a port.
    ports: HashMap<u16, Expected>,
    /// The ports on which the name of a claim is enough.
    claimed_ports: HashSet<u16>,
    nat64: Option<Ipv6Net>,
    own: Arc<OwnAddresses>,
    steered_names: SteeredNames,
    /// The clients that rules tell apart; `None`: too many for a class each.
    sources: Option<Vec<Sources>>,
    /// Names above those that rules list, and for which clients, once a DNS client has asked.
    above: OnceLock<(HostIndex, Vec<Sources>)>,
}

impl Policy {
    /// The policy of a configuration's rules.
    #[must_use]
    pub fn of(rules: Rules, own: Arc<OwnAddresses>) -> Self {
        let steered_names = SteeredNames::of(&rules);
        Self { steered_names, ..Self::compile(rules.apps, rules.nets, rules.nat64, own) }
    }

    /// Compiles checked rules; names have their own addresses.
    #[must_use]
    pub fn compile(apps: Vec<AppRule>, nets: Vec<NetRule>, nat64: Option<Ipv6Net>, own: Arc<OwnAddresses>) -> Self {
        let written = || apps.iter().flat_map(|rule| &rule.fqdns).map(|pattern| pattern.as_str().len());
        let mut app_hosts = HostIndex::with_capacity(written().count(), written().sum());
        let mut ports: HashMap<u16, Expected> = HashMap::new();
        let mut claimed_ports: HashSet<u16> = HashSet::new();
        let mut apps = apps;
        for (id, rule) in (0..).zip(&mut apps) {
            // The index keeps the text; a second copy per pattern would double a large list.
            for pattern in std::mem::take(&mut rule.fqdns) {
                app_hosts.add(&pattern, id);
            }
            for app in rule.protocols.iter().filter(|_| rule.action == Action::Allow) {
                let mut expected = |takes: fn(&mut Expected)| {
                    takes(ports.entry(app.port).or_insert(Expected { tls: false, http: false }));
                };
                match app.protocol {
                    AppProtocol::Https => expected(|port| port.tls = true),
                    AppProtocol::Http => expected(|port| port.http = true),
                    AppProtocol::Tcp => _ = claimed_ports.insert(app.port),
                }
            }
        }
        let mut net_hosts = HostIndex::default();
        for (id, rule) in (0..).zip(&nets) {
            for pattern in &rule.fqdns {
                net_hosts.add(pattern, id);
            }
        }
        let sources = distinct(apps.iter().map(|rule| &rule.sources).chain(nets.iter().map(|rule| &rule.sources)));
        let steered_names = SteeredNames::default();
        let above = OnceLock::new();
        Self { apps, app_hosts, nets, net_hosts, ports, claimed_ports, nat64, own, steered_names, sources, above }
    }

    /// Which of the clients that rules tell apart include this one, a bit each: clients of one class are judged alike. `None`
    /// where there are too many.
    #[must_use]
    pub fn class_of(&self, source: &Source) -> Option<u64> {
        let all = self.sources.as_ref()?;
        Some(all.iter().enumerate().fold(0, |class, (bit, sources)| class | u64::from(sources.include(source)) << bit))
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
    pub fn own_addresses(&self) -> &OwnAddresses {
        &self.own
    }

    /// The names that have synthetic addresses.
    #[must_use]
    pub const fn steered_names(&self) -> &SteeredNames {
        &self.steered_names
    }

    #[must_use]
    pub const fn nat64(&self) -> Option<Ipv6Net> {
        self.nat64
    }

    /// The names that network rules keep resolved, each once.
    #[must_use]
    pub fn kept_names(&self) -> Vec<&LearnedName> {
        let mut seen: HashSet<&LearnedName> = HashSet::new();
        self.nets.iter().flat_map(|rule| &rule.kept).filter(|name| seen.insert(name)).collect()
    }

    /// Leave to resolve a name on behalf of no client, where a rule keeps it.
    #[must_use]
    pub fn clearance_to_keep(&self, name: &LearnedName) -> Option<Clearance> {
        let (rule, _) = (0..).zip(&self.nets).find(|(_, rule)| rule.kept.contains(name))?;
        Some(Clearance {
            destination: Destination::Name(name.name().clone()),
            transport: Transport::Tcp,
            port: None,
            prefers_v6: false,
            dst: None,
            source: Source::anybody(),
            grants: vec![Grant::NetKept { rule }],
        })
    }

    /// The clients that the rule of this name is for, where that is not all of them.
    #[must_use]
    pub fn clients_of(&self, rule: &str) -> Option<String> {
        let apps = self.apps.iter().map(|app| (&app.name, &app.sources));
        let mut all = apps.chain(self.nets.iter().map(|net| (&net.name, &net.sources)));
        let (_, sources) = all.find(|(name, _)| ***name == *rule)?;
        (!sources.is_everyone()).then(|| sources.to_string())
    }

    /// The rule a clearance rests on, for the record of what is refused later.
    #[must_use]
    pub fn matched_rule_of(&self, clearance: &Clearance) -> Option<MatchedRule> {
        clearance.grants.first().map(|grant| self.matched_rule(*grant))
    }

    fn refusal_by(&self, reason: Reason, stage: Stage, grant: Grant) -> Refusal {
        let MatchedRule { rule, pattern } = self.matched_rule(grant);
        Refusal::new(reason, stage).with(Hint { rule: Some(rule), pattern, ..Hint::default() })
    }

    /// The pattern by which a rule lists a name.
    fn text_of(&self, grant: Grant) -> Option<&str> {
        match grant {
            Grant::App { pattern, .. } => Some(self.app_hosts.text(pattern)),
            Grant::NetName { pattern, .. } => Some(self.net_hosts.text(pattern)),
            Grant::NetAddress { .. } | Grant::NetKept { .. } => None,
        }
    }

    fn matched_rule(&self, grant: Grant) -> MatchedRule {
        let rule = match grant {
            Grant::App { rule, .. } => self.apps.get(rule as usize).map(|r| &r.name),
            Grant::NetAddress { rule } | Grant::NetKept { rule } | Grant::NetName { rule, .. } => {
                self.nets.get(rule as usize).map(|r| &r.name)
            }
        };
        let pattern = self.text_of(grant).map(str::to_owned);
        MatchedRule { rule: rule.map_or_else(|| Arc::from("?"), Arc::clone), pattern }
    }
}

/// Every set of clients once, but the one of all; `None` where there are more than bits.
fn distinct<'a>(all: impl Iterator<Item = &'a Sources>) -> Option<Vec<Sources>> {
    let mut distinct: Vec<Sources> = Vec::new();
    for sources in all.filter(|sources| !sources.is_everyone()) {
        if !distinct.contains(sources) {
            distinct.push(sources.clone());
        }
        if distinct.len() > 64 {
            return None;
        }
    }
    Some(distinct)
}
