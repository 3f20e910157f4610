//! The rows that a checked choice gets: conditions asked, alternatives narrowed, placeholders filled.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::rows::{Bundle, Cloud, Condition, Date, Narrowing, Need, Os, Row};
use egret_core::name::HostName;
use egret_core::rule::prefixes::everywhere;

/// Checked parameters.
#[derive(Debug)]
pub struct Selection<'a> {
    pub bundle: &'a Bundle,
    pub cloud_name: &'a str,
    pub cloud: &'a Cloud,
    /// `None`: any.
    pub location: Option<String>,
    pub edition: Date,
    /// The features asked for, with what they include.
    pub features: BTreeSet<&'a str>,
    pub(super) os: BTreeSet<Os>,
    pub(super) include_recommended: bool,
    pub(super) private_cluster: bool,
    pub(super) network_isolated: bool,
    pub(super) konnectivity: bool,
    pub(super) nodes_after_march_2021: bool,
    pub(super) monitor_by_tag: bool,
    pub(super) any_destination: Vec<String>,
    pub(super) answers_dns: bool,
    pub(super) api_server: Vec<Destination>,
    pub(super) dns_servers: Vec<Destination>,
    pub(super) region_cidrs: Vec<Destination>,
    pub(super) registries: Vec<HostName>,
    pub(super) key_vaults: Vec<HostName>,
}

/// Where a row by address leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Net(IpNet),
    /// What egret itself finds for this name, and keeps.
    Kept(HostName),
    Tag(String),
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Net(net) => net.fmt(f),
            Self::Kept(name) => name.fmt(f),
            Self::Tag(tag) => f.write_str(tag),
        }
    }
}

/// What a row comes to under a choice.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub id: String,
    pub need: Need,
    pub features: Vec<String>,
    pub source: String,
    pub since: Date,
    pub protocols: Vec<String>,
    pub printed: Vec<String>,
    pub because: Option<String>,
    pub purpose: String,
    /// Endings that its names do not mean.
    pub except: Vec<String>,
    pub opening: Result<Opening, Closed>,
}

/// What an open row opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// By name, on `https:` and `http:` ports.
    Names(Vec<String>),
    /// By the addresses of exact names.
    AddressesOf(Vec<String>),
    /// By address.
    Addresses(Vec<Destination>),
    /// Asked for in DNS, and no more.
    DnsOnly(Vec<String>),
}

/// A row that is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    pub why: Why,
    /// What it would open by name.
    pub names: Vec<String>,
}

/// Why a row is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// A parameter makes it unnecessary, or is not set.
    Parameter(String),
    /// None of its features is asked for.
    NotAsked,
    /// As before, and nothing would depend on it: its refusals are expected.
    Expected,
}

impl<'a> Selection<'a> {
    /// What the log calls a row's rule.
    #[must_use]
    pub fn rule_name(&self, row: &Outcome) -> String {
        format!("{}/{}/{}", self.bundle.name, self.cloud_name, row.id)
    }

    /// The rows of this cloud and edition, and what each comes to.
    #[must_use]
    pub fn rows(&self) -> Vec<Outcome> {
        let here = || self.bundle.rows.iter().filter(|row| row.is_for(self.cloud_name) && self.has_in_force(row));
        let mut out: Vec<Outcome> = here()
            .map(|row| self.outcome(row, self.opening(row).map_err(|why| Closed { why, names: self.names(row) })))
            .collect();
        out.extend(self.registries.iter().map(|name| self.registry(name)));
        let narrows =
            |row: &Row| row.narrowed_by == Some(Narrowing::KeyVaults) && row.features.iter().any(|f| self.wants(f));
        if !self.key_vaults.is_empty() && !here().any(narrows) {
            out.push(self.added("key-vault", self.vaults(), "Your own key vaults."));
        }
        out
    }

    /// The names of one's own vaults.
    fn vaults(&self) -> Vec<String> {
        self.key_vaults.iter().map(|name| name.as_str().to_owned()).collect()
    }

    /// An Azure registry's layers come from a name of their own, where it has dedicated data endpoints.
    fn registry(&self, name: &HostName) -> Outcome {
        let suffix = &self.cloud.registry;
        let name = name.as_str();
        let short =
            name.strip_suffix(suffix).and_then(|front| front.strip_suffix('.')).filter(|front| !front.contains('.'));
        let data = short.map(|short| format!("{short}.{}.data.{suffix}", self.region()));
        let names = std::iter::once(name.to_owned()).chain(data).collect();
        self.added(&format!("own-registry-{}", short.unwrap_or(name)), names, "A container registry of your own.")
    }

    fn added(&self, id: &str, names: Vec<String>, purpose: &str) -> Outcome {
        Outcome {
            id: id.to_owned(),
            need: Need::Required,
            features: Vec::new(),
            source: "parameters".to_owned(),
            since: self.edition.clone(),
            protocols: vec!["https:443".to_owned()],
            printed: Vec::new(),
            because: None,
            purpose: purpose.to_owned(),
            except: Vec::new(),
            opening: Ok(Opening::Names(names)),
        }
    }

    fn outcome(&self, row: &Row, opening: Result<Opening, Closed>) -> Outcome {
        Outcome {
            id: row.id.clone(),
            need: row.need,
            features: row.features.clone(),
            source: row.source.clone(),
            since: row.since.clone(),
            protocols: row.protocols.clone(),
            printed: row.printed.clone(),
            because: row.because.clone(),
            purpose: row.purpose.clone(),
            except: if self.private_cluster || !self.api_server.is_empty() { row.except.clone() } else { Vec::new() },
            opening,
        }
    }

    pub(super) fn wants(&self, feature: &str) -> bool {
        self.features.contains(feature)
    }

    /// In force on the day; or asked for by name although the documents have dropped the whole feature.
    fn has_in_force(&self, row: &Row) -> bool {
        let was_last = |feature: &String| {
            self.wants(feature) && self.retired(feature).is_some_and(|gone| row.until.as_ref() == Some(gone))
        };
        row.in_force(&self.edition) || row.features.iter().any(was_last)
    }

    /// The day on which the last row of a feature went, if none is in force and some once were.
    pub(super) fn retired(&self, feature: &str) -> Option<&'a Date> {
        let rows = self.bundle.rows.iter().filter(|row| row.is_for(self.cloud_name));
        let rows = rows.filter(|row| row.features.iter().any(|f| f == feature));
        if rows.clone().any(|row| row.in_force(&self.edition)) {
            return None;
        }
        rows.filter_map(|row| row.until.as_ref()).filter(|until| **until <= self.edition).max()
    }

    /// A row's own names, filled in.
    fn names(&self, row: &Row) -> Vec<String> {
        row.fqdns.iter().map(|text| self.filled(text)).collect()
    }

    fn opening(&self, row: &Row) -> Result<Opening, Why> {
        let because = |text: &str| Err(Why::Parameter(text.to_owned()));
        let asked = row.features.is_empty() || row.features.iter().any(|f| self.wants(f));
        if !asked {
            return Err(if row.need == Need::Noticed { Why::Expected } else { Why::NotAsked });
        }
        let given = match row.narrowed_by {
            Some(Narrowing::ApiServer) if !self.api_server.is_empty() => Some(self.api_server_names(row)),
            Some(Narrowing::KeyVaults) if !self.key_vaults.is_empty() => Some(self.vaults()),
            _ => None,
        };
        let by_parameter =
            given.is_some() || row.destinations.iter().any(|word| self.parameter(word).is_some_and(|d| !d.is_empty()));
        let base = row.features.is_empty();
        if base && self.network_isolated && !by_parameter && row.when.is_empty() {
            return because("network_isolated: the base set is empty");
        }
        if base && row.need == Need::Recommended && !self.include_recommended {
            return because("include_recommended is false");
        }
        if !row.os.is_empty() && !row.os.iter().any(|os| self.os.contains(os)) {
            return because("os: not these nodes'");
        }
        if let Some(condition) = row.when.iter().find(|condition| !self.holds(**condition)) {
            return because(&format!("{} is not set", condition.as_str()));
        }
        let counts = row.unless_clouds.is_empty() || row.unless_clouds.iter().any(|c| c == self.cloud_name);
        if let Some(condition) = row.unless.iter().find(|c| counts && given.is_none() && self.holds(**c)) {
            return because(&format!("not needed with {}", condition.as_str()));
        }
        self.leads(row, given)
    }

    /// Where an asked-for row leads.
    fn leads(&self, row: &Row, given: Option<Vec<String>>) -> Result<Opening, Why> {
        let names = given.unwrap_or_else(|| self.names(row));
        let any = row.destinations.iter().any(|d| d == "*") && self.any_destination.contains(&row.id);
        let by_name = row.protocols.iter().any(|p| p.starts_with("http"));
        if row.protocols.iter().any(|p| p == "dns") {
            return Ok(Opening::DnsOnly(names));
        }
        if by_name {
            return if names.is_empty() {
                Err(Why::Parameter("api_server is an address; api-server-address opens it".to_owned()))
            } else {
                Ok(Opening::Names(names))
            };
        }
        if any {
            return Ok(Opening::Addresses(everywhere().map(Destination::Net).to_vec()));
        }
        if !names.is_empty() {
            return Ok(Opening::AddressesOf(names));
        }
        if row.destinations.is_empty() {
            return Err(Why::Parameter(row.because.clone().unwrap_or_else(|| "no destination is printed".to_owned())));
        }
        for word in &row.destinations {
            match self.parameter(word) {
                Some([]) => {}
                Some(destinations) => return Ok(Opening::Addresses(destinations.to_vec())),
                None if word == "*" => {}
                None if self.answers_dns && !row.wildcards.is_empty() => {
                    return Ok(Opening::AddressesOf(row.wildcards.iter().map(|text| self.filled(text)).collect()));
                }
                None => return Ok(Opening::Addresses(vec![Destination::Tag(self.tag(word))])),
            }
        }
        let keys: Vec<&str> = row.destinations.iter().map(String::as_str).filter(|word| *word != "*").collect();
        Err(Why::Parameter(format!("{} is not set", keys.join(" or "))))
    }

    /// What a destination word stands for, where it is a parameter.
    fn parameter(&self, word: &str) -> Option<&[Destination]> {
        match word {
            "api_server" => Some(&self.api_server),
            "region_cidrs" => Some(&self.region_cidrs),
            "dns_servers" => Some(&self.dns_servers),
            _ => None,
        }
    }

    /// One's own API server under the name that a row means: the tunnel's other end differs in one label.
    fn api_server_names(&self, row: &Row) -> Vec<String> {
        let tunnel = row.fqdns.iter().any(|name| name.contains(".tun."));
        let names = self.api_server.iter().filter_map(|destination| match destination {
            Destination::Kept(name) if tunnel => Some(name.as_str().replace(".hcp.", ".tun.")),
            Destination::Kept(name) => Some(name.as_str().to_owned()),
            Destination::Net(_) | Destination::Tag(_) => None,
        });
        names.collect()
    }

    fn holds(&self, condition: Condition) -> bool {
        match condition {
            Condition::PrivateCluster => self.private_cluster,
            Condition::Konnectivity => self.konnectivity,
            Condition::NodesAfterMarch2021 => self.nodes_after_march_2021,
            Condition::MonitorByTag => self.monitor_by_tag,
        }
    }

    fn region(&self) -> &str {
        self.location.as_deref().unwrap_or("*")
    }

    fn filled(&self, text: &str) -> String {
        let text = text.replace("<private-zone>", &self.cloud.zone);
        ["<location>", "<region>", "<cluster-region-name>"]
            .iter()
            .fold(text, |text, hole| text.replace(hole, self.region()))
    }

    /// `AzureCloud.<location>` of any location is `AzureCloud`.
    fn tag(&self, word: &str) -> String {
        match &self.location {
            Some(location) => word.replace("<location>", self.cloud.tag_of(location)),
            None => word.replace(".<location>", ""),
        }
    }
}
