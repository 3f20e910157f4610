//! What a policy says and probably does not mean: rules that open strangers' names, that nothing reaches, or
//! that say what another says already. Only `egret check` asks; a rule set's own rows inform and do not warn.

mod listeners;
mod names;
mod place;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::findings::Findings;
use crate::netfilter::settings::NetfilterSettings;
use crate::proxy::listen::settings::ListenerSettings;
use egret_core::name::HostName;
use egret_core::policy::hosts::HostIndex;
use egret_core::rule::guard::{is_public, metadata, opens_all_of};
use egret_core::rule::pattern::Pattern;
use egret_core::rule::rules::{Origin, Rules};
use egret_core::rule::{Action, AppPort, AppProtocol, AppRule, Ech, NetPort, NetRule, Reach};
use names::{DOH, FRONTS, REGIONAL, SHARED};
use place::AppPlace;

/// Patterns around another one that are looked at.
const MAX_AROUND: usize = 256;

/// Patterns of one rule that each get a warning; a list of thousands gets one.
const MAX_REPORTED: usize = 20;

/// Where connections come in.
#[derive(Clone, Copy)]
pub(super) struct Services<'a> {
    pub(super) listeners: &'a [ListenerSettings],
    pub(super) netfilter: Option<&'a NetfilterSettings>,
    pub(super) admin: Option<SocketAddr>,
    /// Whether clients are answered with synthetic addresses.
    pub(super) steers: bool,
}

pub(super) fn lint(out: &mut Findings<'_>, rules: &Rules, services: Services<'_>) {
    let Services { listeners, netfilter, admin, steers } = services;
    let apps: Vec<AppPlace<'_>> = rules
        .apps
        .iter()
        .zip(&rules.origins.apps)
        .map(|(rule, origin)| AppPlace { rule, path: &origin.path, inline: origin.inline, is_bundle: origin.is_bundle })
        .collect();
    let index = Index::of(&apps);
    for (at, app) in apps.iter().enumerate() {
        if app.rule.action == Action::Allow && !app.rule.is_dns_only() {
            strangers(out, app);
            repeated(out, &apps, &index, at);
        }
    }
    matched_by(out, &apps, &index, DOH, |name, text, rule| {
        let hidden = rule.protocols.iter().any(|app| app.protocol != AppProtocol::Http);
        hidden.then(|| format!("`{text}` opens {name}, which answers DNS over HTTPS; deny it, or write narrower names"))
    });
    matched_by(out, &apps, &index, FRONTS, |name, text, rule| {
        let hidden = rule.ech == Ech::Outer;
        hidden
            .then(|| format!("`{text}` opens {name}, the front of encrypted hellos for many sites; write `ech: deny`"))
    });
    for app in apps.iter().filter(|app| app.rule.verify) {
        let message = "clients whose DNS is not egret's may dial addresses that it has not seen, and are refused then (`dst_not_in_dns`); write `destination: redial` where that is too strict";
        app.say(out, None, message.to_owned());
    }
    listeners::ports_without_a_listener(out, &apps, listeners);
    listeners::claims_without_a_listener(out, &apps, listeners, steers);
    listeners::anybody_asks(out, &apps, listeners);
    listeners::sources_without_a_listener_that_knows_them(out, rules, listeners);
    listeners::questions_of_a_pod(out, listeners);
    networks(out, rules);
    reaches_of_names(out, rules);
    if let Some(part) = netfilter {
        listeners::not_of_clients(out, rules, listeners, &part.clients);
        for (at, name) in part.interfaces.iter().enumerate() {
            if nix::net::if_::if_nametoindex(name.as_str()).is_err() {
                let message = format!("this machine has no interface {name}: egret is not ready while it is missing");
                out.note(&format!("netfilter.interfaces[{at}]"), message);
            }
        }
    }
    if let Some(bind) = admin.filter(|bind| bind.ip().is_unspecified() || is_public(&bind.ip().into())) {
        let message = format!(
            "the metrics are open to all that reach {bind}; bind a private address, and write `health` for probes"
        );
        out.warn("admin.bind", message);
    }
}

/// Every pattern of every rule that allows or denies, with its place.
struct Index<'a> {
    hosts: HostIndex,
    /// Rule and pattern.
    places: Vec<(usize, usize)>,
    /// Where each text stands first in a rule.
    twins: HashMap<&'a str, Vec<(usize, usize)>>,
}

impl<'a> Index<'a> {
    fn of(apps: &[AppPlace<'a>]) -> Self {
        let mut index = Self { hosts: HostIndex::default(), places: Vec::new(), twins: HashMap::new() };
        for (rule, app) in apps.iter().enumerate().filter(|(_, app)| app.rule.decides()) {
            for (at, pattern) in app.rule.fqdns.iter().enumerate() {
                let twins = index.twins.entry(pattern.as_str()).or_default();
                // A second one in the same rule is reported where the list is read.
                if twins.last().is_some_and(|(last, _)| *last == rule) {
                    continue;
                }
                twins.push((rule, at));
                // In place of a rule: where the pattern stands in the configuration.
                let place = u32::try_from(index.places.len()).unwrap_or(u32::MAX);
                index.hosts.add(pattern, place);
                index.places.push((rule, at));
            }
        }
        index
    }

    fn place(&self, id: u32) -> Option<(usize, usize)> {
        self.places.get(self.hosts.rule(id) as usize).copied()
    }

    /// Patterns that match whatever this one does, a bounded number of them.
    fn around(&self, pattern: &Pattern) -> Vec<(usize, usize)> {
        let mut out: Vec<(usize, usize)> = Vec::new();
        let twins = self.twins.get(pattern.as_str()).map(Vec::as_slice).unwrap_or_default();
        out.extend(twins.iter().take(MAX_AROUND));
        self.hosts.covering(pattern, |id| {
            if out.len() < 2 * MAX_AROUND {
                out.extend(self.place(id));
            }
        });
        out
    }
}

/// Wildcards over zones where anybody may have a name.
fn strangers(out: &mut Findings<'_>, app: &AppPlace<'_>) {
    for (at, pattern) in app.rule.fqdns.iter().enumerate() {
        let Some(ending) = pattern.ending() else { continue };
        let public =
            psl::suffix(ending.as_bytes()).filter(|suffix| suffix.is_known() && suffix.as_bytes() == ending.as_bytes());
        let below = SHARED
            .iter()
            .find(|zone| zone.strip_suffix(ending).is_some_and(|front| front.is_empty() || front.ends_with('.')))
            .or_else(|| regional(ending));
        let text = pattern.as_str();
        let message = match (public, below) {
            (None, None) => continue,
            (Some(suffix), _) if suffix.typ() == Some(psl::Type::Icann) => {
                format!("`{text}` opens every name under the public suffix {ending}; write the domains that are meant")
            }
            (_, Some(zone)) if zone.len() > ending.len() => {
                format!(
                    "`{text}` opens {zone}, where every tenant has a name, among others; write the names that are meant"
                )
            }
            _ if pattern.is_free() => {
                format!("`{text}` opens every tenant's names in {ending}; write your own")
            }
            _ => format!("any tenant of {ending} can take a name that fits `{text}`; write your own"),
        };
        app.say(out, Some(at), message);
    }
}

/// The zone in which this is a region's part.
fn regional(ending: &str) -> Option<&'static &'static str> {
    REGIONAL.iter().find(|zone| {
        let front = ending.strip_suffix(**zone).and_then(|front| front.strip_suffix('.'));
        // `hcp.westeurope`, or the region alone; in China the zone has one label more.
        let mut labels = front.into_iter().flat_map(|front| front.rsplit('.')).filter(|label| *label != "cx");
        let is_region = |label: &str| {
            let clouds = crate::bundle::all().unwrap_or_default().iter().flat_map(|bundle| bundle.clouds.values());
            clouds.flat_map(crate::bundle::Cloud::locations).any(|(name, _)| name == label)
        };
        labels.next().is_some_and(is_region) && labels.all(|label| matches!(label, "hcp" | "tun" | "privatelink"))
    })
}

/// Patterns that other rules make needless, or useless.
fn repeated(out: &mut Findings<'_>, apps: &[AppPlace<'_>], index: &Index<'_>, at: usize) {
    let Some(app) = apps.get(at).filter(|app| !app.is_bundle) else { return };
    let mut reported: Vec<(usize, String)> = Vec::new();
    let mut by: BTreeMap<(bool, usize), usize> = BTreeMap::new();
    for (n, pattern) in app.rule.fqdns.iter().enumerate() {
        let mut found: Option<(bool, usize, usize)> = None;
        for (other, m) in index.around(pattern) {
            let Some(by) = apps.get(other).filter(|_| (other, m) != (at, n)) else { continue };
            let twin = by.rule.fqdns.get(m).is_some_and(|p| p.as_str() == pattern.as_str());
            // Twins in one list are reported where it is read.
            if by.rule.is_dns_only() || (twin && other == at) {
                continue;
            }
            let denies = by.rule.action == Action::Deny;
            let covers = if denies {
                outweighs(by.rule, app.rule)
            } else {
                // Of two that say the same, the second one is too many.
                includes(by.rule, app.rule) && !(twin && other > at && includes(app.rule, by.rule))
            };
            if covers && found.is_none_or(|(denied, ..)| denies && !denied) {
                found = Some((denies, other, m));
            }
            if found.is_some_and(|(denied, ..)| denied) {
                break;
            }
        }
        let Some((denied, other, m)) = found else { continue };
        let Some(other_rule) = apps.get(other).map(|app| app.rule) else { continue };
        *by.entry((denied, other)).or_default() += 1;
        let text = pattern.as_str();
        let wider = other_rule.fqdns.get(m).map_or("", Pattern::as_str);
        reported.push((
            n,
            match denied {
                true => format!("`{text}` can never match: rule {} denies {wider}", other_rule.name),
                false if wider == text => format!("`{text}` is a duplicate: rule {} has it already", other_rule.name),
                false => format!("`{text}` is shadowed by `{wider}` of rule {}; remove it", other_rule.name),
            },
        ));
    }
    let whole = by.iter().find(|(_, count)| **count == app.rule.fqdns.len() && app.rule.fqdns.len() > 1);
    if let Some((&(denied, other), _)) = whole.filter(|((_, other), _)| *other != at) {
        let name = apps.get(other).map_or("", |app| &app.rule.name);
        let message = match denied {
            true => format!("this rule can never match: rule {name} denies all of its names"),
            false => format!("this rule is shadowed by rule {name}, which has all of its names; remove it"),
        };
        return app.say(out, None, message);
    }
    let more = reported.len().saturating_sub(MAX_REPORTED);
    for (n, message) in reported.into_iter().take(MAX_REPORTED) {
        app.say(out, Some(n), message);
    }
    if more > 0 {
        app.say(out, None, format!("{more} more of its names are in other rules too"));
    }
}

/// Wildcards that match one of some well-known names which nothing denies.
fn matched_by(
    out: &mut Findings<'_>,
    apps: &[AppPlace<'_>],
    index: &Index<'_>,
    names: &[&str],
    message: impl Fn(&str, &str, &AppRule) -> Option<String>,
) {
    let mut reported: BTreeSet<(usize, usize)> = BTreeSet::new();
    for name in names {
        let Ok(host) = HostName::from_wire(name.as_bytes()) else { continue };
        let mut hits = Vec::new();
        index.hosts.matches(&host, |id| hits.extend(index.place(id)));
        let rule_of = |at: usize| apps.get(at).map(|app| app.rule);
        let denied = |by: &AppRule| {
            hits.iter()
                .filter_map(|(at, _)| rule_of(*at))
                .any(|deny| deny.action == Action::Deny && outweighs(deny, by))
        };
        for (at, n) in &hits {
            let Some((app, pattern)) = apps.get(*at).and_then(|app| Some((app, app.rule.fqdns.get(*n)?))) else {
                continue;
            };
            let wild = pattern.exact().is_none() && !pattern.is_any();
            if app.rule.action != Action::Allow || !wild || denied(app.rule) || reported.contains(&(*at, *n)) {
                continue;
            }
            if let Some(message) = message(name, pattern.as_str(), app.rule) {
                reported.insert((*at, *n));
                app.say(out, Some(*n), message);
            }
        }
    }
}

/// Rules whose `addresses` open less or more than it seems.
fn reaches_of_names(out: &mut Findings<'_>, rules: &Rules) {
    let apps = rules.apps.iter().map(|rule| (&rule.reach, &rule.fqdns)).zip(&rules.origins.apps);
    let nets = rules.nets.iter().map(|rule| (&rule.reach, &rule.fqdns)).zip(&rules.origins.nets);
    for ((reach, fqdns), origin) in apps.chain(nets).filter(|(_, origin)| !origin.is_bundle) {
        let path = format!("{}.addresses", origin.path);
        if let Some(net) = reach.prefixes.iter().find(|net| net.prefix_len() == 0) {
            let message = format!(
                "{net} opens public addresses only, the guard keeps special ranges closed; write `public`, or the ranges that are meant"
            );
            out.warn(&path, message);
        }
        let opened = reach.prefixes.iter().find(|net| metadata().any(|ip| **net == IpNet::from(IpAddr::from(ip))));
        let wild = fqdns.iter().find(|pattern| pattern.exact().is_none());
        if let (Some(net), Some(pattern)) = (opened, wild) {
            let message = format!(
                "a DNS record for any name that matches `{}` can point to {}, this machine's metadata service; write exact names",
                pattern.as_str(),
                net.addr()
            );
            out.warn(&path, message);
        }
    }
}

/// Network rules that others say already, or deny.
fn networks(out: &mut Findings<'_>, rules: &Rules) {
    let all: Vec<(&NetRule, &Origin)> = rules.nets.iter().zip(&rules.origins.nets).collect();
    for (at, (rule, origin)) in all.iter().enumerate() {
        let own = rule.action == Action::Allow && !rule.destinations.is_empty() && rule.fqdns.is_empty();
        if !own || origin.is_bundle {
            continue;
        }
        let mut others = all.iter().enumerate().filter(|(n, _)| *n != at).map(|(n, (other, _))| (n, *other));
        let by = others.find(|(n, other)| match other.action {
            Action::Deny => says_all_of(other, rule, |wide, narrow| wide.contains(narrow)),
            // The guard opens a special range only to a prefix inside it.
            Action::Allow => {
                says_all_of(other, rule, opens_all_of) && (*n < at || !says_all_of(rule, other, opens_all_of))
            }
            Action::Close(_) => false,
        });
        if let Some((_, other)) = by {
            let message = if other.action == Action::Deny {
                format!("this rule can never match: rule {} denies all of it", other.name)
            } else {
                format!("this rule is shadowed by rule {}, which opens all of it; remove it", other.name)
            };
            out.warn(&origin.path, message);
        }
    }
}

/// Whether one network rule holds for whatever another one does.
fn says_all_of(wide: &NetRule, narrow: &NetRule, holds_net: impl Fn(&IpNet, &IpNet) -> bool) -> bool {
    let around = |net: IpNet| wide.destinations.longest(net.addr()).is_some_and(|outer| holds_net(&outer, &net));
    wide.sources.cover(&narrow.sources)
        && narrow.ports.iter().all(|port| wide.ports.iter().any(|outer| holds(outer, port)))
        && narrow.destinations.prefixes().all(around)
}

/// Whether whatever one rule allows of a name, another does.
fn includes(wide: &AppRule, narrow: &AppRule) -> bool {
    wide.action == Action::Allow
        && wide.sources.cover(&narrow.sources)
        && narrow.protocols.iter().all(|app| wide.protocols.contains(app))
        && (wide.alpn.is_none() || wide.alpn == narrow.alpn)
        && wide.methods.is_none()
        && wide.paths.is_none()
        && (wide.websocket || !narrow.websocket)
        && (wide.ech == Ech::Outer || wide.ech == narrow.ech)
        && (wide.inner == narrow.inner || narrow.inner == egret_core::rule::InnerName::Same)
        && reaches(&wide.reach, &narrow.reach)
}

/// Whether a denial leaves nothing of what a rule allows.
fn outweighs(deny: &AppRule, allow: &AppRule) -> bool {
    deny.sources.cover(&allow.sources)
        && (deny.protocols.is_empty() || allow.protocols.iter().all(|app| denies(&deny.protocols, *app)))
}

/// Bytes that are not looked at may be of any protocol that is denied.
fn denies(denied: &[AppPort], app: AppPort) -> bool {
    denied.iter().any(|deny| *deny == app || (app.protocol == AppProtocol::Tcp && deny.port == app.port))
}

fn reaches(wide: &Reach, narrow: &Reach) -> bool {
    (wide.public || !narrow.public)
        && narrow.prefixes.iter().all(|net| wide.prefixes.iter().any(|other| opens_all_of(other, net)))
}

fn holds(wide: &NetPort, narrow: &NetPort) -> bool {
    match (wide, narrow) {
        (NetPort::Tcp(a), NetPort::Tcp(b)) | (NetPort::Udp(a), NetPort::Udp(b)) => {
            a.contains(b.start()) && a.contains(b.end())
        }
        (NetPort::Icmp, NetPort::Icmp) => true,
        _ => false,
    }
}
