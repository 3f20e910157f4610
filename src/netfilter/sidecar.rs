//! The table of a sidecar: the pod's own TCP and its DNS questions come to egret, and other protocols leave by network rules
//! only.
//!
//! Applied once, before the application starts, by something with CAP_NET_ADMIN; egret itself has no rights then, and
//! changes nothing. A guard rail for pods whose containers have neither that right nor egret's user: not a boundary
//! against root.

use std::fmt::{self, Display, Write as _};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::elements::{Addresses, Elements, ICMP, ICMPV6, TCP, UDP};
use super::marks::{FORWARDED, STATE};
use super::ruleset::replacing;
use super::table::Table;
use egret_core::rule::{Action, NetRule};

/// The user that egret runs as in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// The one that this process is.
    #[must_use]
    pub fn own() -> Self {
        Self { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }
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
    /// Where TCP is judged.
    pub port: u16,
    /// Where DNS questions are answered; `None`: they leave like everything else.
    pub dns: Option<u16>,
    /// What egret runs as.
    pub user: User,
    /// The mesh whose proxy comes first.
    pub mesh: Option<Mesh>,
    /// What is left alone.
    pub exempt: Addresses,
    pub others: Vec<Other>,
}

/// A network rule for what is not TCP, or for TCP to DNS servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    denies: bool,
    elements: Elements,
}

/// The port of DNS questions (RFC 1035 §4.2).
const DNS: u16 = 53;

/// What the kernel does for network rules in a sidecar: all but their TCP ports. Where it leads DNS questions to egret, it
/// must know which servers are asked over TCP, too.
#[must_use]
pub fn others(nets: &[NetRule], nat64: Option<ipnet::Ipv6Net>, leads_questions: bool) -> Vec<Other> {
    let of = |rule: &NetRule| {
        let mut elements = Elements::of(rule, nat64);
        let asks = |low: u16, high: u16| leads_questions && (low..=high).contains(&DNS);
        elements.ports.retain(|(protocol, low, high)| *protocol != TCP || asks(*low, *high));
        Other { denies: rule.action == Action::Deny, elements }
    };
    let mut others: Vec<Other> = nets.iter().map(of).collect();
    others.retain(|other| !other.elements.ports.is_empty() && !other.elements.destinations.is_empty());
    // Denials first; the order of each kind says nothing.
    others.sort_by_key(|other| !other.denies);
    others
}

/// Where egret listens for its own probes. The table resets a connection to it, unless it began as one to a probed address,
/// which the table leads here: without the table it is the other way round. No ICMP is needed for either, of which the
/// kernel sends only so many.
const LISTENER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 112, 9, 2), 61_129);

/// What a table is made for, in bits: user, group, port. `127.112.10.N` is led to the listener where bit N is set, and so is
/// the address behind the last one.
const BITS: u32 = 32 + 32 + 16;
const fn bit(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 112, 10, 0).to_bits() | number)
}

/// What became of a connection on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Answered,
    Reset,
    /// Something drops it.
    Silent,
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
    #[error("{LISTENER}, where egret probes the pod's table, is taken: {0}; does another egret run in this pod?")]
    Taken(String),
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
    listener: TcpListener,
    stands: AtomicBool,
}

impl PodTable {
    /// The table that a sidecar needs, for the user that this process is.
    ///
    /// # Errors
    /// [`TableFault::Taken`].
    pub fn new(expected: Sidecar) -> Result<Self, TableFault> {
        let bound = TcpListener::bind(LISTENER).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listener = bound.map_err(|error| TableFault::Taken(error.to_string()))?;
        Ok(Self { expected, listener, stands: AtomicBool::new(false) })
    }

    /// Looks whether the table stands, and what is wrong with it; blocks for moments.
    ///
    /// # Errors
    /// [`TableFault`]; the next readiness says it.
    pub fn look(&self) -> Result<(), TableFault> {
        // A table that is put up between two probes is looked at again.
        let looked = self.try_look().or_else(|_| self.try_look());
        self.stands.store(looked.is_ok(), Ordering::Relaxed);
        looked
    }

    /// What the last look found.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.stands.load(Ordering::Relaxed)
    }

    fn try_look(&self) -> Result<(), TableFault> {
        // The first chain leads what the second one would reset: both must be there.
        match (self.probe(self.expected.mark()), self.probe(*LISTENER.ip())) {
            (Probe::Answered, Probe::Reset) => return Ok(()),
            (_, Probe::Silent) => return Err(TableFault::Drops),
            _ => {}
        }
        match self.probe(bit(BITS)) {
            Probe::Answered => {}
            Probe::Reset if self.probe(*LISTENER.ip()) == Probe::Answered => return Err(TableFault::Missing),
            Probe::Reset => return Err(TableFault::OtherRules),
            Probe::Silent => return Err(TableFault::Drops),
        }
        let is_set = |number: &u32| self.probe(bit(*number)) == Probe::Answered;
        let (table, port) = made_for((0..BITS).filter(is_set).fold(0, |bits, number| bits | 1_u128 << number));
        let Sidecar { user: own, port: own_port, .. } = self.expected;
        Err(match () {
            () if table != own => TableFault::OtherUser { own, table },
            () if port != own_port => TableFault::OtherPort { own: own_port, table: port },
            () => TableFault::OtherRules,
        })
    }

    fn probe(&self, address: Ipv4Addr) -> Probe {
        /// Loopback answers in microseconds.
        const ENOUGH: Duration = Duration::from_millis(200);
        let tried = TcpStream::connect_timeout(&SocketAddrV4::new(address, LISTENER.port()).into(), ENOUGH);
        // Whatever has come, it has said all by coming.
        while self.listener.accept().is_ok() {}
        match tried {
            Ok(_) => Probe::Answered,
            Err(error) if error.kind() == ErrorKind::TimedOut => Probe::Silent,
            Err(_) => Probe::Reset,
        }
    }
}

/// The user and the port encoded in these bits.
#[allow(clippy::cast_possible_truncation, reason = "each part is cut to its width")]
const fn made_for(bits: u128) -> (User, u16) {
    (User { uid: bits as u32, gid: (bits >> 32) as u32 }, (bits >> 64) as u16)
}

impl Sidecar {
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
            table.addresses(&format!("net{number}_"), &other.elements.destinations);
            table.addresses(&format!("from{number}_"), &other.elements.sources);
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

    /// What the table leads to the listener for egret alone, if it is of this port and these rules.
    fn mark(&self) -> Ipv4Addr {
        let mut hasher = foldhash::quality::FixedState::default().build_hasher();
        for text in [self.sets().text, self.kernel_rules().join("\n"), self.questions().join("\n")] {
            hasher.write(text.as_bytes());
        }
        hasher.write_u16(self.port);
        let [.., a, b, c] = hasher.finish().to_be_bytes();
        Ipv4Addr::new(127, 128 | a, b, c)
    }

    fn capture(&self, own: &str) -> Vec<String> {
        let leads = |to: &str| format!("{to} tcp dport {} dnat ip to {LISTENER}", LISTENER.port());
        let probes = [leads(&format!("{own} ip daddr {}", self.mark())), leads("ip daddr @made_for")];
        let mut rules: Vec<String> = probes.into();
        rules.extend([format!("{own} accept"), LOCAL.into()]);
        rules.extend(["ip daddr @exempt4 accept".into(), "ip6 daddr @exempt6 accept".into()]);
        rules.extend(self.questions());
        let sender = match self.mesh {
            None => String::new(),
            // Its ports are the pod's own. What it says to its control plane is judged like everything else.
            Some(Mesh::Istio) => format!("meta skuid {ISTIO_USER} "),
        };
        rules.push(format!("{sender}meta l4proto tcp redirect to :{}", self.port));
        rules
    }

    /// DNS questions come to egret, but for those to servers that network rules name.
    fn questions(&self) -> Vec<String> {
        let Some(dns) = self.dns else { return Vec::new() };
        let mut rules = Vec::new();
        for (number, other) in self.others.iter().enumerate().filter(|(_, other)| !other.denies) {
            for (protocol, low, high) in &other.elements.ports {
                let leads = match *protocol {
                    UDP if (*low..=*high).contains(&DNS) => format!("udp dport {DNS} accept"),
                    // egret judges it where it judges all TCP.
                    TCP => format!("tcp dport {DNS} redirect to :{}", self.port),
                    _ => continue,
                };
                rules.extend(families(number).map(|to| format!("{to} {leads}")));
            }
        }
        rules.extend(["udp", "tcp"].map(|protocol| format!("{protocol} dport {DNS} redirect to :{dns}")));
        rules
    }

    fn output(&self, own: &str) -> Vec<String> {
        let to_listener = format!("ip daddr {} tcp dport {}", LISTENER.ip(), LISTENER.port());
        let mut rules: Vec<String> = vec![
            format!("{to_listener} ct status dnat accept"),
            format!("{to_listener} reject with tcp reset"),
            LOCAL.into(),
            format!("{own} meta l4proto tcp ct mark set {FORWARDED:#x} accept"),
            format!("{own} accept"),
            // What remains of a connection of egret's has no user when its socket is gone. A new one never begins so.
            format!(
                "meta l4proto tcp ct direction original ct mark & {STATE:#x} == {FORWARDED:#x} tcp flags & syn == 0 accept"
            ),
            // Answers to connections from outside.
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
            for (ip, to) in ["ip", "ip6"].into_iter().zip(families(number)) {
                let rule = |ports: &dyn Display| format!("{to} {ports} {verdict}");
                for (protocol, low, high) in &other.elements.ports {
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

/// What a rule is for, by its number, in IPv4 and in IPv6.
fn families(number: usize) -> [String; 2] {
    [("ip", "4"), ("ip6", "6")]
        .map(|(ip, family)| format!("{ip} saddr @from{number}_{family} {ip} daddr @net{number}_{family}"))
}
