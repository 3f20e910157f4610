//! "Why not?": the closest rule, why it missed, and the one line that would allow it.
//!
//! Runs only for refusals, on a bounded number of patterns, so that a flood of them stays cheap.

use std::cmp::Reverse;
use std::net::IpAddr;

use super::Policy;
use super::evidence::{Evidence, Flow, Progress};
use super::permit::{Grant, MatchedRule};
use crate::claim::{Source, Transport};
use crate::learned::Known;
use crate::likeness::typos;
use crate::name::HostName;
use crate::outcome::{Hint, Reason, Refusal};
use crate::rule::guard;
use crate::rule::{Action, AppPort, AppProtocol, NetPort};

/// Why a pattern is near whose letters hardly differ.
const ALIKE: &str = ", which is spelled almost alike";

/// Whether a pattern is about names of a registered domain.
fn is_kin(pattern: &str, domain: &str) -> bool {
    pattern.strip_suffix(domain).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

/// The registered domain of a name; under a top-level domain without registrations, such as `.internal`, that domain. Names that a
/// provider hands out under its own domain count as that domain's.
fn registered(name: &str) -> &str {
    let last = || name.rsplit('.').next().unwrap_or(name);
    let ending = |len: usize| name.get(name.len() - len..).unwrap_or(name);
    match psl::suffix(name.as_bytes()).filter(psl::Suffix::is_known) {
        None => last(),
        Some(suffix) if suffix.typ() == Some(psl::Type::Private) => {
            ending(suffix.as_bytes().len()).split_once('.').map_or_else(last, |(_, rest)| registered(rest))
        }
        Some(_) => psl::domain_str(name).unwrap_or(name),
    }
}

/// Whether a registered domain has enough letters for a likeness not to be chance.
fn is_long(domain: &str) -> bool {
    domain.split('.').next().is_some_and(|label| label.len() >= 4)
}

/// Where TLS never comes first, and the server often speaks before the client (FTP, SSH, mail, LDAP, MySQL, PostgreSQL).
const BEGIN_PLAIN: [u16; 9] = [21, 22, 25, 110, 143, 389, 587, 3306, 5432];

/// Patterns compared letter by letter when nothing hangs near the name; more would make refusals dear.
const MAX_COMPARED: usize = 1024;

impl Policy {
    pub(super) fn name_hint(&self, name: &HostName, evidence: &Evidence<'_>) -> Hint {
        let domain = registered(name.as_str());
        let near = self.hanging_near(name).or_else(|| self.spelled_alike(name, domain));
        // No ready-made rule for a look-alike: it may belong to an attacker.
        let is_lure = near.is_some_and(|(pattern, why)| {
            why == ALIKE && is_long(domain) && !is_kin(self.app_hosts.text(pattern), domain)
        });
        // A refusal by no rule names none: what came close stands in `nearest`.
        let nearest = near.map(|(pattern, why)| {
            let MatchedRule { rule, .. } =
                self.matched_rule(Grant::App { rule: self.app_hosts.rule(pattern), pattern });
            format!("rule {rule} allows {}{why}", self.app_hosts.text(pattern))
        });
        Hint { nearest, fix: (!is_lure).then(|| self.name_fix(name, evidence)), ..Hint::default() }
    }

    fn hanging_near(&self, name: &HostName) -> Option<(u32, &'static str)> {
        let mut found = None;
        self.app_hosts.near(name, |pattern| {
            if found.is_some() || !self.allows(pattern) {
                return;
            }
            let text = self.app_hosts.text(pattern);
            let why = if text.strip_prefix("*.") == Some(name.as_str()) {
                ", which does not cover the bare name"
            } else if !text.contains(['*', '?', '[', '{']) {
                " only, not the names under it"
            } else {
                ", and the labels before its ending differ"
            };
            found = Some((pattern, why));
        });
        found
    }

    /// The pattern with the fewest letters that differ, or else the one of the same registered domain with the longest ending
    /// in common.
    fn spelled_alike(&self, name: &HostName, domain: &str) -> Option<(u32, &'static str)> {
        let allowed = || self.app_hosts.ids().take(MAX_COMPARED).filter(|pattern| self.allows(*pattern));
        let alike = allowed()
            .filter_map(|pattern| typos(self.app_hosts.text(pattern), name.as_str()).map(|n| (n, pattern)))
            .min();
        if let Some((_, pattern)) = alike {
            return Some((pattern, ALIKE));
        }
        let ending = |pattern: &u32| {
            let text = self.app_hosts.text(*pattern).bytes().rev();
            text.zip(name.as_str().bytes().rev()).take_while(|(a, b)| a == b).count()
        };
        // The first of equals: `max_by_key` alone would take the last.
        allowed()
            .filter(|pattern| is_kin(self.app_hosts.text(*pattern), domain))
            .max_by_key(|pattern| (ending(pattern), Reverse(*pattern)))
            .map(|pattern| (pattern, ", which is another name"))
    }

    fn allows(&self, pattern: u32) -> bool {
        let rule = self.apps.get(self.app_hosts.rule(pattern) as usize);
        rule.is_some_and(|rule| rule.action == Action::Allow && !rule.is_dns_only())
    }

    fn name_fix(&self, name: &HostName, evidence: &Evidence<'_>) -> String {
        let protocol = match (evidence.port, evidence.protocol) {
            (443, _) => AppProtocol::Https,
            (80, _) => AppProtocol::Http,
            (port, AppProtocol::Https) if BEGIN_PLAIN.contains(&port) => AppProtocol::Tcp,
            (_, protocol) => protocol,
        };
        let id = name.as_str().replace('.', "-");
        let sources = self.fix_sources(evidence.source);
        format!(
            "- {{ name: {id}, {sources}fqdns: [\"{name}\"], protocols: [\"{}:{}\"] }} # policy.application_rules",
            protocol.as_str(),
            evidence.port
        )
    }

    pub(super) fn address_hint(&self, flow: Flow<'_>, ip: IpAddr, known: Known<'_>) -> Hint {
        let covering = (0..)
            .zip(&self.nets)
            .find(|(id, rule)| rule.action == Action::Allow && self.covers(*id, rule, flow.source, ip, known))
            .map(|(_, rule)| format!("rule {} covers the address on {}", rule.name, ports(&rule.ports)));
        let nearest = covering.or_else(|| self.kept_hint(flow.transport, flow.port));
        let effective = guard::effective(ip, self.nat64);
        if guard::metadata().any(|metadata| effective == metadata) {
            let what = format!("{effective} hands out this machine's identity and secrets; no rule is offered for it");
            return Hint { nearest: Some(what), ..Hint::default() };
        }
        let transport = flow.transport.as_str();
        let (id, opens) = match flow.port {
            None => (transport.to_owned(), transport.to_owned()),
            Some(port) => (format!("{transport}-{port}"), format!("{transport}:{port}")),
        };
        let sources = self.fix_sources(flow.source);
        let len = if ip.is_ipv4() { 32 } else { 128 };
        let warning = if effective.is_loopback() { "; opens services of egret's own machine" } else { "" };
        let fix = format!(
            "- {{ name: {id}, {sources}destinations: [\"{ip}/{len}\"], protocols: [\"{opens}\"] }} # policy.network_rules{warning}"
        );
        Hint { nearest, fix: Some(fix), ..Hint::default() }
    }

    /// A rule that opens what egret finds for a name, which is known only while it runs.
    pub(super) fn kept_hint(&self, transport: Transport, port: Option<u16>) -> Option<String> {
        let rule = self.nets.iter().find(|rule| !rule.kept.is_empty() && rule.takes(transport, port))?;
        let names: Vec<&str> = rule.kept.iter().map(|kept| kept.name().as_str()).collect();
        Some(format!("rule {} opens the addresses of {}, as the running egret finds them", rule.name, names.join(", ")))
    }

    /// Where rules name clients at all, a name of this one is offered, and where they name sources, the narrowest one
    /// that has it, or else its address.
    fn fix_sources(&self, source: &Source) -> String {
        let all = || self.apps.iter().map(|r| &r.sources).chain(self.nets.iter().map(|r| &r.sources));
        let mut fix = String::new();
        if let Some(ip) = source.ip.filter(|_| all().any(|sources| !sources.nets.is_empty())) {
            let around = all().flat_map(|sources| &sources.nets).filter(|net| net.contains(&ip));
            let narrowest = around.max_by_key(|net| net.prefix_len()).copied().unwrap_or_else(|| ip.into());
            fix.push_str(&format!("sources: [\"{narrowest}\"], "));
        }
        let name = source.identity.as_ref().and_then(|identity| identity.names().first());
        if let Some(name) = name.filter(|_| all().any(|sources| !sources.clients.is_empty())) {
            // A certificate's names are its authority's choice, and YAML's quotes are not.
            fix.push_str(&format!("clients: [{}], ", serde_json::Value::from(&**name)));
        }
        fix
    }

    /// Why a rule that lists the name did not allow it.
    pub(super) fn why_missed(&self, grant: Grant, progress: Progress, evidence: &Evidence<'_>) -> Option<String> {
        let rule = self.apps.get(grant.rule() as usize)?;
        let overrides = evidence.request.map(|request| request.overrides).unwrap_or_default();
        let name = &rule.name;
        let join = |items: Vec<String>| items.join(", ");
        Some(match progress {
            _ if rule.is_dns_only() => format!("rule {name} lets it be asked for in DNS, and no more"),
            Progress::Listed => format!("rule {name} allows it, for {}", rule.sources),
            Progress::Source => {
                let protocols = join(rule.protocols.iter().map(ToString::to_string).collect());
                let by_claim = AppPort { protocol: AppProtocol::Tcp, port: evidence.port };
                let way = if rule.protocols.contains(&by_claim) {
                    ", for clients that name it by CONNECT or SOCKS5"
                } else {
                    ""
                };
                format!("rule {name} allows it, on {protocols}{way}")
            }
            Progress::Port => {
                let alpn = rule.alpn.iter().flatten().map(|p| p.escape_ascii().to_string()).collect();
                format!("rule {name} allows it, with no ALPN beyond {}", join(alpn))
            }
            Progress::Method if overrides.method => {
                format!("rule {name} does not allow headers that override the method, such as X-HTTP-Method-Override")
            }
            Progress::Path if overrides.path => {
                format!("rule {name} does not allow headers that override the path, such as X-Original-URL")
            }
            Progress::Method => {
                let methods = rule.methods.iter().flatten().map(ToString::to_string).collect();
                format!("rule {name} allows it, with the methods {}", join(methods))
            }
            Progress::Path => format!("rule {name} allows it, on other paths"),
            Progress::Upgrade => format!("rule {name} allows it, without a change of protocol"),
            Progress::Alpn => format!("rule {name} allows it, with the name in the clear"),
        })
    }
}

/// A client that dials an address and shows no name is often a pod that talks to its API server.
pub(super) fn by_address(mut refusal: Refusal) -> Refusal {
    if refusal.reason == Reason::NoSni {
        let cure = "for a cluster's API server, write it as `api_server` of the bundle, or annotate the pod with kubernetes.azure.com/set-kube-service-host-fqdn";
        refusal = refusal.with(Hint { nearest: Some(cure.to_owned()), ..Hint::default() });
    }
    refusal
}

pub(super) fn ports(ports: &[NetPort]) -> String {
    let texts: Vec<String> = ports.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

impl std::fmt::Display for NetPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (protocol, range) = match self {
            Self::Tcp(range) => ("tcp", range),
            Self::Udp(range) => ("udp", range),
            Self::Icmp => return f.write_str("icmp"),
        };
        write!(f, "{protocol}:{}", range.start())?;
        if range.start() == range.end() { Ok(()) } else { write!(f, "-{}", range.end()) }
    }
}
