//! Sets of address prefixes: from text, and the one question that is asked on every connection.
//!
//! A set is cut into segments within which the longest prefix is the same, so that a look-up is one binary
//! search whatever was put in, nested or not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Prefixes of both families. Built once, then only read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixSet {
    v4: Box<[Segment<u32>]>,
    v6: Box<[Segment<u128>]>,
    len: usize,
}

/// From `start` to the next segment's, the longest prefix has this length; [`NONE`] where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment<T> {
    start: T,
    len: u8,
}

const NONE: u8 = u8::MAX;

impl PrefixSet {
    /// The number of prefixes put in.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.longest(ip).is_some()
    }

    /// The prefixes, but for those that others inside them hide altogether; one may come more than once.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.iter().filter_map(|s| IpNet::new(Ipv4Addr::from(s.start).into(), s.len).ok());
        let v6 = self.v6.iter().filter_map(|s| IpNet::new(Ipv6Addr::from(s.start).into(), s.len).ok());
        v4.chain(v6).map(|net| net.trunc())
    }

    /// The longest prefix that holds an address.
    #[must_use]
    pub fn longest(&self, ip: IpAddr) -> Option<IpNet> {
        let len = match ip {
            IpAddr::V4(ip) => find(&self.v4, u32::from(ip)),
            IpAddr::V6(ip) => find(&self.v6, u128::from(ip)),
        };
        len.and_then(|len| IpNet::new(ip, len).ok()).map(|net| net.trunc())
    }
}

impl FromIterator<IpNet> for PrefixSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match net {
                IpNet::V4(net) => v4.push((u32::from(net.network()), u32::from(net.broadcast()), net.prefix_len())),
                IpNet::V6(net) => v6.push((u128::from(net.network()), u128::from(net.broadcast()), net.prefix_len())),
            }
        }
        let len = v4.len() + v6.len();
        let next4 = |end: u32| end.checked_add(1);
        let next6 = |end: u128| end.checked_add(1);
        Self { v4: segments(v4, next4), v6: segments(v6, next6), len }
    }
}

fn find<T: Ord + Copy>(segments: &[Segment<T>], ip: T) -> Option<u8> {
    let after = segments.partition_point(|segment| segment.start <= ip);
    segments.get(after.checked_sub(1)?).map(|segment| segment.len).filter(|len| *len != NONE)
}

/// Sweeps over prefixes, which nest or are apart and never cross, keeping the open ones on a stack.
fn segments<T: Ord + Copy>(mut ranges: Vec<(T, T, u8)>, next: impl Fn(T) -> Option<T>) -> Box<[Segment<T>]> {
    ranges.sort_unstable_by_key(|(start, _, len)| (*start, *len));
    let mut out: Vec<Segment<T>> = Vec::with_capacity(ranges.len());
    let mut open: Vec<(T, u8)> = Vec::new();
    for (start, end, len) in ranges {
        close(&mut out, &mut open, Some(start), &next);
        push(&mut out, start, len);
        open.push((end, len));
    }
    close(&mut out, &mut open, None, &next);
    out.into()
}

/// Ends the prefixes that end before a start: behind each, the one around it goes on, or nothing does.
fn close<T: Ord + Copy>(
    out: &mut Vec<Segment<T>>,
    open: &mut Vec<(T, u8)>,
    before: Option<T>,
    next: &impl Fn(T) -> Option<T>,
) {
    while let Some((end, _)) = open.pop_if(|(end, _)| before.is_none_or(|start| *end < start)) {
        // Behind the last address of all there is nothing.
        if let Some(start) = next(end) {
            push(out, start, open.last().map_or(NONE, |(_, len)| *len));
        }
    }
}

/// A segment that begins where the last one did takes its place. One as long as the last is another prefix.
fn push<T: Ord + Copy>(out: &mut Vec<Segment<T>>, start: T, len: u8) {
    out.pop_if(|last| last.start == start);
    out.push(Segment { start, len });
}

/// Reads a CIDR, or one address.
///
/// # Errors
/// A sentence that says what to write instead.
pub fn prefix(text: &str) -> Result<IpNet, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return match ip.to_canonical() {
            canonical if canonical == ip => Ok(IpNet::from(ip)),
            canonical => Err(format!("`{text}` is IPv4 in disguise, which matches nothing; write {canonical}")),
        };
    }
    let net: IpNet =
        text.parse().map_err(|_| format!("`{text}` is not a CIDR; write 10.0.0.0/8, 10.1.2.3 or fd00::/8"))?;
    if let (IpAddr::V4(v4), IpNet::V6(_), 96..) = (net.addr().to_canonical(), net, net.prefix_len()) {
        let len = net.prefix_len() - 96;
        return Err(format!("`{text}` is IPv4 in disguise, which matches nothing; write {v4}/{len}"));
    }
    if net.trunc() == net {
        Ok(net)
    } else {
        Err(format!(
            "`{text}` has bits set behind its prefix; write {}, or /{} for the one address",
            net.trunc(),
            net.max_prefix_len()
        ))
    }
}

/// Every address of both families.
#[must_use]
pub fn everywhere() -> [IpNet; 2] {
    [
        IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpNet::V6(ipnet::Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nets() -> impl Strategy<Value = Vec<IpNet>> {
        // Few bits, so that prefixes nest, touch and repeat; both ends of the space are among them.
        let v4 = (0u32..=255, 0u8..=8)
            .prop_map(|(top, len)| IpNet::new(Ipv4Addr::from(top << 24).into(), len).unwrap().trunc());
        let deep = (0u32..=3, 30u8..=32)
            .prop_map(|(low, len)| IpNet::new(Ipv4Addr::from(u32::MAX - low).into(), len).unwrap().trunc());
        let v6 = (0u128..=255, 0u8..=8)
            .prop_map(|(top, len)| IpNet::new(Ipv6Addr::from(top << 120).into(), len).unwrap().trunc());
        proptest::collection::vec(prop_oneof![v4, deep, v6], 0..40)
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0u32..=255, prop_oneof![Just(0u32), Just(0xff_ffff)])
                .prop_map(|(top, low)| IpAddr::from(Ipv4Addr::from((top << 24) | low))),
            (0u32..=3).prop_map(|low| IpAddr::from(Ipv4Addr::from(u32::MAX - low))),
            (0u128..=255, prop_oneof![Just(0u128), Just((1 << 120) - 1)])
                .prop_map(|(top, low)| IpAddr::from(Ipv6Addr::from((top << 120) | low))),
        ]
    }

    proptest! {
        #[test]
        fn the_longest_prefix_is_what_a_walk_over_all_of_them_finds(
            nets in nets(),
            addresses in proptest::collection::vec(address(), 1..40),
        ) {
            let set: PrefixSet = nets.iter().copied().collect();
            for ip in addresses {
                let naive = nets.iter().filter(|net| net.contains(&ip)).max_by_key(|net| net.prefix_len());
                prop_assert_eq!(set.longest(ip), naive.copied(), "{} in {:?}", ip, nets);
                let given_back = set.prefixes().filter(|net| net.contains(&ip)).max_by_key(IpNet::prefix_len);
                prop_assert_eq!(given_back, naive.copied(), "{} in {:?}", ip, nets);
            }
            prop_assert!(set.prefixes().all(|net| nets.contains(&net)));
        }
    }

    #[test]
    fn neighbours_at_both_ends_of_the_space_stay_out() {
        let set: PrefixSet =
            ["0.0.0.0/32", "255.255.255.254/31", "::/128"].iter().map(|n| n.parse().unwrap()).collect();
        for (ip, held) in [
            ("0.0.0.0", true),
            ("0.0.0.1", false),
            ("255.255.255.253", false),
            ("255.255.255.255", true),
            ("::", true),
            ("::1", false),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
        ] {
            assert_eq!(set.contains(ip.parse().unwrap()), held, "{ip}");
        }
        assert_eq!(set.len(), 3);
    }
}
