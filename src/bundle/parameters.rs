//! What a configuration asks of a rule set, checked word by word.

use std::collections::BTreeSet;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use super::rows::{Bundle, Cloud, Date, Feature, Os, no_such};
use super::selection::{Destination, Selection};
use egret_core::likeness::closest;
use egret_core::name::HostName;
use egret_core::rule::pattern::Pattern;
use egret_core::rule::prefixes::prefix;

/// A rule set that comes with egret.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Bundle")]
pub struct Parameters {
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
    /// The clients that the rules are for, as CIDRs or addresses. Default: every client.
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
    /// Whether egret answers the clients' DNS questions: the configuration's listeners say so.
    #[serde(skip)]
    pub answers_dns: bool,
}

impl Parameters {
    /// A rule set for one region, and nothing else said.
    #[must_use]
    pub fn of(bundle: &str, location: &str) -> Self {
        Self {
            bundle: bundle.to_owned(),
            cloud: None,
            location: location.to_owned(),
            edition: None,
            features: Vec::new(),
            include_recommended: None,
            os: OneOrMany::default(),
            sources: None,
            addresses: None,
            api_server: OneOrMany::default(),
            dns_servers: Vec::new(),
            registries: Vec::new(),
            key_vaults: Vec::new(),
            private_cluster: None,
            network_isolated: None,
            konnectivity: None,
            nodes_after_march_2021: None,
            region_cidrs: Vec::new(),
            monitor_by_tag: None,
            any_destination: Vec::new(),
            answers_dns: false,
        }
    }
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
    pub(super) fn places<'a>(&'a self, key: &str) -> Vec<(String, &'a str)> {
        match self {
            Self::One(word) => vec![(key.to_owned(), word.as_str())],
            Self::Many(words) => places(key, words),
        }
    }
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

const OS: &[&str] = &["ubuntu", "azurelinux", "windows"];

/// The shortest prefixes that can be one owner's: an API server's, and a region's.
const API_SERVER_AT_LEAST: (u8, u8) = (16, 48);
const REGION_AT_LEAST: (u8, u8) = (8, 24);

impl Bundle {
    /// Checks what is asked. `has_tag` says whether a file of service tags is at hand and knows a tag: a region
    /// may be younger than this table.
    ///
    /// # Errors
    /// Nothing, if a remark is a fault.
    pub fn choose(
        &self,
        asked: &Parameters,
        has_tag: impl Fn(&str) -> bool,
        remarks: &mut Vec<Remark>,
    ) -> Option<Selection<'_>> {
        let before = remarks.len();
        let mut out = Remarks(remarks);
        let cloud = out.keep("cloud", self.cloud(asked.cloud.as_deref().unwrap_or("global")));
        let edition = self.edition_for(asked, cloud.map(|(name, _)| name), &mut out);
        let location = cloud.and_then(|(_, cloud)| location(asked, cloud, has_tag, &mut out));
        let mut features = self.features_of(asked, &mut out);
        let os = os_of(asked, &mut out);
        if os.contains(&Os::Windows) {
            features.extend(self.feature("windows"));
        }
        let region = location.as_ref().and_then(Option::as_deref).unwrap_or("westeurope");
        let api_server = asked.api_server.places("api_server");
        let api_server = api_server.iter().filter_map(|(key, word)| out.keep(key, api_server_of(word, region)));
        let api_server: Vec<Destination> = api_server.collect();
        let dns_servers = nets(&mut out, "dns_servers", &asked.dns_servers, (32, 128), "each server's own address");
        let region_cidrs =
            nets(&mut out, "region_cidrs", &asked.region_cidrs, REGION_AT_LEAST, "the region's own prefixes");
        let network_isolated = asked.network_isolated.unwrap_or(false);
        let (cloud_name, cloud) = cloud?;
        let registries = out.each("registries", &asked.registries, |word| registry(word, cloud));
        let key_vaults = out.each("key_vaults", &asked.key_vaults, |word| vault(word, cloud));
        let edition = edition?;
        for (key, word) in places("any_destination", &asked.any_destination) {
            let here = self.rows.iter().filter(|row| row.is_for(cloud_name) && row.in_force(&edition));
            let open = here.filter(|row| row.destinations.iter().any(|d| d == "*"));
            let ids: BTreeSet<&str> = open.map(|row| row.id.as_str()).collect();
            if !ids.contains(word) {
                out.say(Level::Fault, &key, no_such("row with `*`", word, ids.iter().copied()));
            }
        }
        let choice = Selection {
            bundle: self,
            cloud_name,
            cloud,
            location: location?,
            edition,
            features,
            os,
            include_recommended: asked.include_recommended.unwrap_or(true),
            private_cluster: asked.private_cluster.unwrap_or(network_isolated),
            network_isolated,
            konnectivity: asked.konnectivity.unwrap_or(true),
            nodes_after_march_2021: asked.nodes_after_march_2021.unwrap_or(false),
            monitor_by_tag: asked.monitor_by_tag.unwrap_or(false),
            any_destination: asked.any_destination.clone(),
            answers_dns: asked.answers_dns,
            api_server,
            dns_servers,
            region_cidrs,
            registries,
            key_vaults,
        };
        choice.advise(asked, &mut out);
        let fine = remarks.iter().skip(before).all(|remark| remark.level != Level::Fault);
        fine.then_some(choice)
    }

    fn edition_for(&self, asked: &Parameters, cloud: Option<&str>, out: &mut Remarks<'_>) -> Option<Date> {
        let written = asked.edition.as_deref().unwrap_or("latest");
        let edition = out.keep("edition", self.edition(written))?;
        if written != "latest" && edition.date.to_string() != written {
            out.say(Level::Note, "edition", format!("the edition in force on {written} is that of {}", edition.date));
        }
        // A cloud begins with the first row that is its own.
        let own = |cloud: &str| {
            self.rows.iter().filter(|row| row.clouds.iter().any(|c| c == cloud)).map(|row| &row.since).min()
        };
        if let Some((cloud, first)) =
            cloud.and_then(|cloud| Some((cloud, own(cloud)?))).filter(|(_, first)| **first > edition.date)
        {
            let message = format!(
                "the edition of {} does not know the cloud {cloud}; the first with it is of {first}",
                edition.date
            );
            out.say(Level::Fault, "edition", message);
            return None;
        }
        Some(edition.date.clone())
    }

    fn features_of(&self, asked: &Parameters, out: &mut Remarks<'_>) -> BTreeSet<&str> {
        let mut features: BTreeSet<&str> = BTreeSet::new();
        for (key, word) in places("features", &asked.features) {
            let Some(name) = out.keep(&key, self.feature(word)) else { continue };
            features.insert(name);
            let included = self.features.get(name).map(|feature: &Feature| &feature.includes);
            features.extend(included.into_iter().flatten().map(String::as_str));
        }
        features
    }
}

/// A list's words with their places.
pub(super) fn places<'a>(key: &str, words: &'a [String]) -> Vec<(String, &'a str)> {
    words.iter().enumerate().map(|(at, word)| (format!("{key}[{at}]"), word.as_str())).collect()
}

pub(super) struct Remarks<'a>(&'a mut Vec<Remark>);

impl Remarks<'_> {
    pub(super) fn say(&mut self, level: Level, key: &str, message: impl Into<String>) {
        self.0.push(Remark { level, key: key.to_owned(), message: message.into() });
    }

    fn keep<T>(&mut self, key: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|message| self.say(Level::Fault, key, message)).ok()
    }

    /// Every word read, each once.
    fn each<T: PartialEq>(&mut self, key: &str, words: &[String], read: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let mut kept = Vec::new();
        for (key, word) in places(key, words) {
            let value = self.keep(&key, read(word));
            kept.extend(value.filter(|value| !kept.contains(value)));
        }
        kept
    }
}

fn os_of(asked: &Parameters, out: &mut Remarks<'_>) -> BTreeSet<Os> {
    let mut os: BTreeSet<Os> = BTreeSet::new();
    for (key, word) in asked.os.places("os") {
        match word {
            "ubuntu" => os.extend([Os::Ubuntu]),
            "azurelinux" => os.extend([Os::AzureLinux]),
            "windows" => os.extend([Os::Windows]),
            _ => out.say(Level::Fault, &key, no_such("operating system", word, OS.iter().copied())),
        }
    }
    // A cluster with Windows nodes has Linux ones too.
    if !os.iter().any(|os| *os != Os::Windows) {
        os.extend([Os::Ubuntu, Os::AzureLinux]);
    }
    os
}

/// `Some(None)` is any region.
#[allow(clippy::option_option, reason = "outer: was it a region; inner: is it one region")]
fn location(
    asked: &Parameters,
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
    // What service tags spell differently is not a location, though their file knows it.
    let by_tag = cloud.locations().find(|(name, tag)| *tag == written && tag != name).map(|(name, _)| name);
    let is_word = !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let is_young = || by_tag.is_none() && is_word && has_tag(&format!("AzureCloud.{word}"));
    if written == word && (known || is_young()) {
        return Some(Some(written));
    }
    let names = cloud.locations().map(|(name, _)| name);
    let near = by_tag.or_else(|| names.clone().find(|name| *name == written)).or_else(|| closest(&written, names));
    let message = match near {
        Some(near) => format!("there is no location `{word}` in this cloud; did you mean `{near}`?"),
        None => {
            let last = cloud.locations().last().map_or("westeurope", |(name, _)| name);
            format!("there is no location `{word}` in this cloud; write a region's short name, such as {last}, or any")
        }
    };
    out.keep("location", Err(message))
}

fn nets(out: &mut Remarks<'_>, key: &str, words: &[String], least: (u8, u8), instead: &str) -> Vec<Destination> {
    out.each(key, words, |word| {
        if !word.contains(['.', ':']) || word.bytes().all(|b| b.is_ascii_alphabetic() || b == b'.') {
            return Err(format!("`{word}` is not an address; write such as 10.1.0.53"));
        }
        at_least(prefix(word)?, least, instead).map(Destination::Net)
    })
}

fn at_least(net: IpNet, (v4, v6): (u8, u8), instead: &str) -> Result<IpNet, String> {
    let least = if net.addr().is_ipv4() { v4 } else { v6 };
    if net.prefix_len() >= least {
        Ok(net)
    } else {
        Err(format!("`{net}` holds more than that; write {instead}, /{least} or longer"))
    }
}

/// An address, a CIDR or an FQDN; what a kubeconfig has around it gets a message of its own.
fn api_server_of(word: &str, region: &str) -> Result<Destination, String> {
    let wrong = || {
        format!(
            "`{word}` is not an API server; write its FQDN, such as mycluster-1a2b.hcp.{region}.azmk8s.io, its address or a CIDR"
        )
    };
    if let Ok(net) = prefix(word) {
        return at_least(net, API_SERVER_AT_LEAST, "the API server's own").map(Destination::Net);
    }
    if let Some((host, _)) = word.split_once('/').filter(|(host, _)| host.parse::<std::net::IpAddr>().is_ok()) {
        return prefix(word).map(Destination::Net).map_err(|fault| format!("{fault}, or {host}"));
    }
    let bare = word.split_once("://").map_or(word, |(_, rest)| rest);
    let bare = bare.split(['/', ':']).next().unwrap_or_default();
    if bare != word && fqdn(bare).is_some() {
        return Err(format!("`{word}` is more than a name; write {bare}"));
    }
    fqdn(word).map(Destination::Kept).ok_or_else(wrong)
}

/// A plain name of several labels; A-labels where it was written in another script.
fn fqdn(word: &str) -> Option<HostName> {
    Pattern::parse(word).ok()?.exact().filter(|name| name.as_str().contains('.'))
}

/// `NAME` of Azure's registries, or any FQDN.
fn registry(word: &str, cloud: &Cloud) -> Result<HostName, String> {
    // Azure: 5 to 50 letters and digits.
    let short = (5..=50).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric());
    let full = if short { fqdn(&format!("{word}.{}", cloud.registry)) } else { fqdn(word) };
    full.filter(|name| name.as_str() != cloud.registry)
        .ok_or_else(|| format!("`{word}` is not the name of one; write myregistry or registry.example.com"))
}

/// `NAME`, or `NAME.vault.azure.net`.
fn vault(word: &str, cloud: &Cloud) -> Result<HostName, String> {
    let word = word.trim_end_matches('.').to_ascii_lowercase();
    let name = word.strip_suffix(&format!(".{}", cloud.vault)).unwrap_or(&word);
    // Azure: 3 to 24 letters, digits and hyphens, a letter first.
    let is_vault = (3..=24).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && name.starts_with(|c: char| c.is_ascii_alphabetic());
    let full = fqdn(&format!("{name}.{}", cloud.vault)).filter(|_| is_vault);
    full.ok_or_else(|| format!("`{word}` is not a vault of this cloud; write my-vault or my-vault.{}", cloud.vault))
}
