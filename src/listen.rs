//! The front door: accepting, counting, and finding out what a client claims.
//!
//! One accept loop for every kind of listener; it does not know what its handler does. Owns the limits on
//! connections and the words in which a refusal is told. Judges nothing.

pub mod arrival;
mod client;
mod entrance;
mod refusal;
mod socks5;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

pub use client::{Claimed, Client};
pub use entrance::Entrance;

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

/// How many may be inside at once.
#[derive(Debug)]
pub struct Door {
    most: usize,
    most_per_client: Option<usize>,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// A place inside; given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    door: Arc<Door>,
    /// Whose it is, once that is known.
    client: Option<IpAddr>,
}

impl Door {
    #[must_use]
    pub fn new(most: usize, most_per_client: Option<usize>) -> Arc<Self> {
        Arc::new(Self { most, most_per_client, inside: Mutex::default() })
    }

    /// A place for somebody, if there is one.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Option<Ticket> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if inside.all >= self.most {
            return None;
        }
        inside.all += 1;
        drop(inside);
        Some(Ticket { door: Arc::clone(self), client: None })
    }
}

impl Ticket {
    /// Says whose the place is; whether this client may have another one.
    #[must_use]
    pub fn is_for(&mut self, client: IpAddr) -> bool {
        // Nobody is counted where nobody has a limit.
        let Some(most) = self.door.most_per_client else { return true };
        let mut inside = self.door.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let own = inside.by_client.get(&client).copied().unwrap_or(0);
        if own >= most {
            return false;
        }
        inside.by_client.insert(client, own + 1);
        self.client = Some(client);
        true
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inside = self.door.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.all -= 1;
        let Some(client) = self.client else { return };
        let left = inside.by_client.get(&client).map_or(0, |n| n - 1);
        // Clients that are gone leave no entry: the map is as small as the crowd.
        if left == 0 {
            inside.by_client.remove(&client);
        } else {
            inside.by_client.insert(client, left);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_door_counts_everybody_and_each() {
        let door = Door::new(3, Some(2));
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let enter = |client| door.enter().and_then(|mut ticket| ticket.is_for(client).then_some(ticket));
        let first = enter(a);
        let second = enter(a);
        assert!(first.is_some() && second.is_some());
        assert!(enter(a).is_none(), "one client has its own limit");
        let third = enter(b);
        assert!(third.is_some());
        assert!(door.enter().is_none(), "all together have one");
        drop(first);
        assert!(enter(a).is_some());
        drop((second, third));
        let inside = door.inside.lock().unwrap();
        assert!(inside.by_client.is_empty() && inside.all == 0, "nobody inside, nothing kept");
    }
}
