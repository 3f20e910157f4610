//! Checked settings.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::fault::Fault;
use crate::dns::settings::DnsSettings;
use crate::files::StampedFile;
use crate::learn::settings::LearnSettings;
use crate::netfilter::settings::NetfilterSettings;
use crate::proxy::limits::Limits;
use crate::proxy::listen::settings::{Capture, ListenerKind, ListenerSettings};
use crate::proxy::nameserver::settings::NameserverSettings;
use crate::record::settings::LogSettings;
use egret_core::rule::rules::Rules;

/// Checked settings.
#[derive(Debug)]
pub struct Settings {
    pub listeners: Vec<ListenerSettings>,
    pub dns: DnsSettings,
    pub nameserver: NameserverSettings,
    pub rules: Rules,
    pub own_addresses: Vec<IpNet>,
    pub netfilter: Option<NetfilterSettings>,
    /// Addresses to dial from; empty: the system's choice.
    pub sources: Vec<IpAddr>,
    pub learn: LearnSettings,
    pub limits: Limits,
    pub log: LogSettings,
    pub admin: Option<SocketAddr>,
    pub health: Option<SocketAddr>,
    /// Sources that may ask for health, besides this machine; `None`: any.
    pub health_from: Option<Vec<IpNet>>,
    /// The control socket's path.
    pub control: Option<PathBuf>,
    /// Files that the policy was read from, the configuration's among them, as they were before.
    pub files: Vec<StampedFile>,
    /// A contact for refused clients.
    pub contact: Option<Arc<str>>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<Fault>,
    /// What is meant and yet worth a word.
    pub notes: Vec<Fault>,
}

impl Settings {
    /// The listeners that answer DNS clients.
    pub fn nameservers(&self) -> impl Iterator<Item = &ListenerSettings> {
        self.listeners.iter().filter(|listener| listener.kind == ListenerKind::Dns)
    }

    /// The one that a sidecar's table leads the pod's questions to.
    #[must_use]
    pub fn pod_nameserver(&self) -> Option<&ListenerSettings> {
        self.nameservers().find(|listener| listener.takes_redirected())
    }

    /// The kernel's part, where others' traffic is routed here.
    #[must_use]
    pub fn next_hop(&self) -> Option<&NetfilterSettings> {
        self.netfilter.as_ref().filter(|part| !part.clients.is_empty())
    }

    /// Whether egret is in a pod whose traffic is led to it by a table that it cannot change, and serves only by it.
    #[must_use]
    pub fn needs_sidecar_table(&self) -> bool {
        self.next_hop().is_none()
            && self.listeners.iter().any(|listener| listener.kind.captures(Capture::Redirect))
            && self.netfilter.as_ref().is_none_or(|part| part.is_required)
    }

    /// The keys, but for `policy`, that say something else in another one.
    #[must_use]
    pub fn differs(&self, other: &Self) -> Vec<&'static str> {
        let all = [
            ("listeners", self.listeners != other.listeners),
            ("dns", self.dns != other.dns || self.nameserver != other.nameserver),
            ("own_addresses", self.own_addresses != other.own_addresses),
            ("netfilter", self.netfilter != other.netfilter),
            ("upstream", self.sources != other.sources),
            ("learn", self.learn != other.learn),
            ("limits", self.limits != other.limits),
            ("log", self.log != other.log),
            ("messages", self.contact != other.contact),
            ("admin", self.admin != other.admin),
            ("control", self.control != other.control),
            ("health", self.health != other.health || self.health_from != other.health_from),
        ];
        all.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}
