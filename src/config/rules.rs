//! Rules from text to types: patterns, protocols, sources, and where names may lead.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};

use super::check::Findings;
use super::tags::ServiceTags;
use super::{Origin, Rules, bundle, file};
use crate::files::read_bounded;
use egret_core::learned::Kept;
use egret_core::rule::paths::PathPattern;
use egret_core::rule::pattern::Pattern;
use egret_core::rule::prefixes::{PrefixSet, prefix};
use egret_core::rule::{Action, AppPort, AppProtocol, AppRule, Ech, InnerName, NetPort, NetRule, Reach, Sources};
use egret_core::wire::http::is_token_byte;

/// Patterns that need globset, in all rules together: each is looked at one by one under its ending.
const MAX_RICH: usize = 1000;
/// Names twice in a file that are told of one by one.
const MAX_TWINS: usize = 20;

pub(super) fn rules(out: &mut Findings<'_>, policy: &file::Policy) -> Rules {
    // The one mode there is; `audit` is refused by the schema.
    let file::Mode::Enforce = policy.mode;
    let nat64 = policy.nat64_prefix.as_deref().and_then(|text| out.keep("policy.nat64_prefix", nat64_prefix(text)));
    let mut rules = Rules {
        nat64,
        cuts: policy.on_change == Some(file::OnChange::Cut),
        watches: policy.watch == Some(true),
        ..Rules::default()
    };
    let tags = TagSource::load(out, policy);
    for (at, written) in file::readable(&policy.bundles) {
        bundle::add(out, &format!("policy.bundles[{at}]"), written, &tags, &mut rules);
    }
    for (at, written) in file::readable(&policy.application_rules) {
        let path = format!("policy.application_rules[{at}]");
        rules.apps.push(application_rule(out, &path, written));
        rules.origins.apps.push(Origin { path, is_bundle: false, inline: written.fqdns.len() });
    }
    for (at, written) in file::readable(&policy.network_rules) {
        let path = format!("policy.network_rules[{at}]");
        rules.nets.push(network_rule(out, &path, written, &tags));
        rules.origins.nets.push(Origin { path, is_bundle: false, inline: written.fqdns.len() });
    }
    let rich = rules.apps.iter().flat_map(|r| &r.fqdns).chain(rules.nets.iter().flat_map(|r| &r.fqdns));
    let rich = rich.filter(|p| p.is_rich()).count();
    if rich > MAX_RICH {
        out.fault(
            "policy",
            format!("{rich} patterns use `?`, `[…]` or `{{…}}`; {MAX_RICH} are the most, write plain names for some"),
        );
    }
    one_name_each(out, policy, &rules);
    names_keep_their_ports(out, policy, &rules);
    what_network_rules_do(out, policy, &rules);
    if rules.apps.is_empty() && rules.nets.is_empty() {
        out.warn("policy", "there is no rule: everything will be refused");
    }
    rules
}

/// RFC 6052 §2.2 knows six lengths.
fn nat64_prefix(text: &str) -> Result<Ipv6Net, String> {
    match prefix(text) {
        Ok(IpNet::V6(net)) if [32, 40, 48, 56, 64, 96].contains(&net.prefix_len()) => Ok(net),
        _ => Err(format!("`{text}` is not a NAT64 prefix; write an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits")),
    }
}

fn application_rule(out: &mut Findings<'_>, path: &str, written: &file::ApplicationRule) -> AppRule {
    let action = action(written.action);
    let mut fqdns = patterns(out, &format!("{path}.fqdns"), &written.fqdns, &action);
    if let Some(name) = &written.fqdns_file {
        fqdns.extend(patterns_of_file(out, &format!("{path}.fqdns_file"), name));
    } else if written.fqdns.is_empty() {
        out.fault(path, "the rule lists no name; write `fqdns` or `fqdns_file`");
    }
    let protocols: Vec<AppPort> = written
        .protocols
        .iter()
        .enumerate()
        .filter_map(|(at, text)| out.keep(&format!("{path}.protocols[{at}]"), app_port(text)))
        .collect();
    if written.protocols.is_empty() && action == Action::Allow {
        out.fault(path, "the rule opens no port; write `protocols`, such as [\"https:443\"]");
    }
    if action == Action::Deny {
        deny_has_no_conditions(out, path, written);
    }
    let alpn = written.alpn.as_ref().map(|list| alpn(out, &format!("{path}.alpn"), list));
    if alpn.is_some() && action == Action::Allow && !protocols.iter().any(|app| app.protocol == AppProtocol::Https) {
        out.fault(&format!("{path}.alpn"), "plain HTTP has no ALPN; remove it, or add an https port");
    }
    let (methods, paths) = requests(out, path, written);
    if action == Action::Allow && protocols.iter().any(|app| app.protocol == AppProtocol::Https) {
        let seen =
            [("methods", methods.is_some()), ("paths", paths.is_some()), ("upgrade", !written.upgrade.is_empty())];
        for (key, _) in seen.iter().filter(|(_, is_there)| *is_there) {
            let message = "what is encrypted has no method and no path that could be seen; write a rule of its own for http ports, or remove it";
            out.fault(&format!("{path}.{key}"), message);
        }
    }
    AppRule {
        name: rule_name(written.name.as_deref(), path),
        action,
        sources: sources(out, path, written.sources.as_deref(), written.clients.as_deref()),
        fqdns,
        except: Vec::new(),
        protocols,
        alpn,
        ech: if written.ech == Some(file::Ech::Deny) { Ech::Deny } else { Ech::Outer },
        inner: match written.sni {
            Some(file::Sni::AnyListed) => InnerName::AnyListed,
            Some(file::Sni::Optional) => InnerName::Optional,
            None | Some(file::Sni::Same) => InnerName::Same,
        },
        methods,
        paths,
        websocket: written.upgrade.contains(&file::Upgrade::WebSocket),
        verify: written.destination == Some(file::Destination::Verify),
        reach: reach(out, &format!("{path}.addresses"), written.addresses.as_deref()),
    }
}

/// What a rule says of plain HTTP requests.
fn requests(
    out: &mut Findings<'_>,
    path: &str,
    written: &file::ApplicationRule,
) -> (Option<Vec<Box<str>>>, Option<Vec<PathPattern>>) {
    let methods = written.methods.as_ref().map(|list| {
        let read = |(at, word): (usize, &String)| out.keep(&format!("{path}.methods[{at}]"), method(word));
        list.iter().enumerate().filter_map(read).collect()
    });
    let paths = written.paths.as_ref().map(|list| {
        let read = |(at, text): (usize, &String)| out.keep(&format!("{path}.paths[{at}]"), PathPattern::parse(text));
        list.iter().enumerate().filter_map(read).collect()
    });
    for (key, is_empty) in [
        ("methods", written.methods.as_ref().is_some_and(Vec::is_empty)),
        ("paths", written.paths.as_ref().is_some_and(Vec::is_empty)),
    ] {
        if is_empty {
            out.fault(
                &format!("{path}.{key}"),
                "the list is empty, so no request could pass; write some, or remove the key",
            );
        }
    }
    (methods, paths)
}

/// RFC 9110 §9.1: a token, and case counts.
fn method(word: &str) -> Result<Box<str>, String> {
    let is_token = !word.is_empty() && word.bytes().all(is_token_byte);
    if !is_token || word == "CONNECT" {
        return Err(format!("`{word}` is not an HTTP method; write such as GET"));
    }
    match word.to_ascii_uppercase() {
        upper if upper != word && ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"].contains(&&*upper) => {
            Err(format!("`{word}` is not `{upper}`: case counts; write {upper}"))
        }
        _ => Ok(word.into()),
    }
}

fn network_rule(out: &mut Findings<'_>, path: &str, written: &file::NetworkRule, tags: &TagSource) -> NetRule {
    let action = action(written.action);
    let ports: Vec<NetPort> = written
        .protocols
        .iter()
        .enumerate()
        .filter_map(|(at, text)| out.keep(&format!("{path}.protocols[{at}]"), net_port(text)))
        .collect();
    if written.protocols.is_empty() {
        out.fault(&format!("{path}.protocols"), "the rule opens no port; write such as [\"tcp:8443\"]");
    }
    if written.destinations.is_empty() && written.fqdns.is_empty() {
        out.fault(path, "the rule has no destination; write `destinations` or `fqdns`");
    }
    let fqdns = patterns(out, &format!("{path}.fqdns"), &written.fqdns, &action);
    for (at, pattern) in fqdns.iter().enumerate() {
        if pattern.exact().is_none() {
            let message = "a wildcard in a network rule needs DNS through egret, which is not available in this version; write exact names";
            out.fault(&format!("{path}.fqdns[{at}]"), message);
        }
    }
    if action == Action::Deny && written.clients.is_some() {
        out.fault(&format!("{path}.clients"), "a client that shows no name would not be denied; remove it");
    }
    if action == Action::Deny && !written.fqdns.is_empty() {
        out.fault(
            &format!("{path}.fqdns"),
            "names are denied by an application rule with `action: deny`; move them there",
        );
    }
    if written.addresses.is_some() && written.fqdns.is_empty() {
        out.fault(&format!("{path}.addresses"), "only names need it; `destinations` already say where the rule leads");
    }
    NetRule {
        name: rule_name(written.name.as_deref(), path),
        action,
        sources: sources(out, path, written.sources.as_deref(), written.clients.as_deref()),
        destinations: destinations(out, &format!("{path}.destinations"), &written.destinations, tags),
        kept: kept(&fqdns),
        fqdns,
        ports,
        reach: reach(out, &format!("{path}.addresses"), written.addresses.as_deref()),
    }
}

/// The exact names of a network rule, to be kept resolved: clients that ask others dial their addresses.
pub(super) fn kept(fqdns: &[Pattern]) -> Vec<Arc<Kept>> {
    fqdns.iter().filter_map(Pattern::exact).map(|name| Arc::new(Kept::new(name))).collect()
}

/// The file of service tags, and whether one is named at all.
pub(super) struct TagSource {
    pub(super) file: Option<ServiceTags>,
    pub(super) is_named: bool,
}

impl TagSource {
    fn load(out: &mut Findings<'_>, policy: &file::Policy) -> Self {
        let name = policy.service_tags.as_ref();
        let file = name.and_then(|name| {
            let read = ServiceTags::load(&out.policy_file(name));
            out.keep("policy.service_tags", read)
        });
        Self { file, is_named: name.is_some() }
    }
}

/// CIDRs, addresses and service tags.
fn destinations(out: &mut Findings<'_>, path: &str, texts: &[String], tags: &TagSource) -> PrefixSet {
    let mut nets = Vec::with_capacity(texts.len());
    for (at, text) in texts.iter().enumerate() {
        // A tag begins with a letter; so do some IPv6 addresses, which have colons.
        let is_tag = text.starts_with(|c: char| c.is_ascii_alphabetic()) && !text.contains([':', '/']);
        let read = match &tags.file {
            _ if !is_tag => prefix(text).map(|net| vec![net]),
            Some(file) => file.prefixes(text),
            None if tags.is_named => continue,
            None => Err(format!(
                "`{text}` is not a CIDR; a name goes into `fqdns`, and a service tag needs policy.service_tags with Microsoft's file"
            )),
        };
        nets.extend(out.keep(&format!("{path}[{at}]"), read).unwrap_or_default());
    }
    nets.into_iter().collect()
}

/// Absent means everyone; a list that came out empty does not.
pub(super) fn sources(
    out: &mut Findings<'_>,
    path: &str,
    written: Option<&[String]>,
    clients: Option<&[String]>,
) -> Sources {
    let (sources_path, clients_path) = (format!("{path}.sources"), format!("{path}.clients"));
    if written.is_some_and(<[String]>::is_empty) {
        out.fault(&sources_path, "the list is empty; write CIDRs, or remove the key to mean everyone");
    }
    if clients.is_some_and(<[String]>::is_empty) {
        out.fault(&clients_path, "the list is empty; write names, or remove the key to mean everyone");
    }
    for (at, name) in clients.into_iter().flatten().enumerate() {
        if name.is_empty() || name.contains('*') {
            let message = format!("`{name}` is no one's name; write a certificate's name or user:NAME, each in full");
            out.fault(&format!("{clients_path}[{at}]"), message);
        }
    }
    let clients = clients.unwrap_or_default().iter().map(|name| name.as_str().into()).collect();
    Sources { nets: out.nets(&sources_path, written.unwrap_or_default()), clients }
}

/// A denial holds whatever the bytes say; a condition on it would be a way around it.
fn deny_has_no_conditions(out: &mut Findings<'_>, path: &str, written: &file::ApplicationRule) {
    let conditions = [
        ("clients", written.clients.is_some()),
        ("alpn", written.alpn.is_some()),
        ("ech", written.ech.is_some()),
        ("sni", written.sni.is_some()),
        ("methods", written.methods.is_some()),
        ("paths", written.paths.is_some()),
        ("upgrade", !written.upgrade.is_empty()),
        ("addresses", written.addresses.is_some()),
        ("destination", written.destination.is_some()),
    ];
    for (key, _) in conditions.iter().filter(|(_, is_there)| *is_there) {
        out.fault(&format!("{path}.{key}"), "a deny rule takes no conditions but sources and protocols; remove it");
    }
}

/// A rule set's own patterns: it repeats and widens on purpose.
pub(super) fn plain_patterns(out: &mut Findings<'_>, path: &str, texts: &[String]) -> Vec<Pattern> {
    texts.iter().filter_map(|text| out.keep(path, Pattern::parse(text).map_err(|fault| fault.to_string()))).collect()
}

fn patterns(out: &mut Findings<'_>, path: &str, texts: &[String], action: &Action) -> Vec<Pattern> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut kept = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let here = format!("{path}[{at}]");
        let Some(pattern) = out.keep(&here, Pattern::parse(text).map_err(|fault| fault.to_string())) else { continue };
        if pattern.is_any() && *action == Action::Allow {
            out.warn(&here, "`*` lets every name out");
        }
        if let Some(first) = seen.insert(pattern.as_str().to_owned(), at) {
            out.warn(&here, format!("`{text}` stands in this list already, as number {}", first + 1));
        }
        kept.push(pattern);
    }
    kept
}

fn patterns_of_file(out: &mut Findings<'_>, path: &str, name: &str) -> Vec<Pattern> {
    let file = out.policy_file(name);
    let Some(text) = out.keep(path, read_bounded(&file)) else { return Vec::new() };
    let mut kept: Vec<Pattern> = Vec::new();
    let (mut seen, mut twins): (HashMap<String, usize>, usize) = (HashMap::new(), 0);
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match Pattern::parse(line) {
            Ok(pattern) => {
                if pattern.is_any() {
                    out.warn(path, format!("{}:{number}: `*` lets every name out", file.display()));
                }
                if let Some(first) = seen.insert(pattern.as_str().to_owned(), number) {
                    twins += 1;
                    if twins <= MAX_TWINS {
                        let file = file.display();
                        out.warn(path, format!("{file}:{number}: `{line}` stands in line {first} already"));
                    }
                }
                kept.push(pattern);
            }
            Err(fault) => out.fault(path, format!("{}:{number}: {fault}", file.display())),
        }
    }
    if twins > MAX_TWINS {
        out.warn(path, format!("{}: {} more names stand there twice", file.display(), twins - MAX_TWINS));
    }
    if kept.is_empty() {
        out.fault(path, format!("{} holds no pattern; write one a line", file.display()));
    }
    kept
}

pub(super) fn reach(out: &mut Findings<'_>, path: &str, words: Option<&[String]>) -> Reach {
    let Some(words) = words else { return Reach::default() };
    if words.is_empty() {
        out.fault(path, "the list is empty, so every answer would be refused; write [public] or CIDRs");
    }
    let mut reach = Reach { public: false, prefixes: Vec::new() };
    for (at, word) in words.iter().enumerate() {
        if word == "public" {
            reach.public = true;
        } else if let Some(net) =
            out.keep(&format!("{path}[{at}]"), prefix(word).map_err(|e| format!("{e}, or public")))
        {
            reach.prefixes.push(net);
        }
    }
    reach
}

fn alpn(out: &mut Findings<'_>, path: &str, list: &[String]) -> Vec<Box<[u8]>> {
    if list.is_empty() {
        out.fault(path, "the list is empty, so no offer could pass; write such as [h2, http/1.1], or remove it");
    }
    for (at, name) in list.iter().enumerate() {
        if name.is_empty() || name.len() > 255 {
            out.fault(&format!("{path}[{at}]"), "an ALPN protocol has 1 to 255 bytes (RFC 7301)");
        }
    }
    list.iter().map(|name| name.as_bytes().into()).collect()
}

pub(super) fn app_port(text: &str) -> Result<AppPort, String> {
    let wrong = || format!("`{text}` is not a protocol of an application rule; write https:443 or http:80");
    let (protocol, port) = text.split_once(':').ok_or_else(wrong)?;
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "https" => AppProtocol::Https,
        "http" => AppProtocol::Http,
        "tcp" | "udp" => {
            return Err(format!(
                "`{text}` is judged by address; write it into a network rule, or write https:{port} here"
            ));
        }
        _ => return Err(wrong()),
    };
    let port = read_port(port)?;
    Ok(AppPort { protocol, port })
}

pub(super) fn net_port(text: &str) -> Result<NetPort, String> {
    let wrong =
        || format!("`{text}` is not a protocol of a network rule; write tcp:8443, tcp:9000-9010, udp:123 or icmp");
    if text.eq_ignore_ascii_case("icmp") {
        return Ok(NetPort::Icmp);
    }
    let (protocol, ports) = text.split_once(':').ok_or_else(wrong)?;
    let range = port_range(ports)?;
    match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Ok(NetPort::Tcp(range)),
        "udp" => Ok(NetPort::Udp(range)),
        "https" | "http" => {
            Err(format!("`{text}` is judged by name; write it into an application rule, or write tcp:{ports} here"))
        }
        _ => Err(wrong()),
    }
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (read_port(low)?, read_port(high)?);
    if low > high { Err(format!("`{text}` runs backwards; write {high}-{low}")) } else { Ok(low..=high) }
}

fn read_port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port > 0);
    port.ok_or_else(|| format!("`{text}` is not a port; write a number from 1 to 65535"))
}

fn rule_name(written: Option<&str>, path: &str) -> Arc<str> {
    written.unwrap_or_else(|| path.trim_start_matches("policy.")).into()
}

const fn action(written: file::Action) -> Action {
    match written {
        file::Action::Allow => Action::Allow,
        file::Action::Deny => Action::Deny,
    }
}

/// A name in the log must lead to one rule.
fn one_name_each(out: &mut Findings<'_>, policy: &file::Policy, rules: &Rules) {
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
fn what_network_rules_do(out: &mut Findings<'_>, policy: &file::Policy, rules: &Rules) {
    let own = rules.nets.iter().skip(rules.nets.len() - file::readable(&policy.network_rules).count());
    for ((at, written), rule) in file::readable(&policy.network_rules).zip(own) {
        let path = format!("policy.network_rules[{at}]");
        if !out.has_kernel && rule.ports.iter().any(|port| !matches!(port, NetPort::Tcp(_))) {
            let message = "only the kernel carries udp and icmp, and there is no `netfilter`: nothing will use this";
            out.warn(&format!("{path}.protocols"), message);
        }
        let unseen = rules.apps.iter().flat_map(|r| &r.protocols).find(|app| rule.takes_tcp(app.port));
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
fn names_keep_their_ports(out: &mut Findings<'_>, policy: &file::Policy, rules: &Rules) {
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
