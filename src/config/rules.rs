//! Rules from text to types: patterns, protocols, sources, and where names may lead.

use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};

use super::consistency::{names_keep_their_ports, one_name_each, what_network_rules_do};
use super::dns::also;
use super::findings::Findings;
use super::rule_parts::{alpn, app_port, kept, net_port, patterns, patterns_of_file, reach, sources};
use super::tags::TagSource;
use super::{bundle, file};
use egret_core::rule::paths::PathPattern;
use egret_core::rule::prefixes::{PrefixSet, prefix};
use egret_core::rule::rules::{Origin, Rules};
use egret_core::rule::{Action, AppPort, AppProtocol, AppRule, Ech, InnerName, NetPort, NetRule};
use egret_core::wire::http::is_token_byte;

/// Patterns that need globset, in all rules together: each is looked at one by one under its ending.
const MAX_RICH: usize = 1000;

pub(super) fn rules(out: &mut Findings<'_>, policy: &file::Policy, dns: &file::Dns) -> Rules {
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
    for (name, fqdns) in also(out, dns) {
        let path = name.to_owned();
        rules.origins.apps.push(Origin { path, is_bundle: true, inline: fqdns.len() });
        rules.apps.push(AppRule::dns_only(name.into(), fqdns));
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
    if let Some(app) = protocols.iter().find(|app| app.protocol == AppProtocol::Tcp && action == Action::Allow) {
        claimed_names_have_no_conditions(out, path, written, *app);
    }
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
        steer: written.steer != Some(false),
        reach: reach(out, &format!("{path}.addresses"), written.addresses.as_deref()),
    }
}

/// What is not looked at meets no condition.
fn claimed_names_have_no_conditions(out: &mut Findings<'_>, path: &str, written: &file::ApplicationRule, app: AppPort) {
    let conditions = [
        ("alpn", written.alpn.is_some()),
        ("ech", written.ech == Some(file::Ech::Deny)),
        ("sni", written.sni.is_some()),
        ("methods", written.methods.is_some()),
        ("paths", written.paths.is_some()),
        ("upgrade", !written.upgrade.is_empty()),
        ("destination", written.destination == Some(file::Destination::Verify)),
    ];
    for (key, _) in conditions.iter().filter(|(_, is_there)| *is_there) {
        let message = format!(
            "{app} is judged by the name that a client claims (CONNECT, SOCKS5), whatever its bytes are; write a rule of its own for it, or remove this"
        );
        out.fault(&format!("{path}.{key}"), message);
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
        if pattern.exact().is_none() && (out.is_fleet || !out.answers_dns) {
            let message = if out.is_fleet {
                "a wildcard in a network rule is filled by what DNS clients are answered, and the instances of a fleet do not know each other's answers yet; write exact names, or remove `fleet`"
            } else {
                "a wildcard in a network rule is filled by what DNS clients are answered; add a `dns` listener that they ask, or write exact names"
            };
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
    if written.steer.is_some() && written.fqdns.is_empty() {
        out.fault(
            &format!("{path}.steer"),
            "only names have synthetic addresses, and the rule has no `fqdns`; remove it",
        );
    }
    let reach = reach(out, &format!("{path}.addresses"), written.addresses.as_deref());
    NetRule {
        name: rule_name(written.name.as_deref(), path),
        action,
        sources: sources(out, path, written.sources.as_deref(), written.clients.as_deref()),
        destinations: destinations(out, &format!("{path}.destinations"), &written.destinations, tags),
        kept: kept(&fqdns, &reach),
        fqdns,
        ports,
        steer: written.steer != Some(false),
        reach,
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
        ("steer", written.steer.is_some()),
    ];
    for (key, _) in conditions.iter().filter(|(_, is_there)| *is_there) {
        out.fault(&format!("{path}.{key}"), "a deny rule takes no conditions but sources and protocols; remove it");
    }
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
