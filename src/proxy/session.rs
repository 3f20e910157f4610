//! One connection, from accept to close: the order of the story, and nothing else.
//!
//! ```text
//! Arrival ──admit──▶ Client, Record ──decide──▶ Permit, Authorization ──carry──▶ Outcome ──▶ Tunnel
//!                          ▲                                                       │
//!                          └──────────────── the next request ◀────────────────────┘
//! ```

mod admit;
mod authorization;
mod carry;
mod decide;
mod turn;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::drain::DrainGuard;
use crate::proxy::listen::{Client, ConnectionSlot};
use crate::proxy::peek::PeekLimits;
use crate::proxy::relay::{self, IdleWatch, Shared};
use crate::proxy::services::Services;
use crate::proxy::stream::{ClientStream, Link};
use crate::record::Record;
pub use admit::Arrival;
use admit::{Admitted, admit, may_begin};
use authorization::Authorization;
use carry::{IdleUpstream, Outcome, Upstream, carry};
use decide::decide;
use egret_core::claim::Claim;
use egret_core::outcome::{Ending, Refusal};
use egret_core::steered::InUse;
use turn::Turn;

/// Serves one connection, where there is a slot for it. Whatever happens becomes the record's ending.
pub fn serve(arrival: Arrival, services: Arc<Services>, guard: DrainGuard) -> impl Future<Output = ()> {
    let idle = services.limits.idle;
    // All that a claim, a peek and a judgement need is given back before a tunnel's long life begins.
    live(Box::pin(serve_connection(arrival, services, guard.clone())), guard, idle)
}

#[allow(clippy::manual_async_fn, reason = "an `async fn` keeps a second place for what it is given")]
fn live(
    story: Pin<Box<impl Future<Output = Option<Box<Tunnel>>>>>,
    guard: DrainGuard,
    idle: Duration,
) -> impl Future<Output = ()> {
    async move {
        // The end of a drain wins over a busy connection. What is dropped then says so itself: the sockets by a reset,
        // the record by its line.
        let (mut story, mut call, mut heard) = (story, pin!(guard.call()), None);
        let tunnel = poll_fn(|cx| {
            guard.listen(call.as_mut(), &mut heard, cx);
            if guard.is_cut() { Poll::Ready(None) } else { story.as_mut().poll(cx) }
        })
        .await;
        drop(story);
        let Some(mut tunnel) = tunnel else { return };
        let ending = {
            let (relay, mut is_revoked) = tunnel.relay(idle, &guard);
            let mut relay = pin!(relay);
            poll_fn(|cx| {
                guard.listen(call.as_mut(), &mut heard, cx);
                if guard.is_cut() {
                    return Poll::Ready(None);
                }
                if is_revoked() { Poll::Ready(Some(Ending::Revoked)) } else { relay.as_mut().poll(cx).map(Some) }
            })
            .await
        };
        let Some(ending) = ending else { return };
        tunnel.close(ending);
    }
}

/// Two sides that are relayed unseen.
struct Tunnel {
    client: Link<ClientStream>,
    upstream: Upstream,
    /// What the client has sent already.
    up: Vec<u8>,
    shared: Shared,
    record: Record,
    authorization: Authorization,
    services: Arc<Services>,
    _slot: ConnectionSlot,
}

impl Tunnel {
    /// The relay, and whether it may not go on.
    fn relay(&mut self, idle: Duration, guard: &DrainGuard) -> (impl Future<Output = Ending>, impl FnMut() -> bool) {
        let Self { client, upstream, up, shared, record, authorization, services, .. } = self;
        let (stream, up) = (&mut upstream.link.stream, std::mem::take(up));
        let (dialled, mut reviewed) = (&upstream.address, authorization.reviewed);
        let watch = IdleWatch { idle, lasting: record };
        let relay = relay::run(&mut client.stream, stream, up, watch, shared);
        (relay, move || authorization.is_revoked(dialled.ip(), services, guard, &mut reviewed))
    }

    fn close(mut self, ending: Ending) {
        if ending == Ending::Closed {
            self.upstream.link.end();
            self.client.end();
        }
        self.record.close(ending);
    }
}

/// A connection between two claims.
struct Connection {
    client: Client,
    record: Record,
    slot: ConnectionSlot,
    /// Of what the client must show next.
    limits: PeekLimits,
    /// The claim that was served last.
    before: Option<Claim>,
    /// The upstream that answered it.
    idle: Option<IdleUpstream>,
    /// The synthetic address that the client dialled, which stays its name's for as long as the connection is open.
    steered: Option<InUse>,
}

/// The story of a connection: one claim, or one for each of its requests, until its end or a tunnel.
async fn serve_connection(arrival: Arrival, services: Arc<Services>, guard: DrainGuard) -> Option<Box<Tunnel>> {
    let Admitted { client, record, slot, limits } = admit(arrival, &services, &guard).await?;
    let mut connection = Connection { client, record, slot, limits, before: None, idle: None, steered: None };
    let eviction = connection.client.window.eviction();
    loop {
        let served = tokio::select! {
            biased;
            served = connection.serve_claim(&services, &guard) => served,
            // Whatever has been said by now, the memory is another client's: nothing is left to do but to reset.
            () = eviction.evicted() => {
                connection.record.evict();
                return None;
            }
        };
        match served {
            Ok((Outcome::Relay { upstream, up }, authorization)) => {
                return Some(connection.into_tunnel(upstream, up, authorization, services));
            }
            Ok((Outcome::Over(ending), _)) => {
                connection.end(ending).await;
                return None;
            }
            Ok((Outcome::Next, authorization)) => {
                connection = connection.next(authorization, &services, &guard).await?;
            }
            Err(refusal) => {
                connection.refuse(&refusal).await;
                return None;
            }
        }
    }
}

impl Connection {
    async fn serve_claim(
        &mut self,
        services: &Services,
        guard: &DrainGuard,
    ) -> Result<(Outcome, Authorization), Refusal> {
        let Self { client, record, limits, before, idle, .. } = self;
        let mut turn = Turn { client, record, services, guard, limits: *limits };
        let decision = decide(&mut turn, before.as_ref()).await?;
        carry(&mut turn, decision, idle).await
    }

    /// Closes the record of a claim that was served, and waits for another request; `None` where none comes.
    async fn next(mut self, served: Authorization, services: &Services, guard: &DrainGuard) -> Option<Self> {
        self.record.close(Ending::Closed);
        self.before = Some(served.claim);
        self.steered = served.steered.or(self.steered);
        let waits = self.slot.between_requests();
        let eviction = self.client.window.eviction();
        let more = tokio::select! {
            biased;
            () = guard.stopping() => false,
            () = waits.evicted() => false,
            () = eviction.evicted() => false,
            more = async {
                self.client.waits_for_more(services.limits.next_request).await
                    && may_begin(services, self.client.address.ip(), guard).await
            } => more,
        };
        if !waits.end() {
            self.client.link.end();
            return None;
        }
        if !more {
            self.client.leave().await;
            return None;
        }
        self.limits = services.peek_limits();
        self.record = services.access_log.open(self.client.listener(), self.client.address);
        self.record.of_request();
        Some(self)
    }

    async fn end(mut self, ending: Ending) {
        self.record.close(ending);
        if ending == Ending::Closed {
            self.client.linger().await;
        }
    }

    async fn refuse(self, refusal: &Refusal) {
        if self.client.window.stayed_empty() {
            return self.record.empty();
        }
        let name = self.record.name();
        self.record.refuse(refusal);
        self.client.refuse(refusal, name.as_deref()).await;
    }

    fn into_tunnel(
        mut self,
        upstream: Upstream,
        up: Vec<u8>,
        mut authorization: Authorization,
        services: Arc<Services>,
    ) -> Box<Tunnel> {
        self.record.allowed();
        let Self { client, record, slot, steered, .. } = self;
        authorization.steered = authorization.steered.or(steered);
        let (client, shared) = (client.link, Shared::default());
        Box::new(Tunnel { client, upstream, up, shared, record, authorization, services, _slot: slot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a tunnel keeps in its task for all its life, besides its record and its sockets.
    #[test]
    fn a_session_is_small() {
        fn size<F: Future>(_: impl FnOnce(Arrival, Arc<Services>, DrainGuard) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(serve);
        assert!(size <= 608, "a session takes {size} bytes");
    }
}
