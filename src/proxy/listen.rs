//! The front door: accepting, counting, and finding out what a client claims.
//!
//! One accept loop for every kind of listener; it does not know what its handler does. Owns the limits on
//! connections and the words of a refusal. Judges nothing.

pub mod accept;
mod client;
mod limit;
mod listener;
mod queue;
mod refusal;
pub mod settings;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::drain::DrainGuard;
use crate::record::AccessLog;
pub use client::{Claimed, Client};
pub use limit::{ConnectionLimit, ConnectionSlot};
pub use listener::Listener;
use queue::FairQueue;

/// Connections that are taken out of the kernel's queue before one of those at hand begins: a flood waits here, where
/// clients take turns, and not there.
const AT_ONCE: usize = 32;

/// After a failed accept: long enough that a lack of descriptors is not a spin, short enough to go unnoticed.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Accepts until a drain begins, and while the log takes lines. What is accepted gets its place, or none, and is handed
/// to `handle` with its guard; a failed accept is waited out, because what it lacks (descriptors, memory) comes back when
/// another connection ends.
pub async fn serve(
    socket: TcpListener,
    listener: Arc<Listener>,
    limit: Arc<ConnectionLimit>,
    access_log: Arc<AccessLog>,
    guard: DrainGuard,
    handle: impl Fn(TcpStream, SocketAddr, Option<ConnectionSlot>, DrainGuard),
) {
    let (mut queue, mut rests_until) = (FairQueue::new(), None);
    let start = |(stream, peer, slot)| handle(stream, peer, Some(slot), guard.clone());
    loop {
        let accept = async {
            access_log.room().await;
            match rests_until {
                Some(until) if queue.is_empty() => tokio::time::sleep_until(until).await,
                // What is here already does not wait for what lacks.
                Some(until) if Instant::now() < until => return Vec::new(),
                _ => {}
            }
            accept_some(&socket, queue.is_empty()).await
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            () = guard.stopping() => return std::iter::from_fn(|| queue.pop()).for_each(start),
        };
        for accepted in accepted {
            match accepted {
                Ok((stream, peer)) => match listener.admit(&limit, peer) {
                    Some(slot) => queue.push(peer.ip(), (stream, peer, slot)),
                    None => handle(stream, peer, None, guard.clone()),
                },
                // The client left before it was let in: nothing is wrong with us.
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept; trying again");
                    rests_until = Some(Instant::now() + BACK_OFF);
                }
            }
        }
        queue.pop().into_iter().for_each(start);
        if !queue.is_empty() {
            // Running connections progress before the next one starts.
            tokio::task::yield_now().await;
        }
    }
}

/// The connections that are there, up to [`AT_ONCE`] of them; waits for the first one if it may.
async fn accept_some(listener: &TcpListener, waits: bool) -> Vec<io::Result<(TcpStream, SocketAddr)>> {
    let mut some = Vec::new();
    poll_fn(|cx| {
        while some.len() < AT_ONCE {
            match listener.poll_accept(cx) {
                Poll::Ready(accepted) => {
                    let is_last = accepted.is_err();
                    some.push(accepted);
                    if is_last {
                        break;
                    }
                }
                Poll::Pending if waits && some.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(())
    })
    .await;
    some
}
