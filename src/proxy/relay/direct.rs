//! Between two sockets: what is small passes through a buffer that all directions of a thread share, what is
//! large through a pipe, uncopied. A direction that waits owns neither, and no room for what is seldom done.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::flow::{Boxed, Flow, Side};
use super::pipe::Lent;
use crate::proxy::stream::{reset_of, with_shared};
use crate::record::Way;

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

/// One direction until its reader ends: the future that a tunnel keeps, so every byte of it counts.
pub(super) struct OneWay<'a> {
    course: Course<'a>,
}

impl<'a> OneWay<'a> {
    /// `first` goes before everything else.
    pub(super) fn new(from: &'a TcpStream, to: &'a TcpStream, flow: Flow<'a>, first: Vec<u8>) -> Self {
        let mut course = Course::new(from, to, flow, u64::MAX);
        if !first.is_empty() {
            course.seldom = Some(Box::pin(async move {
                let count = first.len();
                write(from, to, flow, &first).await?;
                Ok(Seldom::Written(count))
            }));
        }
        Self { course }
    }
}

impl Future for OneWay<'_> {
    type Output = Result<(), Side>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Course { to, flow, .. } = self.course;
        ready!(self.course.poll(cx))?;
        flow.ended()?;
        if flow.shared.is_last() {
            // Both sides have finished, and both sockets are closed next.
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(flow.passed_on(SockRef::from(to).shutdown(Shutdown::Write)))
    }
}

/// Moves so many bytes, or as many as there are until the end; how many they were.
pub(super) async fn pass(from: &TcpStream, to: &TcpStream, flow: Flow<'_>, most: u64) -> Result<u64, Side> {
    let mut course = Course::new(from, to, flow, most);
    poll_fn(|cx| course.poll(cx)).await?;
    Ok(most - course.left)
}

/// Bytes on their way from one socket to the other.
struct Course<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    flow: Flow<'a>,
    left: u64,
    pace: Pace,
    can_splice: bool,
    /// A burst has just ended: only a read shows whether anything is left.
    in_doubt: bool,
    /// What is done in so few moments that no room is kept for it.
    seldom: Option<Boxed<'a, Result<Seldom, Side>>>,
}

/// What came of it.
enum Seldom {
    Written(usize),
    Burst(Burst),
}

impl<'a> Course<'a> {
    const fn new(from: &'a TcpStream, to: &'a TcpStream, flow: Flow<'a>, most: u64) -> Self {
        Self { from, to, flow, left: most, pace: Pace::Chatty, can_splice: true, in_doubt: false, seldom: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Side>> {
        let Self { from, to, flow, .. } = *self;
        loop {
            if let Some(seldom) = &mut self.seldom {
                let came = ready!(seldom.as_mut().poll(cx));
                self.seldom = None;
                match came? {
                    Seldom::Written(n) => self.moved(n),
                    Seldom::Burst(Burst { moved, is_refused }) => {
                        self.left -= moved;
                        self.pace = if moved < MANY as u64 { Pace::Chatty } else { Pace::Busy };
                        self.can_splice = !is_refused;
                        self.in_doubt = true;
                    }
                }
            }
            if self.left == 0 {
                return Poll::Ready(Ok(()));
            }
            // Asking takes from the task's budget, so that no tunnel keeps the others waiting.
            ready!(from.poll_read_ready(cx)).map_err(|e| flow.cannot_read(e))?;
            let may_splice = self.pace == Pace::Busy && self.can_splice && !self.in_doubt;
            if let Some(lent) = may_splice.then(Lent::take).flatten() {
                let left = self.left;
                self.seldom = Some(Box::pin(async move { burst(from, to, flow, lent, left).await.map(Seldom::Burst) }));
                continue;
            }
            self.in_doubt = false;
            match step(from, to, flow, self.left)? {
                Step::Moved(n) => self.moved(n),
                Step::Left(n, rest) => {
                    self.seldom = Some(Box::pin(async move {
                        write(from, to, flow, &rest).await?;
                        Ok(Seldom::Written(n))
                    }));
                }
                Step::Waits => {}
                Step::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    fn moved(&mut self, n: usize) {
        self.flow.moved(n);
        self.left -= n as u64;
        self.pace = if n < MANY { Pace::Chatty } else { Pace::Busy };
    }
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

/// Waits until more can be written. A client that has reset meanwhile is noticed: there is no read from it now. What an
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
