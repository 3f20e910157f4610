//! What a configuration says of the kernel's part.

use std::net::SocketAddr;

use ipnet::IpNet;

use egret_core::rule::NetPort;

/// What the kernel does on a next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetfilterSettings {
    /// Empty in a sidecar, whose clients are the machine's own processes.
    pub clients: Vec<IpNet>,
    /// Empty: every interface. Nothing in a name needs quoting.
    pub interfaces: Vec<String>,
    /// Destinations that are reached unjudged.
    pub bypass: Vec<IpNet>,
    /// Whether flows that are forwarded bear the machine's address.
    pub masquerades: bool,
    pub dnat: Vec<Dnat>,
    /// Whether the rules go when egret ends.
    pub removes: bool,
    /// Whether a sidecar serves only while its table stands.
    pub is_required: bool,
    /// Flows at once of one client.
    pub flows_per_client: u32,
}

/// Ingress that is led to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dnat {
    /// TCP or UDP, and one port.
    pub port: NetPort,
    pub to: SocketAddr,
    /// Empty: everyone.
    pub sources: Vec<IpNet>,
    pub masquerades: bool,
}
