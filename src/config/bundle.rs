//! A rule set's rows as rules: remarks get their places, tags their prefixes.

use std::collections::HashMap;
use std::sync::Arc;

use super::check::Findings;
use super::rules::{self, TagSource};
use super::{Rules, file};
use crate::bundle::{self, Choice, Closed, Destination, Level, Opening, Outcome};
use crate::name::HostName;
use crate::policy::kept::Kept;
use crate::policy::prefixes::PrefixSet;
use crate::policy::rule::{Action, AppPort, AppRule, Ech, InnerName, NetPort, NetRule, Reach, Sources};

/// Adds a bundle's rules.
pub(super) fn add(out: &mut Findings<'_>, path: &str, asked: &file::Bundle, tags: &TagSource, made: &mut Rules) {
    let Some(bundle) = out.keep(&format!("{path}.bundle"), bundle::named(&asked.bundle)) else { return };
    let mut remarks = Vec::new();
    let choice = bundle.choose(asked, |tag| tags.file.as_ref().is_some_and(|file| file.has(tag)), &mut remarks);
    for remark in remarks {
        let place = format!("{path}.{}", remark.key);
        match remark.level {
            Level::Fault => out.fault(&place, remark.message),
            Level::Warning => out.warn(&place, remark.message),
            Level::Note => out.note(&place, remark.message),
        }
    }
    let sources = rules::sources(out, path, asked.sources.as_deref());
    let reach = rules::reach(out, &format!("{path}.addresses"), asked.addresses.as_deref());
    let Some(choice) = choice else { return };
    if let Some(file) = tags.file.as_ref().filter(|file| !file.is_of(choice.cloud)) {
        let message = format!(
            "the file of `policy.service_tags` is of the cloud {}, this bundle of {}; take the file of {}",
            file.cloud(),
            choice.cloud_name,
            choice.cloud.tags.first().map_or(choice.cloud_name, String::as_str)
        );
        return out.fault(&format!("{path}.cloud"), message);
    }
    let mut maker = Maker { path, choice: &choice, sources, reach, tags, kept: HashMap::new() };
    for row in choice.rows() {
        maker.row(out, &row, made);
    }
}

struct Maker<'a> {
    path: &'a str,
    choice: &'a Choice<'a>,
    sources: Sources,
    reach: Reach,
    tags: &'a TagSource,
    kept: HashMap<HostName, Arc<Kept>>,
}

impl Maker<'_> {
    fn row(&mut self, out: &mut Findings<'_>, row: &Outcome, made: &mut Rules) {
        match &row.opening {
            Ok(Opening::Names(names)) => {
                let protocols = self.ports(out, &row.protocols, rules::app_port);
                self.app(out, row, names, Action::Allow, protocols, made);
            }
            Ok(Opening::DnsOnly(names)) => self.app(out, row, names, Action::Allow, Vec::new(), made),
            Err(Closed::Expected(names)) => self.app(out, row, names, Action::Expect, Vec::new(), made),
            Ok(Opening::AddressesOf(names)) => {
                let fqdns = rules::plain_patterns(out, self.path, names);
                self.net(out, row, NetRule { fqdns, ..self.empty() }, made);
            }
            Ok(Opening::Addresses(destinations)) => {
                let rule = self.destinations(out, row, destinations);
                self.net(out, row, rule, made);
            }
            Err(Closed::Because(_)) => {}
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
            fqdns: rules::plain_patterns(out, self.path, names),
            protocols,
            alpn: None,
            ech: Ech::Outer,
            inner: InnerName::Same,
            reach: self.reach.clone(),
        });
        made.origins.apps.push(self.path.to_owned());
    }

    fn net(&self, out: &mut Findings<'_>, row: &Outcome, rule: NetRule, made: &mut Rules) {
        let ports: Vec<NetPort> = self.ports(out, &row.protocols, rules::net_port);
        made.nets.push(NetRule { name: self.name(row), ports, ..rule });
        made.origins.nets.push(self.path.to_owned());
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
            reach: self.reach.clone(),
        }
    }

    fn destinations(&mut self, out: &mut Findings<'_>, row: &Outcome, destinations: &[Destination]) -> NetRule {
        let (mut nets, mut names, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for destination in destinations {
            match destination {
                Destination::Net(net) => nets.push(*net),
                Destination::Kept(name) => {
                    kept.push(Arc::clone(
                        self.kept.entry(name.clone()).or_insert_with(|| Arc::new(Kept::new(name.clone()))),
                    ));
                    // By its name it is judged by name where names are, and by address everywhere else.
                    if !row.protocols.iter().any(|p| p == "tcp:443") {
                        names.push(name.as_str().to_owned());
                    }
                }
                Destination::Tag(tag) => match &self.tags.file {
                    Some(file) => nets.extend(out.keep(self.path, file.prefixes(tag)).unwrap_or_default()),
                    None if self.tags.is_named => {}
                    None => {
                        let cure = if row.id == "monitor-tag" {
                            String::new()
                        } else {
                            "api_server or region_cidrs, or ".to_owned()
                        };
                        let message = format!(
                            "the row {} leads to the service tag {tag}, which nothing fills; write {cure}policy.service_tags with Microsoft's file",
                            row.id
                        );
                        out.fault(self.path, message);
                    }
                },
            }
        }
        let fqdns = rules::plain_patterns(out, self.path, &names);
        NetRule { destinations: nets.into_iter().collect(), kept, fqdns, ..self.empty() }
    }

    fn ports<T>(&self, out: &mut Findings<'_>, texts: &[String], read: fn(&str) -> Result<T, String>) -> Vec<T> {
        texts.iter().filter_map(|text| out.keep(self.path, read(text))).collect()
    }

    fn name(&self, row: &Outcome) -> Arc<str> {
        format!("{}/{}/{}", self.choice.bundle.name, self.choice.cloud_name, row.id).into()
    }
}
