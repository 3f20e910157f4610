//! Sockets, their options, and which process has one.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

/// Connections the kernel completes while egret is busy.
const BACKLOG: i32 = 4096;

/// Binds a TCP listener. An IPv6 wildcard takes IPv4 too. What it accepts has its options (tcp(7)): no delay for
/// small writes, and keepalives. For `tproxy` it may be handed connections to any address.
///
/// # Errors
/// The kernel's.
pub fn listen(address: SocketAddr, keepalive: Duration, is_tproxy: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    set_options(&socket, keepalive)?;
    if is_tproxy {
        set_transparent(&socket, address.ip())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What both sides of a relayed connection get: no delay for small writes, and keepalives so that a quiet
/// tunnel is known to live.
///
/// # Errors
/// The kernel's, where the socket is already gone.
pub fn set_options(socket: &Socket, keepalive: Duration) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive).with_interval(keepalive))
}

/// Lets a socket use addresses that are not this machine's (ip(7), IP_TRANSPARENT).
///
/// # Errors
/// The kernel's: it takes CAP_NET_ADMIN or CAP_NET_RAW.
pub fn set_transparent(socket: &Socket, ip: IpAddr) -> io::Result<()> {
    match ip {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// The process that has an address and port, such as `systemd-resolve (process 612)`; `None` where this process may not see it.
#[must_use]
pub fn holder(address: SocketAddr) -> Option<String> {
    let tables = ["tcp", "tcp6", "udp", "udp6"].map(|table| fs::read_to_string(format!("/proc/net/{table}")));
    let tables = tables.map(Result::unwrap_or_default);
    let sockets: HashSet<String> = tables.iter().flat_map(|table| open_at(table, address)).collect();
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let numbered = processes.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())));
    let mut holding = numbered.filter(|(_, folder)| {
        let files = fs::read_dir(folder.join("fd")).into_iter().flatten().filter_map(Result::ok);
        let links = files.filter_map(|file| fs::read_link(file.path()).ok());
        links.filter_map(|link| link.to_str().map(str::to_owned)).any(|link| sockets.contains(&link))
    });
    let (number, folder) = holding.next()?;
    let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
    Some(format!("{} (process {number})", name.trim()))
}

/// Sockets of a table (proc(5), /proc/net/tcp) without a peer that a bind to this address would clash with, as links to them
/// are named.
fn open_at(table: &str, address: SocketAddr) -> impl Iterator<Item = String> {
    let port = format!("{:04X}", address.port());
    // In words of the machine's byte order.
    let hex = |bytes: &[u8]| -> String {
        let words = bytes.chunks_exact(4).filter_map(<[u8]>::first_chunk);
        words.map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect()
    };
    let ip = match address.ip() {
        IpAddr::V4(ip) => hex(&ip.octets()),
        IpAddr::V6(ip) => hex(&ip.octets()),
    };
    let clashes = move |other: &str| address.ip().is_unspecified() || other == ip || other.bytes().all(|b| b == b'0');
    table.lines().skip(1).filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local_ip, local_port) = fields.get(1)?.split_once(':')?;
        let is_open = local_port == port && clashes(local_ip) && fields.get(2)?.ends_with(":0000");
        is_open.then(|| format!("socket:[{}]", fields.get(9).unwrap_or(&"")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_has_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for address in [listener.local_addr().unwrap(), udp.local_addr().unwrap()] {
            let holder = holder(address).unwrap();
            assert!(holder.ends_with(&format!("(process {})", std::process::id())), "{holder}");
        }
        let at = |text: &str, table: &str| open_at(table, text.parse().unwrap()).next();
        let stub = "head\n0: 0100007F:0035 00000000:0000 0A a b c 0 0 77 x\n";
        assert_eq!(at("127.0.0.1:53", stub), Some("socket:[77]".to_owned()));
        assert_eq!(at("0.0.0.0:53", stub), Some("socket:[77]".to_owned()));
        assert_eq!((at("127.0.0.2:53", stub), at("127.0.0.1:54", stub)), (None, None));
        let connection = "head\n0: 0100007F:0035 0100007F:1234 01 a b c 0 0 77 x\n";
        assert_eq!(at("127.0.0.1:53", connection), None);
    }
}
