//! The rule set `aks` against the documents it is made from: every row of every edition, and its neighbours.
//!
//! What the documents print stands in `tests/facts/aks.tsv`; where the documents themselves are at hand, the
//! table is held against them. `EGRET_WRITE_FACTS=1` writes it anew.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that is wrong about its world should fail there"
)]

mod documents;
mod missing;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use documents::{Fact, says};
use egret::bundle::{self, Bundle, Date, Parameters, Row};
use egret::config::Settings;
use egret_core::claim::Source;
use egret_core::outcome::Refusal;
use egret_core::policy::explain::{Question, Subject};
use egret_core::policy::{MatchedRule, OwnAddresses, Policy};

const FACTS: &str = "tests/facts/aks.tsv";

fn at_root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn aks() -> &'static Bundle {
    bundle::named("aks").unwrap()
}

fn date(text: &str) -> Date {
    Date::try_from(text.to_owned()).unwrap()
}

/// The documents by the day they are of, and the word of the data files for each.
fn sources() -> Option<Vec<(String, &'static str, String)>> {
    let folder = at_root("../shared/sources");
    if !folder.exists() {
        missing::missing("the folder with the documents");
        return None;
    }
    let mut out = Vec::new();
    let mut take = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let (day, source) = match name.as_str() {
            n if n.starts_with("seed-000") => ("2025-02-05", "outbound-21vianet"),
            n if n.starts_with("seed-001") => ("2023-06-13", "outbound"),
            n if n.starts_with("seed-002") => ("2019-05-06", "outbound"),
            n if n.starts_with("seed-004") => ("2020-01-01", "outbound"),
            n if n.contains("limit-egress-traffic") => ("2026-06-18", "firewall"),
            n if n.contains("outbound-rules") => ("2026-06-18", "outbound"),
            n if n.starts_with("20") => (&n[..10], "outbound"),
            // Network isolation, the HTTP proxy and routes: prose without a row.
            _ => return,
        };
        out.push((day.to_owned(), source, std::fs::read_to_string(&path).unwrap()));
    };
    for place in [folder.clone(), folder.join("history")] {
        let mut files: Vec<PathBuf> = std::fs::read_dir(place).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files.into_iter().filter(|f| f.is_file()).for_each(&mut take);
    }
    Some(out)
}

/// The table's lines: source, cloud, part, printed, port, and the stretches of editions that print it.
fn table(sources: &[(String, &'static str, String)]) -> String {
    let mut printed: BTreeMap<(&str, Fact), Vec<String>> = BTreeMap::new();
    let mut days: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (day, source, text) in sources {
        let facts = documents::facts(text);
        assert!(facts.len() > 4, "{source} of {day} has but {} facts", facts.len());
        days.entry(source).or_default().push(day.clone());
        for fact in facts {
            printed.entry((source, fact)).or_default().push(day.clone());
        }
    }
    days.values_mut().for_each(|days| {
        days.sort();
        days.dedup();
    });
    let mut out = String::from("# source\tcloud\tpart\tprinted\tport\teditions that print it, first..last\n");
    for ((source, Fact { cloud, part, printed, port }), on) in printed {
        let mut stretches: Vec<(usize, usize)> = Vec::new();
        for (at, _) in days[source].iter().enumerate().filter(|(_, day)| on.contains(day)) {
            match stretches.last_mut() {
                Some((_, last)) if *last + 1 == at => *last = at,
                _ => stretches.push((at, at)),
            }
        }
        let stretches: Vec<String> =
            stretches.iter().map(|(a, b)| format!("{}..{}", days[source][*a], days[source][*b])).collect();
        out += &format!("{source}\t{cloud}\t{part}\t{printed}\t{port}\t{}\n", stretches.join(","));
    }
    out
}

#[test]
fn the_table_of_facts_is_what_the_documents_print() {
    let Some(sources) = sources() else { return };
    assert_eq!(sources.len(), 27, "documents with rows");
    let fresh = table(&sources);
    if std::env::var_os("EGRET_WRITE_FACTS").is_some() {
        std::fs::write(at_root(FACTS), &fresh).unwrap();
    }
    let kept = std::fs::read_to_string(at_root(FACTS)).unwrap();
    for (line, other) in fresh.lines().zip(kept.lines()) {
        assert_eq!(line, other, "{FACTS} is not what the documents print");
    }
    assert_eq!(fresh.lines().count(), kept.lines().count());
}

/// A line of the table.
#[derive(Debug)]
struct Printed {
    source: String,
    fact: Fact,
    /// First and last edition of each stretch.
    stretches: Vec<(Date, Date)>,
}

fn printed() -> Vec<Printed> {
    let text = std::fs::read_to_string(at_root(FACTS)).unwrap();
    let read = |line: &str| {
        let cells: Vec<&str> = line.split('\t').collect();
        let [source, cloud, part, printed, port, stretches] = cells[..] else { panic!("{line}") };
        let stretch = |text: &str| {
            let (first, last) = text.split_once("..").unwrap();
            (date(first), date(last))
        };
        Printed {
            source: source.to_owned(),
            fact: Fact { cloud: cloud.into(), part: part.into(), printed: printed.into(), port: port.into() },
            stretches: stretches.split(',').map(stretch).collect(),
        }
    };
    text.lines().skip(1).map(read).collect()
}

/// Whether a row is the table's: the first edition sorts by need what later ones sort by feature.
fn stands_for(row: &Row, printed: &Printed, day: &Date) -> bool {
    let first = date("2019-05-06");
    if *day == first && printed.fact.part == "recommended" {
        let parts = ["required", "recommended", "gpu", "azure-monitor", "azure-policy"];
        return parts.iter().any(|part| says(row, &Fact { part: (*part).into(), ..printed.fact.clone() }));
    }
    says(row, &printed.fact)
}

fn clouds(fact: &Fact) -> Vec<&str> {
    if fact.cloud == "any" { vec!["global", "china", "usgov"] } else { vec![&fact.cloud] }
}

#[test]
fn every_printed_row_has_its_row_in_every_edition_that_prints_it() {
    let editions: Vec<&Date> = aks().editions.iter().map(|e| &e.date).collect();
    let mut seen = 0;
    for printed in printed() {
        for (first, last) in &printed.stretches {
            for day in editions.iter().filter(|day| first <= **day && **day <= last) {
                for cloud in clouds(&printed.fact) {
                    let has = aks()
                        .rows
                        .iter()
                        .any(|row| row.is_for(cloud) && row.in_force(day) && stands_for(row, &printed, day));
                    assert!(has, "{cloud} on {day} has no row for {printed:?}");
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 3000, "{seen} rows seen");
}

/// What a row says that no document does, and what documents say in one edition and not the next, is told.
#[test]
fn no_row_is_in_force_when_nothing_prints_it_but_where_it_says_why() {
    let printed = printed();
    let editions: Vec<&Date> = aks().editions.iter().map(|e| &e.date).collect();
    let mut gaps = Vec::new();
    for row in aks().rows.iter().filter(|row| row.source != "parameters") {
        for cloud in aks().clouds.keys().filter(|cloud| row.is_for(cloud)) {
            for day in editions.iter().filter(|day| row.in_force(day)) {
                let on = |p: &&Printed| match p.source.as_str() {
                    // These have one edition each.
                    "outbound" => p.stretches.iter().any(|(first, last)| first <= *day && *day <= last),
                    _ => p.stretches[0].0 <= **day || p.source == "firewall",
                };
                let says_it = printed
                    .iter()
                    .filter(on)
                    .any(|p| clouds(&p.fact).contains(&cloud.as_str()) && stands_for(row, p, day));
                if !says_it {
                    gaps.push(format!("{cloud} {} {day}", row.id));
                }
            }
        }
    }
    gaps.sort();
    let text = std::fs::read_to_string(at_root("tests/facts/unprinted.txt")).unwrap();
    let known: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let fresh: Vec<&String> = gaps.iter().filter(|gap| !known.contains(&gap.as_str())).collect();
    let gone: Vec<&&str> = known.iter().filter(|gap| !gaps.iter().any(|g| g == **gap)).collect();
    assert!(
        fresh.is_empty() && gone.is_empty(),
        "rows in force in an edition that does not print them: {fresh:#?}; not any more: {gone:#?}"
    );
}

/// Where the checks of one cloud take place, and a region beside it.
const PLACES: &[(&str, &str, &str, &str)] = &[
    ("global", "westeurope", "northeurope", "Public"),
    ("china", "chinaeast2", "chinanorth3", "AzureChina"),
    ("usgov", "usgovvirginia", "usgovtexas", "AzureGovernment"),
];

fn place(cloud: &str) -> (&'static str, &'static str, &'static str) {
    let place = PLACES.iter().find(|p| p.0 == cloud).unwrap();
    (place.1, place.2, place.3)
}

/// Policies of one bundle each, made once.
#[derive(Default)]
struct World {
    made: HashMap<String, Policy>,
}

impl World {
    /// A policy with these parameters beside cloud, location and edition.
    fn policy(&mut self, cloud: &str, day: &Date, more: &str) -> &Policy {
        self.made.entry(format!("{cloud} {day} {more}")).or_insert_with(|| {
            let (location, other, tags) = place(cloud);
            let folder = tempfile::tempdir().unwrap();
            let tag = |name: &str, prefix: &str| format!(r#"{{ "name": "{name}", "properties": {{ "addressPrefixes": ["{prefix}"] }} }}"#);
            let values = [
                tag(&format!("AzureCloud.{location}"), "20.1.0.0/16"),
                tag(&format!("AzureCloud.{other}"), "20.2.0.0/16"),
                tag("AzureMonitor", "20.3.0.0/16"),
            ];
            std::fs::write(folder.path().join("tags.json"), format!(r#"{{ "cloud": "{tags}", "values": [{}] }}"#, values.join(","))).unwrap();
            policy_of(
                &format!("service_tags: tags.json, bundles: [{{ bundle: aks, cloud: {cloud}, location: {location}, edition: {day}, {more} }}]"),
                folder.path(),
            )
        })
    }
}

fn policy_of(policy: &str, folder: &Path) -> Policy {
    policy_with("{ kind: forward, bind: \"127.0.0.1:1\" }", policy, folder)
}

fn policy_with(listener: &str, policy: &str, folder: &Path) -> Policy {
    let text = format!("listeners: [{listener}]\npolicy: {{ {policy} }}\n");
    let settings = Settings::parse(&text, "t.yaml", folder).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let own = Arc::new(OwnAddresses::new(Vec::new(), Vec::new()));
    Policy::compile(settings.rules.apps, settings.rules.nets, settings.rules.nat64, own)
}

fn explain(policy: &Policy, target: &str) -> Result<MatchedRule, Refusal> {
    let subject: Subject = target.parse().unwrap_or_else(|fault| panic!("{target}: {fault}"));
    policy.explain(&Question { subject, source: Source::anybody(), dst: None, alpn: Vec::new() })
}

#[track_caller]
fn allowed(policy: &Policy, target: &str, rule: &str, about: &Printed) {
    match explain(policy, target) {
        Ok(because) => {
            assert!(because.rule.ends_with(rule), "{target} is allowed by {}, not {rule}: {about:?}", because.rule);
        }
        Err(refusal) => panic!("{target} is refused ({}): {about:?}", refusal.reason.as_str()),
    }
}

#[track_caller]
fn refused(policy: &Policy, target: &str, about: &Printed) {
    if let Ok(because) = explain(policy, target) {
        panic!("{target} is allowed by {}: {about:?}", because.rule);
    }
}

/// The pattern language once more, as plainly as it can be written.
fn fits(pattern: &str, name: &str) -> bool {
    fn label(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|n| label(rest, &text[n..])),
            Some((byte, rest)) => text.split_first().is_some_and(|(first, more)| first == byte && label(rest, more)),
        }
    }
    if let Some(bare) = pattern.strip_prefix('.') {
        return name == bare || name.ends_with(pattern);
    }
    let (wide, pattern) = match pattern.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let (patterns, names): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), name.split('.').collect());
    let Some(skip) = names.len().checked_sub(patterns.len()) else { return false };
    (skip == 0) != wide && patterns.iter().zip(&names[skip..]).all(|(p, n)| label(p.as_bytes(), n.as_bytes()))
}

/// The second edition prints wildcards for the old tunnel's ports: what DNS clients are answered opens them.
#[test]
fn the_tunnels_wildcards_are_open_by_name_where_egret_answers_dns() {
    let mut seen = 0;
    for printed in printed() {
        let Some(port) = printed.fact.port.strip_prefix("tcp:") else { continue };
        let Some(rest) = printed.fact.printed.strip_prefix("*.") else { continue };
        let cloud = printed.fact.cloud.as_str();
        let ((location, other, _), day) = (place(cloud), &printed.stretches[0].0);
        let bundle = |more: &str| {
            format!(
                "bundles: [{{ bundle: aks, cloud: {cloud}, location: {location}, edition: {day}, konnectivity: false{more} }}]"
            )
        };
        let listener = "{ kind: dns, bind: \"127.0.0.1:53\" }";
        let policy = policy_with(listener, &bundle(""), Path::new("."));
        let rule = if port == "22" { "tunnel-ssh" } else { "tunnel-tcp" };
        let name = |location: &str| format!("x-1a2b.{}", rest.replace("<location>", location));
        allowed(&policy, &format!("tcp://{}:{port}", name(location)), rule, &printed);
        assert!(explain(&policy, &format!("dns://{}", name(location))).is_ok(), "{printed:?}");
        for target in [
            format!("tcp://{}:{port}", name(other)),
            format!("tcp://{}:{port}", rest.replace("<location>", location)),
            format!("tcp://{}:{}", name(location), port.parse::<u16>().unwrap() + 1),
            format!("udp://{}:{port}", name(location)),
            format!("tcp://20.1.0.1:{port}"),
        ] {
            refused(&policy, &target, &printed);
        }
        // One's own API server takes their place.
        let own = name(location).replace(".tun.", ".hcp.");
        let narrow = policy_with(listener, &bundle(&format!(", api_server: {own}")), Path::new("."));
        allowed(&narrow, &format!("tcp://{own}:{port}"), rule, &printed);
        refused(&narrow, &format!("tcp://other-{own}:{port}"), &printed);
        seen += 1;
    }
    assert_eq!(seen, 12, "rows of the documents");
}

#[test]
fn every_printed_name_is_let_out_by_its_row_and_its_neighbours_are_not() {
    let mut world = World::default();
    let (mut names, mut neighbours) = (0, 0);
    for printed in printed() {
        if !printed.fact.printed.contains('.')
            || printed.fact.port.starts_with("udp")
            || printed.fact.printed.starts_with("AzureCloud")
        {
            continue;
        }
        // The tunnel's ports of the second edition are walked with the addresses.
        if printed.fact.port.starts_with("tcp:") && printed.fact.part == "required" {
            continue;
        }
        for (first, last) in &printed.stretches {
            for day in [first, last] {
                for cloud in clouds(&printed.fact) {
                    let found = aks()
                        .rows
                        .iter()
                        .find(|row| row.is_for(cloud) && row.in_force(day) && stands_for(row, &printed, day));
                    let row = found.unwrap_or_else(|| panic!("no row for {printed:?}"));
                    names += 1;
                    neighbours += walk_name(&mut world, row, cloud, day, &printed);
                }
            }
        }
    }
    assert!(names > 450 && neighbours > 3000, "{names} names, {neighbours} neighbours");
}

fn walk_name(world: &mut World, row: &Row, cloud: &str, day: &Date, printed: &Printed) -> usize {
    let meant = row.fqdns.iter().find(|f| **f == printed.fact.printed).or_else(|| {
        // Another print of one of the row's names: the ending tells which.
        let ending: Vec<&str> = printed.fact.printed.rsplit('.').take(2).collect();
        row.fqdns.iter().find(|f| f.rsplit('.').take(2).collect::<Vec<_>>() == ending)
    });
    let meant = meant.unwrap_or_else(|| panic!("{} is in no name of {}", printed.fact.printed, row.id));
    if *meant != printed.fact.printed || !row.protocols.contains(&printed.fact.port) {
        assert!(
            row.because.is_some() && !row.printed.is_empty(),
            "{} does not say why it differs from its print",
            row.id
        );
    }
    let (location, other, _) = place(cloud);
    let fill = |text: &str, location: &str| {
        ["<location>", "<region>", "<cluster-region-name>"]
            .iter()
            .fold(text.to_owned(), |text, hole| text.replace(hole, location))
    };
    let pattern = fill(meant, location);
    let instance = |pattern: &str| match pattern.strip_prefix("*.").or_else(|| pattern.strip_prefix('.')) {
        Some(rest) => format!("probe-1a2b.{}", rest.replace('*', "1a2b")),
        None => pattern.replace('*', "1a2b"),
    };
    let name = instance(&pattern);
    let features = match row.features.as_slice() {
        [] => String::new(),
        [first, ..] => format!("features: [{first}]"),
    };
    let policy = world.policy(cloud, day, &features);
    let (scheme, port) = row.protocols[0].split_once(':').unwrap();
    let rule = format!("/{}", row.id);
    let because = explain(policy, &format!("{scheme}://{name}:{port}"));
    let because =
        because.unwrap_or_else(|refusal| panic!("{name} is refused ({}): {printed:?}", refusal.reason.as_str()));
    // A row may stand before this one that names the same.
    if !because.rule.ends_with(&rule) {
        let said = because.pattern.as_deref().unwrap_or_default();
        assert!(fits(said, &name), "{name} is allowed by {} with {said}: {printed:?}", because.rule);
    }
    let base = pattern.trim_start_matches('*').trim_start_matches('.').to_owned();
    let exact = base == pattern && !pattern.contains('*');
    let mut near = vec![
        (scheme, format!("{name}.evil.test"), port.to_owned()),
        (scheme, format!("probe.evil{base}").replace('*', "1a2b"), port.to_owned()),
        (scheme, format!("evil{base}").replace('*', "1a2b"), port.to_owned()),
        (scheme, name.clone(), "444".to_owned()),
        ("udp", name.clone(), port.to_owned()),
    ];
    // A network rule takes whatever TCP carries.
    if scheme != "tcp" {
        near.push(("tcp", name.clone(), port.to_owned()));
        near.push((if scheme == "https" { "http" } else { "https" }, name.clone(), port.to_owned()));
    }
    if exact {
        near.push((scheme, format!("x.{name}"), port.to_owned()));
        near.push((scheme, name.split_once('.').unwrap().1.to_owned(), port.to_owned()));
    } else if !pattern.starts_with('.') {
        near.push((
            scheme,
            base.split_once('.')
                .filter(|(first, _)| first.contains('*'))
                .map_or_else(|| base.clone(), |(_, rest)| rest.to_owned())
                .replace('*', "1a2b"),
            port.to_owned(),
        ));
    }
    if *meant != pattern {
        near.push((scheme, instance(&fill(meant, other)), port.to_owned()));
    }
    let open: Vec<(&Row, String)> = aks()
        .rows
        .iter()
        .filter(|r| {
            r.is_for(cloud)
                && r.in_force(day)
                && (r.features.is_empty() || row.features.first().is_some_and(|f| r.features.contains(f)))
        })
        .flat_map(|r| r.fqdns.iter().map(move |f| (r, fill(f, location))))
        .collect();
    let mut walked = 0;
    for (scheme, host, port) in near {
        let protocol = format!("{scheme}:{port}");
        // What another row prints is not a neighbour.
        if open.iter().any(|(r, f)| r.protocols.contains(&protocol) && fits(f, &host)) || !host.contains('.') {
            continue;
        }
        refused(policy, &format!("{scheme}://{host}:{port}"), printed);
        walked += 1;
    }
    walked
}

#[test]
fn every_printed_address_is_let_out_by_its_row_and_its_neighbours_are_not() {
    const TUNNEL: &str = "konnectivity: false";
    const CIDRS: &str = "region_cidrs: [20.9.0.0/16]";
    let mut world = World::default();
    let mut seen = 0;
    for printed in printed() {
        let (protocol, port) = printed.fact.port.split_once(':').unwrap();
        let printed_to = printed.fact.printed.clone();
        let tunnel = ["1194", "9000", "22"].contains(&port);
        let old_name = printed_to.starts_with("*.") && protocol == "tcp";
        let by_address =
            !printed_to.contains('.') || printed_to.starts_with("AzureCloud") || protocol == "udp" || old_name;
        if !by_address {
            continue;
        }
        for (first, last) in &printed.stretches {
            for day in [first, last] {
                for cloud in clouds(&printed.fact) {
                    seen += 1;
                    let row = aks()
                        .rows
                        .iter()
                        .find(|r| r.is_for(cloud) && r.in_force(day) && stands_for(r, &printed, day))
                        .unwrap();
                    let rule = format!("/{}", row.id);
                    let other = if protocol == "udp" { "tcp" } else { "udp" };
                    let to = |ip: &str| format!("{protocol}://{ip}:{port}");
                    // By default, none of it is open.
                    for ip in ["20.1.0.1", "20.8.0.1", "20.9.0.1", "8.8.8.8"] {
                        refused(world.policy(cloud, day, ""), &to(ip), &printed);
                    }
                    match printed_to.as_str() {
                        "(none)" => {
                            let open = world.policy(cloud, day, &format!("{TUNNEL}, {CIDRS}"));
                            refused(open, &to("8.8.8.8"), &printed);
                        }
                        "AzureCloud.<Region>" => {
                            let open = world.policy(cloud, day, TUNNEL);
                            allowed(open, &to("20.1.0.1"), &rule, &printed);
                            for out in [
                                to("20.2.0.1"),
                                to("20.0.255.255"),
                                format!("{other}://20.1.0.1:{port}"),
                                format!("{protocol}://20.1.0.1:2{port}"),
                            ] {
                                refused(open, &out, &printed);
                            }
                        }
                        "RegionCIDRs" => {
                            let open = world.policy(cloud, day, &format!("{TUNNEL}, {CIDRS}"));
                            allowed(open, &to("20.9.0.1"), &rule, &printed);
                            // The narrowest wins.
                            refused(open, &to("20.1.0.1"), &printed);
                            refused(open, &to("20.10.0.1"), &printed);
                        }
                        "*" => {
                            let open = world.policy(cloud, day, &format!("{TUNNEL}, any_destination: [{}]", row.id));
                            allowed(open, &to("8.8.8.8"), &rule, &printed);
                            refused(open, &to("10.1.2.3"), &printed);
                            refused(open, &format!("{other}://8.8.8.8:{port}"), &printed);
                            refused(open, &to("169.254.169.254"), &printed);
                        }
                        "APIServerPublicIP" => {
                            let open = world.policy(cloud, day, &format!("{TUNNEL}, {CIDRS}, api_server: 20.8.0.1"));
                            allowed(open, &to("20.8.0.1"), &rule, &printed);
                            for out in
                                [to("20.8.0.2"), to("20.9.0.1"), to("20.1.0.1"), format!("{other}://20.8.0.1:{port}")]
                            {
                                refused(open, &out, &printed);
                            }
                            // With konnectivity, only what is not the tunnel's.
                            let quiet = world.policy(cloud, day, "api_server: 20.8.0.1");
                            if tunnel {
                                refused(quiet, &to("20.8.0.1"), &printed);
                            } else {
                                allowed(quiet, &to("20.8.0.1"), &rule, &printed);
                            }
                        }
                        "CustomDNSIP" => {
                            let open = world.policy(cloud, day, "dns_servers: [10.0.0.53]");
                            allowed(open, &to("10.0.0.53"), &rule, &printed);
                            allowed(open, "tcp://10.0.0.53:53", &rule, &printed);
                            for out in [to("10.0.0.54"), "udp://10.0.0.53:54".to_owned(), to("8.8.8.8")] {
                                refused(open, &out, &printed);
                            }
                        }
                        "AzureMonitor" => {
                            let open = world.policy(cloud, day, "features: [azure-monitor], monitor_by_tag: true");
                            allowed(open, &to("20.3.0.1"), &rule, &printed);
                            refused(open, &to("20.4.0.1"), &printed);
                            refused(world.policy(cloud, day, "features: [azure-monitor]"), &to("20.3.0.1"), &printed);
                            refused(world.policy(cloud, day, "monitor_by_tag: true"), &to("20.3.0.1"), &printed);
                        }
                        "ntp.ubuntu.com" => {
                            let open = world.policy(cloud, day, "");
                            allowed(open, "udp://ntp.ubuntu.com:123", &rule, &printed);
                            for out in [
                                "tcp://ntp.ubuntu.com:123",
                                "udp://ntp.ubuntu.com:124",
                                "udp://x.ntp.ubuntu.com:123",
                                "udp://ubuntu.com:123",
                                "udp://8.8.8.8:123",
                            ] {
                                refused(open, out, &printed);
                            }
                            let closed = world.policy(cloud, day, "nodes_after_march_2021: true");
                            if cloud == "global" {
                                refused(closed, "udp://ntp.ubuntu.com:123", &printed);
                            } else {
                                allowed(closed, "udp://ntp.ubuntu.com:123", &rule, &printed);
                            }
                            refused(world.policy(cloud, day, "os: azurelinux"), "udp://ntp.ubuntu.com:123", &printed);
                        }
                        name => {
                            assert!(old_name, "{name}");
                            let open = world.policy(cloud, day, &format!("{TUNNEL}, api_server: 20.8.0.1"));
                            allowed(open, &to("20.8.0.1"), &rule, &printed);
                            refused(open, &to("20.8.0.2"), &printed);
                        }
                    }
                }
            }
        }
    }
    assert!(seen > 90, "{seen}");
}

/// A policy of one bundle at westeurope.
fn cluster(more: &str) -> Policy {
    policy_of(&format!("bundles: [{{ bundle: aks, location: westeurope, {more} }}]"), Path::new("."))
}

/// The faults of a policy, as one text.
#[track_caller]
fn fault(policy: &str, folder: &Path) -> String {
    let text = format!("listeners: [{{ kind: forward, bind: \"127.0.0.1:1\" }}]\npolicy: {{ {policy} }}\n");
    match Settings::parse(&text, "t.yaml", folder) {
        Ok(_) => panic!("no fault in {policy}"),
        Err(error) => error.to_string(),
    }
}

/// Warnings of a policy with one bundle at westeurope.
fn warnings(more: &str) -> Vec<String> {
    let text = format!(
        "listeners: [{{ kind: forward, bind: \"127.0.0.1:1\" }}]\npolicy: {{ bundles: [{{ bundle: aks, location: westeurope, {more} }}] }}\n"
    );
    let settings = Settings::parse(&text, "t.yaml", Path::new(".")).unwrap();
    settings.warnings.into_iter().map(|w| format!("{}: {}", w.path, w.message)).collect()
}

#[track_caller]
fn opens(policy: &Policy, target: &str) -> bool {
    explain(policy, target).is_ok()
}

#[track_caller]
fn opens_just(policy: &Policy, open: &[&str], closed: &[&str]) {
    for target in open {
        assert!(opens(policy, target), "{target} should be open");
    }
    for target in closed {
        assert!(!opens(policy, target), "{target} should be closed");
    }
}

#[test]
fn parameters_narrow_what_they_name() {
    const HCP: &str = "https://other-9z.hcp.westeurope.azmk8s.io";
    opens_just(
        &cluster(""),
        &[HCP, "https://snapshot.ubuntu.com", "http://security.ubuntu.com"],
        &["tcp://20.8.0.1:443", "https://x.hcp.northeurope.azmk8s.io"],
    );
    // One's own API server instead of everybody's: by name, by address, by both.
    let named = cluster("api_server: mine-1a.hcp.westeurope.azmk8s.io");
    opens_just(
        &named,
        &["https://mine-1a.hcp.westeurope.azmk8s.io"],
        &[HCP, "tcp://20.8.0.1:443", "https://x.mine-1a.hcp.westeurope.azmk8s.io"],
    );
    let address = cluster("api_server: 20.8.0.1");
    opens_just(
        &address,
        &["tcp://20.8.0.1:443"],
        &[HCP, "tcp://20.8.0.2:443", "tcp://20.8.0.1:9000", "udp://20.8.0.1:443"],
    );
    let both = cluster("api_server: [mine-1a.hcp.westeurope.azmk8s.io, 20.8.0.0/24]");
    opens_just(
        &both,
        &["https://mine-1a.hcp.westeurope.azmk8s.io", "tcp://20.8.0.9:443"],
        &[HCP, "tcp://20.8.1.1:443"],
    );
    let tunnel = cluster("api_server: mine-1a.hcp.westeurope.azmk8s.io, konnectivity: false");
    opens_just(
        &tunnel,
        &["udp://mine-1a.hcp.westeurope.azmk8s.io:1194", "tcp://mine-1a.hcp.westeurope.azmk8s.io:9000"],
        &["tcp://mine-1a.hcp.westeurope.azmk8s.io:22", "udp://20.8.0.1:1194"],
    );

    let vaults = cluster("features: [istio], key_vaults: [my-vault, other.vault.azure.net]");
    opens_just(
        &vaults,
        &["https://my-vault.vault.azure.net", "https://other.vault.azure.net"],
        &["https://strange.vault.azure.net", "https://x.my-vault.vault.azure.net"],
    );
    opens_just(
        &cluster("features: [key-vault]"),
        &["https://strange.vault.azure.net"],
        &["https://strange.vault.azure.cn"],
    );
    opens_just(
        &cluster("key_vaults: [my-vault]"),
        &["https://my-vault.vault.azure.net"],
        &["https://strange.vault.azure.net"],
    );
    let registries = cluster("registries: [myregistry, registry.example.com, other9.azurecr.io]");
    opens_just(
        &registries,
        &[
            "https://myregistry.azurecr.io",
            "https://myregistry.westeurope.data.azurecr.io",
            "https://registry.example.com",
            "https://other9.azurecr.io",
            "https://other9.westeurope.data.azurecr.io",
        ],
        &[
            "https://strange.azurecr.io",
            "https://myregistry.northeurope.data.azurecr.io",
            "https://x.registry.example.com",
        ],
    );
    opens_just(
        &cluster("include_recommended: false"),
        &["https://mcr.microsoft.com"],
        &["https://snapshot.ubuntu.com", "http://security.ubuntu.com"],
    );
    opens_just(&cluster("os: azurelinux"), &["https://packages.microsoft.com"], &["https://snapshot.ubuntu.com"]);
    opens_just(
        &cluster("os: [windows]"),
        &["https://go.microsoft.com", "https://snapshot.ubuntu.com"],
        &["tcp://kms.core.windows.net:1688"],
    );
    opens_just(
        &cluster("features: [azure-monitor]"),
        &["https://x.ingest.monitor.azure.com"],
        &["https://x.vault.azure.net"],
    );
    opens_just(
        &cluster("features: [managed-prometheus]"),
        &["https://x.metrics.ingest.monitor.azure.com"],
        &["https://x.ods.opinsights.azure.com"],
    );
    // Names that Azure's own tools use.
    opens_just(
        &cluster("features: [azure-keyvault-secrets-provider, web_application_routing, monitoring]"),
        &["https://x.vault.azure.net"],
        &[],
    );
}

#[test]
fn private_and_isolated_clusters_open_less() {
    let private = cluster("private_cluster: true");
    opens_just(
        &private,
        &["https://mcr.microsoft.com", "dns://mine.1a.privatelink.westeurope.azmk8s.io"],
        &[
            "https://x.hcp.westeurope.azmk8s.io",
            "https://mine.1a.privatelink.westeurope.azmk8s.io",
            "dns://mine.privatelink.northeurope.azmk8s.io",
            "dns://privatelink.westeurope.azmk8s.io",
        ],
    );
    assert!(!opens(&cluster(""), "dns://mine.1a.privatelink.westeurope.azmk8s.io"));
    let isolated = cluster("network_isolated: true, features: [azure-policy], dns_servers: [10.0.0.53]");
    opens_just(
        &isolated,
        &["https://data.policy.core.windows.net", "udp://10.0.0.53:53", "dns://mine.privatelink.westeurope.azmk8s.io"],
        &[
            "https://mcr.microsoft.com",
            "https://login.microsoftonline.com",
            "udp://ntp.ubuntu.com:123",
            "https://snapshot.ubuntu.com",
            "https://x.hcp.westeurope.azmk8s.io",
        ],
    );
    let said = warnings("network_isolated: true, features: [cluster-extensions], os: windows, include_recommended: true, konnectivity: false").join("\n");
    for part in [
        "Dapr",
        "features: of the cluster extensions, Dapr",
        "os: Windows node pools are not supported",
        "include_recommended: ",
        "NodeImage",
        "konnectivity: ",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(
        fault(
            "bundles: [{ bundle: aks, location: westeurope, network_isolated: true, private_cluster: false }]",
            Path::new(".")
        )
        .contains("is private")
    );
    assert!(warnings("network_isolated: true").is_empty());
}

#[test]
fn names_lead_where_addresses_say() {
    let text = "listeners: [{ kind: forward, bind: \"127.0.0.1:1\" }]\npolicy: { bundles: [{ bundle: aks, location: westeurope, addresses: [public, 10.1.0.0/16] }] }\n";
    let settings = Settings::parse(text, "t.yaml", Path::new(".")).unwrap();
    assert!(settings.rules.apps.iter().all(|rule| rule.reach.public && rule.reach.prefixes.len() == 1));
    assert!(warnings("addresses: [10.1.0.0/16]").join("").contains("without `public`"));
    assert!(warnings("addresses: [10.1.0.0/16], network_isolated: true").is_empty());
}

#[test]
fn what_happens_and_nothing_needs_is_refused_as_expected() {
    let policy = cluster("");
    for (name, feature) in
        [("md-1a.blob.storage.azure.net", "managed-disks"), ("umsa7.blob.core.windows.net", "vm-agent")]
    {
        let refusal = explain(&policy, &format!("https://{name}")).unwrap_err();
        let nearest = refusal.hint.unwrap().nearest.unwrap();
        assert!(nearest.starts_with("expected: ") && nearest.contains(feature), "{nearest}");
        assert!(opens(&cluster(&format!("features: [{feature}]")), &format!("https://{name}")));
    }
    let refusal = explain(&policy, "https://other.blob.core.windows.net").unwrap_err();
    assert!(!refusal.hint.unwrap().nearest.unwrap_or_default().starts_with("expected"));
}

#[test]
fn an_edition_is_that_of_its_day() {
    opens_just(
        &cluster("edition: 2019-05-06"),
        &["https://x.blob.core.windows.net", "http://x.ubuntu.com", "https://x.azmk8s.io"],
        &["https://packages.aks.azure.com", "https://x.data.mcr.microsoft.com"],
    );
    opens_just(
        &cluster("edition: 2020-06-01"),
        &["https://x.tun.westeurope.azmk8s.io", "https://aksrepos.azurecr.io"],
        &["https://x.data.mcr.microsoft.com", "https://x.tun.northeurope.azmk8s.io"],
    );
    opens_just(
        &cluster("edition: 2025-02-04"),
        &["https://x.data.mcr.microsoft.com"],
        &["https://packages.aks.azure.com", "https://x.blob.core.windows.net"],
    );
    opens_just(&cluster("edition: 2025-02-05"), &["https://packages.aks.azure.com"], &[]);
    // A feature that the documents have dropped is open as it was printed last, and says so.
    opens_just(
        &cluster("features: [dev-spaces, kms]"),
        &["https://azds-1a.westeurope.azds.io", "https://gcr.io", "tcp://kms.core.windows.net:1688"],
        &["http://gcr.io:443", "https://azds-1a.northeurope.azds.io"],
    );
    assert!(warnings("features: [dev-spaces]").join("").contains("in no document since 2023-03-09"));
    assert!(
        warnings("features: [cost-analysis], edition: 2023-04-24")
            .join("")
            .contains("has nothing for cost-analysis; the first with it is of 2023-06-13")
    );
    assert!(!opens(
        &cluster("features: [cost-analysis], edition: 2020-01-01, include_recommended: false"),
        "https://snapshot.ubuntu.com"
    ));
}

#[test]
fn bad_parameters_are_reported_with_what_would_be_right() {
    let here = Path::new(".");
    for (more, says) in [
        ("location: westeurope, cloud: gloabl", "cloud: there is no cloud `gloabl` (did you mean `global`?)"),
        (
            "location: centralfrance",
            "location: there is no location `centralfrance` in this cloud; did you mean `francecentral`?",
        ),
        ("location: West Europe", "did you mean `westeurope`?"),
        ("location: atlantis", "write a region's short name"),
        ("location: westeurope, cloud: china", "there is no location `westeurope` in this cloud"),
        (
            "location: westeurope, features: [gpu, azure-polcy]",
            "features[1]: there is no feature `azure-polcy`; did you mean `azure-policy`?",
        ),
        ("location: westeurope, features: [teleport]", "there is no feature `teleport`; write application-insights, "),
        (
            "location: westeurope, edition: yesterday",
            "edition: `yesterday` is not a date; write it as 2023-06-13, or latest",
        ),
        ("location: westeurope, edition: 2018-01-01", "the first one is 2019-05-06"),
        ("location: westeurope, os: [ubunto]", "os[0]: there is no operating system `ubunto` (did you mean `ubuntu`?)"),
        (
            "location: westeurope, api_server: localhost",
            "api_server: `localhost` is not an API server; write its FQDN, such as mycluster-1a2b.hcp.westeurope.azmk8s.io",
        ),
        (
            "location: westeurope, api_server: 0.0.0.0/0",
            "holds more than that; write the API server's own, /16 or longer",
        ),
        ("location: westeurope, api_server: 10.0.0.1/8", "has bits set behind its prefix"),
        (
            "location: westeurope, dns_servers: [dns.example]",
            "dns_servers[0]: `dns.example` is not an address; write such as 10.1.0.53",
        ),
        ("location: westeurope, region_cidrs: [20.0.0.0/33]", "region_cidrs[0]: "),
        (
            "location: westeurope, registries: [a.b/c]",
            "registries[0]: `a.b/c` is not the name of one; write myregistry or registry.example.com",
        ),
        ("location: westeurope, key_vaults: [x]", "key_vaults[0]: "),
        (
            "location: westeurope, any_destination: [tunel-udp]",
            "any_destination[0]: there is no row with `*` `tunel-udp` (did you mean `tunnel-udp`?)",
        ),
        ("location: westeurope, feature: [gpu]", "did you mean `features`?"),
        (
            "location: westeurope, konnectivity: false",
            "the service tag AzureCloud.westeurope needs Microsoft's file: write policy.service_tags, or for the old tunnel api_server or region_cidrs",
        ),
        ("location: westeurope, features: [azure-monitor], monitor_by_tag: true", "write policy.service_tags"),
    ] {
        let told = fault(&format!("bundles: [{{ bundle: aks, {more} }}]"), here);
        assert!(told.contains(says), "{more}: {told}");
    }
}

/// A real file of service tags, unpacked; none where the corpus is not at hand.
fn real_tags(name: &str, folder: &Path) -> Option<()> {
    let path = at_root("../shared/corpus/azure/servicetags").join(format!("{name}.json.gz"));
    let Ok(packed) = std::fs::File::open(&path) else {
        missing::missing("the real file of service tags");
        return None;
    };
    let mut out = std::fs::File::create(folder.join("tags.json")).unwrap();
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut out).unwrap();
    Some(())
}

#[test]
fn every_region_has_its_service_tag_in_the_real_files() {
    // Younger than the files.
    const NEW: &[&str] = &["belgiumcentral", "denmarkeast"];
    for (cloud, file) in
        [("global", "ServiceTags_Public_change363"), ("usgov", "ServiceTags_AzureGovernment_change401")]
    {
        let folder = tempfile::tempdir().unwrap();
        let Some(()) = real_tags(file, folder.path()) else { return };
        let regions: Vec<&str> =
            aks().clouds[cloud].locations().map(|(name, _)| name).filter(|name| !NEW.contains(name)).collect();
        // As a bundle's tunnel, by its own name, and in a rule of one's own.
        let bundles: Vec<String> = regions
            .iter()
            .map(|region| format!("{{ bundle: aks, cloud: {cloud}, location: {region}, konnectivity: false }}"))
            .collect();
        let tags: Vec<String> = regions.iter().map(|region| format!("AzureCloud.{region}")).collect();
        let text = format!(
            "service_tags: tags.json, bundles: [{}], network_rules: [{{ name: all, destinations: {tags:?}, protocols: [\"tcp:7777\"] }}]",
            bundles.join(", ")
        );
        let policy = policy_of(&text, folder.path());
        assert!(opens(&policy, if cloud == "global" { "tcp://4.175.0.1:7777" } else { "tcp://13.72.0.1:7777" }));
        // And the other way round: the file knows no region that the table does not.
        let written = std::fs::read_to_string(folder.path().join("tags.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&written).unwrap();
        for tag in
            json["values"].as_array().unwrap().iter().filter_map(|v| v["name"].as_str()?.strip_prefix("AzureCloud."))
        {
            assert!(
                aks().clouds[cloud].locations().any(|(_, spelled)| spelled == tag),
                "{cloud} has no region for the tag {tag}"
            );
        }
    }
}

#[test]
fn a_tag_is_the_prefixes_of_the_real_file_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let Some(()) = real_tags("ServiceTags_Public_change363", folder.path()) else { return };
    let policy = policy_of(
        "service_tags: tags.json, bundles: [{ bundle: aks, location: westeurope, konnectivity: false }], network_rules: [{ name: own, destinations: [AzureCloud.francecentral, azuremonitor], protocols: [\"tcp:8443\"] }]",
        folder.path(),
    );
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("tags.json")).unwrap()).unwrap();
    let prefixes = |name: &str| -> Vec<ipnet::IpNet> {
        let tag = json["values"].as_array().unwrap().iter().find(|v| v["name"] == name).unwrap();
        tag["properties"]["addressPrefixes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p.as_str().unwrap().parse().unwrap())
            .collect()
    };
    let (west, france, monitor) =
        (prefixes("AzureCloud.westeurope"), prefixes("AzureCloud.centralfrance"), prefixes("AzureMonitor"));
    assert!(west.iter().any(|p| p.addr().is_ipv6()), "both families");
    let show = |ip: std::net::IpAddr| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
    for net in west.iter().take(60).chain(west.iter().rev().take(20)) {
        for ip in [net.network(), net.broadcast()] {
            assert!(opens(&policy, &format!("udp://{}:1194", show(ip))), "{ip} of westeurope");
            let own = france.iter().chain(&monitor).any(|other| other.contains(&ip));
            assert_eq!(opens(&policy, &format!("tcp://{}:8443", show(ip))), own, "{ip}");
        }
    }
    for net in france.iter().take(40).chain(monitor.iter().take(40)) {
        let ip = net.network();
        assert!(opens(&policy, &format!("tcp://{}:8443", show(ip))), "{ip}");
        assert_eq!(
            opens(&policy, &format!("udp://{}:1194", show(ip))),
            west.iter().any(|other| other.contains(&ip)),
            "{ip}"
        );
    }
}

#[test]
fn a_broken_file_of_tags_is_reported_and_nothing_of_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tags.json");
    let here = folder.path();
    let text = "service_tags: tags.json, bundles: [{ bundle: aks, location: westeurope, konnectivity: false }]";
    let good = r#"{ "changeNumber": 1, "cloud": "Public", "values": [{ "name": "AzureCloud.westeurope", "id": "x", "properties": { "region": "westeurope", "addressPrefixes": ["20.1.0.0/16"] } }] }"#;
    let told = |content: &[u8]| {
        std::fs::write(&file, content).unwrap();
        fault(text, here)
    };
    assert!(told(&good.as_bytes()[..good.len() - 20]).contains("ends before its end"));
    assert!(told(b"<html>").contains("is not JSON"));
    assert!(told(b"").contains("ends before its end"));
    assert!(told(b"{ \"cloud\": \"Public\" }").contains("is not a file of service tags"));
    assert!(told(&[0xff, 0xfe]).contains("is not UTF-8"));
    assert!(
        told(good.replace("Public", "AzureGovernment").as_bytes())
            .contains("is of the cloud AzureGovernment, this bundle of global; take the file of Public")
    );
    assert!(told(good.replace("westeurope", "northeurope").as_bytes()).contains(
        "there is no service tag `AzureCloud.westeurope` in this file; did you mean `AzureCloud.northeurope`?"
    ));
    assert!(
        told(good.replace("20.1.0.0/16", "20.1.0.0/99").as_bytes()).contains("AzureCloud.westeurope cannot be used")
    );
    std::fs::File::create(&file).unwrap().set_len(65 << 20).unwrap();
    assert!(fault(text, here).contains("has more than 67108864 bytes, which are the most"));
    std::fs::remove_file(&file).unwrap();
    assert!(fault(text, here).contains("cannot read"));
    // A tag of one's own rules.
    std::fs::write(&file, good).unwrap();
    let own = |tag: &str| {
        format!(
            "service_tags: tags.json, network_rules: [{{ name: n, destinations: [{tag}], protocols: [\"tcp:9\"] }}]"
        )
    };
    assert!(fault(&own("AzureCloud.westeuorpe"), here).contains("destinations[0]: there is no service tag `AzureCloud.westeuorpe` in this file; did you mean `AzureCloud.westeurope`?"));
    assert!(
        fault("network_rules: [{ name: n, destinations: [AzureCloud.westeurope], protocols: [\"tcp:9\"] }]", here)
            .contains("a service tag needs policy.service_tags with Microsoft's file")
    );
    assert!(opens(&policy_of(&own("AzureCloud.westeurope"), here), "tcp://20.1.0.1:9"));
    // A region that is younger than egret is one the file knows.
    std::fs::write(&file, good.replace("westeurope", "atlantiscentral")).unwrap();
    let young = "service_tags: tags.json, bundles: [{ bundle: aks, location: atlantiscentral, konnectivity: false }]";
    assert!(opens(&policy_of(young, here), "udp://20.1.0.1:1194"));
}

#[test]
fn a_hundred_thousand_prefixes_are_one_rule() {
    let nets: Vec<String> =
        (0..100_000u32).map(|n| format!("{}/28", std::net::Ipv4Addr::from(0x1400_0000 + (n << 5)))).collect();
    let policy = policy_of(
        &format!("network_rules: [{{ name: many, destinations: {nets:?}, protocols: [\"udp:5000\"] }}]"),
        Path::new("."),
    );
    for n in [0u32, 1, 49_999, 99_999] {
        let first = 0x1400_0000 + (n << 5);
        assert!(opens(&policy, &format!("udp://{}:5000", std::net::Ipv4Addr::from(first + 15))));
        assert!(!opens(&policy, &format!("udp://{}:5000", std::net::Ipv4Addr::from(first + 16))));
    }
}

#[test]
fn a_choice_has_no_row_of_a_later_edition_and_no_name_twice() {
    let features: Vec<String> = aks().features.keys().cloned().collect();
    let mut seen = 0;
    for (cloud, location, ..) in PLACES {
        for edition in &aks().editions {
            let mut asked = Parameters::of("aks", location);
            asked.cloud = Some((*cloud).to_owned());
            asked.edition = Some(edition.date.to_string());
            asked.features.clone_from(&features);
            let Some(choice) = aks().choose(&asked, |_| true, &mut Vec::new()) else {
                assert!(edition.date < date("2020-01-01"), "{cloud} has no choice on {}", edition.date);
                continue;
            };
            let rows = choice.rows();
            let mut ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), rows.len(), "{cloud} on {} has an id twice", edition.date);
            for row in &rows {
                assert!(row.since <= edition.date, "{cloud} on {} has {} of {}", edition.date, row.id, row.since);
            }
            seen += rows.len();
        }
    }
    assert!(seen > 1500, "{seen}");
}

#[test]
fn what_the_bundle_keeps_closed_says_what_would_open_it() {
    let nearest = |more: &str, target: &str| {
        let refusal = explain(&cluster(more), target).unwrap_err();
        refusal.hint.unwrap().nearest.unwrap()
    };
    for (more, target, says) in [
        (
            "",
            "https://data.policy.core.windows.net",
            "rule aks/global/azure-policy is closed: feature azure-policy of the bundle would open it",
        ),
        ("", "https://x.vault.azure.net", "feature key-vault"),
        ("include_recommended: false", "https://snapshot.ubuntu.com", "include_recommended is false"),
        ("network_isolated: true", "https://mcr.microsoft.com", "network_isolated: the base set is empty"),
        ("private_cluster: true", "https://a.hcp.westeurope.azmk8s.io", "not needed with private_cluster"),
        ("os: azurelinux", "http://security.ubuntu.com", "os: not these nodes'"),
        ("api_server: 20.8.0.1", "https://a.hcp.westeurope.azmk8s.io", "api_server is an address"),
    ] {
        let told = nearest(more, target);
        assert!(told.contains(says), "{target}: {told}");
    }
    // To others than the bundle's own clients it says nothing of the kind.
    let policy = cluster("sources: [10.0.0.0/8]");
    let question = |from: &str| Question {
        subject: "https://x.vault.azure.net".parse().unwrap(),
        source: Source::at(from.parse().unwrap()),
        dst: None,
        alpn: Vec::new(),
    };
    let told = |from: &str| policy.explain(&question(from)).unwrap_err().hint.unwrap().nearest.unwrap_or_default();
    assert!(told("10.1.1.1").contains("feature key-vault") && !told("11.1.1.1").contains("feature key-vault"));
}

#[test]
fn in_china_an_api_server_s_names_lie_under_the_mirrors_and_are_kept_apart() {
    let china = |more: &str| {
        policy_of(&format!("bundles: [{{ bundle: aks, cloud: china, location: chinaeast2, {more} }}]"), Path::new("."))
    };
    let zone = "chinaeast2.cx.prod.service.azk8s.cn";
    let (mine, other, mirror) =
        (format!("https://mine.hcp.{zone}"), format!("https://other.hcp.{zone}"), "https://mirror.azk8s.cn");
    opens_just(&china(""), &[&mine, &other, mirror], &[]);
    let named = china(&format!("api_server: mine.hcp.{zone}"));
    opens_just(
        &named,
        &[&mine, &format!("https://mine.tun.{zone}"), mirror, "https://x.data.mcr.azk8s.cn"],
        &[
            &other,
            &format!("https://other.tun.{zone}"),
            "https://a.hcp.chinanorth3.cx.prod.service.azk8s.cn",
            "https://cx.prod.service.azk8s.cn",
        ],
    );
    opens_just(&china("private_cluster: true"), &[mirror], &[&mine, &other, &format!("https://x.privatelink.{zone}")]);
    // The old tunnel's other end is the same server under a name beside its own.
    let old = cluster("edition: 2020-01-01, api_server: mine.hcp.westeurope.azmk8s.io");
    opens_just(&old, &["https://mine.tun.westeurope.azmk8s.io"], &["https://other.tun.westeurope.azmk8s.io"]);
}

#[test]
fn what_is_given_as_one_s_own_is_no_net_to_catch_everything() {
    let here = Path::new(".");
    for (more, says) in [
        ("api_server: [0.0.0.0/1, 128.0.0.0/1]", "holds more than that"),
        ("dns_servers: [0.0.0.0/0]", "write each server's own address, /32 or longer"),
        ("dns_servers: [10.0.0.0/24]", "each server's own address"),
        ("region_cidrs: [0.0.0.0/0], konnectivity: false", "the region's own prefixes, /8 or longer"),
        ("registries: [azurecr.io]", "is not the name of one"),
        ("registries: [\"*.azurecr.io\"]", "is not the name of one"),
        ("key_vaults: [github.com]", "is not a vault of this cloud"),
        ("key_vaults: [my-vault.vault.azure.cn]", "is not a vault of this cloud"),
        ("api_server: \"*.hcp.westeurope.azmk8s.io\"", "is not an API server"),
        (
            "api_server: \"https://a.hcp.westeurope.azmk8s.io:443\"",
            "is more than a name; write a.hcp.westeurope.azmk8s.io",
        ),
        ("api_server: \"a.hcp.westeurope.azmk8s.io:443\"", "is more than a name; write a.hcp.westeurope.azmk8s.io"),
        ("edition: 2019-05-06, cloud: usgov", "does not know the cloud usgov; the first with it is of 2020-01-01"),
    ] {
        let location = if more.contains("usgov") { "usgovvirginia" } else { "westeurope" };
        let told = fault(&format!("bundles: [{{ bundle: aks, location: {location}, {more} }}]"), here);
        assert!(told.contains(says), "{more}: {told}");
    }
    for (more, says) in [
        (
            "api_server: www.example.com",
            "`www.example.com` is not an API server's name at westeurope in the cloud global; its addresses open TCP 443",
        ),
        ("api_server: a.hcp.northeurope.azmk8s.io", "is not an API server's name at westeurope"),
        ("api_server: 20.8.0.0/24", "connections to 20.8.0.0/24 on port 443 are not judged by name"),
        ("private_cluster: true, api_server: a.b.privatelink.westeurope.azmk8s.io", "write addresses: [public, RANGE]"),
        ("any_destination: [tunnel-udp]", "tunnel-udp stays closed all the same: not needed with konnectivity"),
        (
            "any_destination: [tunnel-udp], konnectivity: false, region_cidrs: [20.9.0.0/16]",
            "tunnel-udp opens its port to every address",
        ),
        ("monitor_by_tag: true", "it has no effect"),
    ] {
        let told = warnings(more).join("\n");
        assert!(told.contains(says), "{more}: {told}");
    }
    assert!(warnings("api_server: [mine-1a.hcp.westeurope.azmk8s.io, 20.8.0.1], registries: [myregistry]").is_empty());
    assert!(
        warnings(
            "private_cluster: true, api_server: a.b.privatelink.westeurope.azmk8s.io, addresses: [public, 10.1.0.0/16]"
        )
        .is_empty()
    );
    // Names in other scripts are A-labels in a configuration.
    opens_just(&cluster("registries: [régistry.example.com]"), &["https://xn--rgistry-bya.example.com"], &[]);
}

#[test]
fn service_tags_open_no_place_that_is_no_cloud_s() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tags.json");
    let tags = |cloud: &str, prefixes: &str| {
        let tag =
            format!(r#"{{ "name": "AzureCloud.westeurope", "properties": {{ "addressPrefixes": [{prefixes}] }} }}"#);
        std::fs::write(&file, format!(r#"{{ "cloud": "{cloud}", "values": [{tag}] }}"#)).unwrap();
    };
    let text = "service_tags: tags.json, bundles: [{ bundle: aks, location: westeurope, konnectivity: false }]";
    for bad in
        ["\"10.0.0.0/8\"", "\"169.254.169.254/32\"", "\"0.0.0.0/0\"", "\"8.0.0.0/7\"", "\"20.1.0.0/16\", \"::/0\""]
    {
        tags("Public", bad);
        let told = fault(text, folder.path());
        assert!(told.contains("which is not a cloud's"), "{bad}: {told}");
    }
    tags("Public", "");
    assert!(fault(text, folder.path()).contains("has no prefix in this file"));
    std::fs::write(&file, r#"{ "cloud": "Public", "values": [{ "name": "A", "properties": { "addressPrefixes": [] } }, { "name": "a", "properties": { "addressPrefixes": [] } }] }"#).unwrap();
    assert!(fault(text, folder.path()).contains("has the service tag A twice"));
    // What service tags call a region is not a location, though the file has it.
    let young = |location: &str| format!("service_tags: tags.json, bundles: [{{ bundle: aks, location: {location} }}]");
    std::fs::write(&file, r#"{ "cloud": "Public", "values": [{ "name": "AzureCloud.centralfrance", "properties": { "addressPrefixes": ["20.1.0.0/16"] } }] }"#).unwrap();
    assert!(fault(&young("centralfrance"), folder.path()).contains("did you mean `francecentral`?"));
    // A file of one cloud does not stand in the way of another one's bundle that needs no tag.
    let two = "service_tags: tags.json, bundles: [{ bundle: aks, location: westeurope }, { bundle: aks, cloud: usgov, location: usgovvirginia }]";
    opens_just(
        &policy_of(two, folder.path()),
        &["https://login.microsoftonline.us", "https://login.microsoftonline.com"],
        &[],
    );
}

#[test]
fn two_bundles_of_one_cloud_have_names_of_their_own() {
    let two = "bundles: [{ bundle: aks, location: westeurope, sources: [10.1.0.0/16] }, { bundle: aks, location: westeurope, sources: [10.2.0.0/16], features: [gpu] }]";
    let policy = policy_of(two, Path::new("."));
    let rule = |from: &str| {
        let subject: Subject = "https://mcr.microsoft.com".parse().unwrap();
        policy
            .explain(&Question { subject, source: Source::at(from.parse().unwrap()), dst: None, alpn: Vec::new() })
            .unwrap()
            .rule
    };
    assert_eq!((&*rule("10.1.0.1"), &*rule("10.2.0.1")), ("aks/global/registry", "aks/global/registry#2"));
    let clash = "bundles: [{ bundle: aks, location: westeurope }], application_rules: [{ name: aks/global/registry, fqdns: [a.example], protocols: [\"https:443\"] }]";
    assert!(fault(clash, Path::new(".")).contains("`aks/global/registry` is the name of policy.bundles[0] already"));
    // Of several network rules that cover an address, the one that may open it does.
    let nets = "network_rules: [{ name: all, destinations: [0.0.0.0/0], protocols: [\"tcp:9000\"] }, { name: own, destinations: [10.0.0.5/32], protocols: [\"tcp:9000\"] }]";
    let policy = policy_of(nets, Path::new("."));
    opens_just(&policy, &["tcp://8.8.8.8:9000", "tcp://10.0.0.5:9000"], &["tcp://10.0.0.6:9000"]);
    assert_eq!(&*explain(&policy, "tcp://10.0.0.5:9000").unwrap().rule, "own");
}
