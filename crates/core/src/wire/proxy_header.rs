//! The PROXY protocol's binary header: whose connection this is, as a load balancer in front says.
//!
//! Pure: bytes in, value out. Version 2 of HAProxy's specification, chapters 2.2 and 2.2.4.

use std::net::{IpAddr, SocketAddr};

use super::reader::{Reader, Short};
use crate::outcome::Reason;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, the command, the family and the length of what follows.
pub const START: usize = 16;
/// Addresses, and what load balancers add of themselves.
const MAX_REST: usize = 4096;
/// PP2_TYPE_CRC32C.
const CRC32C: u8 = 3;

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The load balancer's own, as of a health check.
    Local,
    Client(SocketAddr),
}

/// How many bytes follow the start of a header.
///
/// # Errors
/// [`Reason::BadProxyHeader`] for what begins no header of version 2, or one that is too long.
pub fn rest_of(start: &[u8; START]) -> Result<usize, Reason> {
    let [.., version_and_command, _, high, low] = *start;
    let rest = usize::from(high) << 8 | usize::from(low);
    if !start.starts_with(SIGNATURE) || version_and_command >> 4 != 2 || rest > MAX_REST {
        return Err(Reason::BadProxyHeader);
    }
    Ok(rest)
}

/// What bytes are that begin no header of version 2, for the log.
#[must_use]
pub fn what_else(start: &[u8; START]) -> &'static str {
    match start {
        start if start.starts_with(b"PROXY ") => "the peer sends version 1; switch it to version 2",
        start if start.starts_with(SIGNATURE) => "the header is of another version, or too long",
        _ => "the peer sends no header; switch the PROXY protocol on there",
    }
}

/// Reads a whole header.
///
/// # Errors
/// [`Reason::BadProxyHeader`] for a broken one, and for a client that has no address.
pub fn read(start: &[u8; START], rest: &[u8]) -> Result<Origin, Reason> {
    let [.., version_and_command, family, _, _] = *start;
    let bad = |_: Short| Reason::BadProxyHeader;
    let mut reader = Reader::new(rest);
    let origin = match (version_and_command & 0xf, family) {
        // What it says of addresses is to be skipped.
        (0, _) => return Ok(Origin::Local),
        (1, 0x11) => {
            let from: [u8; 4] = array(&mut reader).map_err(bad)?;
            reader.take(4).map_err(bad)?;
            Origin::Client(SocketAddr::new(IpAddr::from(from), ports(&mut reader).map_err(bad)?))
        }
        (1, 0x21) => {
            let from: [u8; 16] = array(&mut reader).map_err(bad)?;
            reader.take(16).map_err(bad)?;
            Origin::Client(SocketAddr::new(IpAddr::from(from), ports(&mut reader).map_err(bad)?))
        }
        _ => return Err(Reason::BadProxyHeader),
    };
    while !reader.is_empty() {
        let kind = reader.u8().map_err(bad)?;
        let at = START + rest.len() - reader.rest().len() + 2;
        let value = reader.vec16().map_err(bad)?;
        if kind == CRC32C && value != checksum(start, rest, at..at + 4).to_be_bytes() {
            return Err(Reason::BadProxyHeader);
        }
    }
    Ok(origin)
}

fn array<const N: usize>(reader: &mut Reader<'_>) -> Result<[u8; N], Short> {
    reader.take(N)?.try_into().map_err(|_| Short)
}

/// The client's port, out of both.
fn ports(reader: &mut Reader<'_>) -> Result<u16, Short> {
    let from = reader.u16()?;
    reader.u16()?;
    Ok(from)
}

/// RFC 9260 appendix A, over the header with the checksum's own bytes as zeroes.
fn checksum(start: &[u8], rest: &[u8], own: std::ops::Range<usize>) -> u32 {
    let all = start.iter().chain(rest).enumerate();
    let bytes = all.map(|(at, byte)| if own.contains(&at) { 0 } else { *byte });
    let sum = bytes.fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    });
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> ([u8; START], Vec<u8>) {
        let mut start = [0; START];
        start[..12].copy_from_slice(SIGNATURE);
        start[12..14].copy_from_slice(&[command, family]);
        start[14..].copy_from_slice(&u16::try_from(rest.len()).unwrap().to_be_bytes());
        (start, rest.to_vec())
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 192, 0, 2, 9, 0x30, 0x39, 1, 187];

    #[track_caller]
    fn check(command: u8, family: u8, rest: &[u8], expected: Result<Origin, Reason>) {
        let (start, rest) = header(command, family, rest);
        assert_eq!(rest_of(&start).and_then(|n| (n == rest.len()).then(|| read(&start, &rest)).unwrap()), expected);
    }

    #[test]
    fn the_client_is_the_one_in_the_header() {
        let client = |text: &str| Ok(Origin::Client(text.parse().unwrap()));
        check(0x21, 0x11, &V4, client("192.0.2.7:12345"));
        let v6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1], &[0; 16], &[0, 1, 0, 2]].concat();
        check(0x21, 0x21, &v6, client("[2001:db8::1]:1"));
        check(0x21, 0x11, &[&V4[..], &[4, 0, 2, 0, 0]].concat(), client("192.0.2.7:12345"));
        check(0x20, 0, &[], Ok(Origin::Local));
        check(0x20, 0x11, &V4, Ok(Origin::Local));
    }

    #[test]
    fn whatever_else_is_refused() {
        let bad = Err(Reason::BadProxyHeader);
        // A version, a command, a family, datagrams, Unix sockets, nobody.
        for (command, family) in
            [(0x11, 0x11), (0x31, 0x11), (0x22, 0x11), (0x21, 0x12), (0x21, 0x31), (0x21, 0), (0x21, 0x10)]
        {
            check(command, family, &V4, bad);
        }
        for end in 0..V4.len() {
            check(0x21, 0x11, &V4[..end], bad);
        }
        // What is added must be whole.
        for more in [&[4][..], &[4, 0], &[4, 0, 1], &[4, 0, 2, 0], &[4, 0xff, 0xff, 0]] {
            check(0x21, 0x11, &[&V4[..], more].concat(), bad);
        }
        let (mut start, _) = header(0x21, 0x11, &V4);
        start[14] = 0xff;
        assert_eq!(rest_of(&start), Err(Reason::BadProxyHeader));
        assert_eq!(rest_of(b"PROXY TCP4 192.0"), Err(Reason::BadProxyHeader));
        assert_eq!(rest_of(b"GET / HTTP/1.1\r\n"), Err(Reason::BadProxyHeader));
    }

    #[test]
    fn a_checksum_must_be_right_where_there_is_one() {
        // The check value of the CRC catalogue.
        assert_eq!(checksum(b"1234", b"56789", 9..9), 0xe306_9283);
        let (start, rest) = header(0x21, 0x11, &[&V4[..], &[3, 0, 4, 0, 0, 0, 0]].concat());
        let sum = checksum(&start, &rest, 0..0).to_be_bytes();
        let with = |sum: &[u8]| [&V4[..], &[3, 0, 4], sum].concat();
        check(0x21, 0x11, &with(&sum), Ok(Origin::Client("192.0.2.7:12345".parse().unwrap())));
        check(0x21, 0x11, &with(&[0; 4]), Err(Reason::BadProxyHeader));
        check(0x21, 0x11, &[&V4[..], &[3, 0, 2], &sum[..2]].concat(), Err(Reason::BadProxyHeader));
    }
}
