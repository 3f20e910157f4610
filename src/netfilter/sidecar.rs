//! The table of a sidecar: the pod's own TCP comes to egret, and other protocols leave by network rules only.
//!
//! Applied once, before the application starts, by something with CAP_NET_ADMIN; egret itself has no rights then, and
//! changes nothing. A guard rail for pods whose containers have neither that right nor egret's user: not a boundary
//! against root.

use std::fmt::Display;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::members::{Addresses, ICMP, ICMPV6, Members, TCP, UDP};
use super::ruleset::{Table, replacing};
use super::{FORWARDED, STATE};
use crate::config::{Capture, Settings};
use crate::policy::rule::{Action, NetRule};

/// Who egret is in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// A mesh whose proxy takes the pod's traffic first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mesh {
    /// Its proxy has user 1337, and its own rules pass by what has group 1337.
    Istio,
}

/// Istio's proxy.
const ISTIO_USER: u32 = 1337;

/// What does not leave the pod. The interface would not tell: a packet that was redirected still has the old one.
const LOCAL: &str = "fib daddr type local accept";

/// What the table is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    port: u16,
    user: User,
    mesh: Option<Mesh>,
    exempt: Addresses,
    others: Vec<Other>,
}

/// A network rule for what is not TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    denies: bool,
    members: Members,
}

/// What the kernel does for network rules in a sidecar: all but their TCP ports.
#[must_use]
pub fn others(nets: &[NetRule], nat64: Option<ipnet::Ipv6Net>) -> Vec<Other> {
    let of = |rule: &NetRule| {
        let mut members = Members::of(rule, nat64);
        members.ports.retain(|(protocol, ..)| *protocol != TCP);
        Other { denies: rule.action == Action::Deny, members }
    };
    let mut others: Vec<Other> = nets.iter().map(of).collect();
    others.retain(|other| !other.members.ports.is_empty() && !other.members.destinations.is_empty());
    // Denials first; the order of each kind says nothing.
    others.sort_by_key(|other| !other.denies);
    others
}

/// What the table refuses egret itself in a way of its own, and where nobody listens.
const PROBE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 112, 9, 1), 1);

/// Whether a sidecar's table stands, as far as its user can tell, who may not ask the kernel.
#[must_use]
pub fn stands() -> bool {
    const ENOUGH: Duration = Duration::from_secs(1);
    let tried = std::net::TcpStream::connect_timeout(&PROBE.into(), ENOUGH);
    tried.is_err_and(|error| error.kind() != ErrorKind::ConnectionRefused)
}

impl Sidecar {
    /// The sidecar of some settings; `None` where no listener takes redirected connections.
    #[must_use]
    pub fn of(settings: &Settings, user: User, mesh: Option<Mesh>) -> Option<Self> {
        let listener = settings.listeners.iter().find(|listener| listener.kind.captures(Capture::Redirect))?;
        let exempt = settings.netfilter.as_ref().map(|part| Addresses::of(&part.bypass)).unwrap_or_default();
        let others = others(&settings.rules.nets, settings.rules.nat64);
        Some(Self { port: listener.bind.port(), user, mesh, exempt, others })
    }

    /// The table as `nft -f` takes it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut table = Table::default();
        table.addresses("exempt", &self.exempt);
        for (number, other) in self.others.iter().enumerate() {
            table.addresses(&format!("net{number}_"), &other.members.destinations);
            table.addresses(&format!("from{number}_"), &other.members.sources);
        }
        let User { uid, gid } = self.user;
        let own = format!("meta skuid {uid} meta skgid {gid}");
        for (name, hook, rules) in [
            ("capture", "nat hook output priority -101; policy accept", self.capture(&own)),
            ("output", "filter hook output priority filter; policy drop", self.output(&own)),
        ] {
            table.chain(name, Some(hook), |chain| rules.iter().for_each(|rule| chain.rule(rule)));
        }
        replacing("the pod's own connections are judged by name or address.", &table.text)
    }

    fn capture(&self, own: &str) -> Vec<String> {
        let mut rules = vec![format!("{own} accept"), LOCAL.into()];
        rules.extend(["ip daddr @exempt4 accept".into(), "ip6 daddr @exempt6 accept".into()]);
        let who = match self.mesh {
            None => String::new(),
            // Its ports are the pod's own. What it says to its control plane is judged like everything else.
            Some(Mesh::Istio) => format!("meta skuid {ISTIO_USER} "),
        };
        rules.push(format!("{who}meta l4proto tcp redirect to :{}", self.port));
        rules
    }

    fn output(&self, own: &str) -> Vec<String> {
        let mut rules: Vec<String> = vec![
            format!("{own} ip daddr {} tcp dport {} reject with icmp type admin-prohibited", PROBE.ip(), PROBE.port()),
            LOCAL.into(),
            format!("{own} meta l4proto tcp ct mark set {FORWARDED:#x} accept"),
            format!("{own} accept"),
            // What remains of a connection of egret's has no user when its socket is gone. A new one never begins so.
            format!(
                "meta l4proto tcp ct direction original ct mark & {STATE:#x} == {FORWARDED:#x} tcp flags & syn == 0 accept"
            ),
            // Answers to whoever comes in.
            "ct direction reply ct state established accept".into(),
            "ct state related meta l4proto { icmp, ipv6-icmp } accept".into(),
            "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report } accept"
                .into(),
            "ip daddr @exempt4 accept".into(),
            "ip6 daddr @exempt6 accept".into(),
        ];
        for (number, other) in self.others.iter().enumerate() {
            let verdict = if other.denies { "reject with icmpx type admin-prohibited" } else { "accept" };
            for (ip, family) in [("ip", "4"), ("ip6", "6")] {
                let to = format!("{ip} saddr @from{number}_{family} {ip} daddr @net{number}_{family}");
                let rule = |ports: &dyn Display| format!("{to} {ports} {verdict}");
                for (protocol, low, high) in &other.members.ports {
                    match *protocol {
                        UDP => rules.push(rule(&format_args!("udp dport {low}-{high}"))),
                        ICMP if ip == "ip" => rules.push(rule(&"icmp type echo-request")),
                        ICMPV6 if ip == "ip6" => rules.push(rule(&"icmpv6 type echo-request")),
                        _ => {}
                    }
                }
            }
        }
        rules.push("meta l4proto tcp reject with tcp reset".into());
        rules.push("reject with icmpx type admin-prohibited".into());
        rules
    }
}
