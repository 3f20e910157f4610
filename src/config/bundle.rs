//! The rule sets that come with egret: data files under `config/bundles/`, in the binary.

use serde::Deserialize;

use super::check::Findings;
use super::{Rules, file, rules};
use crate::likeness::closest;
use crate::policy::rule::{Action, AppPort, AppProtocol, AppRule, Ech, InnerName, Reach};

/// One data file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    bundle: String,
    cloud: String,
    /// The date of the document the rows are from.
    #[serde(rename = "edition")]
    _edition: String,
    #[serde(rename = "source")]
    _source: String,
    rules: Vec<Row>,
}

/// One row of the document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    fqdns: Vec<String>,
    https: Vec<u16>,
    #[serde(rename = "purpose")]
    _purpose: String,
}

const FILES: &[&str] = &[include_str!("../../config/bundles/aks/global.yaml")];

/// Adds a bundle's rules.
pub(super) fn add(out: &mut Findings<'_>, path: &str, written: &file::Bundle, made: &mut Rules) {
    let files: Vec<Data> = FILES.iter().filter_map(|text| serde_saphyr::from_str(text).ok()).collect();
    if files.len() != FILES.len() {
        return out.fault(path, "a rule set in this binary cannot be read; this is a fault of egret");
    }
    let cloud = written.cloud.as_deref().unwrap_or("global");
    if let Some(message) = wrong_word("bundle", &written.bundle, files.iter().map(|f| f.bundle.as_str())) {
        return out.fault(&format!("{path}.bundle"), message);
    }
    if let Some(message) = wrong_word("cloud", cloud, files.iter().map(|f| f.cloud.as_str())) {
        return out.fault(&format!("{path}.cloud"), message);
    }
    let location = match written.location.as_str() {
        "any" => "*",
        word if !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) => word,
        word => {
            let message = format!("`{word}` is no location; write a region's short name such as westeurope, or any");
            return out.fault(&format!("{path}.location"), message);
        }
    };
    let sources = rules::sources(out, path, written.sources.as_deref());
    for data in files.iter().filter(|f| f.bundle == written.bundle && f.cloud == cloud) {
        for row in &data.rules {
            let texts: Vec<String> = row.fqdns.iter().map(|text| text.replace("<location>", location)).collect();
            made.apps.push(AppRule {
                name: format!("{}/{}/{}", data.bundle, data.cloud, row.id).into(),
                action: Action::Allow,
                sources: sources.clone(),
                fqdns: rules::patterns(out, path, &texts, Action::Allow),
                protocols: row.https.iter().map(|port| AppPort { protocol: AppProtocol::Https, port: *port }).collect(),
                alpn: None,
                ech: Ech::Outer,
                inner: InnerName::Same,
                reach: Reach::default(),
            });
        }
    }
}

fn wrong_word<'a>(what: &str, word: &str, known: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
    if known.clone().any(|k| k == word) {
        return None;
    }
    let near = closest(word, known.clone()).map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
    let list: Vec<&str> = known.collect();
    Some(format!("there is no {what} `{word}` in this version{near}; write {}", list.join(" or ")))
}
