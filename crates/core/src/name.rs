//! Host names as policy knows them: one spelling, settled where the bytes enter.
//!
//! Owns the difference between a name and an address. Does not own patterns (`policy::pattern`) or
//! IDNA, which is for configuration only: on the wire a name is ASCII or it is not a name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// RFC 1035 §2.3.4: 255 octets on the wire are 253 characters of text without the final dot.
pub const MAX_NAME: usize = 253;
/// RFC 1035 §2.3.4.
pub const MAX_LABEL: usize = 63;

/// A DNS host name: lower case, no trailing dot, every label 1 to 63 bytes of letters, digits,
/// hyphens and underscores (at an edge too: DNS knows such names, and real hosts have them), 253 bytes at most, never
/// an address.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Box<str>);

/// What a peer or an operator put where a host belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Name(HostName),
    Address(IpAddr),
}

/// Why some bytes are not a host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    #[error("the name is empty")]
    Empty,
    #[error("the name is longer than {MAX_NAME} bytes")]
    TooLong,
    #[error("a label is empty (two dots in a row, or a dot in front)")]
    EmptyLabel,
    #[error("a label is longer than {MAX_LABEL} bytes")]
    LongLabel,
    #[error("{} is not a letter, a digit, `-`, `_` or `.`", shown(*.0))]
    BadByte(u8),
    #[error("an address stands where a name is needed")]
    Address,
}

fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("`{}`", char::from(byte)) } else { format!("byte 0x{byte:02x}") }
}

impl Host {
    /// Reads a host as it stands on the wire; one trailing dot is removed.
    ///
    /// An address in any spelling `inet_aton` takes, or an IPv6 literal with or without brackets, is
    /// [`Host::Address`].
    ///
    /// # Errors
    /// [`NameFault`] for anything that is neither; at most 253 bytes are looked at.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, NameFault> {
        // The root's dot belongs to a name; behind brackets (RFC 3986 §3.2.2) two readers would not agree on it.
        let bytes = bytes.strip_suffix(b".").filter(|rest| !rest.ends_with(b"]")).unwrap_or(bytes);
        if bytes.is_empty() {
            return Err(NameFault::Empty);
        }
        if bytes.len() > MAX_NAME {
            return Err(NameFault::TooLong);
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|e| NameFault::BadByte(bytes.get(e.valid_up_to()).copied().unwrap_or(0xff)))?;
        if let Some(address) = literal(text) {
            return Ok(Self::Address(address));
        }
        for label in bytes.split(|byte| *byte == b'.') {
            check_label(label)?;
        }
        Ok(Self::Name(HostName(text.to_ascii_lowercase().into())))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl HostName {
    /// The root of all names, about whose keys resolvers ask. No rule lists it.
    #[must_use]
    pub fn root() -> Self {
        Self("".into())
    }

    /// As [`Host::from_wire`], where an address is a fault.
    ///
    /// # Errors
    /// [`NameFault`], with [`NameFault::Address`] for a literal.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, NameFault> {
        match Host::from_wire(bytes)? {
            Host::Name(name) => Ok(name),
            Host::Address(_) => Err(NameFault::Address),
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name itself, then what is left after each leading label: `a.b.c`, `b.c`, `c`.
    pub fn suffixes(&self) -> impl Iterator<Item = &str> {
        let mut rest = Some(self.as_str());
        std::iter::from_fn(move || {
            let here = rest?;
            // Byte by byte: labels are short, and a searcher's beginnings would cost more than its speed.
            rest = here.bytes().position(|byte| byte == b'.').and_then(|dot| here.get(dot + 1..));
            Some(here)
        })
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostName({})", self.0)
    }
}

fn check_label(label: &[u8]) -> Result<(), NameFault> {
    if label.is_empty() {
        return Err(NameFault::EmptyLabel);
    }
    let odd = label.iter().find(|b| !(b.is_ascii_alphanumeric() || **b == b'-' || **b == b'_'));
    if let Some(byte) = odd {
        return Err(NameFault::BadByte(*byte));
    }
    if label.len() > MAX_LABEL {
        return Err(NameFault::LongLabel);
    }
    Ok(())
}

/// An address in any spelling that some resolver on the way might take for one.
fn literal(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if inner.contains(':') {
        // An IPv4-mapped literal is the IPv4 address: one destination, one verdict.
        return inner.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    }
    inet_aton(text).map(IpAddr::V4)
}

/// The BSD reading of an IPv4 address: one to four parts, each decimal, octal or hexadecimal; the
/// last part fills the bytes that are left.
fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    // Every kind of number begins with a digit; most names end in letters.
    let last = text.as_bytes().rsplit(|byte| *byte == b'.').next();
    if !last.and_then(<[u8]>::first).is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let parts: Vec<u64> = text.split('.').map(number).collect::<Option<_>>()?;
    let (last, front) = parts.split_last()?;
    if front.iter().any(|part| *part > 0xff) {
        return None;
    }
    let room = [32, 24, 16, 8].get(front.len())?;
    if *last >= 1u64 << room {
        return None;
    }
    let high = front.iter().fold(0u64, |sum, part| (sum << 8) | part);
    u32::try_from((high << room) | last).ok().map(Ipv4Addr::from)
}

fn number(part: &str) -> Option<u64> {
    let lower = part.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0x") {
        // `0x` alone counts as zero for several libcs.
        return if hex.is_empty() { Some(0) } else { all_digits(hex, 16) };
    }
    match lower.strip_prefix('0') {
        Some(octal) if !octal.is_empty() => {
            // An `09` is not an octal number; some parsers then read it as decimal, so it is an address too.
            all_digits(octal, 8).or_else(|| all_digits(octal, 10))
        }
        _ => all_digits(&lower, 10),
    }
}

fn all_digits(text: &str, radix: u32) -> Option<u64> {
    // `from_str_radix` takes a leading `+`, which is not a digit.
    text.chars().all(|c| c.is_digit(radix)).then(|| u64::from_str_radix(text, radix).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn name(wire: impl AsRef<[u8]>, expected: &str) {
        assert_eq!(Host::from_wire(wire.as_ref()), Ok(Host::Name(HostName(expected.into()))));
    }

    #[track_caller]
    fn fault(wire: impl AsRef<[u8]>, expected: NameFault) {
        assert_eq!(Host::from_wire(wire.as_ref()), Err(expected));
    }

    #[track_caller]
    fn address(wire: &str, expected: &str) {
        assert_eq!(Host::from_wire(wire.as_bytes()), Ok(Host::Address(expected.parse().unwrap())));
    }

    #[test]
    fn a_name_has_one_spelling() {
        name("MCR.Microsoft.COM", "mcr.microsoft.com");
        name("mcr.microsoft.com.", "mcr.microsoft.com");
        name("localhost", "localhost");
        name("_dns.i_need_sni", "_dns.i_need_sni");
        name("xn--bcher-kva.example", "xn--bcher-kva.example");
        name("1.2.3.4.5", "1.2.3.4.5");
        name("a.1x", "a.1x");
    }

    #[test]
    fn what_is_not_a_name_says_why() {
        fault("", NameFault::Empty);
        fault(".", NameFault::Empty);
        fault("a..b", NameFault::EmptyLabel);
        fault(".a", NameFault::EmptyLabel);
        fault("a.b..", NameFault::EmptyLabel);
        name("-a.example", "-a.example");
        name("user-.github.io", "user-.github.io");
        fault("a\0.example", NameFault::BadByte(0));
        fault("a b", NameFault::BadByte(b' '));
        fault("a:443", NameFault::BadByte(b':'));
        fault("*.example", NameFault::BadByte(b'*'));
        fault("bücher.example", NameFault::BadByte(0xc3));
        fault([0x61, 0xff], NameFault::BadByte(0xff));
    }

    #[test]
    fn lengths_hold_to_the_byte() {
        name(format!("{}.example", "a".repeat(63)), &format!("{}.example", "a".repeat(63)));
        fault(format!("{}.example", "a".repeat(64)), NameFault::LongLabel);
        let longest = [["a".repeat(63).as_str(); 3].join("."), "a".repeat(61)].join(".");
        assert_eq!(longest.len(), 253);
        name(&longest, &longest);
        name(format!("{longest}."), &longest);
        fault(format!("{longest}a"), NameFault::TooLong);
    }

    #[test]
    fn an_address_in_any_spelling_is_an_address() {
        address("127.0.0.1", "127.0.0.1");
        address("127.0.0.1.", "127.0.0.1");
        address("127.1", "127.0.0.1");
        address("2130706433", "127.0.0.1");
        address("017700000001", "127.0.0.1");
        address("0x7f000001", "127.0.0.1");
        address("0X7F.0.0.1", "127.0.0.1");
        address("0177.0.0.01", "127.0.0.1");
        address("0x", "0.0.0.0");
        address("09.0.0.1", "9.0.0.1");
        address("::1", "::1");
        address("[::ffff:10.0.0.1]", "10.0.0.1");
        name("4294967296", "4294967296");
        name("0xg.example", "0xg.example");
    }

    #[test]
    fn suffixes_start_at_labels() {
        let name = HostName::from_wire(b"a.b.c").unwrap();
        assert_eq!(name.suffixes().collect::<Vec<_>>(), ["a.b.c", "b.c", "c"]);
    }

    #[test]
    fn no_dot_follows_brackets() {
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(Host::from_wire(b"[2001:db8::1]"), Ok(Host::Address(v6)));
        assert!(Host::from_wire(b"[2001:db8::1].").is_err());
        assert!(Host::from_wire(b"[2001:db8::1.]").is_err());
        assert_eq!(Host::from_wire(b"a.example.").unwrap().to_string(), "a.example");
        assert_eq!(Host::from_wire(b"192.0.2.1.").unwrap().to_string(), "192.0.2.1");
    }
}
