//! All that the kernel is to be told, as data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv6Net;
use tokio::time::Instant;

use super::members::{Addresses, Members};
use crate::config::{Capture, Dnat, ListenerKind, Settings};
use crate::policy::rule::{Action, AppRule, NetRule};

/// Rules that a reload may add before the table must be made anew.
const SPARE: usize = 8;

/// What the table and the routes are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub clients: Addresses,
    pub interfaces: Vec<String>,
    pub bypass: Addresses,
    /// Addresses that lead back to egret.
    pub own: Addresses,
    /// Where captured connections go, IPv4 and IPv6.
    pub listeners: [Option<SocketAddr>; 2],
    /// Where on this machine clients may come to.
    pub doors: BTreeSet<SocketAddr>,
    pub masquerades: bool,
    pub preserves_source: bool,
    /// Addresses that what is forwarded bears; empty: the outgoing interface's.
    pub pool: Vec<IpAddr>,
    pub dnat: Vec<Dnat>,
    pub filter: Filter,
    /// Places in the table for rules that allow, and for those that deny.
    pub places: [usize; 2],
}

/// What a reload may change: members of sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The ports that application rules name.
    pub captured: BTreeSet<u16>,
    pub allows: Vec<Place>,
    pub denies: Vec<Place>,
}

/// One network rule in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub rule: Arc<str>,
    pub members: Members,
    /// Addresses that were answered for its names before, and how long each still counts.
    pub learned: Vec<(IpAddr, Duration)>,
}

impl Filter {
    /// What rules come to. The kernel sees no certificate: rules for `clients` stay with the listeners that do.
    #[must_use]
    pub fn of(apps: &[AppRule], nets: &[NetRule], nat64: Option<Ipv6Net>, remember: Duration) -> Self {
        let allowing = apps.iter().filter(|rule| rule.action == Action::Allow);
        let captured = allowing.flat_map(|rule| &rule.protocols).map(|app| app.port).collect();
        let place = |rule: &NetRule| Place {
            rule: Arc::clone(&rule.name),
            members: Members::of(rule, nat64),
            learned: learned(rule, nat64, remember),
        };
        let of = |action: &Action| nets.iter().filter(|rule| rule.action == *action).map(place).collect();
        Self { captured, allows: of(&Action::Allow), denies: of(&Action::Deny) }
    }
}

/// What was found for a rule's names, and how long it still counts. Behind a translator whose prefix the table cannot
/// look through (RFC 6052 §2.2: other than 96 bits) denials would not hold: such addresses are left out.
#[must_use]
pub fn learned(rule: &NetRule, nat64: Option<Ipv6Net>, remember: Duration) -> Vec<(IpAddr, Duration)> {
    let is_hidden = |ip: &IpAddr| {
        let opaque = nat64.filter(|prefix| prefix.prefix_len() != 96);
        matches!(ip, IpAddr::V6(v6) if opaque.is_some_and(|prefix| prefix.contains(v6)))
    };
    let now = Instant::now();
    let left = |seen| remember.saturating_sub(now.saturating_duration_since(seen));
    let mut all: BTreeMap<IpAddr, Duration> = BTreeMap::new();
    for (ip, seen) in rule.kept.iter().flat_map(|kept| kept.addresses()) {
        let longest = all.entry(ip).or_default();
        *longest = left(seen).max(*longest);
    }
    all.into_iter().filter(|(ip, left)| !left.is_zero() && !is_hidden(ip)).collect()
}

impl Plan {
    /// The plan of some settings; `None` where nothing is asked of the kernel.
    #[must_use]
    pub fn of(settings: &Settings) -> Option<Self> {
        let part = settings.next_hop()?;
        let rules = &settings.rules;
        let filter = Filter::of(&rules.apps, &rules.nets, rules.nat64, settings.learn.remember);
        let tproxy = settings.listeners.iter().filter_map(|listener| match listener.kind {
            ListenerKind::Transparent { capture: Capture::Tproxy, preserve_source } => {
                Some((listener.bind, preserve_source))
            }
            _ => None,
        });
        let tproxy: Vec<(SocketAddr, bool)> = tproxy.collect();
        let takes_v4 = |bind: &SocketAddr| bind.is_ipv4() || bind.ip().is_unspecified();
        let binds = || tproxy.iter().map(|(bind, _)| *bind);
        let doors = settings.listeners.iter().map(|listener| listener.bind).chain(settings.health);
        Some(Self {
            clients: Addresses::of(&part.clients),
            interfaces: part.interfaces.clone(),
            bypass: Addresses::of(&part.bypass),
            own: Addresses::of(&settings.own_addresses),
            listeners: [binds().find(takes_v4), binds().find(SocketAddr::is_ipv6)],
            doors: doors.filter(|bind| !bind.ip().is_loopback()).collect(),
            masquerades: part.masquerades,
            preserves_source: tproxy.iter().any(|(_, preserves)| *preserves),
            pool: settings.sources.clone(),
            dnat: part.dnat.clone(),
            places: [filter.allows.len() + SPARE, filter.denies.len() + SPARE],
            filter,
        })
    }

    /// Whether any client has an IPv6 address.
    #[must_use]
    pub fn has_v6(&self) -> bool {
        !self.clients.v6.is_empty()
    }
}
