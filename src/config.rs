//! Settings: the text (`file`), its shape (`schema`), its meaning (`check`), and what is probably not meant (`lint`).
//!
//! A [`Settings`] cannot be wrong: it exists only if no fault was found, and all faults are found at once.
//! Opens no socket, resolves nothing, reads no clock; the files a text names are read here.

mod bundle;
mod check;
mod consistency;
mod dns;
mod document;
mod fault;
mod file;
mod findings;
mod limits;
mod lint;
mod listeners;
mod load;
mod log;
mod netfilter;
mod peek;
mod read;
mod rule_parts;
mod rules;
mod schema;
mod settings;
mod tags;

pub use fault::{Fault, Position};
pub use load::ConfigError;
pub use peek::{bundles, control_socket};
pub use schema::schema;
pub use settings::Settings;

/// The configuration in the binary: a forward proxy for this machine with the AKS rules.
pub const DEFAULT: &str = include_str!("../config/default.yaml");

#[cfg(test)]
mod tests;
