//! Between two sockets: what is small passes through a buffer that all directions of a thread share, what is
//! large through a pipe, uncopied. A direction that waits owns neither, and no room for what is seldom done.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;

use rustix::io::Errno;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::pipe::Lent;
use super::{Flow, Side};
use crate::stream::with_shared;

/// A read of this much means that more is on its way.
const MANY: usize = 16 << 10;

/// How bytes pass best, by what came last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// A few at a time.
    Chatty,
    Busy,
}

/// What came of one try.
enum Step {
    Moved(usize),
    /// Read, and not all written: these are left.
    Left(usize, Vec<u8>),
    /// Nothing is there.
    Waits,
    Ended,
}

pub(super) async fn one_way(from: &TcpStream, to: &TcpStream, flow: Flow<'_>, first: Vec<u8>) -> Result<(), Side> {
    if !first.is_empty() {
        Box::pin(write(to, &first)).await.map_err(|e| flow.cannot_write(e))?;
        flow.moved(first.len());
    }
    drop(first);
    let (mut pace, mut can_splice) = (Pace::Chatty, true);
    loop {
        poll_fn(|cx| from.poll_read_ready(cx)).await.map_err(|e| flow.cannot_read(e))?;
        let lent = if pace == Pace::Busy && can_splice { Lent::take() } else { None };
        if let Some(lent) = lent {
            match Box::pin(burst(from, to, flow, lent)).await? {
                Burst::Moved(n) if n < MANY => pace = Pace::Chatty,
                Burst::Moved(_) => {}
                Burst::Ended => break,
                Burst::Refused => can_splice = false,
            }
            continue;
        }
        match step(from, to, flow)? {
            Step::Moved(n) => {
                flow.moved(n);
                pace = if n < MANY { Pace::Chatty } else { Pace::Busy };
            }
            Step::Left(n, left) => {
                Box::pin(write(to, &left)).await.map_err(|e| flow.cannot_write(e))?;
                flow.moved(n);
                pace = Pace::Busy;
            }
            Step::Waits => {}
            Step::Ended => break,
        }
        tokio::task::consume_budget().await;
    }
    flow.ended()?;
    if flow.shared.is_last() {
        // Both sides have finished, and both sockets are closed next.
        return Ok(());
    }
    flow.told(SockRef::from(to).shutdown(Shutdown::Write))
}

/// Reads once into the shared buffer and writes it.
fn step(from: &TcpStream, to: &TcpStream, flow: Flow<'_>) -> Result<Step, Side> {
    with_shared(|shared| {
        let n = match read(from, shared) {
            Ok(0) => return Ok(Step::Ended),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Waits),
            Err(e) => return Err(flow.cannot_read(e)),
        };
        let bytes = shared.get(..n).unwrap_or_default();
        let written = match to.try_write(bytes) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            written => written.map_err(|e| flow.cannot_write(e))?,
        };
        match bytes.get(written..).unwrap_or_default() {
            [] => Ok(Step::Moved(n)),
            left => Ok(Step::Left(n, left.to_vec())),
        }
    })
}

/// Reads once. A read that does not fill the buffer has emptied the socket: saying so spares the next one, which
/// would find nothing.
fn read(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut short = None;
    let read = from.try_io(Interest::READABLE, || match rustix::io::read(from, &mut *buffer)? {
        n if n > 0 && n < buffer.len() => {
            short = Some(n);
            Err(io::ErrorKind::WouldBlock.into())
        }
        n => Ok(n),
    });
    short.map_or(read, Ok)
}

async fn write(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => poll_fn(|cx| to.poll_write_ready(cx)).await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// What came of a burst.
enum Burst {
    Moved(usize),
    Ended,
    /// The kernel does not splice these sockets, or has no room for it.
    Refused,
}

/// Moves all there is, until the socket has no more.
async fn burst(from: &TcpStream, to: &TcpStream, flow: Flow<'_>, mut lent: Lent) -> Result<Burst, Side> {
    let mut moved = 0;
    loop {
        match lent.fill(from) {
            Ok(0) => return Ok(Burst::Ended),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Burst::Moved(moved)),
            Err(e) if is_refusal(&e) => return Ok(Burst::Refused),
            Err(e) => return Err(flow.cannot_read(e)),
        }
        while !lent.is_empty() {
            match lent.drain(to) {
                Ok(n) => {
                    flow.moved(n);
                    moved += n;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    poll_fn(|cx| to.poll_write_ready(cx)).await.map_err(|e| flow.cannot_write(e))?;
                }
                Err(e) => return Err(flow.cannot_write(e)),
            }
        }
        tokio::task::consume_budget().await;
    }
}

/// Failures that are about splicing and not about the socket.
fn is_refusal(error: &io::Error) -> bool {
    let refusals = [Errno::INVAL, Errno::NOSYS, Errno::PERM, Errno::ACCESS, Errno::NOMEM, Errno::NOBUFS];
    refusals.iter().any(|refusal| error.raw_os_error() == Some(refusal.raw_os_error()))
}
