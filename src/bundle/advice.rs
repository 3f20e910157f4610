//! What is worth a word although it can be done.

use super::parameters::{Level, Parameters, Remarks, places};
use super::rows::Row;
use super::selection::{Closed, Destination, Opening, Selection, Why};

/// Extensions that a network isolated cluster cannot have (AKS, Network isolated clusters, limitations).
const ISOLATED_WITHOUT: &str = "of the cluster extensions, Dapr, App Configuration, Machine Learning, Flux and Backup are not supported on network isolated clusters";

impl Selection<'_> {
    /// Remarks on parameters that are right by themselves.
    pub(super) fn advise(&self, asked: &Parameters, out: &mut Remarks<'_>) {
        self.on_features(asked, out);
        self.on_api_server(asked, out);
        self.on_addresses(asked, out);
        self.on_switches(out);
        if self.network_isolated {
            self.on_isolation(asked, out);
        }
    }

    fn on_features(&self, asked: &Parameters, out: &mut Remarks<'_>) {
        for (key, word) in places("features", &asked.features) {
            let Ok(name) = self.bundle.feature(word) else { continue };
            let includes = self.bundle.features.get(name).map(|f| f.includes.as_slice()).unwrap_or_default();
            let is_of = |row: &&Row| row.features.iter().any(|f| f == name || includes.contains(f));
            let rows = self.bundle.rows.iter().filter(|row| row.is_for(self.cloud_name)).filter(is_of);
            if let Some(until) = self.retired(name) {
                let message = format!("{name} is in no document since {until}; what was printed last is open");
                out.say(Level::Warning, &key, message);
            } else if !rows.clone().any(|row| row.in_force(&self.edition)) {
                let message = match rows.map(|row| &row.since).min() {
                    Some(first) => format!(
                        "the edition of {} has nothing for {name}; the first with it is of {first}",
                        self.edition
                    ),
                    None => format!("the documents list nothing for {name} in the cloud {}", self.cloud_name),
                };
                out.say(Level::Warning, &key, message);
            }
        }
        if self.wants("key-vault") && self.key_vaults.is_empty() {
            out.say(Level::Note, "features", "key-vault opens every tenant's vaults; name yours in key_vaults");
        }
    }

    fn on_api_server(&self, asked: &Parameters, out: &mut Remarks<'_>) {
        if self.api_server.is_empty() && !self.private_cluster && self.location.is_some() {
            let message = "every tenant's API server in this region is open until api_server names yours";
            out.say(Level::Note, "location", message);
        }
        for ((key, word), server) in asked.api_server.places("api_server").iter().zip(&self.api_server) {
            match server {
                Destination::Kept(name) if !self.is_of_here(name.as_str()) => {
                    let region = self.location.as_deref().unwrap_or("any");
                    let message = format!(
                        "`{word}` is not an API server's name at {region} in the cloud {}; its addresses open TCP 443 for every site behind them",
                        self.cloud_name
                    );
                    out.say(Level::Warning, key, message);
                }
                Destination::Net(net) if net.prefix_len() < net.max_prefix_len() => {
                    let message =
                        format!("connections to {net} on port 443 are not judged by name; write the one address");
                    out.say(Level::Warning, key, message);
                }
                _ => {}
            }
        }
        let named = self.api_server.iter().any(|server| matches!(server, Destination::Kept(_)));
        if !self.api_server.is_empty() && !named && !self.private_cluster {
            let message = "clients that ask for the API server by name are refused; write its FQDN beside the address";
            out.say(Level::Note, "api_server", message);
        }
        let reaches_inside = asked.addresses.iter().flatten().any(|word| word != "public");
        if named && self.private_cluster && !reaches_inside {
            let message = "a private API server's name leads to a private address, which stays closed; write addresses: [public, RANGE]";
            out.say(Level::Warning, "api_server", message);
        }
    }

    /// Whether a name could be an API server's in this place.
    fn is_of_here(&self, name: &str) -> bool {
        let zone = self.cloud.zone.strip_prefix("privatelink.<location>.").unwrap_or_default();
        let front = name.strip_suffix(zone).and_then(|front| front.strip_suffix('.'));
        let place = front.and_then(|front| front.rsplit('.').next());
        place.is_some_and(|place| self.location.as_deref().is_none_or(|location| location == place))
    }

    fn on_addresses(&self, asked: &Parameters, out: &mut Remarks<'_>) {
        let Some(words) = &asked.addresses else { return };
        if !self.network_isolated && !words.iter().any(|word| word == "public") {
            let message = "without `public`, names such as mcr.microsoft.com may lead to these ranges only; write [public, …] unless every name has a private endpoint";
            out.say(Level::Warning, "addresses", message);
        }
    }

    /// What was asked for that opens much, or nothing.
    fn on_switches(&self, out: &mut Remarks<'_>) {
        let rows = self.rows();
        let opening = |id: &str| rows.iter().find(|row| row.id == id).map(|row| &row.opening);
        for (key, id) in places("any_destination", &self.any_destination) {
            match opening(id) {
                Some(Err(Closed { why: Why::Parameter(why), .. })) => {
                    out.say(Level::Warning, &key, format!("{id} stays closed all the same: {why}"));
                }
                _ => out.say(Level::Warning, &key, format!("{id} opens its port to every address")),
            }
        }
        if self.monitor_by_tag {
            let message = match opening("monitor-tag") {
                Some(Ok(_)) => "connections to Azure Monitor's prefixes on port 443 are not judged by name",
                _ => "it has no effect: no feature of Azure Monitor is asked for in this edition",
            };
            out.say(Level::Warning, "monitor_by_tag", message);
        }
        let led = |to: &Destination| {
            rows.iter().any(|row| matches!(&row.opening, Ok(Opening::Addresses(all)) if all.contains(to)))
        };
        if !self.region_cidrs.is_empty() && !self.region_cidrs.iter().any(led) {
            let message = "it has no effect: the old tunnel is closed, or leads to api_server";
            out.say(Level::Note, "region_cidrs", message);
        }
        let by_tag = rows.iter().filter(|row| row.id.starts_with("tunnel"));
        let by_tag = by_tag.filter_map(|row| match &row.opening {
            Ok(Opening::Addresses(all)) => all.iter().find(|to| matches!(to, Destination::Tag(_))),
            _ => None,
        });
        if let Some(tag) = by_tag.into_iter().next() {
            let message = format!("the old tunnel's ports open for all of {tag}; api_server would keep them narrow");
            out.say(Level::Note, "konnectivity", message);
        }
    }

    fn on_isolation(&self, asked: &Parameters, out: &mut Remarks<'_>) {
        if asked.private_cluster == Some(false) {
            let message = "a network isolated cluster is private; remove it, or write true";
            out.say(Level::Fault, "private_cluster", message);
        }
        if self.wants("cluster-extensions") {
            out.say(Level::Warning, "features", ISOLATED_WITHOUT);
        }
        if self.wants("windows") {
            let named = asked.features.iter().any(|word| self.bundle.feature(word) == Ok("windows"));
            let key = if named { "features" } else { "os" };
            out.say(Level::Warning, key, "Windows node pools are not supported on network isolated clusters");
        }
        if asked.include_recommended == Some(true) {
            let message = "a network isolated cluster updates its nodes by image (channels NodeImage and None); package updates are not supported on it, and their rows stay closed";
            out.say(Level::Warning, "include_recommended", message);
        }
        if asked.konnectivity == Some(false) {
            let message = "the old tunnel's ports stay closed: a private cluster needs none";
            out.say(Level::Warning, "konnectivity", message);
        }
    }
}
