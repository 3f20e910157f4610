//! The table of a sidecar: the pod's own TCP comes to egret, and other protocols leave by network rules only.
//!
//! Applied once, before the application starts, by something with CAP_NET_ADMIN; egret itself has no rights then, and
//! changes nothing. A guard rail for pods whose containers have neither that right nor egret's user: not a boundary
//! against root.

use std::fmt::{self, Display, Write as _};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
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

impl Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
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

/// A connection to this address is refused with ICMP "administratively prohibited" by every table of a sidecar. egret
/// has no right to read the table; what a connection comes to it may see.
const TABLE: Ipv4Addr = Ipv4Addr::new(127, 112, 9, 1);

/// No service listens there.
const PROBED_PORT: u16 = 1;

/// What a table is made for, in bits: user, group, port. `127.112.10.N` is refused in the same way where bit N is set.
const BITS: u32 = 32 + 32 + 16;

const fn bit(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 112, 10, 0).to_bits() | number)
}

/// The address that the first chain turns [`Sidecar::mark`] into, and the second refuses: both must be there.
const PASSED_ON: Ipv4Addr = Ipv4Addr::new(127, 112, 9, 2);

/// What became of a connection on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// Administratively prohibited: by the table.
    Prohibited,
    /// Nothing stands in the way.
    Open,
    /// Something drops it.
    Silent,
}

fn probe(address: Ipv4Addr) -> Probe {
    /// Loopback answers in microseconds.
    const ENOUGH: Duration = Duration::from_millis(200);
    match TcpStream::connect_timeout(&SocketAddrV4::new(address, PROBED_PORT).into(), ENOUGH) {
        Err(error) if error.kind() == ErrorKind::HostUnreachable => Probe::Prohibited,
        Err(error) if error.kind() == ErrorKind::TimedOut => Probe::Silent,
        _ => Probe::Open,
    }
}

fn is_refused(address: Ipv4Addr) -> bool {
    probe(address) == Probe::Prohibited
}

/// How the pod's table is not the one that this egret needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableFault {
    #[error(
        "the pod's table is missing, so the pod's traffic leaves unjudged; run `egret netfilter apply --sidecar` in its network namespace"
    )]
    Missing,
    #[error(
        "this process is {own}, the pod's table lets {table} pass; run egret as {table}{}", or_apply(*own)
    )]
    OtherUser { own: User, table: User },
    #[error(
        "the pod's table was made from another configuration: it leads to port {table}, and egret listens on port {own}; apply it again with this configuration"
    )]
    OtherPort { own: u16, table: u16 },
    #[error(
        "the pod's table was made from another configuration (its network rules or its netfilter.bypass differ), or has been changed; apply it again with this configuration"
    )]
    OtherRules,
    #[error(
        "the pod's table has been changed and drops everything, loopback included; apply it again with this configuration"
    )]
    Drops,
}

/// The other way out; root would let every process of root's pass.
fn or_apply(own: User) -> String {
    let User { uid, gid } = own;
    if uid == 0 { String::new() } else { format!(", or apply the table with --uid {uid} --gid {gid}") }
}

/// The table that an egret without rights needs, seen from within.
#[derive(Debug)]
pub struct PodTable {
    expected: Sidecar,
    stands: AtomicBool,
}

impl PodTable {
    /// `None` where no listener takes redirected connections, or where the table is not egret's to watch.
    #[must_use]
    pub fn of(settings: &Settings) -> Option<Self> {
        if !settings.needs_sidecar_table() {
            return None;
        }
        let user = User { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
        let expected = Sidecar::of(settings, user, None)?;
        Some(Self { expected, stands: AtomicBool::new(false) })
    }

    /// Looks whether the table stands, and what is wrong with it; blocks for moments.
    ///
    /// # Errors
    /// [`TableFault`]; the next readiness says it.
    pub fn look(&self) -> Result<(), TableFault> {
        let stands = || is_refused(self.expected.mark());
        // A table that was put up between two probes is looked at again.
        let looked = if stands() { Ok(()) } else { Err(self.fault()) };
        let looked =
            looked.or_else(|fault| if fault == TableFault::OtherRules && stands() { Ok(()) } else { Err(fault) });
        self.stands.store(looked.is_ok(), Ordering::Relaxed);
        looked
    }

    /// What the last look found.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.stands.load(Ordering::Relaxed)
    }

    fn fault(&self) -> TableFault {
        match probe(TABLE) {
            Probe::Prohibited => {}
            Probe::Open => return TableFault::Missing,
            Probe::Silent => return TableFault::Drops,
        }
        let bits = (0..BITS).filter(|number| is_refused(bit(*number))).fold(0, |bits, number| bits | 1_u128 << number);
        let (table, port) = made_for(bits);
        let Sidecar { user: own, port: own_port, .. } = self.expected;
        match () {
            () if table != own => TableFault::OtherUser { own, table },
            () if port != own_port => TableFault::OtherPort { own: own_port, table: port },
            () => TableFault::OtherRules,
        }
    }
}

/// The user and the port encoded in these bits.
#[allow(clippy::cast_possible_truncation, reason = "each part is cut to its width")]
const fn made_for(bits: u128) -> (User, u16) {
    (User { uid: bits as u32, gid: (bits >> 32) as u32 }, (bits >> 64) as u16)
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
        let mut table = self.sets();
        let _ = writeln!(table.text, "  set made_for {{ type ipv4_addr; elements = {{ {} }} }}", self.bits());
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

    fn sets(&self) -> Table {
        let mut table = Table::default();
        table.addresses("exempt", &self.exempt);
        for (number, other) in self.others.iter().enumerate() {
            table.addresses(&format!("net{number}_"), &other.members.destinations);
            table.addresses(&format!("from{number}_"), &other.members.sources);
        }
        table
    }

    /// The addresses of the bits that are set. One beyond them is always there: an empty list is none to `nft`.
    fn bits(&self) -> String {
        let User { uid, gid } = self.user;
        let all = u128::from(uid) | u128::from(gid) << 32 | u128::from(self.port) << 64 | 1 << BITS;
        let set = (0..=BITS).filter(|number| all >> number & 1 == 1).map(|number| bit(number).to_string());
        set.collect::<Vec<_>>().join(", ")
    }

    /// What the table refuses egret itself alone, if it is of this port and these rules: one look says that all is well.
    fn mark(&self) -> Ipv4Addr {
        let mut hasher = foldhash::quality::FixedState::default().build_hasher();
        for text in [self.sets().text, self.kernel_rules().join("\n")] {
            hasher.write(text.as_bytes());
        }
        hasher.write_u16(self.port);
        let [.., a, b, c] = hasher.finish().to_be_bytes();
        Ipv4Addr::new(127, 128 | a, b, c)
    }

    fn capture(&self, own: &str) -> Vec<String> {
        let mark = format!("{own} ip daddr {} tcp dport {PROBED_PORT} dnat ip to {PASSED_ON}", self.mark());
        let mut rules = vec![mark, format!("{own} accept"), LOCAL.into()];
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
            format!("ip daddr {TABLE} tcp dport {PROBED_PORT} reject with icmp type admin-prohibited"),
            format!("ip daddr @made_for tcp dport {PROBED_PORT} reject with icmp type admin-prohibited"),
            format!("{own} ip daddr {PASSED_ON} tcp dport {PROBED_PORT} reject with icmp type admin-prohibited"),
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
        rules.extend(self.kernel_rules());
        rules.push("meta l4proto tcp reject with tcp reset".into());
        rules.push("reject with icmpx type admin-prohibited".into());
        rules
    }

    /// The network rules that the kernel carries out.
    fn kernel_rules(&self) -> Vec<String> {
        let mut rules = Vec::new();
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
        rules
    }
}
