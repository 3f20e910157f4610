//! Rules as checked settings: nothing here can be wrong any more, and nothing here decides.

pub mod guard;
pub mod paths;
pub mod pattern;
pub mod prefixes;
pub mod rules;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};

use crate::claim::{Identity, Source, Transport};
use crate::name::HostName;
pub use guard::Reach;
use paths::PathPattern;
use pattern::Pattern;
use prefixes::PrefixSet;

/// What a matching rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
    /// Decides nothing: a refusal of these names says this.
    Close(Arc<str>),
}

/// Where a name is found: in the bytes of two protocols, or in the claim alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    Https,
    Http,
    /// Whatever the bytes are: the name of a CONNECT or SOCKS5 request.
    Tcp,
}

impl AppProtocol {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

/// `https:443`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppPort {
    pub protocol: AppProtocol,
    pub port: u16,
}

impl std::fmt::Display for AppPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.protocol.as_str(), self.port)
    }
}

/// What a network rule opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetPort {
    Tcp(RangeInclusive<u16>),
    Udp(RangeInclusive<u16>),
    Icmp,
}

/// The clients a rule is for: those in one of the networks that bear one of the names; empty means every client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    pub nets: Vec<IpNet>,
    /// As in an [`Identity`].
    pub clients: Vec<Box<str>>,
}

impl Sources {
    #[must_use]
    pub fn include(&self, source: &Source) -> bool {
        let in_net = |ip: &IpAddr| self.nets.iter().any(|net| net.contains(ip));
        let bears = |identity: &Identity| identity.names().iter().any(|name| self.clients.contains(name));
        (self.nets.is_empty() || source.ip.as_ref().is_none_or(in_net))
            && (self.clients.is_empty() || source.identity.as_ref().is_none_or(bears))
    }

    /// Whether every client of another set is in this one.
    #[must_use]
    pub fn cover(&self, other: &Self) -> bool {
        let nets = self.nets.is_empty()
            || (!other.nets.is_empty() && other.nets.iter().all(|net| self.nets.iter().any(|wide| wide.contains(net))));
        let clients = self.clients.is_empty()
            || (!other.clients.is_empty() && other.clients.iter().all(|name| self.clients.contains(name)));
        nets && clients
    }

    #[must_use]
    pub const fn is_everyone(&self) -> bool {
        self.nets.is_empty() && self.clients.is_empty()
    }
}

impl std::fmt::Display for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |items: Vec<String>| items.join(", ");
        let nets = (!self.nets.is_empty())
            .then(|| format!("sources {}", list(self.nets.iter().map(ToString::to_string).collect())));
        let clients = (!self.clients.is_empty())
            .then(|| format!("clients {}", list(self.clients.iter().map(ToString::to_string).collect())));
        f.write_str(&nets.into_iter().chain(clients).collect::<Vec<_>>().join(" and "))
    }
}

/// What an encrypted client hello means to a rule (`ech`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ech {
    /// The outer name is judged like any SNI.
    #[default]
    Outer,
    Deny,
}

/// How the SNI must relate to the name of a CONNECT or SOCKS request (`sni`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InnerName {
    #[default]
    Same,
    /// Any name that is allowed by itself for the same client and port.
    AnyListed,
    /// The same, or none: then the claimed name stands alone.
    Optional,
}

/// Sources × FQDN patterns × protocols; judged by the name in the bytes, or in the claim (`tcp`).
#[derive(Clone, Debug)]
pub struct AppRule {
    pub name: Arc<str>,
    pub action: Action,
    pub sources: Sources,
    pub fqdns: Vec<Pattern>,
    /// Endings that its patterns do not mean: `a.example` takes out the name and all under it.
    pub except: Vec<Box<str>>,
    /// Empty: in a deny rule all of them, in an allow rule none: the name is asked for in DNS, and no more.
    pub protocols: Vec<AppPort>,
    /// Every offered protocol must be in the list; `None` asks nothing.
    pub alpn: Option<Vec<Box<[u8]>>>,
    pub ech: Ech,
    pub inner: InnerName,
    /// Methods of plain HTTP requests; `None` asks nothing.
    pub methods: Option<Vec<Box<str>>>,
    /// Paths of plain HTTP requests; `None` asks nothing.
    pub paths: Option<Vec<PathPattern>>,
    /// Whether a plain HTTP connection may become a WebSocket.
    pub websocket: bool,
    /// Whether the client's own destination must be one of the name's, and is dialled then.
    pub verify: bool,
    /// Whether DNS clients may be answered with synthetic addresses for its names.
    pub steer: bool,
    pub reach: Reach,
}

impl AppRule {
    /// A rule that lets every client ask for names, and opens nothing.
    #[must_use]
    pub fn dns_only(name: Arc<str>, fqdns: Vec<Pattern>) -> Self {
        Self {
            name,
            action: Action::Allow,
            sources: Sources::default(),
            fqdns,
            except: Vec::new(),
            protocols: Vec::new(),
            alpn: None,
            ech: Ech::default(),
            inner: InnerName::default(),
            methods: None,
            paths: None,
            websocket: false,
            verify: false,
            steer: true,
            reach: Reach::default(),
        }
    }

    /// Whether a name that its patterns match is not meant.
    #[must_use]
    pub fn excepts(&self, name: &HostName) -> bool {
        !self.except.is_empty() && name.suffixes().any(|suffix| self.except.iter().any(|except| **except == *suffix))
    }

    /// Whether it allows or denies anything.
    #[must_use]
    pub fn decides(&self) -> bool {
        !matches!(self.action, Action::Close(_))
    }

    /// Whether its names may be asked for and never be dialled.
    #[must_use]
    pub fn is_dns_only(&self) -> bool {
        self.action == Action::Allow && self.protocols.is_empty()
    }
}

/// Sources × addresses or names × ports; judged by address.
#[derive(Clone, Debug)]
pub struct NetRule {
    pub name: Arc<str>,
    pub action: Action,
    pub sources: Sources,
    pub destinations: PrefixSet,
    /// Names whose addresses, as egret learned them, are destinations too.
    pub kept: Vec<LearnedName>,
    pub fqdns: Vec<Pattern>,
    pub ports: Vec<NetPort>,
    /// Whether DNS clients may be answered with synthetic addresses for its names.
    pub steer: bool,
    /// Where its `fqdns` and `kept` names may lead.
    pub reach: Reach,
}

impl NetRule {
    /// Whether its names may lead to an address.
    #[must_use]
    pub fn leads_to(&self, ip: IpAddr, nat64: Option<Ipv6Net>) -> bool {
        guard::judge(ip, &self.reach, nat64) == guard::Judgement::Permitted
    }

    /// Whether it is about flows of a transport to a port; echo requests have none.
    #[must_use]
    pub fn takes(&self, transport: Transport, port: Option<u16>) -> bool {
        self.ports.iter().any(|opened| match (opened, transport) {
            (NetPort::Tcp(range), Transport::Tcp) | (NetPort::Udp(range), Transport::Udp) => {
                port.is_some_and(|port| range.contains(&port))
            }
            (NetPort::Icmp, Transport::Icmp) => true,
            _ => false,
        })
    }
}

/// A name, and where it may lead: what addresses are learned for. Rules that say both alike share what is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LearnedName(Arc<Learnt>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Learnt {
    name: HostName,
    reach: Reach,
    asker: Option<IpAddr>,
}

impl LearnedName {
    #[must_use]
    pub fn new(name: HostName, reach: Reach) -> Self {
        Self(Arc::new(Learnt { name, reach, asker: None }))
    }

    /// The same for one client alone, which was answered.
    #[must_use]
    pub fn asked_by(&self, client: IpAddr) -> Self {
        let Learnt { name, reach, .. } = (*self.0).clone();
        Self(Arc::new(Learnt { name, reach, asker: Some(client) }))
    }

    #[must_use]
    pub fn name(&self) -> &HostName {
        &self.0.name
    }

    #[must_use]
    pub fn reach(&self) -> &Reach {
        &self.0.reach
    }

    /// The one client that it was learned for; `None`: all that its rules are for.
    #[must_use]
    pub fn asker(&self) -> Option<IpAddr> {
        self.0.asker
    }
}
