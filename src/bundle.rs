//! The rule sets that come with egret: rows of published documents, as data files in the binary.
//!
//! A [`Row`] is what a document says; [`Parameters`] is what a configuration wants; [`Bundle::choose`] makes a
//! checked [`Selection`] of it, and [`Selection::rows`] says of every row that concerns it whether it is open and
//! with what, or why not. Knows documents and parameters; rules, tags and places in a file are `config`'s.

mod advice;
mod diff;
mod parameters;
mod rows;
mod selection;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

pub use diff::{Change, diff};
use egret_core::likeness::closest;
pub use parameters::{Level, OneOrMany, Parameters, Remark};
use rows::no_such;
pub use rows::{Bundle, Cloud, Condition, Date, Edition, Feature, Narrowing, Need, Os, Row};
pub use selection::{Closed, Destination, Opening, Outcome, Selection, Why};

/// The head file of a rule set.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    bundle: String,
    sources: BTreeMap<String, String>,
    editions: Vec<Edition>,
    clouds: BTreeMap<String, Cloud>,
    features: BTreeMap<String, Feature>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rows {
    rows: Vec<Row>,
}

const HEAD: &str = include_str!("../config/bundles/aks/bundle.yaml");
const ROWS: &[&str] = &[
    include_str!("../config/bundles/aks/required.yaml"),
    include_str!("../config/bundles/aks/features.yaml"),
    include_str!("../config/bundles/aks/earlier.yaml"),
];

/// The rule sets of this binary.
///
/// # Errors
/// Where the binary's own data cannot be read, which its tests rule out.
pub fn all() -> Result<&'static [Bundle], &'static str> {
    static ALL: OnceLock<Result<Vec<Bundle>, String>> = OnceLock::new();
    ALL.get_or_init(|| read().map(|aks| vec![aks])).as_deref().map_err(String::as_str)
}

fn read() -> Result<Bundle, String> {
    let broken = |e: serde_saphyr::Error| format!("a rule set in this binary cannot be read, a fault of egret: {e}");
    let Head { bundle, sources, editions, clouds, features } = serde_saphyr::from_str(HEAD).map_err(broken)?;
    let mut rows = Vec::new();
    for text in ROWS {
        let part: Rows = serde_saphyr::from_str(text).map_err(broken)?;
        rows.extend(part.rows);
    }
    Ok(Bundle { name: bundle, sources, editions, clouds, features, rows })
}

/// A rule set by its name.
///
/// # Errors
/// A sentence with the names there are.
pub fn named(name: &str) -> Result<&'static Bundle, String> {
    let all = all()?;
    let known = all.iter().map(|bundle| bundle.name.as_str());
    all.iter().find(|bundle| bundle.name == name).ok_or_else(|| no_such("bundle", name, known))
}

impl Bundle {
    /// The newest edition.
    #[must_use]
    pub fn latest(&self) -> Option<&Edition> {
        self.editions.last()
    }

    /// The edition for `latest` or a date: the newest that is not younger.
    ///
    /// # Errors
    /// A sentence that says which dates there are.
    pub fn edition(&self, written: &str) -> Result<&Edition, String> {
        let none = || "the rule set has no edition".to_owned();
        if written == "latest" {
            return self.latest().ok_or_else(none);
        }
        let first = self.editions.first().ok_or_else(none)?;
        let date = Date::try_from(written.to_owned()).map_err(|fault| format!("{fault}, or latest"))?;
        let older = self.editions.iter().rev().find(|edition| edition.date <= date);
        older.ok_or_else(|| format!("there is no edition as old as {date}; the first one is {}", first.date))
    }

    /// A cloud by any of its names.
    ///
    /// # Errors
    /// A sentence with the names there are.
    pub fn cloud(&self, written: &str) -> Result<(&str, &Cloud), String> {
        let found = self.clouds.iter().find(|(name, cloud)| is_called(written, name, &cloud.also));
        found
            .map(|(name, cloud)| (name.as_str(), cloud))
            .ok_or_else(|| no_such("cloud", written, self.clouds.keys().map(String::as_str)))
    }

    /// A feature by any of its names.
    ///
    /// # Errors
    /// A sentence with the names there are.
    pub fn feature(&self, written: &str) -> Result<&str, String> {
        let found = self.features.iter().find(|(name, feature)| is_called(written, name, &feature.also));
        found.map(|(name, _)| name.as_str()).ok_or_else(|| {
            let known = self.features.iter().flat_map(|(name, f)| std::iter::once(name).chain(&f.also));
            let near = closest(written, known.map(String::as_str)).and_then(|near| {
                let owner = self.features.iter().find(|(name, f)| *name == near || f.also.iter().any(|a| a == near));
                owner.map(|(name, _)| name.as_str())
            });
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            let list: Vec<&str> = self.features.keys().map(String::as_str).collect();
            format!(
                "there is no feature `{written}`{near}{} {}",
                if near.is_empty() { "; write" } else { " There are" },
                list.join(", ")
            )
        })
    }
}

/// Names are compared without case, `-`, `_` and spaces.
fn is_called(written: &str, name: &str, also: &[String]) -> bool {
    let asked = loose(written);
    loose(name) == asked || also.iter().any(|other| loose(other) == asked)
}

fn loose(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests;
