//! TCP sockets and their options.

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
