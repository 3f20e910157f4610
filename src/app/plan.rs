//! What the settings ask of the kernel.

use std::net::SocketAddr;

use crate::config::Settings;
use crate::netfilter::elements::Addresses;
use crate::netfilter::plan::{Plan, RuleSets, SPARE};
use crate::netfilter::sidecar::{Mesh, PodTable, Sidecar, TableFault, User, others};
use crate::proxy::listen::settings::{Capture, ListenerKind};
use egret_core::learned::Known;
use egret_core::policy::SteeredNames;

/// The plan of some settings; `None` where nothing is asked of the kernel.
#[must_use]
pub fn next_hop(settings: &Settings, known: Known<'_>) -> Option<Plan> {
    let part = settings.next_hop()?;
    let rules = &settings.rules;
    let rule_sets = RuleSets::of(&rules.apps, &rules.nets, rules.nat64, &SteeredNames::of(rules), known);
    let tproxy = settings.listeners.iter().filter_map(|listener| match listener.kind {
        ListenerKind::Transparent { capture: Capture::Tproxy, preserve_source } => {
            Some((listener.bind, preserve_source))
        }
        _ => None,
    });
    let tproxy: Vec<(SocketAddr, bool)> = tproxy.collect();
    let takes_v4 = |bind: &SocketAddr| bind.is_ipv4() || bind.ip().is_unspecified();
    let binds = || tproxy.iter().map(|(bind, _)| *bind);
    let reachable = |bind: &SocketAddr| !bind.ip().is_loopback();
    let asked = || settings.nameservers().map(|listener| listener.bind).filter(reachable);
    let doors = settings.listeners.iter().map(|listener| listener.bind);
    Some(Plan {
        clients: Addresses::of(&part.clients),
        interfaces: part.interfaces.clone(),
        bypass: Addresses::of(&part.bypass),
        steered: Addresses::of(
            &settings.nameserver.steer.iter().flat_map(|steer| steer.pool.nets()).collect::<Vec<_>>(),
        ),
        own: Addresses::of(&settings.own_addresses).spelled(rules.nat64),
        listeners: [binds().find(takes_v4), binds().find(SocketAddr::is_ipv6)],
        doors: doors.filter(reachable).collect(),
        nameservers: [asked().find(takes_v4), asked().find(SocketAddr::is_ipv6)],
        udp_doors: asked().collect(),
        health: settings.health.filter(|bind| !bind.ip().is_loopback()),
        probes: Addresses::of(settings.health_from.iter().flatten()),
        flows_per_client: part.flows_per_client,
        masquerades: part.masquerades,
        preserves_source: tproxy.iter().any(|(_, preserves)| *preserves),
        pool: settings.sources.clone(),
        dnat: part.dnat.clone(),
        slots: [rule_sets.allows.len() + SPARE, rule_sets.denies.len() + SPARE],
        rule_sets,
    })
}

/// The sidecar of some settings; `None` where no listener takes redirected connections.
#[must_use]
pub fn sidecar(settings: &Settings, user: User, mesh: Option<Mesh>) -> Option<Sidecar> {
    let listener = settings.listeners.iter().find(|listener| listener.kind.captures(Capture::Redirect))?;
    let exempt = settings.netfilter.as_ref().map(|part| Addresses::of(&part.bypass)).unwrap_or_default();
    let dns = settings.pod_nameserver().map(|listener| listener.bind.port());
    let others = others(&settings.rules.nets, settings.rules.nat64, dns.is_some());
    Some(Sidecar { port: listener.bind.port(), dns, user, mesh, exempt, others })
}

/// The table to watch in a pod; `None` where no listener takes redirected connections, or where the table is not egret's.
///
/// # Errors
/// [`TableFault::Taken`].
pub fn pod_table(settings: &Settings) -> Result<Option<PodTable>, TableFault> {
    let expected = settings.needs_sidecar_table().then(|| sidecar(settings, User::own(), None)).flatten();
    expected.map(PodTable::new).transpose()
}
