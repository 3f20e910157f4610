//! A rule set's rows as rules: remarks get their places, tags their prefixes.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::file;
use super::findings::Findings;
use super::rule_parts;
use super::tags::TagSource;
use crate::bundle::{self, Closed, Destination, Level, Opening, Outcome, Selection, Why};
use egret_core::rule::guard;
use egret_core::rule::prefixes::PrefixSet;
use egret_core::rule::rules::{Origin, Rules};
use egret_core::rule::{Action, AppPort, AppRule, Ech, InnerName, LearnedName, NetPort, NetRule, Reach, Sources};

/// Adds a bundle's rules.
pub(super) fn add(out: &mut Findings<'_>, path: &str, asked: &file::Bundle, tags: &TagSource, made: &mut Rules) {
    let Some(bundle) = out.keep(&format!("{path}.bundle"), bundle::named(&asked.bundle)) else { return };
    let mut remarks = Vec::new();
    let asked = &file::Bundle { answers_dns: out.answers_dns && !out.is_fleet, ..asked.clone() };
    let choice = bundle.choose(asked, |tag| tags.file.as_ref().is_some_and(|file| file.has(tag)), &mut remarks);
    for remark in remarks {
        let place = format!("{path}.{}", remark.key);
        match remark.level {
            Level::Fault => out.fault(&place, remark.message),
            Level::Warning => out.warn(&place, remark.message),
            Level::Note => out.note(&place, remark.message),
        }
    }
    let sources = rule_parts::sources(out, path, asked.sources.as_deref(), None);
    let reach = rule_parts::reach(out, &format!("{path}.addresses"), asked.addresses.as_deref());
    let Some(choice) = choice else { return };
    // A name in the log leads to one rule: a second bundle of the same cloud has names of its own.
    let name = format!("{}/{}/", choice.bundle.name, choice.cloud_name);
    let nth = 1 + made.bundles.iter().filter(|other| **other == name).count();
    made.bundles.push(name);
    let mut maker = Maker { path, choice: &choice, nth, sources, reach, tags, read: HashMap::new() };
    let rows = choice.rows();
    for row in &rows {
        maker.row(out, row, made);
    }
    not_carried(out, path, &rows);
}

/// What is judged here and not carried.
fn not_carried(out: &mut Findings<'_>, path: &str, rows: &[Outcome]) {
    let (has_kernel, is_sidecar, answers_dns) = (out.has_kernel, out.is_sidecar, out.answers_dns);
    let mut note = |why: &str, is_dumb: &dyn Fn(&str) -> bool| {
        let dumb = |row: &&Outcome| row.opening.is_ok() && row.protocols.iter().any(|p| is_dumb(p));
        let names: Vec<&str> = rows.iter().filter(dumb).map(|row| row.id.as_str()).collect();
        if !names.is_empty() {
            out.note(path, format!("{why}; only `egret explain` judges: {}", names.join(", ")));
        }
    };
    if is_sidecar {
        note("a sidecar's kernel rules know no names for udp", &|p| p.starts_with("udp:"));
    } else if !has_kernel {
        note("only the kernel carries udp, and there is no `netfilter`", &|p| p.starts_with("udp:"));
    }
    if !answers_dns {
        note("egret answers no DNS questions without a `dns` listener", &|p| p == "dns");
    }
}

/// What a refusal of a closed row's name says.
fn why(row: &Outcome, closed: &Closed) -> String {
    match &closed.why {
        Why::Expected => format!("expected: nothing depends on it; feature {} would open it", row.features.join(", ")),
        Why::NotAsked => format!("feature {} of the bundle would open it", row.features.join(" or ")),
        Why::Parameter(why) => format!("the bundle keeps it closed: {why}"),
    }
}

struct Maker<'a> {
    path: &'a str,
    choice: &'a Selection<'a>,
    /// Which of the bundles of this cloud it is.
    nth: usize,
    sources: Sources,
    reach: Reach,
    tags: &'a TagSource,
    /// Prefixes of the tags that rows lead to.
    read: HashMap<String, Vec<IpNet>>,
}

impl Maker<'_> {
    fn row(&mut self, out: &mut Findings<'_>, row: &Outcome, made: &mut Rules) {
        match &row.opening {
            Ok(Opening::Names(names)) => {
                let protocols = self.ports(out, &row.protocols, rule_parts::app_port);
                self.app(out, row, names, Action::Allow, protocols, made);
            }
            Ok(Opening::DnsOnly(names)) => self.app(out, row, names, Action::Allow, Vec::new(), made),
            Err(closed) => {
                // A row by address has no name whose refusal could say so.
                if closed.names.is_empty() || row.protocols.iter().any(|p| p.starts_with("tcp") || p.starts_with("udp"))
                {
                    return;
                }
                let action = Action::Close(why(row, closed).into());
                self.app(out, row, &closed.names, action, Vec::new(), made);
            }
            Ok(Opening::AddressesOf(names)) => {
                let fqdns = rule_parts::plain_patterns(out, self.path, names);
                self.net(
                    out,
                    row,
                    NetRule { kept: rule_parts::kept(&fqdns, &self.reach), fqdns, ..self.empty() },
                    made,
                );
            }
            Ok(Opening::Addresses(destinations)) => {
                let rule = self.destinations(out, row, destinations);
                self.net(out, row, rule, made);
            }
        }
    }

    fn app(
        &self,
        out: &mut Findings<'_>,
        row: &Outcome,
        names: &[String],
        action: Action,
        protocols: Vec<AppPort>,
        made: &mut Rules,
    ) {
        made.apps.push(AppRule {
            name: self.name(row),
            action,
            sources: self.sources.clone(),
            fqdns: rule_parts::plain_patterns(out, self.path, names),
            except: row.except.iter().map(|ending| ending.as_str().into()).collect(),
            protocols,
            alpn: None,
            ech: Ech::Outer,
            inner: InnerName::Same,
            methods: None,
            paths: None,
            websocket: false,
            verify: false,
            steer: true,
            reach: self.reach.clone(),
        });
        made.origins.apps.push(self.origin());
    }

    fn net(&self, out: &mut Findings<'_>, row: &Outcome, rule: NetRule, made: &mut Rules) {
        let ports: Vec<NetPort> = self.ports(out, &row.protocols, rule_parts::net_port);
        made.nets.push(NetRule { name: self.name(row), ports, ..rule });
        made.origins.nets.push(self.origin());
    }

    fn origin(&self) -> Origin {
        Origin { path: self.path.to_owned(), is_bundle: true, inline: 0 }
    }

    fn empty(&self) -> NetRule {
        NetRule {
            name: Arc::from(""),
            action: Action::Allow,
            sources: self.sources.clone(),
            destinations: PrefixSet::default(),
            kept: Vec::new(),
            fqdns: Vec::new(),
            ports: Vec::new(),
            steer: true,
            reach: self.reach.clone(),
        }
    }

    fn destinations(&mut self, out: &mut Findings<'_>, row: &Outcome, destinations: &[Destination]) -> NetRule {
        let (mut nets, mut names, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for destination in destinations {
            match destination {
                Destination::Net(net) => nets.push(*net),
                Destination::Kept(name) => {
                    kept.push(LearnedName::new(name.clone(), self.reach.clone()));
                    // By its name it is judged by name where names are, and by address everywhere else.
                    if !row.protocols.iter().any(|p| p == "tcp:443") {
                        names.push(name.as_str().to_owned());
                    }
                }
                Destination::Tag(tag) => {
                    // Several rows lead to one tag; its fault is reported once.
                    if !self.read.contains_key(tag) {
                        let prefixes = out.keep(self.path, self.tag(tag)).unwrap_or_default();
                        self.read.insert(tag.clone(), prefixes);
                    }
                    nets.extend(self.read.get(tag).into_iter().flatten());
                }
            }
        }
        let fqdns = rule_parts::plain_patterns(out, self.path, &names);
        // Pods dial an API server by the addresses that the cluster knows it by.
        let steer = kept.is_empty();
        NetRule { destinations: nets.into_iter().collect(), kept, fqdns, steer, ..self.empty() }
    }

    /// A tag's prefixes, of this cloud's file and nothing but public.
    fn tag(&self, tag: &str) -> Result<Vec<IpNet>, String> {
        let file = match &self.tags.file {
            Some(file) => file,
            // Its fault has been reported.
            None if self.tags.is_named => return Ok(Vec::new()),
            None => {
                return Err(format!(
                    "the service tag {tag} needs Microsoft's file: write policy.service_tags, or for the old tunnel api_server or region_cidrs"
                ));
            }
        };
        if !file.is_of(self.choice.cloud) {
            return Err(format!(
                "the file of `policy.service_tags` is of the cloud {}, this bundle of {}; take the file of {}",
                file.cloud(),
                self.choice.cloud_name,
                self.choice.cloud.tags.first().map_or(self.choice.cloud_name, String::as_str)
            ));
        }
        let cure = "for the old tunnel, api_server or region_cidrs do without it";
        let prefixes = file.prefixes(tag).map_err(|fault| format!("{fault}; {cure}"))?;
        match prefixes.iter().find(|net| net.prefix_len() < 8 || !guard::is_public(net)) {
            Some(net) => {
                Err(format!("the service tag {tag} holds {net}, which is not a cloud's; download the file again"))
            }
            None => Ok(prefixes),
        }
    }

    fn ports<T>(&self, out: &mut Findings<'_>, texts: &[String], read: fn(&str) -> Result<T, String>) -> Vec<T> {
        texts.iter().filter_map(|text| out.keep(self.path, read(text))).collect()
    }

    fn name(&self, row: &Outcome) -> Arc<str> {
        let name = self.choice.rule_name(row);
        if self.nth == 1 { name.into() } else { format!("{name}#{}", self.nth).into() }
    }
}
