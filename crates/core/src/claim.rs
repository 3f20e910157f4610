//! What a client asks for, before any of its own bytes have been looked at.
//!
//! Owns the claim and the two kinds of address that must never be mistaken for each other. Knows no room.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::name::{Host, HostName};

/// Where the connection came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr(pub SocketAddr);

impl ClientAddr {
    /// The client's address; an IPv4 client of a dual-stack socket is an IPv4 client.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.0.ip().to_canonical()
    }

    /// The same with its port.
    #[must_use]
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.0.port())
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket().fmt(f)
    }
}

/// What counts as one client where clients share something: an IPv4 address, or a /64, all of whose addresses one
/// machine may have (RFC 7934).
#[must_use]
pub fn network_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The address a client was dialling itself, or named as a literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalDst(pub SocketAddr);

/// The destination of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Name(HostName),
    Address(OriginalDst),
    /// Nothing was asked for: the bytes must tell.
    Unnamed,
}

/// What carries a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
    /// Echo; it has no port.
    Icmp,
}

impl Transport {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// How the claim was made; the `name_source` of the record until the bytes say better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Connect,
    Socks,
    /// Absolute-form HTTP: the request itself is the claim.
    Absolute,
    /// An `sni` listener, or the kernel.
    Intercepted,
    /// A synthetic address, which a DNS client was answered for the name.
    Steered,
}

/// The names that a client has shown itself to bear: those of its certificate, and `user:NAME` for a user. None for
/// most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity(Option<Arc<[Box<str>]>>);

impl Identity {
    #[must_use]
    pub fn new(names: Vec<Box<str>>) -> Self {
        Self((!names.is_empty()).then(|| names.into()))
    }

    /// The same client, now known as a user too.
    #[must_use]
    pub fn with_user(&self, user: &str) -> Self {
        Self::new(self.names().iter().cloned().chain([format!("user:{user}").into()]).collect())
    }

    #[must_use]
    pub fn names(&self) -> &[Box<str>] {
        self.0.as_deref().unwrap_or_default()
    }

    #[must_use]
    pub fn is_user(&self) -> bool {
        self.names().iter().any(|name| name.starts_with("user:"))
    }
}

/// The client, as far as rules may ask; what is `None` fits every rule (`explain`).
#[derive(Clone, Debug)]
pub struct Source {
    pub ip: Option<IpAddr>,
    pub identity: Option<Identity>,
}

impl Source {
    #[must_use]
    pub const fn anybody() -> Self {
        Self { ip: None, identity: None }
    }

    /// A client of which no more is known than where it is.
    #[must_use]
    pub fn at(ip: IpAddr) -> Self {
        Self { ip: Some(ip), identity: Some(Identity::default()) }
    }
}

/// One client's request for one destination.
#[derive(Clone, Debug)]
pub struct Claim {
    pub client: ClientAddr,
    pub identity: Identity,
    /// The listener's name in the log, such as `forward:127.0.0.1:3128`.
    pub listener: Arc<str>,
    pub target: Target,
    pub transport: Transport,
    pub port: u16,
    pub via: Via,
}

impl Claim {
    #[must_use]
    pub fn source(&self) -> Source {
        Source { ip: Some(self.client.ip()), identity: Some(self.identity.clone()) }
    }

    /// A target from what was named: a literal address becomes an original destination.
    #[must_use]
    pub fn target(host: Host, port: u16) -> Target {
        match host {
            Host::Name(name) => Target::Name(name),
            Host::Address(ip) => Target::Address(OriginalDst(SocketAddr::new(ip, port))),
        }
    }

    #[must_use]
    pub fn name(&self) -> Option<&HostName> {
        match &self.target {
            Target::Name(name) => Some(name),
            Target::Address(_) | Target::Unnamed => None,
        }
    }
}
