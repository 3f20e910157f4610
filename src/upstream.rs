//! Dialling exactly what was permitted.
//!
//! Sees a [`Permit`] and nothing else: no name to resolve again, no address to add. Owns the deadline, the
//! race between address families (RFC 8305) and the socket options towards the upstream.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::ending::{Reason, Refusal, Stage};
use crate::policy::Permit;

/// RFC 8305 §5: how long one address has before the next is tried beside it.
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses tried at most; a name with more is a list, not a service.
const MAX_TRIED: usize = 16;

/// Connects to the first permitted address that answers.
///
/// # Errors
/// A refusal at stage `dial`, after `deadline` at the latest.
pub async fn dial(permit: &Permit, deadline: Duration) -> Result<TcpStream, Refusal> {
    let refuse = |reason| Refusal::new(reason, Stage::Dial);
    match tokio::time::timeout(deadline, race(permit.addresses())).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(refuse(reason(&error))),
        Err(_) => Err(refuse(Reason::ConnectTimeout)),
    }
}

/// Starts the next address when the last one failed or its head start is over. Dropping the set ends the
/// losers.
async fn race(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter().take(MAX_TRIED);
    let mut running = JoinSet::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        let next = waiting.next();
        if let Some(address) = next {
            running.spawn(TcpStream::connect(*address));
        } else if running.is_empty() {
            return Err(last);
        }
        let ended = if next.is_some() && waiting.len() > 0 {
            match tokio::time::timeout(HEAD_START, running.join_next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            }
        } else {
            running.join_next().await
        };
        match ended {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(error))) => last = error,
            Some(Err(join)) => last = io::Error::other(join),
            None => {}
        }
    }
}

fn reason(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::ConnectRefused,
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => Reason::PortsExhausted,
        _ => Reason::Unreachable,
    }
}

/// What both sides of a relayed connection get: no delay for small writes, and keepalives so that a quiet
/// tunnel is known to live.
///
/// # Errors
/// The kernel's, where the socket is already gone.
pub fn set_options(stream: &TcpStream, keepalive: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive).with_interval(keepalive))
}
