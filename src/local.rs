//! The addresses that this machine takes for its own: those of its interfaces, and what local routes add to them (load
//! balancers' frontends, for one).

use std::io;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{MsgFlags, SockProtocol};

use crate::netlink::{
    DEL_ROUTE, DUMP, GET_ROUTE, Messages, NEW_ROUTE, RTN_LOCAL, Received, Socket, attribute, received,
};

/// linux/rtnetlink.h: `RTA_DST`.
const DESTINATION: u16 = 1;
const RTN_ANYCAST: u8 = 4;
/// Kinds of routes that end here.
const HERE: [u8; 2] = [RTN_LOCAL, RTN_ANYCAST];
/// The table that the kernel asks first.
const LOCAL_TABLE: u8 = 255;
/// The groups of route changes, both families.
const ROUTE_CHANGES: u32 = 0x40 | 0x400;

/// All of them, as they are now.
///
/// # Errors
/// The kernel's.
pub fn addresses() -> io::Result<Vec<IpNet>> {
    let interfaces = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpNet::from(std::net::IpAddr::V4(a.ip())));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpNet::from(std::net::IpAddr::V6(a.ip()))))
    });
    let mut all: Vec<IpNet> = interfaces.collect();
    let socket = Socket::open(SockProtocol::NetlinkRoute, 0)?;
    let mut messages = Messages::default();
    // Both families at once.
    drop(messages.begin(GET_ROUTE, DUMP, &[0; 12]));
    socket.dump(&messages, |message| all.extend(local(message)))?;
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Hears of changes.
#[derive(Debug)]
pub struct Changes(Socket);

impl Changes {
    /// Begins to listen.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listen() -> io::Result<Self> {
        Socket::open(SockProtocol::NetlinkRoute, ROUTE_CHANGES).map(Self)
    }

    /// Waits until the addresses may be others.
    ///
    /// # Errors
    /// The kernel's.
    pub fn next(&self) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.0.receive(&mut buffer, MsgFlags::empty()) {
                Ok(bytes) if received(bytes).any(|message| local(message).is_some()) => return Ok(()),
                // More changes at once than there was room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(error) if error.raw_os_error() != Some(Errno::EINTR as i32) => return Err(error),
                _ => {}
            }
        }
    }
}

/// What a route message (linux/rtnetlink.h, `rtmsg`) gives to this machine.
fn local(message: Received<'_>) -> Option<IpNet> {
    let (head, attrs) = message.payload.split_at_checked(12)?;
    let &[family, len, _, _, LOCAL_TABLE, _, _, kind, ..] = head else { return None };
    if ![NEW_ROUTE, DEL_ROUTE].contains(&message.kind) || !HERE.contains(&kind) {
        return None;
    }
    let destination = attribute(attrs, DESTINATION);
    let ip = match i32::from(family) {
        libc::AF_INET => <[u8; 4]>::try_from(destination.unwrap_or(&[0; 4])).ok()?.into(),
        libc::AF_INET6 => <[u8; 16]>::try_from(destination.unwrap_or(&[0; 16])).ok()?.into(),
        _ => return None,
    };
    IpNet::new(ip, len).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(table: u8, kind: u8) -> Option<IpNet> {
        let mut messages = Messages::default();
        let head = [2, 24, 0, 0, table, 0, 0, kind, 0, 0, 0, 0];
        messages.begin(NEW_ROUTE, 0, &head).attr(DESTINATION, &[20, 1, 2, 0]);
        received(messages.bytes()).find_map(local)
    }

    #[test]
    fn local_routes_are_distinguished_from_others() {
        assert_eq!(route(LOCAL_TABLE, 2), Some("20.1.2.0/24".parse().unwrap()));
        assert_eq!(route(LOCAL_TABLE, 4), Some("20.1.2.0/24".parse().unwrap()));
        assert_eq!(route(LOCAL_TABLE, 3), None, "broadcast");
        assert_eq!(route(254, 1), None, "the way to another host");
        assert_eq!(route(129, 2), None, "a table that only marked packets see");
    }

    #[test]
    fn loopback_is_one_of_them() {
        let all = addresses().unwrap();
        assert!(all.iter().any(|net| net.contains(&"127.0.0.1".parse::<std::net::IpAddr>().unwrap())), "{all:?}");
    }
}
