//! What a configuration says of resolving names.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub use super::hosts_file::{Hosts, HostsFile};
use crate::files::Refreshed;
use egret_core::name::HostName;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// Empty: the system's.
    pub upstreams: Vec<DnsUpstream>,
    pub zones: Vec<(HostName, Vec<DnsUpstream>)>,
    /// PEM text of the authorities for encrypted upstreams.
    pub authorities: Option<Arc<str>>,
    pub min_ttl: Duration,
    pub max_ttl: Duration,
    pub negative_ttl: Duration,
    /// How long an answer may still be used when its time is over and no server answers.
    pub stale: Duration,
    /// Asked before anything else.
    pub entries: Arc<Hosts>,
    /// Asked before any server.
    pub hosts: Option<Arc<Refreshed<HostsFile>>>,
    /// Whether questions have an OPT record (RFC 6891).
    pub edns: bool,
    /// Whether questions are in random letter case (draft-vixie-dnsext-dns0x20).
    pub randomize_case: bool,
}

impl DnsSettings {
    /// The most servers that one name may be asked of at once.
    #[must_use]
    pub fn most_servers(&self) -> usize {
        /// What resolv.conf(5) may name.
        const SYSTEM: usize = 3;
        let default = if self.upstreams.is_empty() { SYSTEM } else { self.upstreams.len() };
        self.zones.iter().map(|(_, servers)| servers.len()).fold(default, usize::max)
    }
}

/// One server that answers questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsUpstream {
    pub ip: IpAddr,
    pub port: u16,
    pub transport: DnsTransport,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsTransport {
    /// UDP, and TCP where an answer was cut.
    Plain,
    /// RFC 7858; the name its certificate must bear.
    Tls { name: Arc<str> },
    /// RFC 8484.
    Https { name: Arc<str>, path: Arc<str> },
}
