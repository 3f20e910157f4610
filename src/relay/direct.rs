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
use super::{Flow, Side, Way};
use crate::stream::{reset_of, with_shared};

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
        Box::pin(write(from, to, flow, &first)).await?;
        flow.moved(first.len());
    }
    drop(first);
    pass(from, to, flow, u64::MAX).await?;
    flow.ended()?;
    if flow.shared.is_last() {
        // Both sides have finished, and both sockets are closed next.
        return Ok(());
    }
    flow.told(SockRef::from(to).shutdown(Shutdown::Write))
}

/// Moves so many bytes, or as many as there are until the end; how many they were.
pub(super) async fn pass(from: &TcpStream, to: &TcpStream, flow: Flow<'_>, most: u64) -> Result<u64, Side> {
    let (mut pace, mut can_splice) = (Pace::Chatty, true);
    let (mut left, mut in_doubt) = (most, false);
    while left > 0 {
        poll_fn(|cx| from.poll_read_ready(cx)).await.map_err(|e| flow.cannot_read(e))?;
        let lent = if pace == Pace::Busy && can_splice && !in_doubt { Lent::take() } else { None };
        if let Some(lent) = lent {
            let Burst { moved, is_refused } = Box::pin(burst(from, to, flow, lent, left)).await?;
            left -= moved;
            pace = if moved < MANY as u64 { Pace::Chatty } else { Pace::Busy };
            can_splice = !is_refused;
            in_doubt = true;
            continue;
        }
        in_doubt = false;
        let moved = match step(from, to, flow, left)? {
            Step::Moved(n) => n,
            Step::Left(n, rest) => {
                Box::pin(write(from, to, flow, &rest)).await?;
                n
            }
            Step::Waits => 0,
            Step::Ended => return Ok(most - left),
        };
        if moved > 0 {
            flow.moved(moved);
            left -= moved as u64;
            pace = if moved < MANY { Pace::Chatty } else { Pace::Busy };
        }
        tokio::task::consume_budget().await;
    }
    Ok(most)
}

/// Reads once into the shared buffer and writes it.
fn step(from: &TcpStream, to: &TcpStream, flow: Flow<'_>, most: u64) -> Result<Step, Side> {
    with_shared(|shared| {
        let room = shared.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let n = match read(from, shared.get_mut(..room).unwrap_or_default()) {
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

async fn write(from: &TcpStream, to: &TcpStream, flow: Flow<'_>, mut bytes: &[u8]) -> Result<(), Side> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => room(from, to, flow).await?,
            Err(e) => return Err(flow.cannot_write(e)),
        }
    }
    Ok(())
}

/// Waits until more can be written. A client that has reset meanwhile is noticed: nobody reads from it now. What an
/// upstream sent before it reset is still delivered.
async fn room(from: &TcpStream, to: &TcpStream, flow: Flow<'_>) -> Result<(), Side> {
    let gone = async {
        match flow.way {
            Way::Up => reset_of(from).await,
            Way::Down => std::future::pending().await,
        }
    };
    tokio::select! {
        ready = poll_fn(|cx| to.poll_write_ready(cx)) => ready.map_err(|e| flow.cannot_write(e)),
        () = gone => Err(flow.cannot_read(io::ErrorKind::ConnectionReset.into())),
    }
}

/// What came of a burst.
struct Burst {
    moved: u64,
    /// The kernel does not splice these sockets, or has no room for it.
    is_refused: bool,
}

/// Moves all that a pipe takes, so many bytes at most, until it takes no more.
async fn burst(from: &TcpStream, to: &TcpStream, flow: Flow<'_>, mut lent: Lent, most: u64) -> Result<Burst, Side> {
    let mut moved = 0;
    while moved < most {
        match lent.fill(from, most - moved) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if is_refusal(&e) => return Ok(Burst { moved, is_refused: true }),
            Err(e) => return Err(flow.cannot_read(e)),
        }
        while !lent.is_empty() {
            match lent.drain(to) {
                Ok(n) => {
                    flow.moved(n);
                    moved += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => room(from, to, flow).await?,
                Err(e) => return Err(flow.cannot_write(e)),
            }
        }
        tokio::task::consume_budget().await;
    }
    Ok(Burst { moved, is_refused: false })
}

/// Failures that are about splicing and not about the socket.
fn is_refusal(error: &io::Error) -> bool {
    let refusals = [Errno::INVAL, Errno::NOSYS, Errno::PERM, Errno::ACCESS, Errno::NOMEM, Errno::NOBUFS];
    refusals.iter().any(|refusal| error.raw_os_error() == Some(refusal.raw_os_error()))
}
