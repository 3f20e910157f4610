//! What the kernel shall do, as data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv6Net;

use super::elements::{Addresses, Elements};
use super::settings::Dnat;
use egret_core::learned::Known;
use egret_core::policy::{SteeredNames, Wild};
use egret_core::rule::{Action, AppProtocol, AppRule, LearnedName, NetRule, guard};

/// Rules that a reload may add before the table must be made anew.
pub const SPARE: usize = 8;

/// What the table and the routes are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub clients: Addresses,
    pub interfaces: Vec<String>,
    pub bypass: Addresses,
    /// Synthetic addresses: whatever port a client dials there, egret knows the name.
    pub steered: Addresses,
    /// Addresses that lead back to egret.
    pub own: Addresses,
    /// Where captured connections go, IPv4 and IPv6.
    pub listeners: [Option<SocketAddr>; 2],
    /// Where on this machine clients may come to.
    pub doors: BTreeSet<SocketAddr>,
    /// Where clients' questions to other DNS servers go, IPv4 and IPv6.
    pub nameservers: [Option<SocketAddr>; 2],
    /// Where on this machine clients may ask over UDP.
    pub udp_doors: BTreeSet<SocketAddr>,
    /// Where probes ask for health, and those of them that are clients.
    pub health: Option<SocketAddr>,
    pub probes: Addresses,
    /// Flows at once of one client.
    pub flows_per_client: u32,
    pub masquerades: bool,
    pub preserves_source: bool,
    /// Addresses that what is forwarded bears; empty: the outgoing interface's.
    pub pool: Vec<IpAddr>,
    pub dnat: Vec<Dnat>,
    pub rule_sets: RuleSets,
    /// Slots in the table for rules that allow, and for those that deny.
    pub slots: [usize; 2],
}

/// What a reload may change: elements of sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSets {
    /// The ports where application rules read a name in the bytes.
    pub captured: BTreeSet<u16>,
    pub allows: Vec<RuleSet>,
    pub denies: Vec<RuleSet>,
    pub nat64: Option<Ipv6Net>,
    pub steered_names: SteeredNames,
    /// The real addresses behind synthetic ones.
    pub mapped: BTreeMap<IpAddr, IpAddr>,
}

/// One network rule in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    pub rule: Arc<str>,
    pub elements: Elements,
    /// Names whose addresses are destinations too.
    pub names: Vec<LearnedName>,
    /// Wildcards that list others.
    pub wild: Option<Wild>,
    /// Those addresses, and how long each still counts.
    pub learned: Vec<(Opening, Duration)>,
}

/// A learned address, and the client that it is for; `None`: all that the rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Opening {
    pub asker: Option<IpAddr>,
    pub to: IpAddr,
}

impl From<IpAddr> for Opening {
    fn from(to: IpAddr) -> Self {
        Self { asker: None, to }
    }
}

impl Opening {
    /// Whether it can be said in sets of one family; a client's other address is another client's.
    #[must_use]
    pub fn is_of(self, is_v4: bool) -> bool {
        self.to.is_ipv4() == is_v4 && self.asker.is_none_or(|asker| asker.is_ipv4() == is_v4)
    }
}

impl RuleSets {
    /// What rules come to. The kernel sees no certificate: rules for `clients` stay with the listeners that do.
    #[must_use]
    pub fn of(
        apps: &[AppRule],
        nets: &[NetRule],
        nat64: Option<Ipv6Net>,
        steered_names: &SteeredNames,
        known: Known<'_>,
    ) -> Self {
        let allowing = apps.iter().filter(|rule| rule.action == Action::Allow);
        let captured = allowing.flat_map(|rule| &rule.protocols);
        let captured = captured.filter(|app| app.protocol != AppProtocol::Tcp).map(|app| app.port).collect();
        let set = |rule: &NetRule| RuleSet {
            rule: Arc::clone(&rule.name),
            elements: Elements::of(rule, nat64),
            names: rule.kept.clone(),
            wild: Wild::of(rule),
            learned: Vec::new(),
        };
        let set = |rule: &NetRule| set(rule).knowing(steered_names, nat64, known);
        let of = |action: &Action| nets.iter().filter(|rule| rule.action == *action).map(set).collect();
        let mapped = mapped(steered_names, known);
        let (allows, denies) = (of(&Action::Allow), of(&Action::Deny));
        Self { captured, allows, denies, nat64, steered_names: steered_names.clone(), mapped }
    }
}

impl RuleSet {
    /// The same with what has been learned for its names.
    pub(super) fn knowing(self, steered_names: &SteeredNames, nat64: Option<Ipv6Net>, known: Known<'_>) -> Self {
        let names = all_names(&self.names, self.wild.as_ref(), known);
        Self { learned: learned(&names, steered_names, nat64, known), ..self }
    }
}

/// Names, and those that have been learned and wildcards list.
pub(super) fn all_names(names: &[LearnedName], wild: Option<&Wild>, known: Known<'_>) -> Vec<LearnedName> {
    let listed = wild.map(|wild| known.others(|name| wild.covers(name)));
    names.iter().cloned().chain(listed.into_iter().flatten()).collect()
}

/// The real addresses behind synthetic ones.
pub(super) fn mapped(steered_names: &SteeredNames, known: Known<'_>) -> BTreeMap<IpAddr, IpAddr> {
    known.mapped().into_iter().filter(|(synthetic, _)| steered_names.is_synthetic(*synthetic)).collect()
}

/// The addresses that stand for names, and how long each still does. Behind a translator whose prefix the table cannot
/// look through (RFC 6052 §2.2: other than 96 bits) denials would not hold: such addresses are left out.
pub(super) fn learned(
    names: &[LearnedName],
    steered_names: &SteeredNames,
    nat64: Option<Ipv6Net>,
    known: Known<'_>,
) -> Vec<(Opening, Duration)> {
    let is_hidden = |ip: IpAddr| {
        let opaque = nat64.filter(|prefix| prefix.prefix_len() != 96);
        matches!(ip, IpAddr::V6(v6) if opaque.is_some_and(|prefix| prefix.contains(&v6)))
    };
    // Where flows to it go in the end.
    let end = |ip: IpAddr| if steered_names.is_synthetic(ip) { known.behind(ip) } else { Some(ip) };
    let mut all: BTreeMap<Opening, Duration> = BTreeMap::new();
    for name in names {
        // Judged when it was learned; the translator's prefix may have changed since.
        let leads = |ip: IpAddr| !is_hidden(ip) && guard::judge(ip, name.reach(), nat64) == guard::Judgement::Permitted;
        let opens = |ip: IpAddr| steered_names.admit(name.name(), ip) && end(ip).is_some_and(leads);
        for (ip, left) in known.of(name).into_iter().filter(|(ip, _)| opens(*ip)) {
            let longest = all.entry(Opening { asker: name.asker(), to: ip }).or_default();
            *longest = left.max(*longest);
        }
    }
    all.into_iter().collect()
}

impl Plan {
    /// Whether any client has an IPv6 address.
    #[must_use]
    pub fn has_v6(&self) -> bool {
        !self.clients.v6.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::elements::{TCP, UDP};
    use crate::netfilter::slots::{Sets, Slots};
    use egret_core::claim::Source;
    use egret_core::name::Host;
    use egret_core::policy::explain::{Question, Subject};
    use egret_core::policy::{OwnAddresses, Policy};
    use egret_core::rule::{NetPort, Reach, Sources};
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    /// Neighbours, nested ones, and those of special ranges.
    const NETS: &[&str] = &[
        "20.0.0.0/32",
        "20.0.0.1/32",
        "20.0.0.2/32",
        "20.0.0.2/31",
        "20.0.0.0/29",
        "10.1.0.0/30",
        "10.1.0.4/30",
        "10.0.0.0/8",
        "169.254.169.254/32",
        "169.254.0.0/16",
        "168.63.129.16/32",
        "0.0.0.0/0",
        "2a01::/127",
        "2a01::2/127",
        "2a01::1/128",
        "fd00::/8",
        "64:ff9b::/96",
        "64:ff9b::1400:0/127",
        "::/0",
    ];
    const ADDRESSES: &[&str] = &[
        "20.0.0.0",
        "20.0.0.1",
        "20.0.0.2",
        "20.0.0.3",
        "20.0.0.8",
        "10.1.0.1",
        "10.1.0.5",
        "10.9.0.1",
        "169.254.169.254",
        "169.254.1.1",
        "168.63.129.16",
        "127.0.0.1",
        "2a01::",
        "2a01::1",
        "2a01::2",
        "2a01::4",
        "fd00::1",
        "fe80::1",
        "64:ff9b::1400:0",
        "64:ff9b::1400:2",
        "64:ff9b::a01:1",
        "::1",
    ];
    const CLIENTS: &[&str] = &["10.224.0.1", "10.224.1.1", "10.225.0.1", "fd00:224::1"];

    fn rules() -> impl Strategy<Value = Vec<NetRule>> {
        let nets = |of: &'static [&'static str], least| {
            subsequence(of, least..=of.len().min(5))
                .prop_map(|nets| nets.into_iter().map(|net| net.parse().unwrap()).collect::<Vec<ipnet::IpNet>>())
        };
        let port = (1u16..4, 0u16..2, any::<bool>()).prop_map(|(low, more, is_tcp)| {
            let range = low..=low + more;
            if is_tcp { NetPort::Tcp(range) } else { NetPort::Udp(range) }
        });
        let sources = nets(&["10.224.0.0/24", "10.224.1.0/24", "10.224.0.0/15", "fd00:224::/64"], 0);
        let rule = (any::<bool>(), sources, nets(NETS, 1), proptest::collection::vec(port, 1..3));
        let rule = rule.prop_map(|(allows, sources, destinations, ports)| NetRule {
            name: "r".into(),
            action: if allows { Action::Allow } else { Action::Deny },
            sources: Sources { nets: sources, clients: Vec::new() },
            destinations: destinations.into_iter().collect(),
            kept: Vec::new(),
            fqdns: Vec::new(),
            ports,
            steer: true,
            reach: Reach::default(),
        });
        proptest::collection::vec(rule, 1..5)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn the_kernel_lets_out_what_the_policy_does_and_no_more(
            rules in rules(),
            nat64 in select(vec![None, Some("64:ff9b::/96".parse::<Ipv6Net>().unwrap())]),
            is_tcp in any::<bool>(),
        ) {
            let sets = RuleSets::of(&[], &rules, nat64, &SteeredNames::default(), Known::nothing());
            let sets = Sets::of(&sets, [5, 5]);
            let policy = Policy::compile(Vec::new(), rules, nat64, Arc::new(OwnAddresses::new(Vec::new(), Vec::new())));
            for (client, to, port) in CLIENTS.iter().flat_map(|c| ADDRESSES.iter().flat_map(move |a| (1..5).map(move |p| (c, a, p)))) {
                let (client, to): (IpAddr, IpAddr) = (client.parse().unwrap(), to.parse().unwrap());
                if client.is_ipv4() != to.is_ipv4() {
                    continue;
                }
                let host = Host::Address(to);
                let subject = if is_tcp { Subject::Tcp { host, port } } else { Subject::Udp { host, port } };
                let question = Question { subject, source: Source::at(client), dst: None, alpn: Vec::new() };
                let explained = policy.explain(&question);
                let protocol = if is_tcp { TCP } else { UDP };
                let holds = |slots: &Slots| slots.hold(client, SocketAddr::new(to, port), protocol);
                let passes = holds(&sets.allows) && !holds(&sets.denies);
                prop_assert_eq!(passes, explained.is_ok(), "{} to {}:{}: {:?}", client, to, port, explained);
            }
        }
    }
}
