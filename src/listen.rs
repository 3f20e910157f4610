//! The front door: accepting, counting, and finding out what a client claims.
//!
//! One accept loop for every kind of listener; it does not know what its handler does. Owns the limits on
//! connections and the words in which a refusal is told. Judges nothing.

pub mod arrival;
mod client;
mod entrance;
mod limit;
mod refusal;
mod socks5;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

pub use client::{Claimed, Client};
pub use entrance::Entrance;
pub use limit::{ConnectionLimit, ConnectionSlot};

use crate::drain::Guest;
use crate::record::Book;
use crate::upstream;

/// Connections the kernel completes while egret is busy.
const BACKLOG: i32 = 4096;
/// After a failed accept: long enough that a lack of descriptors is no spin, short enough to go unnoticed.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Binds a TCP listener. An IPv6 wildcard takes IPv4 too. What it accepts has its options (tcp(7)): no delay for
/// small writes, and keepalives. For `tproxy` it may be handed connections to any address.
///
/// # Errors
/// The kernel's.
pub fn bind(address: SocketAddr, keepalive: Duration, is_tproxy: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    upstream::set_options(&socket, keepalive)?;
    if is_tproxy {
        upstream::set_transparent(&socket, address.ip())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until told to stop, and while the log takes lines. Each connection is handed to `handle` with its guest; a failed accept is
/// waited out, because what it lacks (descriptors, memory) comes back when somebody leaves.
pub async fn serve(
    listener: TcpListener,
    book: Arc<Book>,
    guest: Guest,
    handle: impl Fn(TcpStream, SocketAddr, Guest),
) {
    loop {
        let accept = async {
            book.room().await;
            listener.accept().await
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            () = guest.stopping() => return,
        };
        match accepted {
            Ok((stream, address)) => handle(stream, address, guest.clone()),
            // The client left before it was let in: nothing is wrong with us.
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept; trying again");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}
