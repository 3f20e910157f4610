//! Moving bytes both ways until both sides have finished.
//!
//! Owns half-close, the idle deadline, the totals and the spreading of resets. Knows no protocol, judges
//! nothing, logs nothing.

mod copying;
mod direct;
mod flow;
mod pipe;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::either::Either;

use crate::proxy::stream::{self, ClientStream};
use crate::record::{Lasting, Meter, Way};
use direct::OneWay;
use egret_core::outcome::Ending;
pub use flow::Shared;
use flow::{Boxed, Flow, Side};
pub use pipe::MOST_PIPES;

/// What is looked at while bytes move: whether any do, and how long it has lasted.
#[derive(Clone, Copy, Debug)]
pub struct IdleWatch<'a> {
    /// How long no byte may move.
    pub idle: Duration,
    pub lasting: &'a dyn Lasting,
}

impl<'a> IdleWatch<'a> {
    #[must_use]
    pub fn meter(self) -> &'a Meter {
        self.lasting.meter()
    }

    /// Returns when no byte has moved for too long.
    pub async fn idle(self) {
        while let Some(next) = self.look() {
            tokio::time::sleep_until(next).await;
        }
    }

    /// When to look again; `None`: no byte has moved for too long.
    fn look(self) -> Option<Instant> {
        let deadline = self.meter().deadline(self.idle);
        let next = self.lasting.report_due();
        (Instant::now() < deadline).then(|| next.map_or(deadline, |next| next.min(deadline)))
    }
}

/// Sends `first` to the upstream, then relays until both sides have finished, one of them resets, or nothing
/// moves for `idle`.
///
/// The end of one side is passed on to the other, which may go on sending. Where the ending is not
/// [`Ending::Closed`], both [`Link`](stream::Link)s are left to be reset.
pub fn run<'a>(
    client: &'a mut ClientStream,
    upstream: &'a mut TcpStream,
    first: Vec<u8>,
    watch: IdleWatch<'a>,
    shared: &'a Shared,
) -> impl Future<Output = Ending> + 'a {
    let meter = watch.meter();
    match client {
        ClientStream::Bare(client) => {
            let (client, upstream) = (&*client, &*upstream);
            let flow = |way| Flow { way, meter, shared };
            let up = OneWay::new(client, upstream, flow(Way::Up), first);
            let down = OneWay::new(upstream, client, flow(Way::Down), Vec::new());
            Either::Left(within(watch, Both::new(up, down, client)))
        }
        // Its buffers are large as it is; a bare client need not carry the room for it.
        ClientStream::Tls(_) => Either::Right(Box::pin(through_tls(client, upstream, first, watch, shared))),
    }
}

async fn through_tls(
    client: &mut ClientStream,
    upstream: &mut TcpStream,
    first: Vec<u8>,
    watch: IdleWatch<'_>,
    shared: &Shared,
) -> Ending {
    let meter = watch.meter();
    let ClientStream::Tls(tls) = &*client else { return Ending::Failed };
    let wire = tls.get_ref().0.clone();
    let (client_read, client_write) = tokio::io::split(client);
    let (upstream_read, upstream_write) = upstream.split();
    let flow = |way| Flow { way, meter, shared };
    let up = pin!(copying::one_way(client_read, upstream_write, flow(Way::Up), first));
    let down = pin!(copying::one_way(upstream_read, client_write, flow(Way::Down), Vec::new()));
    within(watch, Both::new(up, down, &wire)).await
}

/// Runs both directions until they end, or nothing moves for too long.
#[allow(clippy::manual_async_fn, reason = "an `async fn` keeps a second place for what it is given")]
fn within<'a>(
    watch: IdleWatch<'a>,
    mut both: impl Future<Output = Ending> + Unpin + 'a,
) -> impl Future<Output = Ending> + 'a {
    async move {
        let mut alarm = pin!(tokio::time::sleep_until(watch.look().unwrap_or_else(Instant::now)));
        poll_fn(|cx| {
            if let Poll::Ready(ending) = Pin::new(&mut both).poll(cx) {
                return Poll::Ready(ending);
            }
            while alarm.as_mut().poll(cx).is_ready() {
                let Some(next) = watch.look() else { return Poll::Ready(Ending::Idle) };
                // Bytes have moved since it was set, or it was set for something else.
                alarm.as_mut().reset(next);
            }
            Poll::Pending
        })
        .await
    }
}

/// Moves so many bytes between two sockets, or as many as there are until the end of the first; how many they were.
///
/// # Errors
/// The ending of whichever side has failed.
pub async fn pass(from: &TcpStream, to: &TcpStream, way: Way, most: u64, meter: &Meter) -> Result<u64, Ending> {
    let shared = Shared::default();
    direct::pass(from, to, Flow { way, meter, shared: &shared }, most).await.map_err(Side::reset)
}

/// Both directions, to the end of the conversation.
struct Both<'a, U, D> {
    up: U,
    down: D,
    up_done: Option<Result<(), Side>>,
    /// `down` has ended, and well.
    down_done: bool,
    /// Which one goes first this time: both draw on one budget, and a busy one would leave none.
    down_first: bool,
    client: &'a TcpStream,
    /// A half-closed client may still listen; one whose socket is gone answers a keepalive with a reset, for which there is no
    /// read.
    gone: Option<Boxed<'a, ()>>,
}

impl<'a, U, D> Both<'a, U, D> {
    const fn new(up: U, down: D, client: &'a TcpStream) -> Self {
        Self { up, down, up_done: None, down_done: false, down_first: false, client, gone: None }
    }
}

impl<U, D> Future for Both<'_, U, D>
where
    U: Future<Output = Result<(), Side>> + Unpin,
    D: Future<Output = Result<(), Side>> + Unpin,
{
    type Output = Ending;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ending> {
        let this = &mut *self;
        this.down_first = !this.down_first;
        let ended = if this.down_first {
            this.poll_down(cx).or_else(|| this.poll_up(cx))
        } else {
            this.poll_up(cx).or_else(|| this.poll_down(cx))
        };
        match (ended, &mut this.gone) {
            (Some(ending), _) => Poll::Ready(ending),
            (None, Some(gone)) => gone.as_mut().poll(cx).map(|()| Ending::ClientReset),
            (None, None) => Poll::Pending,
        }
    }
}

// A failed direction ends the other, except that what an upstream sent before it reset is still delivered: only
// `down` itself knows when that is done.
impl<U, D> Both<'_, U, D>
where
    U: Future<Output = Result<(), Side>> + Unpin,
    D: Future<Output = Result<(), Side>> + Unpin,
{
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Option<Ending> {
        if self.up_done.is_some() {
            return None;
        }
        let Poll::Ready(ended) = Pin::new(&mut self.up).poll(cx) else { return None };
        self.up_done = Some(ended);
        match ended {
            Err(side) if self.down_done || side == Side::Client => return Some(side.reset()),
            Ok(()) if self.down_done => return Some(Ending::Closed),
            Ok(()) => self.gone = Some(Box::pin(stream::reset_of(self.client))),
            Err(_) => {}
        }
        None
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Option<Ending> {
        if self.down_done {
            return None;
        }
        let Poll::Ready(ended) = Pin::new(&mut self.down).poll(cx) else { return None };
        self.down_done = true;
        match (ended, self.up_done) {
            (Err(side), _) | (Ok(()), Some(Err(side))) => Some(side.reset()),
            (Ok(()), Some(Ok(()))) => Some(Ending::Closed),
            (Ok(()), None) => None,
        }
    }
}

#[cfg(test)]
mod tests;
