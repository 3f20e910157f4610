//! The kernel's part of a configuration: its clients, and what is left alone.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::file;
use super::findings::Findings;
use super::read::{Bounds, duration};
use super::rule_parts::{net_port, sources};
use crate::learn::settings::LearnSettings;
use crate::netfilter::settings::{Dnat, NetfilterSettings};
use crate::proxy::listen::settings::{Capture, ListenerSettings};
use egret_core::rule::NetPort;

/// A sixteenth of the flows that a machine with some memory has room for (nf_conntrack_max), and as many as a busy node has
/// behind one address.
const FLOWS_PER_CLIENT: u32 = 16_384;

/// Where addresses outlive a restart on a next hop.
const STATE_DIR: &str = "/var/lib/egret";

pub(super) fn netfilter(
    out: &mut Findings<'_>,
    written: &file::File,
    listeners: &[(ListenerSettings, String)],
    binds: &[(SocketAddr, String)],
) -> Option<NetfilterSettings> {
    let captures = |by: Capture| listeners.iter().any(|(listener, _)| listener.kind.captures(by));
    one_tproxy_each(out, listeners);
    let part = written.netfilter.as_ref()?.0.as_ref().ok()?;
    let clients = out.nets("netfilter.clients", &part.clients);
    for (at, _) in clients.iter().enumerate().filter(|(_, net)| net.prefix_len() == 0) {
        out.fault(&format!("netfilter.clients[{at}]"), "takes the internet for clients; write the subnets' CIDRs");
    }
    if part.clients.is_empty() && !captures(Capture::Redirect) {
        out.fault("netfilter.clients", "there is no client; write the CIDRs of the subnets that are routed here");
    }
    if !part.clients.is_empty() && !captures(Capture::Tproxy) && captures(Capture::Redirect) {
        let message = "clients are routed here, and `capture: redirect` takes only the machine's own connections; write a listener with `capture: tproxy`, or no clients";
        out.fault("netfilter.clients", message);
    }
    if part.required == Some(false) && !captures(Capture::Redirect) {
        let message = "a next hop never serves without its table; remove it";
        out.fault("netfilter.required", message);
    }
    if !captures(Capture::Tproxy) && !captures(Capture::Redirect) {
        let message = "no listener takes what the kernel captures, so that only network rules let anything out; write a listener { kind: transparent, bind: \"[::]:3129\", capture: tproxy }";
        out.warn("netfilter", message);
    }
    let takes = |v4: bool| {
        let tproxy = listeners.iter().filter(|(listener, _)| listener.kind.captures(Capture::Tproxy));
        tproxy.map(|(listener, _)| listener.bind).any(|bind| bind.is_ipv4() == v4 || (v4 && bind.ip().is_unspecified()))
    };
    for (at, net) in
        clients.iter().enumerate().filter(|(_, net)| captures(Capture::Tproxy) && !takes(net.addr().is_ipv4()))
    {
        let message =
            format!("no transparent listener takes {net}'s family: names are refused to it; bind one to [::]");
        out.warn(&format!("netfilter.clients[{at}]"), message);
    }
    let interface = |name: &String| {
        // As ip(8) takes them, less what would need quoting.
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b));
        let fits = (1..=15).contains(&name.len()) && plain;
        fits.then(|| name.clone()).ok_or_else(|| format!("`{name}` is not an interface name; write one such as eth1"))
    };
    let read = |(at, name): (usize, &String)| out.keep(&format!("netfilter.interfaces[{at}]"), interface(name));
    let interfaces: Vec<String> = part.interfaces.iter().enumerate().filter_map(read).collect();
    let bypass = out.nets("netfilter.bypass", &part.bypass);
    for (at, _) in bypass.iter().enumerate().filter(|(_, net)| net.prefix_len() == 0) {
        out.fault(&format!("netfilter.bypass[{at}]"), "lets everything out unjudged; write the networks' own CIDRs");
    }
    let dnat = file::readable(&part.dnat).filter_map(|(at, written)| Some((at, dnat(out, at, written, &clients)?)));
    let dnat: Vec<(usize, Dnat)> = dnat.collect();
    ingress_of_its_own(out, &dnat);
    dnat_of_own_ports(out, &dnat, binds);
    let dnat = dnat.into_iter().map(|(_, dnat)| dnat).collect();
    Some(NetfilterSettings {
        clients,
        interfaces,
        bypass,
        masquerades: part.snat != Some(file::Snat::None),
        dnat,
        removes: part.on_exit == Some(file::OnExit::Remove),
        is_required: part.required != Some(false),
        flows_per_client: part.flows_per_client.unwrap_or(FLOWS_PER_CLIENT),
    })
}

/// Routed traffic comes to one listener of its family.
fn one_tproxy_each(out: &mut Findings<'_>, listeners: &[(ListenerSettings, String)]) {
    let tproxy: Vec<_> = listeners.iter().filter(|(listener, _)| listener.kind.captures(Capture::Tproxy)).collect();
    let takes = |bind: SocketAddr| [bind.is_ipv4() || bind.ip().is_unspecified(), bind.is_ipv6()];
    for (at, (listener, path)) in tproxy.iter().enumerate() {
        let same = |other: SocketAddr| std::iter::zip(takes(other), takes(listener.bind)).any(|(a, b)| a && b);
        if let Some((first, _)) = tproxy.iter().take(at).find(|(other, _)| same(other.bind)) {
            let message =
                format!("routed traffic is led to {} already, and to one listener only; remove this one", first.bind);
            out.fault(path, message);
        }
    }
}

/// What comes in by a port of this machine leads to one place.
fn ingress_of_its_own(out: &mut Findings<'_>, dnat: &[(usize, Dnat)]) {
    let meets = |one: &Dnat, other: &Dnat| {
        let overlap = |(a, b): (&IpNet, &IpNet)| a.contains(b) || b.contains(a);
        let mut pairs = one.sources.iter().flat_map(|a| other.sources.iter().map(move |b| (a, b)));
        one.sources.is_empty() || other.sources.is_empty() || pairs.any(overlap)
    };
    for (n, (at, line)) in dnat.iter().enumerate() {
        let is_taken =
            |other: &Dnat| other.port == line.port && other.to.is_ipv4() == line.to.is_ipv4() && meets(other, line);
        if let Some((first, _)) = dnat.iter().take(n).find(|(_, other)| is_taken(other)) {
            let message =
                format!("netfilter.dnat[{first}] already forwards this port; use another port, or other `sources`");
            out.fault(&format!("netfilter.dnat[{at}].protocol"), message);
        }
        if matches!(&line.port, NetPort::Tcp(ports) if ports.contains(&22)) {
            let message = "SSH to this machine will go to the client instead (from `sources`, or from everywhere if there are none), so that this machine has no SSH any more; use another port, such as tcp:2222";
            out.warn(&format!("netfilter.dnat[{at}].protocol"), message);
        }
    }
}

/// What egret itself listens on must not be led away before it arrives.
fn dnat_of_own_ports(out: &mut Findings<'_>, dnat: &[(usize, Dnat)], binds: &[(SocketAddr, String)]) {
    for (at, line) in dnat {
        let NetPort::Tcp(ports) = &line.port else { continue };
        if let Some((bind, path)) = binds.iter().find(|(bind, _)| ports.contains(&bind.port())) {
            let message =
                format!("{bind} is {path}, whose connections would go to the client instead; use another port");
            out.fault(&format!("netfilter.dnat[{at}].protocol"), message);
        }
    }
}

fn dnat(out: &mut Findings<'_>, at: usize, written: &file::Dnat, clients: &[IpNet]) -> Option<Dnat> {
    let path = format!("netfilter.dnat[{at}]");
    let port = match net_port(&written.protocol) {
        Ok(NetPort::Tcp(ports) | NetPort::Udp(ports)) if ports.start() != ports.end() => {
            Err("one port leads to one port; write a line for each".to_owned())
        }
        Ok(NetPort::Icmp) => Err("icmp has no port to lead anywhere; write tcp:443 or udp:5000".to_owned()),
        other => other,
    };
    let port = out.keep(&format!("{path}.protocol"), port);
    let to = written.to.parse::<SocketAddr>();
    let to = to.map_err(|_| format!("`{}` is not an address with a port; write such as 10.224.0.10:443", written.to));
    let to = to.and_then(|to| {
        let is_client = clients.iter().any(|net| net.contains(&to.ip()));
        is_client.then_some(to).ok_or_else(|| format!("{} is in none of netfilter.clients; write a client", to.ip()))
    });
    let to = out.keep(&format!("{path}.to"), to);
    let from = sources(out, &path, written.sources.as_deref(), None);
    if let Some(at) = to.and_then(|to| from.nets.iter().position(|net| net.addr().is_ipv4() != to.is_ipv4())) {
        let message = "is of another family than `to`, and so never comes in; write a line for each family";
        out.fault(&format!("{path}.sources[{at}]"), message);
    }
    Some(Dnat { port: port?, to: to?, sources: from.nets, masquerades: written.snat != Some(false) })
}

pub(super) fn upstream_sources(out: &mut Findings<'_>, texts: &[String]) -> Vec<IpAddr> {
    let read = |(at, text): (usize, &String)| {
        let ip = text.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified() && ip.to_canonical() == *ip);
        let wrong = || format!("`{text}` is not an address of this machine; write one such as 10.0.1.4");
        out.keep(&format!("upstream.sources[{at}]"), ip.ok_or_else(wrong))
    };
    texts.iter().enumerate().filter_map(read).collect()
}

pub(super) fn learn(out: &mut Findings<'_>, written: &file::Learn, is_next_hop: bool) -> LearnSettings {
    let refresh = duration(out, "learn.refresh", written.refresh.as_deref(), 15, Bounds::Positive);
    let remember = duration(out, "learn.remember", written.remember.as_deref(), 24 * 3600, Bounds::Positive);
    if remember < refresh {
        out.fault("learn.remember", "is shorter than `learn.refresh`: names would lose their addresses; write more");
    }
    let usual = || is_next_hop.then(|| PathBuf::from(STATE_DIR));
    let state_dir = written.state_dir.as_ref().map(|dir| out.folder.join(dir)).or_else(usual);
    let opens_for_asker = written.key == Some(file::LearnKey::Client);
    LearnSettings { refresh, remember, opens_for_asker, state_dir }
}
