//! From what a configuration asks of a rule set to the rows it gets: parameters checked, alternatives
//! narrowed, placeholders filled.

use std::collections::BTreeSet;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Bundle, Cloud, Condition, Date, Feature, Narrowing, Need, Os, Row, no_such};
use crate::likeness::closest;
use crate::name::{Host, HostName};
use crate::policy::prefixes::{everywhere, prefix};

/// A rule set that comes with egret.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Bundle")]
pub struct Asked {
    /// The rule set's name: `aks`.
    pub bundle: String,
    /// The cloud: `global`, `china` or `usgov`. Default `global`.
    #[serde(default)]
    pub cloud: Option<String>,
    /// The region, such as `westeurope`; `any` opens every region's names.
    pub location: String,
    /// `latest`, or a date: the newest edition of the documents that is not younger. Default `latest`.
    #[serde(default)]
    pub edition: Option<String>,
    /// What the cluster uses beyond the required rows; `egret bundle list` prints what there is.
    #[serde(default)]
    pub features: Vec<String>,
    /// Rows that are recommended and not required. Default true.
    #[serde(default)]
    pub include_recommended: Option<bool>,
    /// The nodes' operating systems: `ubuntu`, `azurelinux`, `windows`. Default: both Linux ones.
    #[serde(default)]
    pub os: OneOrMany,
    /// Who the rules are for, as CIDRs or addresses. Default: everyone.
    #[serde(default)]
    pub sources: Option<Vec<String>>,
    /// Where the names may lead: `public`, and CIDRs of private endpoints. Default `[public]`.
    #[serde(default)]
    pub addresses: Option<Vec<String>>,
    /// The cluster's API server, as FQDN, address or CIDR: takes the place of every tenant's, and opens TCP 443
    /// by address for clients that send no name.
    #[serde(default)]
    pub api_server: OneOrMany,
    /// The network's own DNS servers: UDP and TCP 53.
    #[serde(default)]
    pub dns_servers: Vec<String>,
    /// Your own container registries: `NAME` of Azure's, or an FQDN.
    #[serde(default)]
    pub registries: Vec<String>,
    /// Your own key vaults, by name or FQDN: take the place of every tenant's.
    #[serde(default)]
    pub key_vaults: Vec<String>,
    /// The API server is inside the network. Default false.
    #[serde(default)]
    pub private_cluster: Option<bool>,
    /// A network isolated cluster: private, and nothing but the features that are named. Default false.
    #[serde(default)]
    pub network_isolated: Option<bool>,
    /// Nodes and control plane are joined by konnectivity, so that the old tunnel's ports stay closed. Default
    /// true.
    #[serde(default)]
    pub konnectivity: Option<bool>,
    /// No node was made before April 2021, so that none needs NTP in Azure's global cloud. Default false.
    #[serde(default)]
    pub nodes_after_march_2021: Option<bool>,
    /// The prefixes of the region's control planes, for the old tunnel's ports.
    #[serde(default)]
    pub region_cidrs: Vec<String>,
    /// Azure Monitor by service tag instead of by name: thousands of prefixes on port 443. Default false.
    #[serde(default)]
    pub monitor_by_tag: Option<bool>,
    /// Rows whose `*` is meant: any address on their port, such as `[tunnel-udp]`.
    #[serde(default)]
    pub any_destination: Vec<String>,
}

/// A word, or a list of them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl OneOrMany {
    /// The words with their place in a list.
    fn places<'a>(&'a self, key: &str) -> Vec<(String, &'a str)> {
        match self {
            Self::One(word) => vec![(key.to_owned(), word.as_str())],
            Self::Many(words) => places(key, words),
        }
    }
}

fn places<'a>(key: &str, words: &'a [String]) -> Vec<(String, &'a str)> {
    words.iter().enumerate().map(|(at, word)| (format!("{key}[{at}]"), word.as_str())).collect()
}

/// How much a remark weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing may be opened.
    Fault,
    /// Probably not meant.
    Warning,
    /// The documents' own choice, and worth knowing.
    Note,
}

/// Something to say about one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    pub level: Level,
    /// Such as `features[1]`.
    pub key: String,
    pub message: String,
}

/// Checked parameters.
#[derive(Debug)]
pub struct Choice<'a> {
    pub bundle: &'a Bundle,
    pub cloud_name: &'a str,
    pub cloud: &'a Cloud,
    /// `None`: any.
    pub location: Option<String>,
    pub edition: Date,
    /// Asked for, with what they include.
    pub features: BTreeSet<&'a str>,
    os: BTreeSet<Os>,
    include_recommended: bool,
    private_cluster: bool,
    network_isolated: bool,
    konnectivity: bool,
    nodes_after_march_2021: bool,
    monitor_by_tag: bool,
    any_destination: Vec<String>,
    api_server: Vec<Destination>,
    dns_servers: Vec<Destination>,
    region_cidrs: Vec<Destination>,
    registries: Vec<String>,
    key_vaults: Vec<String>,
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

/// Why a row is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// A parameter makes it unnecessary, or has not asked for it.
    Because(String),
    /// It happens, nothing depends on it, and nobody asked for it: names whose refusal is expected.
    Expected(Vec<String>),
}

/// Extensions that a network isolated cluster cannot have (AKS, Network isolated clusters, limitations).
const ISOLATED_WITHOUT: &str =
    "Dapr, App Configuration, Machine Learning, Flux and Backup are not supported on network isolated clusters";

impl Bundle {
    /// Checks what is asked. `has_tag` says whether a file of service tags is at hand and knows a tag: a region
    /// may be younger than this table.
    ///
    /// # Errors
    /// Nothing, if a remark is a fault.
    pub fn choose(
        &self,
        asked: &Asked,
        has_tag: impl Fn(&str) -> bool,
        remarks: &mut Vec<Remark>,
    ) -> Option<Choice<'_>> {
        let before = remarks.len();
        let mut out = Remarks(remarks);
        let cloud = out.keep("cloud", self.cloud(asked.cloud.as_deref().unwrap_or("global")));
        let edition = self.edition_for(asked, &mut out);
        let location = cloud.and_then(|(_, cloud)| location(asked, cloud, has_tag, &mut out));
        let mut features: BTreeSet<&str> = BTreeSet::new();
        for (key, word) in places("features", &asked.features) {
            let Some(name) = out.keep(&key, self.feature(word)) else { continue };
            features.insert(name);
            let included = self.features.get(name).map(|feature: &Feature| &feature.includes);
            features.extend(included.into_iter().flatten().map(String::as_str));
        }
        let mut os: BTreeSet<Os> = BTreeSet::new();
        for (key, word) in asked.os.places("os") {
            match word {
                "ubuntu" => os.extend([Os::Ubuntu]),
                "azurelinux" => os.extend([Os::AzureLinux]),
                "windows" => os.extend([Os::Windows]),
                _ => out.say(Level::Fault, &key, no_such("operating system", word, OS.iter().copied())),
            }
        }
        if os.contains(&Os::Windows) {
            features.extend(self.feature("windows"));
        }
        // A cluster with Windows nodes has Linux ones too.
        if !os.iter().any(|os| *os != Os::Windows) {
            os.extend([Os::Ubuntu, Os::AzureLinux]);
        }
        let api_server = asked.api_server.places("api_server");
        let api_server = api_server.iter().filter_map(|(key, word)| out.keep(key, self.api_server(word, &location)));
        let api_server: Vec<Destination> = api_server.collect();
        let nets = |out: &mut Remarks<'_>, key: &str, words: &[String]| -> Vec<Destination> {
            let read = |(key, word): &(String, &str)| out.keep(key, prefix(word)).map(Destination::Net);
            places(key, words).iter().filter_map(read).collect()
        };
        let dns_servers = nets(&mut out, "dns_servers", &asked.dns_servers);
        let region_cidrs = nets(&mut out, "region_cidrs", &asked.region_cidrs);
        let registries = own_names(&mut out, "registries", &asked.registries, is_registry);
        let key_vaults = own_names(&mut out, "key_vaults", &asked.key_vaults, is_vault);
        for (key, word) in places("any_destination", &asked.any_destination) {
            let open = self.rows.iter().filter(|row| row.destinations.iter().any(|d| d == "*"));
            let ids: BTreeSet<&str> = open.map(|row| row.id.as_str()).collect();
            if !ids.contains(word) {
                out.say(Level::Fault, &key, no_such("row with `*`", word, ids.iter().copied()));
            }
        }
        let network_isolated = asked.network_isolated.unwrap_or(false);
        let (cloud_name, cloud) = cloud?;
        let choice = Choice {
            bundle: self,
            cloud_name,
            cloud,
            location: location?,
            edition: edition?,
            features,
            os,
            include_recommended: asked.include_recommended.unwrap_or(!network_isolated),
            private_cluster: asked.private_cluster.unwrap_or(network_isolated),
            network_isolated,
            konnectivity: asked.konnectivity.unwrap_or(true),
            nodes_after_march_2021: asked.nodes_after_march_2021.unwrap_or(false),
            monitor_by_tag: asked.monitor_by_tag.unwrap_or(false),
            any_destination: asked.any_destination.clone(),
            api_server,
            dns_servers,
            region_cidrs,
            registries,
            key_vaults,
        };
        choice.remark(asked, &mut out);
        let fine = remarks.iter().skip(before).all(|remark| remark.level != Level::Fault);
        fine.then_some(choice)
    }

    fn edition_for(&self, asked: &Asked, out: &mut Remarks<'_>) -> Option<Date> {
        let written = asked.edition.as_deref().unwrap_or("latest");
        let edition = out.keep("edition", self.edition(written))?;
        if written != "latest" && edition.date.0 != written {
            out.say(Level::Note, "edition", format!("the edition in force on {written} is that of {}", edition.date));
        }
        Some(edition.date.clone())
    }

    fn api_server(&self, word: &str, location: &Option<Option<String>>) -> Result<Destination, String> {
        match prefix(word) {
            Ok(net) if net.prefix_len() == 0 => {
                return Err(format!("`{word}` is everybody's address; write the API server's own"));
            }
            Ok(net) => return Ok(Destination::Net(net)),
            Err(fault) if word.contains(['/', ':']) => return Err(fault),
            Err(_) => {}
        }
        let wrong = || {
            let region = location.as_ref().and_then(Option::as_deref).unwrap_or("westeurope");
            format!(
                "`{word}` is no API server; write its FQDN, such as mycluster-1a2b.hcp.{region}.azmk8s.io, its address or a CIDR"
            )
        };
        match Host::from_wire(word.as_bytes()) {
            Ok(Host::Name(name)) if name.as_str().contains('.') => Ok(Destination::Kept(name)),
            _ => Err(wrong()),
        }
    }
}

const OS: &[&str] = &["ubuntu", "azurelinux", "windows"];

struct Remarks<'a>(&'a mut Vec<Remark>);

impl Remarks<'_> {
    fn say(&mut self, level: Level, key: &str, message: impl Into<String>) {
        self.0.push(Remark { level, key: key.to_owned(), message: message.into() });
    }

    fn keep<T>(&mut self, key: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|message| self.say(Level::Fault, key, message)).ok()
    }
}

/// `Some(None)` is any region.
#[allow(clippy::option_option, reason = "outer: was it a region; inner: is it one region")]
fn location(
    asked: &Asked,
    cloud: &Cloud,
    has_tag: impl Fn(&str) -> bool,
    out: &mut Remarks<'_>,
) -> Option<Option<String>> {
    let word = asked.location.as_str();
    if word == "any" {
        out.say(Level::Warning, "location", "`any` opens the names of every region; write the cluster's own");
        return Some(None);
    }
    let written: String = word.chars().filter(|c| *c != ' ').map(|c| c.to_ascii_lowercase()).collect();
    let known = cloud.locations().any(|(name, _)| name == written);
    if written == word && (known || (!word.is_empty() && has_tag(&format!("AzureCloud.{word}")))) {
        return Some(Some(written));
    }
    let names = cloud.locations().map(|(name, _)| name);
    let by_tag = cloud.locations().find(|(name, tag)| *tag == written && tag != name).map(|(name, _)| name);
    let near = by_tag.or_else(|| names.clone().find(|name| *name == written)).or_else(|| closest(&written, names));
    let message = match near {
        Some(near) => format!("there is no location `{word}` in this cloud; did you mean `{near}`?"),
        None => format!(
            "there is no location `{word}` in this cloud; write a region's short name, such as {}, or any",
            cloud.locations().last().map_or("westeurope", |(name, _)| name)
        ),
    };
    out.keep("location", Err(message))
}

fn is_registry(word: &str) -> bool {
    // Azure: 5 to 50 letters and digits.
    (5..=50).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn is_vault(word: &str) -> bool {
    // Azure: 3 to 24 letters, digits and hyphens, a letter first.
    (3..=24).contains(&word.len())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && word.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// One's own things, each a short name or an FQDN.
fn own_names(out: &mut Remarks<'_>, key: &str, words: &[String], is_short: fn(&str) -> bool) -> Vec<String> {
    let read = |(key, word): &(String, &str)| {
        let name =
            HostName::from_wire(word.as_bytes()).ok().filter(|name| is_short(word) || name.as_str().contains('.'));
        let example = if key.starts_with("registries") {
            "myregistry or registry.example.com"
        } else {
            "my-vault or my-vault.vault.azure.net"
        };
        out.keep(
            key,
            name.map(|n| n.as_str().to_owned()).ok_or_else(|| format!("`{word}` is no name of one; write {example}")),
        )
    };
    places(key, words).iter().filter_map(read).collect()
}

impl<'a> Choice<'a> {
    /// The rows of this cloud and edition, and what each comes to.
    #[must_use]
    pub fn rows(&self) -> Vec<Outcome> {
        let mut out: Vec<Outcome> = self
            .bundle
            .rows
            .iter()
            .filter(|row| row.is_for(self.cloud_name) && self.has_in_force(row))
            .filter_map(|row| Some(self.outcome(row, self.opening(row)?)))
            .collect();
        out.extend(self.registries.iter().map(|name| self.registry(name)));
        if !self.wants("key-vault") && !self.key_vaults.is_empty() {
            out.push(self.added("key-vault", self.vaults(), "Your own key vaults."));
        }
        out
    }

    /// The names of one's own vaults.
    fn vaults(&self) -> Vec<String> {
        let full =
            |name: &String| if name.contains('.') { name.clone() } else { format!("{name}.{}", self.cloud.vault) };
        self.key_vaults.iter().map(full).collect()
    }

    fn registry(&self, name: &str) -> Outcome {
        let suffix = &self.cloud.registry;
        let short = name.strip_suffix(&format!(".{suffix}")).unwrap_or(name);
        let names = if short.contains('.') {
            vec![name.to_owned()]
        } else {
            vec![format!("{short}.{suffix}"), format!("{short}.{}.data.{suffix}", self.region())]
        };
        self.added(&format!("registry-{short}"), names, "A container registry of your own.")
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
            opening,
        }
    }

    fn wants(&self, feature: &str) -> bool {
        self.features.contains(feature)
    }

    /// In force on the day; or asked for by name although the documents have dropped the whole feature.
    fn has_in_force(&self, row: &Row) -> bool {
        row.in_force(&self.edition)
            || row.features.iter().any(|f| self.wants(f) && self.retired(f) == row.until.as_ref())
    }

    /// The day on which the last row of a feature went, if none is in force and some once were.
    fn retired(&self, feature: &str) -> Option<&'a Date> {
        let rows = self.bundle.rows.iter().filter(|row| row.is_for(self.cloud_name));
        let rows = rows.filter(|row| row.features.iter().any(|f| f == feature));
        if rows.clone().any(|row| row.in_force(&self.edition)) {
            return None;
        }
        rows.filter_map(|row| row.until.as_ref()).filter(|until| **until <= self.edition).max()
    }

    /// `None`: no business of this choice.
    fn opening(&self, row: &Row) -> Option<Result<Opening, Closed>> {
        let because = |text: &str| Some(Err(Closed::Because(text.to_owned())));
        let asked = row.features.is_empty() || row.features.iter().any(|f| self.wants(f));
        if !asked {
            let names = row.fqdns.iter().map(|text| self.filled(text)).collect();
            return (row.need == Need::Noticed).then_some(Err(Closed::Expected(names)));
        }
        let given = match row.narrowed_by {
            Some(Narrowing::ApiServer) if !self.api_server.is_empty() => Some(self.api_server_names()),
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
        Some(self.leads(row, given))
    }

    /// Where an asked-for row leads.
    fn leads(&self, row: &Row, given: Option<Vec<String>>) -> Result<Opening, Closed> {
        let names = given.unwrap_or_else(|| row.fqdns.iter().map(|text| self.filled(text)).collect());
        let any = row.destinations.iter().any(|d| d == "*") && self.any_destination.contains(&row.id);
        let by_name = row.protocols.iter().any(|p| p.starts_with("http"));
        if row.protocols.iter().any(|p| p == "dns") {
            return Ok(Opening::DnsOnly(names));
        }
        if by_name {
            return if names.is_empty() {
                Err(Closed::Because("api_server is an address; api-server-address opens it".to_owned()))
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
            return Err(Closed::Because(row.because.clone().unwrap_or_else(|| "no destination is printed".to_owned())));
        }
        for word in &row.destinations {
            match self.parameter(word) {
                Some([]) => {}
                Some(destinations) => return Ok(Opening::Addresses(destinations.to_vec())),
                None if word == "*" => {}
                None => return Ok(Opening::Addresses(vec![Destination::Tag(self.tag(word))])),
            }
        }
        let keys: Vec<&str> = row.destinations.iter().map(String::as_str).filter(|word| *word != "*").collect();
        Err(Closed::Because(format!("{} is not set", keys.join(" or "))))
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

    fn api_server_names(&self) -> Vec<String> {
        let names = self.api_server.iter().filter_map(|destination| match destination {
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

    /// What is worth a word although it can be done.
    fn remark(&self, asked: &Asked, out: &mut Remarks<'_>) {
        for (key, word) in places("features", &asked.features) {
            let Ok(name) = self.bundle.feature(word) else { continue };
            let includes = self.bundle.features.get(name).map(|f| f.includes.as_slice()).unwrap_or_default();
            let is_of = |row: &&Row| row.features.iter().any(|f| f == name || includes.contains(f));
            let rows = self.bundle.rows.iter().filter(|row| row.is_for(self.cloud_name)).filter(is_of);
            if let Some(until) = self.retired(name) {
                let message = format!("{name} is in no document since {until}; what was printed last is open");
                out.say(Level::Warning, &key, message);
            } else if !rows.clone().any(|row| row.in_force(&self.edition)) {
                let first = rows.map(|row| &row.since).min();
                let message = match first {
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
        if self.wants("cluster-extensions") && self.network_isolated {
            out.say(Level::Warning, "features", ISOLATED_WITHOUT);
        }
        if self.network_isolated {
            if asked.private_cluster == Some(false) {
                let message = "a network isolated cluster is private; remove it, or write true";
                out.say(Level::Fault, "private_cluster", message);
            }
            if self.wants("windows") {
                let key = if self.bundle_named(asked, "windows") { "features" } else { "os" };
                out.say(Level::Warning, key, "Windows node pools are not supported on network isolated clusters");
            }
            if asked.include_recommended == Some(true) {
                let message = "a network isolated cluster updates its nodes by image (channels NodeImage and None); package updates are not supported on it";
                out.say(Level::Warning, "include_recommended", message);
            }
            if asked.konnectivity == Some(false) {
                out.say(
                    Level::Warning,
                    "konnectivity",
                    "the old tunnel's ports stay closed: a private cluster needs none",
                );
            }
        }
        if let Some(words) = &asked.addresses
            && !self.network_isolated
            && !words.iter().any(|word| word == "public")
        {
            let message = "without `public`, names such as mcr.microsoft.com may lead to these ranges only; write [public, …] unless every name has a private endpoint";
            out.say(Level::Warning, "addresses", message);
        }
        for word in &self.any_destination {
            let message =
                format!("{word} opens its port to every address; api_server or region_cidrs would keep it narrow");
            out.say(Level::Warning, "any_destination", message);
        }
        if self.monitor_by_tag {
            let message = "connections to Azure Monitor's prefixes on port 443 are not judged by name";
            out.say(Level::Warning, "monitor_by_tag", message);
        }
    }

    fn bundle_named(&self, asked: &Asked, feature: &str) -> bool {
        asked.features.iter().any(|word| self.bundle.feature(word) == Ok(feature))
    }
}
