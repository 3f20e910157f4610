//! What a network rule comes to in the kernel: ranges of addresses and ports. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use egret_core::rule::guard;
use egret_core::rule::{Action, NetPort, NetRule};

/// Ranges of one family, both ends included; sorted, apart from each other.
pub type Ranges<T> = Vec<(T, T)>;

/// Ranges of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub v4: Ranges<u32>,
    pub v6: Ranges<u128>,
}

/// What one rule puts into its sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elements {
    pub sources: Addresses,
    pub destinations: Addresses,
    /// IP protocol number, and a range of ports.
    pub ports: Vec<(u8, u16, u16)>,
}

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

/// A protocol as records name it.
#[must_use]
pub const fn protocol_name(protocol: u8) -> Option<&'static str> {
    match protocol {
        TCP => Some("tcp"),
        UDP => Some("udp"),
        ICMP | ICMPV6 => Some("icmp"),
        _ => None,
    }
}

impl Addresses {
    /// Every address of some prefixes.
    #[must_use]
    pub fn of<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut all = Self::default();
        for net in nets {
            match net {
                IpNet::V4(net) => all.v4.push((net.network().into(), net.broadcast().into())),
                IpNet::V6(net) => all.v6.push((net.network().into(), net.broadcast().into())),
            }
        }
        all.merged()
    }

    fn merged(self) -> Self {
        Self { v4: merged(self.v4, |end| end.checked_add(1)), v6: merged(self.v6, |end| end.checked_add(1)) }
    }

    /// What both hold.
    fn common(&self, other: &Self) -> Self {
        let outside = Self::of(&egret_core::rule::prefixes::everywhere()).without(other);
        self.clone().without(&outside)
    }

    fn and(mut self, other: Self) -> Self {
        self.v4.extend(other.v4);
        self.v6.extend(other.v6);
        self.merged()
    }

    fn without(self, other: &Self) -> Self {
        Self {
            v4: without(&self.v4, &other.v4, |n| n.checked_sub(1), |n| n.checked_add(1)),
            v6: without(&self.v6, &other.v6, |n| n.checked_sub(1), |n| n.checked_add(1)),
        }
    }

    /// The IPv6 spellings of IPv4 ranges behind a translator (RFC 6052 §2.2), for prefixes of 96 bits; a shorter one
    /// cuts a range into too many.
    fn translated(&self, nat64: Ipv6Net) -> Self {
        let front = u128::from(nat64.network());
        let v6 = self.v4.iter().map(|(low, high)| (front | u128::from(*low), front | u128::from(*high)));
        Self { v4: Vec::new(), v6: if nat64.prefix_len() == 96 { v6.collect() } else { Vec::new() } }
    }

    /// With the spellings of its IPv4 addresses behind a translator.
    #[must_use]
    pub fn spelled(self, nat64: Option<Ipv6Net>) -> Self {
        let translated = nat64.map(|nat64| self.translated(nat64)).unwrap_or_default();
        self.and(translated)
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => holds(&self.v4, ip.into()),
            IpAddr::V6(ip) => holds(&self.v6, ip.into()),
        }
    }

    /// As nft writes them.
    #[must_use]
    pub fn texts(&self) -> (Vec<String>, Vec<String>) {
        let v4 = self.v4.iter().map(|(low, high)| range(Ipv4Addr::from(*low).into(), Ipv4Addr::from(*high).into()));
        let v6 = self.v6.iter().map(|(low, high)| range(Ipv6Addr::from(*low).into(), Ipv6Addr::from(*high).into()));
        (v4.collect(), v6.collect())
    }
}

fn range(low: IpAddr, high: IpAddr) -> String {
    if low == high { low.to_string() } else { format!("{low}-{high}") }
}

impl Elements {
    /// What both hold.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let both = |one: &(u8, u16, u16), other: &(u8, u16, u16)| {
            let (low, high) = (one.1.max(other.1), one.2.min(other.2));
            (one.0 == other.0 && low <= high).then_some((one.0, low, high))
        };
        let ports = self.ports.iter().flat_map(|one| other.ports.iter().filter_map(move |other| both(one, other)));
        Self {
            sources: self.sources.common(&other.sources),
            destinations: self.destinations.common(&other.destinations),
            ports: ports.collect(),
        }
    }

    /// What either holds, source by destination by port, and so more where they differ in several.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let mut ports = [self.ports, other.ports].concat();
        ports.sort_unstable();
        Self {
            sources: self.sources.and(other.sources),
            destinations: self.destinations.and(other.destinations),
            ports: merged_ports(ports),
        }
    }

    /// A rule's elements; nothing for a rule that asks for what the kernel cannot see.
    #[must_use]
    pub fn of(rule: &NetRule, nat64: Option<Ipv6Net>) -> Self {
        if !rule.sources.clients.is_empty() {
            return Self::default();
        }
        let everywhere = egret_core::rule::prefixes::everywhere();
        let sources =
            if rule.sources.nets.is_empty() { Addresses::of(&everywhere) } else { Addresses::of(&rule.sources.nets) };
        let written: Vec<IpNet> = rule.destinations.prefixes().collect();
        let mut destinations = match rule.action {
            Action::Allow => {
                let opened = written.iter().map(|net| {
                    let (inside, closed) = guard::opening(net);
                    Addresses::of(&inside).without(&Addresses::of(&closed))
                });
                opened.fold(Addresses::default(), Addresses::and)
            }
            Action::Deny | Action::Close(_) => Addresses::of(&written),
        };
        if rule.action == Action::Allow
            && let Some(nat64) = nat64
        {
            // Under the prefix, an address means the one it carries; a denial is of either.
            destinations = destinations.without(&Addresses::of(&[IpNet::V6(nat64)]));
        }
        let destinations = destinations.spelled(nat64);
        let ports = rule.ports.iter().flat_map(|port| match port {
            NetPort::Tcp(range) => vec![(TCP, *range.start(), *range.end())],
            NetPort::Udp(range) => vec![(UDP, *range.start(), *range.end())],
            // Where other protocols have a port, ICMP has a checksum.
            NetPort::Icmp => vec![(ICMP, 0, u16::MAX), (ICMPV6, 0, u16::MAX)],
        });
        let mut ports: Vec<_> = ports.collect();
        ports.sort_unstable();
        Self { sources, destinations, ports: merged_ports(ports) }
    }
}

fn merged_ports(sorted: Vec<(u8, u16, u16)>) -> Vec<(u8, u16, u16)> {
    let mut out: Vec<(u8, u16, u16)> = Vec::with_capacity(sorted.len());
    for (protocol, low, high) in sorted {
        match out.last_mut() {
            Some(last) if last.0 == protocol && low <= last.2.saturating_add(1) => last.2 = last.2.max(high),
            _ => out.push((protocol, low, high)),
        }
    }
    out
}

fn merged<T: Ord + Copy>(mut ranges: Ranges<T>, next: impl Fn(T) -> Option<T>) -> Ranges<T> {
    ranges.sort_unstable();
    let mut out: Ranges<T> = Vec::with_capacity(ranges.len());
    for (low, high) in ranges {
        match out.last_mut() {
            // The last address of all has no next one: everything behind lies inside.
            Some(last) if next(last.1).is_none_or(|next| low <= next) => last.1 = last.1.max(high),
            _ => out.push((low, high)),
        }
    }
    out
}

fn without<T: Ord + Copy>(
    ranges: &[(T, T)],
    holes: &[(T, T)],
    before: impl Fn(T) -> Option<T>,
    after: impl Fn(T) -> Option<T>,
) -> Ranges<T> {
    let mut out = Vec::with_capacity(ranges.len());
    let mut holes = holes.iter().peekable();
    for (low, high) in ranges {
        let mut low = Some(*low);
        while let (Some(start), Some((from, to))) = (low, holes.peek()) {
            if from > high {
                break;
            }
            if *to >= start {
                out.extend(before(*from).filter(|end| start <= *end && start < *from).map(|end| (start, end)));
                low = after(*to);
            }
            // A hole that goes on may reach into the next range too.
            if to > high {
                low = None;
                break;
            }
            holes.next();
        }
        out.extend(low.filter(|low| low <= high).map(|low| (low, *high)));
    }
    out
}

/// Whether some range holds a value.
fn holds<T: Ord + Copy>(ranges: &[(T, T)], value: T) -> bool {
    let behind = ranges.partition_point(|(low, _)| *low <= value);
    behind.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, high)| value <= *high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_core::rule::{Reach, Sources};
    use proptest::prelude::*;
    use std::sync::Arc;

    fn rule(action: Action, destinations: &[&str]) -> NetRule {
        NetRule {
            name: Arc::from("r"),
            action,
            sources: Sources::default(),
            destinations: destinations.iter().map(|net| net.parse::<IpNet>().unwrap()).collect(),
            kept: Vec::new(),
            fqdns: Vec::new(),
            ports: vec![NetPort::Tcp(22..=22), NetPort::Tcp(23..=30), NetPort::Udp(1..=1)],
            steer: true,
            reach: Reach::default(),
        }
    }

    fn opens(destinations: &[&str], nat64: Option<&str>, ip: &str) -> bool {
        let elements = Elements::of(&rule(Action::Allow, destinations), nat64.map(|net| net.parse().unwrap()));
        elements.destinations.contains(ip.parse().unwrap())
    }

    #[test]
    fn the_whole_internet_opens_no_special_range() {
        let all = ["0.0.0.0/0", "::/0"];
        for ip in ["1.1.1.1", "9.255.255.255", "11.0.0.0", "223.255.255.255", "2600::1"] {
            assert!(opens(&all, None, ip), "{ip}");
        }
        for ip in [
            "0.0.0.0",
            "10.0.0.0",
            "10.255.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "168.63.129.16",
            "192.168.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "fd00::1",
            "2002::1",
            "64:ff9b::808:808",
            "4000::1",
            "ff02::1",
        ] {
            assert!(!opens(&all, None, ip), "{ip}");
        }
        assert!(opens(&["10.1.0.0/16", "0.0.0.0/0"], None, "10.1.2.3"));
        assert!(!opens(&["10.1.0.0/16", "0.0.0.0/0"], None, "10.2.2.3"));
        assert!(opens(&["169.254.169.254/32"], None, "169.254.169.254"));
        assert!(!opens(&["169.254.0.0/16"], None, "169.254.169.254"));
        let denied = Elements::of(&rule(Action::Deny, &["0.0.0.0/0"]), None).destinations;
        assert!(denied.contains("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn behind_a_translator_the_carried_address_counts() {
        let wide = Some("64:ff9b::/96");
        assert!(opens(&["20.1.2.3/32"], wide, "64:ff9b::1401:203"));
        assert!(!opens(&["20.1.2.3/32"], wide, "64:ff9b::1401:204"));
        assert!(!opens(&["0.0.0.0/0"], wide, "64:ff9b::a00:1"));
        assert!(!opens(&["2001:470::/32"], Some("2001:470:64::/48"), "2001:470:64::1"));
    }

    #[test]
    fn neighbours_are_all_there() {
        for action in [Action::Allow, Action::Deny] {
            let all = [
                "20.1.0.4/32",
                "20.1.0.5/32",
                "20.1.0.6/32",
                "20.4.0.0/16",
                "20.5.0.0/16",
                "2001:470::/48",
                "2001:470:1::/48",
            ];
            let destinations = Elements::of(&rule(action, &all), None).destinations;
            for ip in ["20.1.0.4", "20.1.0.5", "20.1.0.6", "20.4.0.1", "20.5.0.1", "2001:470::1", "2001:470:1::1"] {
                assert!(destinations.contains(ip.parse().unwrap()), "{ip}");
            }
            for ip in ["20.1.0.3", "20.1.0.7", "20.6.0.0", "2001:470:2::"] {
                assert!(!destinations.contains(ip.parse().unwrap()), "{ip}");
            }
        }
    }

    #[test]
    fn ports_that_touch_are_one_range() {
        let elements = Elements::of(&rule(Action::Allow, &["1.1.1.1/32"]), None);
        assert_eq!(elements.ports, [(TCP, 22, 30), (UDP, 1, 1)]);
        assert_eq!(elements.sources.v4, [(0, u32::MAX)]);
    }

    proptest! {
        #[test]
        fn ranges_are_what_a_look_at_every_address_finds(
            some in proptest::collection::vec((0u8..=255, 0u8..=255), 0..6),
            holes in proptest::collection::vec((0u8..=255, 0u8..=255), 0..6),
        ) {
            let order = |all: Vec<(u8, u8)>| all.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect::<Vec<_>>();
            let (some, holes) = (order(some), order(holes));
            let next = |n: u8| n.checked_add(1);
            let (all, cut) = (merged(some.clone(), next), merged(holes.clone(), next));
            let left = without(&all, &cut, |n: u8| n.checked_sub(1), next);
            prop_assert!(left.is_sorted() && left.iter().all(|(low, high)| low <= high));
            let inside = |ranges: &[(u8, u8)], n| ranges.iter().any(|(low, high)| (*low..=*high).contains(&n));
            for n in 0..=255 {
                prop_assert_eq!(inside(&left, n), inside(&some, n) && !inside(&holes, n), "{}", n);
                prop_assert_eq!(holds(&left, n), inside(&left, n), "{}", n);
            }
        }
    }
}
