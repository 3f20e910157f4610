//! The servers that names are asked of, and how DNS clients are answered.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use ipnet::IpNet;

use super::file;
use super::findings::Findings;
use super::read::{Bounds, duration, loaded};
use super::rule_parts::patterns;
use crate::dns::settings::{DnsSettings, DnsTransport, DnsUpstream, Hosts, HostsFile};
use crate::files::read_bounded;
use crate::learn::settings::{LearnSettings, SteerSettings};
use crate::proxy::listen::settings::{ListenerKind, ListenerSettings};
use crate::proxy::nameserver::settings::{NameserverSettings, OwnAnswers, RefusedNames};
use egret_core::name::HostName;
use egret_core::rule::guard::is_special;
use egret_core::rule::pattern::Pattern;
use egret_core::rule::prefixes::prefix;
use egret_core::rule::{Action, AppPort, AppProtocol};
use egret_core::steered::Pool;
use egret_core::wire::Expected;

pub(super) fn dns(out: &mut Findings<'_>, written: &file::Dns) -> DnsSettings {
    let authorities = written.ca_file.as_ref().and_then(|name| {
        let text = read_bounded(&out.folder.join(name));
        out.keep("dns.ca_file", text).map(Into::into)
    });
    let upstreams = upstreams(out, "dns.upstreams", &written.upstreams);
    let mut zones: Vec<(HostName, Vec<DnsUpstream>)> = Vec::new();
    for (zone, servers) in &written.zones {
        let path = format!("dns.zones.{zone}");
        let servers_kept = upstreams_of_zone(out, &path, servers);
        let pattern = Pattern::parse(zone).map_err(|fault| fault.to_string());
        let plain = pattern.and_then(|p| {
            p.exact().ok_or_else(|| {
                "a zone is a plain domain and all under it; write it without `*` and leading dot".to_owned()
            })
        });
        let Some(name) = out.keep(&path, plain) else { continue };
        if zones.iter().any(|(other, _)| *other == name) {
            out.fault(&path, "the domain stands here twice; write it once");
        }
        zones.push((name, servers_kept));
    }
    let min_ttl = duration(out, "dns.min_ttl", written.min_ttl.as_deref(), 1, Bounds::Zero);
    let max_ttl = duration(out, "dns.max_ttl", written.max_ttl.as_deref(), 3600, Bounds::Positive);
    let negative_ttl = duration(out, "dns.negative_ttl", written.negative_ttl.as_deref(), 10, Bounds::Zero);
    if min_ttl > max_ttl {
        out.fault("dns.min_ttl", "is longer than `dns.max_ttl`; write a shorter time");
    }
    let stale = duration(out, "dns.stale", written.stale.as_deref(), 3600, Bounds::Zero);
    let hosts = written.hosts_file.as_ref().map(|name| HostsFile(out.folder.join(name)));
    let hosts = hosts.and_then(|file| loaded(out, "dns.hosts_file", file));
    let entries = Arc::new(entries(out, &written.hosts));
    let (edns, randomize_case) = (written.edns != Some(false), written.randomize_case != Some(false));
    DnsSettings {
        upstreams,
        zones,
        authorities,
        min_ttl,
        max_ttl,
        negative_ttl,
        stale,
        entries,
        hosts,
        edns,
        randomize_case,
    }
}

/// Names with their addresses, as they stand in the configuration.
fn entries(out: &mut Findings<'_>, written: &BTreeMap<String, Vec<String>>) -> Hosts {
    let mut hosts = Hosts::default();
    for (text, addresses) in written {
        let path = format!("dns.hosts.{text}");
        let name = Pattern::parse(text).ok().and_then(|pattern| pattern.exact());
        let wrong = || format!("`{text}` is not a name in full; write such as db.example.com: [10.1.0.4]");
        let Some(name) = out.keep(&path, name.ok_or_else(wrong)) else { continue };
        if addresses.is_empty() {
            out.fault(&path, "there is no address; write some, or remove the name");
        }
        for (at, address) in addresses.iter().enumerate() {
            let wrong = |_| format!("`{address}` is not an address; write such as 10.1.0.4 or fd00::4");
            if let Some(ip) = out.keep(&format!("{path}[{at}]"), address.parse::<IpAddr>().map_err(wrong)) {
                hosts.add(name.clone(), ip);
            }
        }
    }
    hosts
}

/// How `dns` listeners answer.
pub(super) fn nameserver(
    out: &mut Findings<'_>,
    written: &file::File,
    listeners: &[(ListenerSettings, String)],
    dns_settings: &DnsSettings,
    learn: &LearnSettings,
) -> NameserverSettings {
    let (dns, max_ttl, refused_ttl) = (&written.dns, dns_settings.max_ttl, dns_settings.negative_ttl);
    let only_there = [
        ("filter", dns.filter.is_some()),
        ("refused", dns.refused.is_some()),
        ("also", !dns.also.is_empty()),
        ("forwarders", !dns.forwarders.is_empty()),
        ("local_ranges", !dns.local_ranges.is_empty()),
        ("chain", dns.chain.is_some()),
        ("dnssec", dns.dnssec.is_some()),
        ("types", !dns.types.is_empty()),
        ("steer", dns.steer.is_some()),
    ];
    if !listeners.iter().any(|(listener, _)| listener.kind == ListenerKind::Dns) {
        for (key, _) in only_there.iter().filter(|(_, is_there)| *is_there) {
            let message = "is about what DNS clients are answered, and there is no `dns` listener; add one such as { kind: dns, bind: \"10.224.0.4:53\" }, or remove it";
            out.fault(&format!("dns.{key}"), message);
        }
        for (key, _) in
            [("floor", &written.learn.floor), ("grace", &written.learn.grace)].iter().filter(|(_, text)| text.is_some())
        {
            let message = "is about what DNS clients are answered, and there is no `dns` listener; remove it";
            out.fault(&format!("learn.{key}"), message);
        }
    }
    let opens_for_asker = learn.opens_for_asker;
    if opens_for_asker && !dns.forwarders.is_empty() {
        let message = "what a forwarder asks for would open for the forwarder alone, and others connect; write rule, or remove dns.forwarders";
        out.fault("learn.key", message);
    }
    let zones = dns.zones.iter().map(|(zone, texts)| (format!("dns.zones.{zone}"), texts));
    for (path, texts) in zones.chain([("dns.upstreams".to_owned(), &dns.upstreams)]) {
        for (at, server) in texts.iter().enumerate().filter_map(|(at, text)| Some((at, upstream(text).ok()?))) {
            // Which other addresses are this machine's is known at start.
            let place = SocketAddr::new(server.ip, server.port);
            let is_own = |(listener, _): &(ListenerSettings, String)| listener.answers_at(place, |ip| ip.is_loopback());
            if server.transport == DnsTransport::Plain && listeners.iter().any(is_own) {
                let message = "is egret's own `dns` listener, so it would ask itself; write another server";
                out.fault(&format!("{path}[{at}]"), message);
            }
        }
    }
    if !dns.forwarders.is_empty() && dns.dnssec.is_none() {
        let message = "answers have no signatures: a forwarder that validates (DNSSEC) calls those of signed zones bogus; write dnssec: intact, or give it negative trust anchors for them";
        out.note("dns.forwarders", message);
    }
    let refused = match dns.refused {
        Some(file::RefusedNames::Refused) => RefusedNames::Refused,
        Some(file::RefusedNames::Nxdomain) | None => RefusedNames::NoName,
    };
    let kinds = dns.types.iter().enumerate();
    let kinds = kinds.filter_map(|(at, text)| out.keep(&format!("dns.types[{at}]"), kind(text))).collect();
    let floor = duration(out, "learn.floor", written.learn.floor.as_deref(), 2 * 3600 + 600, Bounds::Zero);
    let grace = duration(out, "learn.grace", written.learn.grace.as_deref(), 300, Bounds::Zero);
    // For as long as an answer may be kept by anything on its way, its address is not another name's.
    let remember = learn.remember.max(max_ttl.max(floor) + grace);
    NameserverSettings {
        steer: steer(out, written, listeners, (learn, remember)),
        own_answers: own_answers(out, written, listeners),
        refused,
        refused_ttl,
        forwarders: out.nets("dns.forwarders", &dns.forwarders),
        local_ranges: out.nets("dns.local_ranges", &dns.local_ranges),
        is_intact: dns.dnssec == Some(file::Dnssec::Intact),
        keeps_chain: dns.chain == Some(file::DnsChain::Keep),
        kinds,
        floor,
        grace,
        opens_for_asker,
    }
}

/// Where synthetic addresses come from, and where they are written down.
fn steer(
    out: &mut Findings<'_>,
    written: &file::File,
    listeners: &[(ListenerSettings, String)],
    (learn, remember): (&LearnSettings, Duration),
) -> Option<SteerSettings> {
    let written_pool = match written.dns.steer.as_ref()? {
        file::Steer::Usual(false) => return None,
        file::Steer::Usual(true) => file::SteerPool::default(),
        file::Steer::Own(_) | file::Steer::OwnAt(_) => return None,
        file::Steer::From(pool) => pool.clone(),
    };
    let v4 = pool(out, "dns.steer.pool", written_pool.pool.as_deref().unwrap_or("198.18.0.0/16"), 8..=28);
    let v6 = pool(out, "dns.steer.pool6", written_pool.pool6.as_deref().unwrap_or("fd65:6772:6574::/112"), 64..=124);
    let (IpNet::V4(v4), IpNet::V6(v6)) = (v4?, v6?) else {
        out.fault("dns.steer", "`pool` takes an IPv4 range and `pool6` an IPv6 range; write each in its place");
        return None;
    };
    if !listeners.iter().any(|(listener, _)| matches!(listener.kind, ListenerKind::Transparent { .. })) {
        let message = "clients connect to the addresses that they are answered, and there is no `transparent` listener to take such connections; add one, or remove it";
        out.fault("dns.steer", message);
    }
    if written.fleet {
        out.fault(
            "dns.steer",
            "the instances of a fleet do not know each other's addresses yet; remove it, or `fleet`",
        );
    }
    let state_dir = learn.state_dir.clone().or_else(|| {
        out.fault("dns.steer", "which name an address stands for must outlive a restart; write `learn.state_dir`");
        None
    })?;
    Some(SteerSettings { pool: Pool { v4: Some(v4), v6: Some(v6) }, state_dir, remember })
}

/// Where clients of `sni` listeners are led to by answers.
fn own_answers(
    out: &mut Findings<'_>,
    written: &file::File,
    listeners: &[(ListenerSettings, String)],
) -> Option<OwnAnswers> {
    let path = "dns.steer";
    let at = match written.dns.steer.as_ref()? {
        file::Steer::Own(_) => None,
        file::Steer::OwnAt(at) => Some(at),
        _ => return None,
    };
    let sni = listeners.iter().filter_map(|(listener, _)| match listener.kind {
        ListenerKind::Sni { port, speaks } => Some((listener.bind, port, speaks)),
        _ => None,
    });
    let sni: Vec<(SocketAddr, u16, Expected)> = sni.collect();
    let app = |protocol, port| AppPort { protocol, port };
    let ports: Vec<AppPort> = sni
        .iter()
        .flat_map(|(_, port, speaks)| {
            let tls = speaks.tls.then_some(app(AppProtocol::Https, *port));
            tls.into_iter().chain(speaks.http.then_some(app(AppProtocol::Http, *port)))
        })
        .collect();
    if sni.is_empty() {
        out.fault(path, "answers with egret's own address lead clients to `sni` listeners, and there is none; add one, or write `true`");
    }
    let read = |out: &mut Findings<'_>, (at, text): (usize, &String)| {
        let not = |_| format!("`{text}` is not an address; write the one at which clients reach the `sni` listeners");
        out.keep(&format!("{path}.self[{at}]"), text.parse::<IpAddr>().map_err(not))
    };
    let mut addresses: Vec<IpAddr> = match at {
        Some(at) => at.own.iter().enumerate().filter_map(|entry| read(out, entry)).collect(),
        None => sni.iter().map(|(bind, ..)| bind.ip()).collect(),
    };
    addresses.sort_unstable();
    addresses.dedup();
    let family = |is_v4: bool| addresses.iter().filter(|ip| ip.is_ipv4() == is_v4).count();
    if addresses.iter().any(IpAddr::is_unspecified)
        || family(true) > 1
        || family(false) > 1
        || at.is_some_and(|at| at.own.is_empty())
    {
        out.fault(path, "clients are answered with one address of each family; write where they reach the `sni` listeners, such as { self: [\"10.0.0.4\"] }");
    }
    Some(OwnAnswers { addresses, ports })
}

/// A range for synthetic addresses, which must be nobody's.
fn pool(out: &mut Findings<'_>, path: &str, text: &str, lengths: RangeInclusive<u8>) -> Option<IpNet> {
    let net = out.keep(path, prefix(text))?;
    if !lengths.contains(&net.prefix_len()) {
        let (least, most) = (lengths.start(), lengths.end());
        out.fault(path, format!("{net} is too large or too small; write a length from {least} to {most}"));
    }
    if !is_special(&net) {
        out.fault(
            path,
            format!("{net} has public addresses; write a range that nothing else uses, such as 198.18.0.0/16"),
        );
    }
    Some(net)
}

/// A kind of record by its name.
fn kind(text: &str) -> Result<RecordType, String> {
    let kind = text.parse::<RecordType>().ok().filter(|_| !text.chars().any(char::is_lowercase));
    match kind {
        None | Some(RecordType::Unknown(_) | RecordType::ZERO) => {
            Err(format!("`{text}` is not a kind of record; write such as TXT or MX, in capitals"))
        }
        Some(RecordType::ANY | RecordType::AXFR | RecordType::IXFR | RecordType::OPT | RecordType::TSIG) => {
            Err(format!("`{text}` is not for records of one kind; remove it"))
        }
        Some(kind) => Ok(kind),
    }
}

/// Names that may be asked for though no rule lists them, under the key that says so.
pub(super) fn also(out: &mut Findings<'_>, dns: &file::Dns) -> Vec<(&'static str, Vec<Pattern>)> {
    let mut also = Vec::new();
    if !dns.also.is_empty() {
        also.push(("dns.also", patterns(out, "dns.also", &dns.also, &Action::Allow)));
    }
    if dns.filter == Some(file::DnsFilter::Off) {
        also.extend(Pattern::parse("*").ok().map(|all| ("dns.filter", vec![all])));
    }
    also
}

fn upstreams(out: &mut Findings<'_>, path: &str, texts: &[String]) -> Vec<DnsUpstream> {
    let read = |(at, text): (usize, &String)| out.keep(&format!("{path}[{at}]"), upstream(text));
    texts.iter().enumerate().filter_map(read).collect()
}

fn upstreams_of_zone(out: &mut Findings<'_>, path: &str, texts: &[String]) -> Vec<DnsUpstream> {
    if texts.is_empty() {
        out.fault(path, "there is no upstream for this zone; write at least one address");
    }
    upstreams(out, path, texts)
}

/// Reads one `dns.upstreams` entry.
fn upstream(text: &str) -> Result<DnsUpstream, String> {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    let (rest, name) = rest.split_once('#').map_or((rest, None), |(rest, name)| (rest, Some(name)));
    let (place, path) = rest.split_once('/').map_or((rest, None), |(place, path)| (place, Some(format!("/{path}"))));
    let named = |example: &str| match name.map(|n| HostName::from_wire(n.as_bytes())) {
        Some(Ok(name)) => Ok(name.as_str().into()),
        _ => Err(format!("an encrypted upstream needs the name of its certificate; write {example}")),
    };
    let (default_port, transport) = match scheme {
        "" if name.is_none() && path.is_none() => (53, DnsTransport::Plain),
        "tls" if path.is_none() => (853, DnsTransport::Tls { name: named("tls://9.9.9.9#dns.quad9.net")? }),
        "https" => (
            443,
            DnsTransport::Https {
                name: named("https://9.9.9.9/dns-query#dns.quad9.net")?,
                path: path.unwrap_or_else(|| "/dns-query".to_owned()).into(),
            },
        ),
        _ => {
            return Err(format!(
                "`{text}` is not an upstream; write 10.0.0.53, 10.0.0.53:5353, tls://ADDRESS#NAME or https://ADDRESS/PATH#NAME"
            ));
        }
    };
    let bare = place.trim_start_matches('[').trim_end_matches(']');
    let (ip, port) = match (bare.parse::<IpAddr>(), place.parse::<SocketAddr>()) {
        (Ok(ip), _) => (ip, default_port),
        (_, Ok(socket)) if socket.port() > 0 => (socket.ip(), socket.port()),
        (_, Ok(_)) => return Err("0 is not a port; write a number from 1 to 65535".to_owned()),
        _ if place.rsplit_once(':').is_some_and(|(ip, _)| ip.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()) => {
            return Err(format!("`{place}` has no port from 1 to 65535; write such as 10.0.0.53:5353"));
        }
        _ => return Err(format!("`{place}` is not an address; an upstream is reached by address, not by name")),
    };
    Ok(DnsUpstream { ip, port, transport })
}
