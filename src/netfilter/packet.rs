//! The first bytes of a packet that the kernel copies to egret: source, destination and protocol. Pure; the bytes are a
//! client's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::elements::{TCP, UDP};

/// What a packet shows of itself. Where a protocol has no ports, they are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// The IP protocol number.
    pub protocol: u8,
}

/// Reads an IPv4 (RFC 791 §3.1) or IPv6 (RFC 8200 §3) header and the ports behind it. IPv6 extension headers are not
/// walked: what they hide is logged without ports.
#[must_use]
pub fn read(bytes: &[u8]) -> Option<Packet> {
    let (from, to, protocol, rest): (IpAddr, IpAddr, u8, &[u8]) = match bytes.first()? >> 4 {
        4 => {
            let from = Ipv4Addr::from(*bytes.get(12..)?.first_chunk::<4>()?);
            let to = Ipv4Addr::from(*bytes.get(16..)?.first_chunk::<4>()?);
            let len = usize::from(bytes.first()? & 15) * 4;
            (from.into(), to.into(), *bytes.get(9)?, bytes.get(len..).unwrap_or_default())
        }
        6 => {
            let from = Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?);
            let to = Ipv6Addr::from(*bytes.get(24..)?.first_chunk::<16>()?);
            (from.into(), to.into(), *bytes.get(6)?, bytes.get(40..).unwrap_or_default())
        }
        _ => return None,
    };
    let port = |at: usize| {
        let bytes = rest.get(at..).and_then(<[u8]>::first_chunk);
        bytes.filter(|_| [TCP, UDP].contains(&protocol)).map_or(0, |bytes| u16::from_be_bytes(*bytes))
    };
    Some(Packet { from: SocketAddr::new(from, port(0)), to: SocketAddr::new(to, port(2)), protocol })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_families_are_read() {
        let mut v4 = vec![0x46, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 20, 0, 0, 2, 0, 0, 0, 0];
        v4.extend([0x30, 0x39, 1, 187]);
        let packet = read(&v4).unwrap();
        assert_eq!((packet.from, packet.to), ("10.0.0.1:12345".parse().unwrap(), "20.0.0.2:443".parse().unwrap()));
        let mut v6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
        v6.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend("2a01::2".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend([0, 53, 4, 170]);
        let packet = read(&v6).unwrap();
        assert_eq!((packet.from.to_string(), packet.to.to_string()), ("[fd00::1]:53".into(), "[2a01::2]:1194".into()));
        v4[9] = 1;
        assert_eq!(read(&v4).unwrap().to.port(), 0, "an ICMP checksum is not a port");
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(&bytes);
        }
    }
}
