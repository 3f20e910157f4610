//! Pipes that bytes pass through without being copied, lent for as long as bytes are in them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Pipes at once, two descriptors each; a connection that finds none copies.
pub const MOST_PIPES: usize = 128;

/// What one pipe holds. More would save system calls; unprivileged users get 64 MiB for all of theirs.
const CAPACITY: usize = 256 << 10;

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: Vec::new(), all: 0 });

struct Pool {
    idle: Vec<Arc<Pipe>>,
    /// With those that are lent.
    all: usize,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe of the pool; given back when dropped, or closed where bytes are left in it.
#[derive(Debug)]
pub(super) struct Lent {
    pipe: Arc<Pipe>,
    held: usize,
}

#[cfg(test)]
pub(super) fn all() -> usize {
    POOL.lock().unwrap_or_else(PoisonError::into_inner).all
}

impl Lent {
    /// `None` where there is none to have.
    pub(super) fn take() -> Option<Self> {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = match pool.idle.pop() {
            Some(pipe) => pipe,
            None if pool.all >= MOST_PIPES => return None,
            None => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
                // A smaller one does, too.
                let _ = fcntl_setpipe_size(&write, CAPACITY);
                pool.all += 1;
                Arc::new(Pipe { read, write })
            }
        };
        drop(pool);
        Some(Self { pipe, held: 0 })
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Moves bytes from a socket into the empty pipe, so many at most, and says how many. None does not mean the end,
    /// nor that none are there: a splice stops at urgent data (tcp(7)), and only a read tells which it is.
    pub(super) fn fill(&mut self, from: &TcpStream, most: u64) -> io::Result<usize> {
        let most = CAPACITY.min(usize::try_from(most).unwrap_or(CAPACITY));
        let filled = from.try_io(Interest::READABLE, || match moved(from, &self.pipe.write, most) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            filled => filled,
        });
        match filled {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            filled => filled.inspect(|n| self.held += n),
        }
    }

    /// Moves bytes from the pipe to a socket.
    pub(super) fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let n = to.try_io(Interest::WRITABLE, || moved(&self.pipe.read, to, self.held))?;
        self.held = self.held.saturating_sub(n);
        Ok(n)
    }
}

fn moved(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_empty() {
            pool.idle.push(Arc::clone(&self.pipe));
        } else {
            // Another connection must not get them.
            pool.all -= 1;
        }
    }
}
