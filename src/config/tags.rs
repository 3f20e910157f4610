//! Service tags: Microsoft's published file of the prefixes behind its services, by name.

use std::collections::HashMap;

use ipnet::IpNet;
use serde::Deserialize;

use super::file;
use super::findings::Findings;
use crate::bundle;
use crate::files::read_bounded;
use egret_core::likeness::closest;
use egret_core::rule::prefixes::prefix;

/// A file's tags. Prefixes are read when their tag is asked for: a file has ninety thousand.
#[derive(Debug)]
pub(super) struct ServiceTags {
    /// As the file calls it: `Public`.
    cloud: String,
    /// By their name in lower case.
    tags: HashMap<String, Tag>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object with `cloud` and `values`")]
struct Written {
    cloud: String,
    values: Vec<Tag>,
}

#[derive(Debug, Deserialize)]
struct Tag {
    name: String,
    properties: Properties,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    address_prefixes: Vec<String>,
}

impl ServiceTags {
    /// Reads a file.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub(super) fn load(path: &std::path::Path) -> Result<Self, String> {
        let text = read_bounded(path)?;
        let text = text.trim_start_matches('\u{feff}');
        let written: Written = serde_json::from_str(text).map_err(|error| {
            let name = path.display();
            match error.classify() {
                serde_json::error::Category::Eof => {
                    format!("{name} ends before its end ({error}); download it again")
                }
                serde_json::error::Category::Data => {
                    format!("{name} is not a file of service tags ({error}); take Microsoft's \"Azure IP Ranges and Service Tags\"")
                }
                _ => format!("{name} is not JSON ({error}); take Microsoft's \"Azure IP Ranges and Service Tags\""),
            }
        })?;
        let mut tags: HashMap<String, Tag> = HashMap::with_capacity(written.values.len());
        for tag in written.values {
            if let Some(twin) = tags.insert(tag.name.to_ascii_lowercase(), tag) {
                let name = path.display();
                return Err(format!("{name} has the service tag {} twice; download it again", twin.name));
            }
        }
        Ok(Self { cloud: written.cloud, tags })
    }

    /// Whether the file is of a cloud.
    pub(super) fn is_of(&self, cloud: &bundle::Cloud) -> bool {
        cloud.tags.iter().any(|name| name.eq_ignore_ascii_case(&self.cloud))
    }

    pub(super) fn cloud(&self) -> &str {
        &self.cloud
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The prefixes of a tag. A region may be spelled as Azure's tools spell it, or as the file does.
    ///
    /// # Errors
    /// A sentence that names tags that are near.
    pub(super) fn prefixes(&self, name: &str) -> Result<Vec<IpNet>, String> {
        let tag = self.find(name).ok_or_else(|| self.missing(name))?;
        if tag.properties.address_prefixes.is_empty() {
            return Err(format!("the service tag {} has no prefix in this file", tag.name));
        }
        tag.properties
            .address_prefixes
            .iter()
            .map(|text| prefix(text).map_err(|fault| format!("the service tag {} cannot be used: {fault}", tag.name)))
            .collect()
    }

    fn find(&self, name: &str) -> Option<&Tag> {
        let name = name.to_ascii_lowercase();
        self.tags.get(&name).or_else(|| {
            let (service, region) = name.rsplit_once('.')?;
            let clouds = bundle::all().ok()?.iter().flat_map(|bundle| bundle.clouds.values());
            let cloud = clouds.into_iter().find(|cloud| self.is_of(cloud))?;
            self.tags.get(&format!("{service}.{}", cloud.tag_of(region)))
        })
    }

    fn missing(&self, name: &str) -> String {
        let lower = name.to_ascii_lowercase();
        let near = closest(&lower, self.tags.keys().map(String::as_str)).or_else(|| {
            // The same service elsewhere, or the service as a whole.
            let service = lower.split('.').next().unwrap_or_default();
            self.tags.keys().map(String::as_str).filter(|tag| tag.split('.').next() == Some(service)).min()
        });
        let near = near.and_then(|near| self.tags.get(near)).map(|tag| format!("; did you mean `{}`?", tag.name));
        format!("there is no service tag `{name}` in this file{}", near.unwrap_or_default())
    }
}

/// The file of service tags, and whether one is named at all.
pub(super) struct TagSource {
    pub(super) file: Option<ServiceTags>,
    pub(super) is_named: bool,
}

impl TagSource {
    pub(super) fn load(out: &mut Findings<'_>, policy: &file::Policy) -> Self {
        let name = policy.service_tags.as_ref();
        let file = name.and_then(|name| {
            let read = ServiceTags::load(&out.policy_file(name));
            out.keep("policy.service_tags", read)
        });
        Self { file, is_named: name.is_some() }
    }
}
