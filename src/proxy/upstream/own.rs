//! The connections that egret makes where it also takes this machine's own: one that is led back here is not another
//! client's.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::Socket;

/// Every connection that egret is making or has made, from and to.
#[derive(Debug, Default)]
pub struct OwnDials(Mutex<HashSet<(SocketAddr, SocketAddr)>>);

impl OwnDials {
    /// Begins to connect a socket that does not block.
    pub(super) fn connect(self: &Arc<Self>, socket: &Socket, to: SocketAddr) -> io::Result<OwnDial> {
        // Held over the call, within which a connection that comes back may be accepted already.
        let mut dials = self.dials();
        begin(socket, to)?;
        let from = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        dials.insert((from, to));
        drop(dials);
        Ok(OwnDial { ends: (from, to), of: Arc::clone(self) })
    }

    /// Whether a connection that was accepted is one of these.
    #[must_use]
    pub fn has(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.dials().contains(&(from, to))
    }

    fn dials(&self) -> MutexGuard<'_, HashSet<(SocketAddr, SocketAddr)>> {
        // Nothing panics while it is held but an allocation.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins to connect; the socket becomes writable when that has ended.
pub(super) fn begin(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    const UNDER_WAY: i32 = nix::errno::Errno::EINPROGRESS as i32;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(UNDER_WAY) => Err(error),
        _ => Ok(()),
    }
}

/// One of them, for as long as it lasts.
#[derive(Debug)]
pub struct OwnDial {
    ends: (SocketAddr, SocketAddr),
    of: Arc<OwnDials>,
}

impl Drop for OwnDial {
    fn drop(&mut self) {
        self.of.dials().remove(&self.ends);
    }
}
