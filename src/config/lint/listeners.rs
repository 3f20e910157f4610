//! What rules and listeners say together: rules that no listener carries, clients that no listener knows, and listeners
//! that let in more than is meant.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::place::AppPlace;
use crate::config::findings::Findings;
use crate::proxy::listen::settings::{Capture, ListenerKind, ListenerSettings};
use egret_core::rule::rules::Rules;
use egret_core::rule::{Action, AppProtocol};

/// Ports that no listener carries: where there are `sni` listeners only, theirs.
pub(super) fn ports_without_a_listener(out: &mut Findings<'_>, apps: &[AppPlace<'_>], listeners: &[ListenerSettings]) {
    let mut carried = BTreeSet::new();
    for listener in listeners {
        match listener.kind {
            ListenerKind::Forward | ListenerKind::Transparent { .. } => return,
            ListenerKind::Dns => continue,
            ListenerKind::Sni { port, .. } => carried.insert(port),
        };
    }
    // Egret answers questions, and no more.
    if carried.is_empty() {
        return;
    }
    for app in apps.iter().filter(|app| !app.is_bundle && app.rule.action == Action::Allow) {
        if !app.rule.protocols.iter().any(|p| carried.contains(&p.port)) && !app.rule.is_dns_only() {
            let ports: Vec<String> = carried.iter().map(u16::to_string).collect();
            app.say(
                out,
                None,
                format!("this rule can never match: the listeners carry port {} only", ports.join(", ")),
            );
        }
    }
}

/// Names that clients claim, where no listener takes a claim.
pub(super) fn claims_without_a_listener(
    out: &mut Findings<'_>,
    apps: &[AppPlace<'_>],
    listeners: &[ListenerSettings],
    steers: bool,
) {
    if steers || listeners.iter().any(|listener| listener.kind == ListenerKind::Forward) {
        return;
    }
    for app in apps.iter().filter(|app| !app.is_bundle && app.rule.action == Action::Allow) {
        if let Some(port) = app.rule.protocols.iter().find(|port| port.protocol == AppProtocol::Tcp) {
            let message = format!(
                "{port} is for names that clients claim by CONNECT or SOCKS5, or by an address of `dns.steer`, and there is neither a `forward` listener nor that: it never matches; write a network rule"
            );
            app.say(out, None, message);
        }
    }
}

/// A listener open to all and rules for all clients: any host that reaches the listener is let out. What the kernel captures comes
/// from this machine, or from `netfilter.clients`.
pub(super) fn anybody_asks(out: &mut Findings<'_>, apps: &[AppPlace<'_>], listeners: &[ListenerSettings]) {
    let is_open = |listener: &&ListenerSettings| {
        let captures = matches!(listener.kind, ListenerKind::Transparent { .. } | ListenerKind::Dns);
        !listener.bind.ip().is_loopback() && !listener.identifies() && !captures
    };
    let Some(open) = listeners.iter().find(is_open) else { return };
    let for_all = apps.iter().find(|app| app.rule.action == Action::Allow && app.rule.sources.is_everyone());
    if let Some(app) = for_all {
        let message = format!("any host that reaches the listener {} is let out by this; write `sources`", open.bind);
        out.warn(app.path, message);
    }
}

/// The clients' identities: asked for where rules need them, and not in the clear.
pub(super) fn sources_without_a_listener_that_knows_them(
    out: &mut Findings<'_>,
    rules: &Rules,
    listeners: &[ListenerSettings],
) {
    let users: Vec<_> = listeners.iter().filter_map(|listener| Some(listener.users.as_ref()?.get())).collect();
    let certified = listeners.iter().any(ListenerSettings::certifies);
    let apps = rules.apps.iter().map(|rule| &rule.sources).zip(&rules.origins.apps);
    let nets = rules.nets.iter().map(|rule| &rule.sources).zip(&rules.origins.nets);
    for (sources, origin) in apps.chain(nets) {
        for (at, name) in sources.clients.iter().enumerate() {
            let user = name.strip_prefix("user:");
            let is_dns_name = !name.contains(':') && name.contains('.');
            let why = match user {
                Some(user) if !users.iter().any(|users| users.has(user)) => "there is no such user in any users_file",
                None if users.iter().any(|users| users.has(name)) => "users are written user:NAME",
                None if name.to_ascii_lowercase().starts_with("user:") => "users are written user:NAME",
                None if !certified => "no listener has `tls.client_ca`, so no client has a certificate",
                None if is_dns_name && name.chars().any(char::is_uppercase) => {
                    "DNS names of certificates are compared in lower case"
                }
                Some(_) | None => continue,
            };
            out.warn(&format!("{}.clients[{at}]", origin.path), format!("no client can have this name: {why}"));
        }
    }
    for (at, listener) in listeners.iter().enumerate() {
        if listener.users.is_some() && listener.tls.is_none() && !listener.bind.ip().is_loopback() {
            out.warn(&format!("listeners[{at}].auth"), "passwords cross the network in the clear; add `tls`");
        }
    }
}

/// DNS listeners that a sidecar's table cannot lead to.
pub(super) fn questions_of_a_pod(out: &mut Findings<'_>, listeners: &[ListenerSettings]) {
    if !listeners.iter().any(|listener| listener.kind.captures(Capture::Redirect)) {
        return;
    }
    for (at, listener) in listeners.iter().enumerate() {
        if listener.kind == ListenerKind::Dns && !listener.takes_redirected() {
            let message = "a sidecar's table leads the pod's questions to loopback, so they do not come here; bind [::] or 127.0.0.1";
            out.warn(&format!("listeners[{at}].bind"), message);
        }
    }
}

/// Rules for sources that never come here: on a next hop only its clients do.
pub(super) fn not_of_clients(out: &mut Findings<'_>, rules: &Rules, listeners: &[ListenerSettings], clients: &[IpNet]) {
    if clients.is_empty() || !listeners.iter().all(|listener| listener.kind.captures(Capture::Tproxy)) {
        return;
    }
    let apps = rules.apps.iter().map(|rule| &rule.sources).zip(&rules.origins.apps);
    let nets = rules.nets.iter().map(|rule| &rule.sources).zip(&rules.origins.nets);
    let mut reported = BTreeSet::new();
    for (sources, origin) in apps.chain(nets) {
        for (at, net) in sources.nets.iter().enumerate() {
            let is_client = clients.iter().any(|client| client.contains(net) || net.contains(client));
            let path = format!("{}.sources[{at}]", origin.path);
            if !is_client && reported.insert(path.clone()) {
                out.warn(
                    &path,
                    format!(
                        "{net} is in none of netfilter.clients, so that no connection comes from there; write a client"
                    ),
                );
            }
        }
    }
}
