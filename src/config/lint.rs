//! What a policy says and probably does not mean: rules that open strangers' names, that nothing reaches, or
//! that say what another says already. Only `egret check` asks; a rule set's own rows inform and do not warn.

use std::collections::{BTreeMap, BTreeSet};

use super::check::Findings;
use super::{ListenerKind, ListenerSettings, Rules};
use crate::name::HostName;
use crate::policy::hosts::HostIndex;
use crate::policy::pattern::Pattern;
use crate::policy::rule::{Action, AppProtocol, AppRule, Ech, NetPort, NetRule, Reach, Sources};

/// Zones in which everybody may have a name, beyond those of the public suffix list: Azure's of all clouds,
/// and what others hand out by path or account.
const SHARED: &[&str] = &[
    "api.azureml.ms",
    "applicationinsights.azure.com",
    "azds.io",
    "azmk8s.io",
    "azure-api.cn",
    "azure-api.net",
    "azure-api.us",
    "azurecontainer.io",
    "azurecontainerapps.io",
    "azurecontainerapps.us",
    "azurecr.cn",
    "azurecr.io",
    "azurecr.us",
    "azuredatabricks.net",
    "azureedge.net",
    "azurefd.net",
    "azurefd.us",
    "azurehdinsight.net",
    "azurestaticapps.net",
    "azurewebsites.net",
    "azurewebsites.us",
    "b2clogin.com",
    "batch.azure.com",
    "blob.core.chinacloudapi.cn",
    "blob.core.usgovcloudapi.net",
    "blob.core.windows.net",
    "blob.storage.azure.net",
    "chinacloudsites.cn",
    "cloudapp.azure.com",
    "cloudapp.chinacloudapi.cn",
    "cloudapp.net",
    "cloudapp.usgovcloudapi.net",
    "cloudfront.net",
    "cognitiveservices.azure.com",
    "containerservice.azure.us",
    "database.chinacloudapi.cn",
    "database.usgovcloudapi.net",
    "database.windows.net",
    "dfs.core.windows.net",
    "documents.azure.com",
    "file.core.chinacloudapi.cn",
    "file.core.usgovcloudapi.net",
    "file.core.windows.net",
    "in.applicationinsights.azure.com",
    "ingest.monitor.azure.cn",
    "ingest.monitor.azure.com",
    "ingest.monitor.azure.us",
    "kusto.windows.net",
    "mysql.database.azure.com",
    "ods.opinsights.azure.cn",
    "ods.opinsights.azure.com",
    "ods.opinsights.azure.us",
    "oms.opinsights.azure.cn",
    "oms.opinsights.azure.com",
    "oms.opinsights.azure.us",
    "openai.azure.com",
    "postgres.database.azure.com",
    "prod.service.azk8s.cn",
    "queue.core.chinacloudapi.cn",
    "queue.core.usgovcloudapi.net",
    "queue.core.windows.net",
    "redis.cache.windows.net",
    "s3.amazonaws.com",
    "search.windows.net",
    "servicebus.chinacloudapi.cn",
    "servicebus.usgovcloudapi.net",
    "servicebus.windows.net",
    "services.ai.azure.com",
    "sharepoint.com",
    "signalr.net",
    "storage.googleapis.com",
    "table.core.chinacloudapi.cn",
    "table.core.usgovcloudapi.net",
    "table.core.windows.net",
    "trafficmanager.cn",
    "trafficmanager.net",
    "usgovtrafficmanager.net",
    "vault.azure.cn",
    "vault.azure.net",
    "vault.usgovcloudapi.net",
    "web.core.windows.net",
    "webpubsub.azure.com",
    "z6.web.core.windows.net",
];

/// Resolvers that answer over HTTPS: who reaches one need not ask egret's DNS.
const DOH: &[&str] = &[
    "base.dns.mullvad.net",
    "chrome.cloudflare-dns.com",
    "cloudflare-dns.com",
    "dns.adguard-dns.com",
    "dns.alidns.com",
    "dns.controld.com",
    "dns.google",
    "dns.google.com",
    "dns.mullvad.net",
    "dns.nextdns.io",
    "dns.quad9.net",
    "dns.sb",
    "dns0.eu",
    "dns10.quad9.net",
    "dns11.quad9.net",
    "dns9.quad9.net",
    "doh.cleanbrowsing.org",
    "doh.dns.apple.com",
    "doh.dns.sb",
    "doh.familyshield.opendns.com",
    "doh.libredns.gr",
    "doh.opendns.com",
    "doh.pub",
    "doh.umbrella.com",
    "doh.xfinity.com",
    "family.cloudflare-dns.com",
    "freedns.controld.com",
    "mozilla.cloudflare-dns.com",
    "one.one.one.one",
    "security.cloudflare-dns.com",
    "unfiltered.adguard-dns.com",
];

/// The outer names of encrypted client hellos, behind which any site may be meant.
const FRONTS: &[&str] = &["cloudflare-ech.com"];

/// Patterns of one rule that are told of one by one; a list of thousands is told of as a whole.
const MAX_TOLD: usize = 20;

pub(super) fn lint(out: &mut Findings<'_>, rules: &Rules, listeners: &[ListenerSettings]) {
    let apps: Vec<AppPlace<'_>> = rules
        .apps
        .iter()
        .zip(&rules.origins.apps)
        .map(|(rule, path)| AppPlace { rule, path, is_bundle: path.starts_with("policy.bundles") })
        .collect();
    let index = Index::of(&apps);
    for (at, app) in apps.iter().enumerate() {
        if app.rule.action == Action::Allow && !app.rule.is_dns_only() {
            strangers(out, app);
            repeated(out, &apps, &index, at);
        }
    }
    matched_by(out, &apps, &index, DOH, |name, text, rule| {
        let https = rule.protocols.iter().any(|app| app.protocol == AppProtocol::Https);
        https.then(|| format!("`{text}` opens {name}, which answers DNS over HTTPS; deny it, or write narrower names"))
    });
    matched_by(out, &apps, &index, FRONTS, |name, text, rule| {
        let hidden = rule.ech == Ech::Outer;
        hidden
            .then(|| format!("`{text}` opens {name}, the front of encrypted hellos for many sites; write `ech: deny`"))
    });
    nobody_listens(out, &apps, listeners);
    networks(out, rules);
}

struct AppPlace<'a> {
    rule: &'a AppRule,
    path: &'a str,
    is_bundle: bool,
}

impl AppPlace<'_> {
    /// Bundles inform, rules warn. Of a rule's own list, the pattern's place.
    fn say(&self, out: &mut Findings<'_>, pattern: Option<usize>, message: String) {
        if self.is_bundle {
            return out.note(self.path, format!("{}: {message}", self.rule.name));
        }
        let path = match pattern {
            Some(at) => format!("{}.fqdns[{at}]", self.path),
            None => self.path.to_owned(),
        };
        out.warn(&path, message);
    }
}

/// Every pattern of every rule that allows or denies, with its place.
struct Index {
    hosts: HostIndex,
    /// Rule and pattern of each id.
    places: Vec<(usize, usize)>,
}

impl Index {
    fn of(apps: &[AppPlace<'_>]) -> Self {
        let mut index = Self { hosts: HostIndex::default(), places: Vec::new() };
        for (rule, app) in apps.iter().enumerate().filter(|(_, app)| app.rule.action != Action::Expect) {
            for (at, pattern) in app.rule.fqdns.iter().enumerate() {
                index.hosts.add(pattern, 0);
                index.places.push((rule, at));
            }
        }
        index
    }

    fn place(&self, id: u32) -> Option<(usize, usize)> {
        self.places.get(id as usize).copied()
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
            .find(|zone| zone.strip_suffix(ending).is_some_and(|front| front.is_empty() || front.ends_with('.')));
        let text = pattern.as_str();
        let message = match (public, below) {
            (None, None) => continue,
            (Some(suffix), _) if suffix.typ() == Some(psl::Type::Icann) => {
                format!("`{text}` opens every name under the public suffix {ending}; write the domains that are meant")
            }
            (_, Some(zone)) if *zone != ending => {
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

/// Patterns that other rules make needless, or useless.
fn repeated(out: &mut Findings<'_>, apps: &[AppPlace<'_>], index: &Index, at: usize) {
    let Some(app) = apps.get(at).filter(|app| !app.is_bundle) else { return };
    let mut told: Vec<(usize, String)> = Vec::new();
    let mut by: BTreeMap<(bool, usize), usize> = BTreeMap::new();
    for (n, pattern) in app.rule.fqdns.iter().enumerate() {
        let mut found: Option<(bool, usize, usize)> = None;
        index.hosts.covering(pattern, |id| {
            let Some((other, m)) = index.place(id).filter(|place| *place != (at, n)) else { return };
            let Some(by) = apps.get(other) else { return };
            let denies = by.rule.action == Action::Deny;
            let twin = by.rule.fqdns.get(m).is_some_and(|p| p.as_str() == pattern.as_str());
            let covers = if denies {
                outweighs(by.rule, app.rule)
            } else {
                // Of two that say the same, the second one is too many; twins in one list are told elsewhere.
                includes(by.rule, app.rule) && !(twin && (other == at || (other > at && includes(app.rule, by.rule))))
            };
            if covers && !by.rule.is_dns_only() && found.is_none_or(|(denied, ..)| denies && !denied) {
                found = Some((denies, other, m));
            }
        });
        let Some((denied, other, m)) = found else { continue };
        let Some(other_rule) = apps.get(other).map(|app| app.rule) else { continue };
        *by.entry((denied, other)).or_default() += 1;
        let text = pattern.as_str();
        let wider = other_rule.fqdns.get(m).map_or("", Pattern::as_str);
        told.push((
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
    let more = told.len().saturating_sub(MAX_TOLD);
    for (n, message) in told.into_iter().take(MAX_TOLD) {
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
    index: &Index,
    names: &[&str],
    message: impl Fn(&str, &str, &AppRule) -> Option<String>,
) {
    let mut told: BTreeSet<(usize, usize)> = BTreeSet::new();
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
            if app.rule.action != Action::Allow || !wild || denied(app.rule) || told.contains(&(*at, *n)) {
                continue;
            }
            if let Some(message) = message(name, pattern.as_str(), app.rule) {
                told.insert((*at, *n));
                app.say(out, Some(*n), message);
            }
        }
    }
}

/// Ports that no listener carries: where there are `sni` listeners only, theirs.
fn nobody_listens(out: &mut Findings<'_>, apps: &[AppPlace<'_>], listeners: &[ListenerSettings]) {
    let mut carried = BTreeSet::new();
    for listener in listeners {
        match listener.kind {
            ListenerKind::Forward => return,
            ListenerKind::Sni { port } => carried.insert(port),
        };
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

/// Network rules that others say already, or deny.
fn networks(out: &mut Findings<'_>, rules: &Rules) {
    let all: Vec<(&NetRule, &String)> = rules.nets.iter().zip(&rules.origins.nets).collect();
    for (at, (rule, path)) in all.iter().enumerate() {
        let own = rule.action == Action::Allow && !rule.destinations.is_empty() && rule.fqdns.is_empty();
        if !own || path.starts_with("policy.bundles") {
            continue;
        }
        let covers = |other: &NetRule| {
            other.sources.cover(&rule.sources)
                && other.destinations.covers(&rule.destinations)
                && rule.ports.iter().all(|port| other.ports.iter().any(|wide| holds(wide, port)))
        };
        let back = |other: &NetRule| {
            rule.sources.cover(&other.sources)
                && rule.destinations.covers(&other.destinations)
                && other.ports.iter().all(|port| rule.ports.iter().any(|wide| holds(wide, port)))
        };
        let mut others = all.iter().enumerate().filter(|(n, _)| *n != at).map(|(n, (other, _))| (n, *other));
        let by = others.find(|(n, other)| {
            covers(other)
                && (other.action == Action::Deny || (other.action == Action::Allow && (*n < at || !back(other))))
        });
        if let Some((_, other)) = by {
            let message = match other.action {
                Action::Deny => format!("this rule can never match: rule {} denies all of it", other.name),
                _ => format!("this rule is shadowed by rule {}, which opens all of it; remove it", other.name),
            };
            out.warn(path, message);
        }
    }
}

/// Whether whatever one rule allows of a name, another does.
fn includes(wide: &AppRule, narrow: &AppRule) -> bool {
    wide.action == Action::Allow
        && wide.sources.cover(&narrow.sources)
        && narrow.protocols.iter().all(|app| wide.protocols.contains(app))
        && (wide.alpn.is_none() || wide.alpn == narrow.alpn)
        && (wide.ech == Ech::Outer || wide.ech == narrow.ech)
        && (wide.inner == narrow.inner || narrow.inner == crate::policy::rule::InnerName::Same)
        && reaches(&wide.reach, &narrow.reach)
}

/// Whether a denial leaves nothing of what a rule allows.
fn outweighs(deny: &AppRule, allow: &AppRule) -> bool {
    deny.sources.cover(&allow.sources)
        && (deny.protocols.is_empty() || allow.protocols.iter().all(|app| deny.protocols.contains(app)))
}

fn reaches(wide: &Reach, narrow: &Reach) -> bool {
    (wide.public || !narrow.public)
        && narrow.prefixes.iter().all(|net| wide.prefixes.iter().any(|other| other.contains(net)))
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

impl Sources {
    /// Whether everybody in another set is in this one.
    fn cover(&self, other: &Self) -> bool {
        self.0.is_empty()
            || (!other.0.is_empty() && other.0.iter().all(|net| self.0.iter().any(|wide| wide.contains(net))))
    }
}
