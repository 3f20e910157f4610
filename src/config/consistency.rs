//! What keys say together: sockets, names and ports that clash, and keys that cannot go with each other.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::file;
use super::findings::Findings;
use super::rule_parts::net_port;
use crate::netfilter::settings::NetfilterSettings;
use crate::proxy::listen::settings::{ListenerKind, ListenerSettings};
use egret_core::claim::Transport;
use egret_core::rule::rules::Rules;
use egret_core::rule::{Action, NetPort};

/// Two binds on one port clash where their addresses are equal or one of them is "all". Returns all of them, each with
/// its key path.
pub(super) fn one_socket_each(
    out: &mut Findings<'_>,
    listeners: &[(ListenerSettings, String)],
    admin: Option<SocketAddr>,
    health: Option<SocketAddr>,
) -> Vec<(SocketAddr, String)> {
    let services = [(admin, "admin.bind"), (health, "health.bind")];
    let services = services.iter().filter_map(|(bind, path)| bind.map(|bind| (bind, (*path).to_owned())));
    let binds: Vec<(SocketAddr, String)> =
        listeners.iter().map(|(listener, path)| (listener.bind, path.clone())).chain(services).collect();
    for (at, (bind, path)) in binds.iter().enumerate() {
        let clash = binds.iter().take(at).find(|(other, _)| {
            other.port() == bind.port() && (covers(other.ip(), bind.ip()) || covers(bind.ip(), other.ip()))
        });
        if let Some((other, other_path)) = clash {
            out.fault(path, format!("{bind} is taken by {other_path} ({other}); give each its own address or port"));
        }
    }
    binds
}

/// Whether a bind to one address takes the other too: `[::]` takes IPv4 as well.
fn covers(bind: IpAddr, other: IpAddr) -> bool {
    bind == other || (bind.is_unspecified() && (bind.is_ipv6() || other.is_ipv4()))
}

/// What a client's own address at upstreams, and a fleet, cannot go with.
pub(super) fn what_goes_together(
    out: &mut Findings<'_>,
    written: &file::File,
    netfilter: Option<&NetfilterSettings>,
    listeners: &[(ListenerSettings, String)],
) {
    for (listener, bind) in listeners {
        let ListenerKind::Transparent { preserve_source: true, .. } = listener.kind else { continue };
        let path = bind.replace(".bind", ".preserve_source");
        if netfilter.is_some_and(|part| part.masquerades) {
            out.fault(&path, "source NAT hides the client's address again; write netfilter.snat: none, or remove it");
        }
        if written.fleet {
            out.fault(&path, "answers to a client's address may reach another instance; remove it, or `fleet`");
        }
        if !written.upstream.sources.is_empty() {
            out.fault(&path, "egret cannot dial from upstream.sources and from the client's address; remove one");
        }
    }
    if netfilter.is_some_and(|part| !part.masquerades && !part.clients.is_empty())
        && !written.upstream.sources.is_empty()
    {
        let message = "only egret's own connections leave from these: netfilter.snat is none, so what the kernel forwards keeps the client's address; remove snat: none, or leave it so if that is meant";
        out.warn("upstream.sources", message);
    }
    for (at, rule) in file::readable(&written.policy.network_rules) {
        let is_kernels = |text: &String| matches!(net_port(text), Ok(NetPort::Udp(_) | NetPort::Icmp));
        if out.is_sidecar && rule.protocols.iter().any(is_kernels) && !rule.fqdns.is_empty() {
            let path = format!("policy.network_rules[{at}].fqdns");
            out.fault(
                &path,
                "a sidecar's kernel rules are made once, and know no names: write `destinations` for udp and icmp",
            );
        }
    }
    for (at, rule) in file::readable(&written.policy.application_rules) {
        if written.fleet && rule.destination == Some(file::Destination::Verify) {
            let path = format!("policy.application_rules[{at}].destination");
            out.fault(&path, "the instances of a fleet do not know each other's answers yet; write redial");
        }
    }
}

/// A name in the log must lead to one rule.
pub(super) fn one_name_each(out: &mut Findings<'_>, policy: &file::Policy, rules: &Rules) {
    let apps = file::readable(&policy.application_rules).map(|(at, r)| (at, r.name.as_deref()));
    let nets = file::readable(&policy.network_rules).map(|(at, r)| (at, r.name.as_deref()));
    let named = apps
        .map(|(at, name)| (format!("policy.application_rules[{at}]"), name))
        .chain(nets.map(|(at, name)| (format!("policy.network_rules[{at}]"), name)));
    let apps = rules.apps.iter().map(|rule| &*rule.name).zip(&rules.origins.apps);
    let nets = rules.nets.iter().map(|rule| &*rule.name).zip(&rules.origins.nets);
    let of_bundles = apps.chain(nets).filter(|(_, origin)| origin.is_bundle);
    let mut seen: HashMap<&str, String> = of_bundles.map(|(name, origin)| (name, origin.path.clone())).collect();
    for (path, name) in named {
        let Some(name) = name else { continue };
        if name.is_empty() {
            out.fault(&format!("{path}.name"), "the name is empty; write one, or remove the key");
        } else if let Some(first) = seen.insert(name, path.clone()) {
            out.fault(&format!("{path}.name"), format!("`{name}` is the name of {first} already; write another"));
        }
    }
}

/// What a network rule takes away from names, and what nothing in this version carries.
pub(super) fn what_network_rules_do(out: &mut Findings<'_>, policy: &file::Policy, rules: &Rules) {
    let own = rules.nets.iter().skip(rules.nets.len() - file::readable(&policy.network_rules).count());
    for ((at, written), rule) in file::readable(&policy.network_rules).zip(own) {
        let path = format!("policy.network_rules[{at}]");
        if !out.has_kernel && rule.ports.iter().any(|port| !matches!(port, NetPort::Tcp(_))) {
            let message = "only the kernel carries udp and icmp, and there is no `netfilter`: nothing will use this";
            out.warn(&format!("{path}.protocols"), message);
        }
        let unseen =
            rules.apps.iter().flat_map(|r| &r.protocols).find(|app| rule.takes(Transport::Tcp, Some(app.port)));
        if let Some(app) = unseen.filter(|_| rule.action == Action::Allow && !written.destinations.is_empty()) {
            let message = format!(
                "connections to these addresses on port {} are not judged by name, though application rules use it",
                app.port
            );
            out.warn(&format!("{path}.protocols"), message);
        }
    }
}

/// A name's address may be shared: opening it by address on a port where names are judged would open every
/// other site behind it.
pub(super) fn names_keep_their_ports(out: &mut Findings<'_>, policy: &file::Policy, rules: &Rules) {
    let app_ports: Vec<u16> = rules.apps.iter().flat_map(|r| &r.protocols).map(|app| app.port).collect();
    for (at, written) in file::readable(&policy.network_rules).filter(|(_, r)| !r.fqdns.is_empty()) {
        for (n, text) in written.protocols.iter().enumerate() {
            let taken = match net_port(text) {
                Ok(NetPort::Tcp(range)) => {
                    [80, 443].iter().chain(&app_ports).find(|port| range.contains(port)).copied()
                }
                Ok(NetPort::Udp(range)) if range.contains(&443) => Some(443),
                _ => None,
            };
            if let Some(port) = taken {
                let message = format!(
                    "port {port} is judged by name: a shared address would open every site on it; write an application rule"
                );
                out.fault(&format!("policy.network_rules[{at}].protocols[{n}]"), message);
            }
        }
    }
}
