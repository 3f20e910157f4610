//! The address guard: which addresses a name may lead to.
//!
//! Every special range of the IANA registries is closed unless a rule opens a prefix that lies inside it.
//! Pure: an address and a rule's reach in, a judgement out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Where a rule's names may lead (`addresses`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reach {
    /// Every address that belongs to no special range.
    pub public: bool,
    pub prefixes: Vec<IpNet>,
}

impl Default for Reach {
    fn default() -> Self {
        Self { public: true, prefixes: Vec::new() }
    }
}

/// A range that is not the public internet, and the word for it.
#[derive(Clone, Copy, Debug)]
struct Special {
    net: IpNet,
    class: &'static str,
}

const fn v4(ip: [u8; 4], len: u8, class: &'static str) -> Special {
    let [a, b, c, d] = ip;
    Special { net: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len)), class }
}

/// The first six groups; no special range but two single addresses needs more.
const fn v6(groups: [u16; 6], len: u8, class: &'static str) -> Special {
    let [a, b, c, d, e, f] = groups;
    Special { net: IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, 0, 0), len)), class }
}

const METADATA: &str = "metadata";

/// Azure's own: DHCP, DNS, and the probes of its load balancers, which come in on every interface.
pub const PLATFORM: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// IANA special-purpose address registries (RFC 6890 and later), the narrowest first where they nest.
const SPECIAL: &[Special] = &[
    v4([169, 254, 169, 254], 32, METADATA),
    v4(PLATFORM.octets(), 32, METADATA),
    v4([0, 0, 0, 0], 8, "unspecified"),
    v4([10, 0, 0, 0], 8, "private"),
    v4([100, 64, 0, 0], 10, "cgnat"),
    v4([127, 0, 0, 0], 8, "loopback"),
    v4([169, 254, 0, 0], 16, "link_local"),
    v4([172, 16, 0, 0], 12, "private"),
    v4([192, 0, 0, 0], 24, "reserved"),
    v4([192, 0, 2, 0], 24, "documentation"),
    v4([192, 88, 99, 0], 24, "reserved"),
    v4([192, 168, 0, 0], 16, "private"),
    v4([198, 18, 0, 0], 15, "benchmark"),
    v4([198, 51, 100, 0], 24, "documentation"),
    v4([203, 0, 113, 0], 24, "documentation"),
    v4([224, 0, 0, 0], 4, "multicast"),
    v4([255, 255, 255, 255], 32, "broadcast"),
    v4([240, 0, 0, 0], 4, "reserved"),
    v6([0, 0, 0, 0, 0, 0xffff], 96, "ipv4_mapped"),
    // `::`, `::1` and the IPv4-compatible addresses share one /96; the two single ones come before it.
    Special { net: IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128)), class: "unspecified" },
    Special { net: IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)), class: "loopback" },
    v6([0, 0, 0, 0, 0, 0], 96, "ipv4_compatible"),
    v6([0x64, 0xff9b, 0, 0, 0, 0], 96, "nat64"),
    v6([0x64, 0xff9b, 1, 0, 0, 0], 48, "nat64"),
    v6([0x100, 0, 0, 0, 0, 0], 64, "discard"),
    v6([0x2001, 0, 0, 0, 0, 0], 32, "teredo"),
    v6([0x2001, 2, 0, 0, 0, 0], 48, "benchmark"),
    v6([0x2001, 0xdb8, 0, 0, 0, 0], 32, "documentation"),
    v6([0x2001, 0, 0, 0, 0, 0], 23, "reserved"),
    v6([0x2002, 0, 0, 0, 0, 0], 16, "6to4"),
    v6([0x3fff, 0, 0, 0, 0, 0], 20, "documentation"),
    v6([0xfc00, 0, 0, 0, 0, 0], 7, "unique_local"),
    v6([0xfe80, 0, 0, 0, 0, 0], 10, "link_local"),
    v6([0xfec0, 0, 0, 0, 0, 0], 10, "site_local"),
    v6([0xff00, 0, 0, 0, 0, 0], 8, "multicast"),
];

/// RFC 4291 §2.4: what is global unicast today. Everything else is reserved.
const GLOBAL_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// The guard's two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Permitted,
    Denied,
}

/// The address that some host on the way will take this one for: IPv4-mapped is IPv4, and under the network's
/// translation prefix (RFC 6052) it is the IPv4 address it carries.
pub(crate) fn effective(ip: IpAddr, nat64: Option<Ipv6Net>) -> IpAddr {
    match (ip, nat64) {
        (IpAddr::V6(v6), Some(prefix)) if prefix.contains(&v6) => IpAddr::V4(embedded_v4(v6, prefix.prefix_len())),
        _ => ip.to_canonical(),
    }
}

/// The spellings of one address, of which any may be what a rule or an operator wrote.
pub(crate) fn equivalents(ip: IpAddr, nat64: Option<Ipv6Net>) -> [IpAddr; 2] {
    [ip.to_canonical(), effective(ip, nat64)]
}

/// Judges one address against where a rule's names may lead.
///
/// An address under the translation prefix is judged by the IPv4 address it carries.
#[must_use]
pub fn judge(ip: IpAddr, reach: &Reach, nat64: Option<Ipv6Net>) -> Judgement {
    // Mapped addresses are a range of their own: an answer should not hold one.
    let translated = matches!(ip, IpAddr::V6(v6) if nat64.is_some_and(|prefix| prefix.contains(&v6)));
    let ip = if translated { effective(ip, nat64) } else { ip };
    // Metadata in disguise is never anybody's destination.
    if disguised_v4(ip).into_iter().flatten().any(|hidden| metadata().any(|ip| ip == hidden)) {
        return Judgement::Denied;
    }
    let opened = match special(ip) {
        Some(special) => reach.prefixes.iter().any(|net| special.net.contains(net) && net.contains(&ip)),
        None if is_reserved(ip) => false,
        None => reach.public || reach.prefixes.iter().any(|net| net.contains(&ip)),
    };
    if opened { Judgement::Permitted } else { Judgement::Denied }
}

/// Whether a prefix holds no address of a special range.
#[must_use]
pub fn is_public(net: &IpNet) -> bool {
    let apart = |special: &Special| !special.net.contains(net) && !net.contains(&special.net);
    SPECIAL.iter().all(apart) && !is_reserved(net.addr())
}

/// Whether a prefix lies in a range that is not public.
#[must_use]
pub fn is_special(net: &IpNet) -> bool {
    SPECIAL.iter().any(|special| special.net.contains(net))
}

/// What a prefix opens: the part of it where addresses are, and the special ranges in it that it does not.
#[must_use]
pub fn opening(net: &IpNet) -> (Option<IpNet>, Vec<IpNet>) {
    let is_special = is_special(net);
    let inside = match net {
        IpNet::V6(v6) if !is_special && !GLOBAL_V6.contains(v6) => {
            v6.contains(&GLOBAL_V6).then_some(IpNet::V6(GLOBAL_V6))
        }
        _ => Some(*net),
    };
    let closed = SPECIAL.iter().map(|special| special.net).filter(|special| !special.contains(net));
    (inside, closed.collect())
}

/// Whether a prefix opens whatever another one does: it lies around it, and in whatever special range that one
/// lies in.
#[must_use]
pub fn opens_all_of(wide: &IpNet, narrow: &IpNet) -> bool {
    wide.contains(narrow) && SPECIAL.iter().all(|special| !special.net.contains(narrow) || special.net.contains(wide))
}

/// The addresses at which a cloud tells machines their secrets.
pub fn metadata() -> impl Iterator<Item = Ipv4Addr> {
    let metadata = SPECIAL.iter().filter(|special| special.class == METADATA);
    metadata.filter_map(|special| match special.net.addr() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    })
}

/// The word for an address that is not public, for people.
pub(crate) fn class(ip: IpAddr) -> &'static str {
    match special(ip) {
        Some(special) => special.class,
        None if is_reserved(ip) => "reserved",
        None => "public",
    }
}

fn special(ip: IpAddr) -> Option<&'static Special> {
    SPECIAL.iter().find(|special| special.net.contains(&ip))
}

fn is_reserved(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if !GLOBAL_V6.contains(&v6))
}

/// The IPv4 addresses inside an IPv6 one that some host on the way may unwrap.
fn disguised_v4(ip: IpAddr) -> [Option<Ipv4Addr>; 4] {
    let IpAddr::V6(v6) = ip else { return [None; 4] };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    let one = match (a, b) {
        // RFC 8215: a network chooses the length of its prefix in there.
        (0x64, 0xff9b) if c == 1 => return [48, 56, 64, 96].map(|len| Some(embedded_v4(v6, len))),
        (0, 0) if [c, d, e] == [0; 3] && (f == 0 || f == 0xffff) => Some(join(g, h)),
        (0x64, 0xff9b) => Some(join(g, h)),
        (0x2002, _) => Some(join(b, c)),
        // RFC 4380 §4: Teredo carries the client's address inverted.
        (0x2001, 0) => Some(join(!g, !h)),
        _ => None,
    };
    [one, None, None, None]
}

/// RFC 6052 §2.2: the address follows the prefix, skipping bits 64 to 71.
fn embedded_v4(v6: Ipv6Addr, prefix_len: u8) -> Ipv4Addr {
    let bits = u128::from(v6);
    let without_u = ((bits >> 64) << 64) | ((bits & ((1 << 56) - 1)) << 8);
    let aligned = if prefix_len >= 96 { bits << 96 } else { without_u << prefix_len };
    Ipv4Addr::from((aligned >> 96) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Judgement::{Denied, Permitted};

    fn reach(words: &[&str]) -> Reach {
        Reach {
            public: words.contains(&"public"),
            prefixes: words.iter().filter(|w| **w != "public").map(|w| w.parse().unwrap()).collect(),
        }
    }

    #[track_caller]
    fn check(words: &[&str], ip: &str, expected: Judgement) {
        assert_eq!(judge(ip.parse().unwrap(), &reach(words), None), expected, "{ip} with {words:?}");
    }

    /// One address at each edge of every named range, and the disguises.
    const NOT_PUBLIC: &[&str] = &[
        "0.0.0.0",
        "0.255.255.255",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.0",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.0.0",
        "169.254.169.254",
        "169.254.255.255",
        "168.63.129.16",
        "172.16.0.0",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.0",
        "192.168.255.255",
        "198.18.0.0",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.255",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:10.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::a00:1",
        "64:ff9b::808:808",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:2::1",
        "2001:1ff::1",
        "2001:db8::1",
        "2002:a00:1::1",
        "2002:808:808::1",
        "3fff::1",
        "3fff:fff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fd12::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "1::1",
    ];

    const PUBLIC: &[&str] = &[
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "168.63.129.17",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2001:200::1",
        "2001:4860::1",
        "2003::1",
        "2606:4700::1",
        "2a01::1",
        "3ffe::1",
    ];

    #[test]
    fn public_means_no_special_range_and_its_neighbours_are_public() {
        for ip in NOT_PUBLIC {
            check(&["public"], ip, Denied);
            // The whole internet as a prefix opens none of them.
            check(&["public", "0.0.0.0/0", "::/0"], ip, Denied);
        }
        for ip in PUBLIC {
            check(&["public"], ip, Permitted);
            check(&["10.0.0.0/8"], ip, Denied);
            check(&["0.0.0.0/0", "::/0"], ip, Permitted);
        }
    }

    #[test]
    fn a_range_opens_by_a_prefix_inside_it() {
        check(&["10.1.0.0/16"], "10.1.2.3", Permitted);
        check(&["10.1.0.0/16"], "10.2.2.3", Denied);
        check(&["10.0.0.0/8"], "10.2.2.3", Permitted);
        check(&["10.0.0.0/7"], "10.2.2.3", Denied);
        check(&["127.0.0.0/8"], "127.0.0.1", Permitted);
        check(&["::1/128"], "::1", Permitted);
        check(&["::/96"], "::1", Denied);
        check(&["::ffff:10.0.0.0/104"], "::ffff:10.0.0.1", Permitted);
        check(&["10.0.0.0/8"], "::ffff:10.0.0.1", Denied);
        check(&["fd00::/8"], "fd00::1", Permitted);
        check(&["4000::/16"], "4000::1", Denied);
    }

    #[test]
    fn metadata_opens_only_by_name() {
        check(&["169.254.0.0/16"], "169.254.1.1", Permitted);
        check(&["169.254.0.0/16"], "169.254.169.254", Denied);
        check(&["169.254.169.254/32"], "169.254.169.254", Permitted);
        check(&["168.63.129.0/24"], "168.63.129.16", Denied);
        check(&["168.63.129.16/32"], "168.63.129.16", Permitted);
        for disguise in [
            "::ffff:169.254.169.254",
            "::a9fe:a9fe",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "64:ff9b:1:a9fe:a9:fe00::",
            "64:ff9b:1:a9fe:a9:fe00:1:2",
            "64:ff9b:1:12a9:fe:a9fe::",
            "64:ff9b:1:1234:a9:fea9:fe00::",
            "2002:a9fe:a9fe::1",
            "2001:0:1::5601:5601",
        ] {
            check(&[&format!("{disguise}/128")], disguise, Denied);
        }
        for neighbour in ["64:ff9b:1:a9fe:a9:ff00::", "64:ff9b:1:12a9:fe:a9ff::", "64:ff9b:1:1234:a9:fea9:ff00::"] {
            check(&[&format!("{neighbour}/128")], neighbour, Permitted);
        }
    }

    #[test]
    fn translated_addresses_are_judged_by_what_they_carry() {
        let nat64 = |ip: &str, prefix: &str, words: &[&str]| {
            judge(ip.parse().unwrap(), &reach(words), Some(prefix.parse().unwrap()))
        };
        assert_eq!(nat64("64:ff9b::808:808", "64:ff9b::/96", &["public"]), Permitted);
        assert_eq!(nat64("64:ff9b::a00:1", "64:ff9b::/96", &["public"]), Denied);
        assert_eq!(nat64("64:ff9b::a00:1", "64:ff9b::/96", &["10.0.0.0/8"]), Permitted);
        // RFC 6052 §2.4 spells 192.0.2.33 under every prefix length.
        for (ip, prefix) in [
            ("2001:db8:c000:221::", "2001:db8::/32"),
            ("2001:db8:1c0:2:21::", "2001:db8:100::/40"),
            ("2001:db8:122:c000:2:2100::", "2001:db8:122::/48"),
            ("2001:db8:122:3c0:0:221::", "2001:db8:122:300::/56"),
            ("2001:db8:122:344:c0:2:2100::", "2001:db8:122:344::/64"),
            ("2001:db8:122:344::192.0.2.33", "2001:db8:122:344::/96"),
        ] {
            let prefix: Ipv6Net = prefix.parse().unwrap();
            assert_eq!(embedded_v4(ip.parse().unwrap(), prefix.prefix_len()), Ipv4Addr::new(192, 0, 2, 33), "{ip}");
        }
    }
}
