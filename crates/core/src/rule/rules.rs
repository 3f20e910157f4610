//! All rules of a configuration, checked and not yet compiled.

use ipnet::Ipv6Net;

use crate::rule::{AppRule, NetRule};
use crate::steered::Pool;

/// Checked rules, ready to be compiled.
#[derive(Debug, Default)]
pub struct Rules {
    pub apps: Vec<AppRule>,
    pub nets: Vec<NetRule>,
    pub nat64: Option<Ipv6Net>,
    /// Where synthetic addresses are taken from; `None`: names have their own.
    pub pool: Option<Pool>,
    /// Whether flows of the kernel end with the rule that let them out.
    pub cuts: bool,
    /// Whether the policy is read again when its files change.
    pub watches: bool,
    /// The prefixes of bundles' rule names, one for each bundle.
    pub bundles: Vec<String>,
    /// Where each rule stands in the file.
    pub origins: Origins,
}

/// Where rules stand, in their order.
#[derive(Debug, Default)]
pub struct Origins {
    pub apps: Vec<Origin>,
    pub nets: Vec<Origin>,
}

/// Where one rule stands.
#[derive(Debug)]
pub struct Origin {
    /// Its key path, or its bundle's.
    pub path: String,
    pub is_bundle: bool,
    /// Patterns that stand in the file itself, before those of `fqdns_file`.
    pub inline: usize,
}
