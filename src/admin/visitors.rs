//! Access control and limits for the health and admin listeners: idle connections cannot block a probe.
//!
//! A visitor sends its request within [`HEAD`] and is done within [`VISIT`]. At the limit, the connection idle longest is
//! closed; when one network is at its own limit, that network's.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use egret_core::claim::network_of;
use egret_core::policy::OwnAddresses;

/// Visitors of one set of pages at once: each takes a descriptor from the connections that egret is for.
pub const MAX_VISITORS: usize = 32;
/// Of one network: a balancer's probes are one at a time.
const MAX_PER_NETWORK: usize = 8;
/// From accept until the request is there.
const HEAD: Duration = Duration::from_secs(1);
/// From accept to the last byte of an answer.
const VISIT: Duration = Duration::from_secs(10);
/// After a failed accept.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Which addresses may visit.
#[derive(Clone, Debug)]
pub enum Access {
    Everyone,
    /// These networks, and this machine.
    From(Vec<IpNet>, Arc<OwnAddresses>),
}

impl Access {
    fn admits(&self, ip: IpAddr) -> bool {
        match self {
            Self::Everyone => true,
            Self::From(nets, own) => {
                let ip = ip.to_canonical();
                ip.is_loopback() || own.is_local(ip) || nets.iter().any(|net| net.contains(&ip))
            }
        }
    }
}

/// A listener with few and short visits.
pub(super) struct BoundedListener {
    listener: TcpListener,
    access: Access,
    visitors: Arc<Visitors>,
}

#[derive(Default)]
struct Visitors(Mutex<State>);

#[derive(Default)]
struct State {
    next: u64,
    /// The longest silent first: a visitor that is heard moves to the end.
    all: BTreeMap<u64, Visitor>,
}

struct Visitor {
    network: IpAddr,
    leave: CancellationToken,
}

/// One visit: past its time, or when another visitor needs its place, reading and writing fail.
pub(super) struct TimedStream {
    stream: TcpStream,
    accepted: Instant,
    is_answered: bool,
    over: Pin<Box<Sleep>>,
    leave: Pin<Box<WaitForCancellationFutureOwned>>,
    number: u64,
    visitors: Arc<Visitors>,
}

impl Visitors {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, stream: TcpStream, peer: IpAddr) -> TimedStream {
        let (network, leave, accepted) = (network_of(peer), CancellationToken::new(), Instant::now());
        let mut state = self.state();
        let of_network = |state: &State| state.all.values().filter(|visitor| visitor.network == network).count();
        let longest = if of_network(&state) >= MAX_PER_NETWORK {
            state.all.iter().find(|(_, visitor)| visitor.network == network).map(|(number, _)| *number)
        } else {
            state.all.keys().next().copied().filter(|_| state.all.len() >= MAX_VISITORS)
        };
        if let Some(visitor) = longest.and_then(|number| state.all.remove(&number)) {
            visitor.leave.cancel();
        }
        let number = state.add(Visitor { network, leave: leave.clone() });
        drop(state);
        TimedStream {
            stream,
            accepted,
            is_answered: false,
            over: Box::pin(tokio::time::sleep_until(accepted + HEAD)),
            leave: Box::pin(leave.cancelled_owned()),
            number,
            visitors: Arc::clone(self),
        }
    }
}

impl State {
    fn add(&mut self, visitor: Visitor) -> u64 {
        self.next += 1;
        self.all.insert(self.next, visitor);
        self.next
    }
}

impl BoundedListener {
    pub(super) fn new(listener: TcpListener, access: Access) -> Self {
        Self { listener, access, visitors: Arc::default() }
    }
}

impl axum::serve::Listener for BoundedListener {
    type Io = TimedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TimedStream, SocketAddr) {
        loop {
            // The visitor before is looked at first: it may have said by now what it wants.
            tokio::task::yield_now().await;
            match self.listener.accept().await {
                Ok((stream, peer)) if self.access.admits(peer.ip()) => {
                    return (self.visitors.enter(stream, peer.ip()), peer);
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(BACK_OFF).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl TimedStream {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.over.as_mut().poll(cx).is_ready() || self.leave.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    fn is_heard(&mut self) {
        let mut state = self.visitors.state();
        if let Some(visitor) = state.all.remove(&self.number) {
            self.number = state.add(visitor);
        }
    }
}

impl Drop for TimedStream {
    fn drop(&mut self) {
        self.visitors.state().all.remove(&self.number);
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_over(cx)?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.is_heard();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // An answer means that there was a request.
        if !std::mem::replace(&mut self.is_answered, true) {
            let until = self.accepted + VISIT;
            self.over.as_mut().reset(until);
        }
        self.poll_over(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_networks_and_this_machine_have_access() {
        let own = Arc::new(OwnAddresses::new(Vec::new(), Vec::new()));
        own.set_local(vec!["10.0.0.4/32".parse().unwrap()]);
        let access = Access::From(vec!["168.63.129.16/32".parse().unwrap()], own);
        for (ip, is_admitted) in [
            ("168.63.129.16", true),
            ("::ffff:168.63.129.16", true),
            ("10.0.0.4", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("168.63.129.17", false),
            ("10.0.0.5", false),
        ] {
            assert_eq!(access.admits(ip.parse().unwrap()), is_admitted, "{ip}");
            assert!(Access::Everyone.admits(ip.parse().unwrap()));
        }
    }
}
