//! What the documents say, as data.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use egret_core::likeness::closest;

/// A rule set with everything that was ever printed in it.
#[derive(Debug)]
pub struct Bundle {
    pub name: String,
    /// Documents by the word that rows use for them.
    pub sources: BTreeMap<String, String>,
    /// In the order of time.
    pub editions: Vec<Edition>,
    pub clouds: BTreeMap<String, Cloud>,
    pub features: BTreeMap<String, Feature>,
    pub rows: Vec<Row>,
}

/// A day on which the printed set changed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edition {
    pub date: Date,
    #[serde(default = "outbound")]
    pub source: String,
    #[serde(default)]
    pub note: Option<String>,
}

/// One of the clouds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cloud {
    /// What else it is called.
    pub also: Vec<String>,
    /// What files of service tags call it.
    pub tags: Vec<String>,
    /// The zone of private API servers' names.
    pub(super) zone: String,
    /// The suffix of its container registries.
    pub(super) registry: String,
    /// The suffix of its key vaults.
    pub(super) vault: String,
    pub(super) locations: Vec<Location>,
}

/// A region, and what service tags call it where that differs.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Location {
    Same(String),
    Other(BTreeMap<String, String>),
}

impl Cloud {
    /// Regions with their spelling in service tags.
    pub fn locations(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        self.locations.iter().filter_map(|location| match location {
            Location::Same(name) => Some((name.as_str(), name.as_str())),
            Location::Other(pair) => pair.iter().next().map(|(name, tag)| (name.as_str(), tag.as_str())),
        })
    }

    /// A region as service tags spell it.
    #[must_use]
    pub fn tag_of<'a>(&'a self, location: &'a str) -> &'a str {
        self.locations().find(|(name, _)| *name == location).map_or(location, |(_, tag)| tag)
    }
}

/// Something a cluster may use.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    pub about: String,
    /// What else it is called.
    #[serde(default)]
    pub also: Vec<String>,
    /// What comes with it.
    #[serde(default)]
    pub includes: Vec<String>,
}

/// One row of a document.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub id: String,
    /// Empty: every cloud.
    #[serde(default)]
    pub clouds: Vec<String>,
    /// Any of them asks for it. Empty: every cluster.
    #[serde(default)]
    pub features: Vec<String>,
    #[serde(default)]
    pub need: Need,
    /// Empty: every node.
    #[serde(default)]
    pub os: Vec<Os>,
    #[serde(default = "outbound")]
    pub source: String,
    pub since: Date,
    /// The first edition without it.
    #[serde(default)]
    pub until: Option<Date>,
    #[serde(default)]
    pub fqdns: Vec<String>,
    /// Alternatives, the narrowest first: `api_server`, `region_cidrs`, `dns_servers`, a service tag, `*`.
    #[serde(default)]
    pub destinations: Vec<String>,
    /// What the document prints as destination, where that is wildcards: it takes the place of a tag where egret answers the
    /// clients' DNS questions, and so knows which addresses are behind them.
    #[serde(default)]
    pub wildcards: Vec<String>,
    /// `https:443`, `tcp:9000`; `dns` where a name is only asked for.
    pub protocols: Vec<String>,
    /// All must hold.
    #[serde(default)]
    pub when: Vec<Condition>,
    /// None may hold.
    #[serde(default)]
    pub unless: Vec<Condition>,
    /// The clouds where `unless` counts. Empty: every cloud.
    #[serde(default)]
    pub unless_clouds: Vec<String>,
    /// Endings that the row does not mean, once the parameter below names one's own, or the cluster is private.
    #[serde(default)]
    pub except: Vec<String>,
    /// The parameter that takes this row's place.
    #[serde(default)]
    pub narrowed_by: Option<Narrowing>,
    /// What the document prints, where that is not what is meant.
    #[serde(default)]
    pub printed: Vec<String>,
    #[serde(default)]
    pub because: Option<String>,
    pub purpose: String,
}

impl Row {
    /// Whether the row is part of an edition.
    #[must_use]
    pub fn in_force(&self, edition: &Date) -> bool {
        self.since <= *edition && self.until.as_ref().is_none_or(|until| edition < until)
    }

    #[must_use]
    pub fn is_for(&self, cloud: &str) -> bool {
        self.clouds.is_empty() || self.clouds.iter().any(|c| c == cloud)
    }
}

/// How much a cluster needs a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    #[default]
    Required,
    Recommended,
    /// Traffic that happens and that nothing depends on.
    Noticed,
}

impl Need {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Recommended => "recommended",
            Self::Noticed => "noticed",
        }
    }
}

/// A node's operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Os {
    Ubuntu,
    AzureLinux,
    Windows,
}

/// What a parameter says about the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    PrivateCluster,
    Konnectivity,
    #[serde(rename = "nodes_after_march_2021")]
    NodesAfterMarch2021,
    MonitorByTag,
}

impl Condition {
    /// The parameter's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PrivateCluster => "private_cluster",
            Self::Konnectivity => "konnectivity",
            Self::NodesAfterMarch2021 => "nodes_after_march_2021",
            Self::MonitorByTag => "monitor_by_tag",
        }
    }
}

/// A parameter that names the operator's own resource where a row opens any tenant's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Narrowing {
    ApiServer,
    KeyVaults,
}

/// A calendar day, `2023-06-13`. Ordered as time is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Date(String);

impl TryFrom<String> for Date {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = |part: &str, len: usize| -> Option<u32> {
            part.parse().ok().filter(|_| part.len() == len && part.bytes().all(|b| b.is_ascii_digit()))
        };
        let mut parts = text.split('-');
        let read = (|| {
            let (year, month) = (digits(parts.next()?, 4)?, digits(parts.next()?, 2)?);
            let day = digits(parts.next()?, 2)?;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                2 => 28 + u32::from(leap),
                4 | 6 | 9 | 11 => 30,
                1..=12 => 31,
                _ => return None,
            };
            (parts.next().is_none() && (1..=last).contains(&day)).then_some(())
        })();
        read.map(|()| Self(text.clone())).ok_or_else(|| format!("`{text}` is not a date; write it as 2023-06-13"))
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) fn outbound() -> String {
    "outbound".to_owned()
}

pub(super) fn no_such<'a>(what: &str, word: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let near = closest(word, known.clone()).map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
    let list: Vec<&str> = known.collect();
    format!("there is no {what} `{word}`{near}; write {}", list.join(" or "))
}
