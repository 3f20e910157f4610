//! One connection, from accept to close: the order of the story, and nothing else.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::drain::DrainGuard;
use crate::proxy::exchange::{self, Answered, ExchangeLimits, Outgoing, Then};
use crate::proxy::handshake::{self, SettleLimits};
use crate::proxy::limits::Limits;
use crate::proxy::listen::accept::{self, NotAccepted};
use crate::proxy::listen::{Client, ConnectionSlot, Listener};
use crate::proxy::peek::{PeekLimits, Window};
use crate::proxy::relay::{self, IdleWatch, Shared};
use crate::proxy::services::Services;
use crate::proxy::stream::ClientStream;
use crate::proxy::stream::{self, Link};
use crate::proxy::upstream::{self, DialLimits, Dialled, OwnDial, SourceAddress};
use crate::record::Record;
use crate::socket;
use egret_core::answers::Answers;
use egret_core::claim::{Claim, ClientAddr, Identity, OriginalDst, Via};
use egret_core::outcome::{Ending, Halt, Reason, Refusal, Stage};
use egret_core::policy::{Clearance, Passage, Permit, Policy};
use egret_core::wire::http::RequestHead;
use egret_core::wire::ja4::Parts;
use egret_core::wire::{Expected, Sighting};

/// Serves one connection, where there is a place for it. Whatever happens becomes the record's ending.
pub fn serve(
    stream: TcpStream,
    address: SocketAddr,
    slot: Option<ConnectionSlot>,
    entrance: Arc<Listener>,
    services: Arc<Services>,
    guest: DrainGuard,
) -> impl Future<Output = ()> {
    let idle = services.limits.idle;
    // All that a claim, a peek and a judgement need is given back before a tunnel's long life begins.
    live(Box::pin(tell(stream, ClientAddr(address), slot, entrance, services, guest.clone())), guest, idle)
}

#[allow(clippy::manual_async_fn, reason = "an `async fn` keeps a second place for what it is given")]
fn live(
    story: Pin<Box<impl Future<Output = Option<Box<Tunnel>>>>>,
    guest: DrainGuard,
    idle: Duration,
) -> impl Future<Output = ()> {
    async move {
        // The end of a drain wins over a busy connection. What is dropped then says so itself: the sockets by a reset,
        // the record by its line.
        let (mut story, mut call, mut heard) = (story, pin!(guest.call()), None);
        let tunnel = poll_fn(|cx| {
            guest.listen(call.as_mut(), &mut heard, cx);
            if guest.is_cut() { Poll::Ready(None) } else { story.as_mut().poll(cx) }
        })
        .await;
        drop(story);
        let Some(mut tunnel) = tunnel else { return };
        let ending = {
            let (relay, mut falls) = tunnel.relay(idle, &guest);
            let mut relay = pin!(relay);
            poll_fn(|cx| {
                guest.listen(call.as_mut(), &mut heard, cx);
                if guest.is_cut() {
                    return Poll::Ready(None);
                }
                if falls() { Poll::Ready(Some(Ending::Revoked)) } else { relay.as_mut().poll(cx).map(Some) }
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
    grounds: Authorization,
    services: Arc<Services>,
    _slot: ConnectionSlot,
}

/// What a client was let out for.
struct Authorization {
    claim: Claim,
    sighting: Option<Sighting>,
    /// How often a review had been asked for when its policy was fetched.
    reviewed: u32,
}

impl Authorization {
    /// Goes on with something until it ends, or until it may not: then it has ended as revoked. The task must be one that
    /// listens to its guest.
    async fn during<T>(
        &self,
        dialled: IpAddr,
        services: &Services,
        guest: &DrainGuard,
        work: impl Future<Output = Result<T, Halt>>,
    ) -> Result<T, Halt> {
        let (mut work, mut reviewed) = (pin!(work), self.reviewed);
        poll_fn(|cx| {
            if self.fall(dialled, services, guest, &mut reviewed) {
                return Poll::Ready(Err(Halt::Broken(Ending::Revoked)));
            }
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Whether a review was asked for since the last one, and the policy of the moment would not let it begin.
    fn fall(&self, dialled: IpAddr, services: &Services, guest: &DrainGuard, reviewed: &mut u32) -> bool {
        let reviews = guest.reviews();
        std::mem::replace(reviewed, reviews) != reviews && !self.hold(dialled, &services.policy.get())
    }

    /// Whether a policy would allow it too.
    fn hold(&self, dialled: IpAddr, policy: &Policy) -> bool {
        let clearance = policy.by_claim(&self.claim).and_then(|passage| match (passage, &self.sighting) {
            (Passage::Passthrough(clearance), _) => Ok(clearance),
            (Passage::Peek(expectation), Some(sighting)) => policy.by_sighting(&self.claim, expectation, sighting),
            // Nobody has looked what it is, and now that matters.
            (Passage::Peek(_), None) => Err(Refusal::new(Reason::NoSni, Stage::Name)),
        });
        clearance.is_ok_and(|clearance| policy.by_address(&clearance, &Answers::literal(dialled)).is_ok())
    }
}

impl Tunnel {
    /// The relay, and whether it may not go on.
    fn relay(&mut self, idle: Duration, guest: &DrainGuard) -> (impl Future<Output = Ending>, impl FnMut() -> bool) {
        let Self { client, upstream, up, shared, record, grounds, services, .. } = self;
        let (stream, up) = (&mut upstream.link.stream, std::mem::take(up));
        let (dialled, mut reviewed) = (&upstream.address, grounds.reviewed);
        let watch = IdleWatch { idle, lasting: record };
        let relay = relay::run(&mut client.stream, stream, up, watch, shared);
        (relay, move || grounds.fall(dialled.ip(), services, guest, &mut reviewed))
    }

    fn close(mut self, ending: Ending) {
        if ending == Ending::Closed {
            self.upstream.link.end();
            self.client.end();
        }
        self.record.close(ending);
    }
}

/// A client that may speak: its address is known, and there is a slot for it. Waiting for the log does not count against
/// its deadlines.
#[allow(clippy::too_many_arguments, reason = "everything that is known of an arrival")]
async fn arrived(
    mut stream: TcpStream,
    peer: ClientAddr,
    entrance: &Arc<Listener>,
    services: &Services,
    guest: &DrainGuard,
    limits: &mut PeekLimits,
    record: &mut Record,
    slot: &mut ConnectionSlot,
) -> Result<Client, NotAccepted> {
    let address = accept::client_address(&mut stream, peer, entrance, limits.until).await?;
    record.client(address);
    // Everybody else's place was counted where it was given.
    if entrance.proxies.is_some() && !slot.assign(services.connections.counts(address.ip(), false)) {
        stream::reset(&stream);
        return Err(Refusal::new(Reason::TooManyConnections, Stage::Limit).into());
    }
    let begun = Instant::now();
    if !admitted(services, address.ip(), guest).await {
        return Err(Refusal::new(Reason::Draining, Stage::Limit).into());
    }
    limits.until += begun.elapsed();
    record.admitted();
    let arrived = accept::accept_tls(stream, address, entrance, limits.until).await?;
    if let (Some(own), Some(OriginalDst(dst))) = (&services.own_dials, arrived.original_dst)
        && own.has(address.socket(), dst)
    {
        let what = format!("egret's own connection to {dst} was led back to it");
        return Err(Refusal::at_claim(Reason::OwnAddress, &what).into());
    }
    Ok(Client::new(arrived, Arc::clone(entrance), Window::new(services.peek_memory.share(address.ip()))))
}

/// Waits until the log takes lines of this client's, where none may be lost; false if egret stops meanwhile.
async fn admitted(services: &Services, client: IpAddr, guest: &DrainGuard) -> bool {
    let room = async {
        services.book.room().await;
        services.book.room_for(client).await;
    };
    tokio::select! {
        biased;
        () = room => true,
        () = guest.stopping() => false,
    }
}

/// What a visit comes to.
enum Visit {
    Over(Ending),
    /// From here on both sides are relayed unseen; the client has sent this already.
    Relay {
        upstream: Upstream,
        up: Vec<u8>,
    },
    /// An answered request, after which another one may follow.
    Next,
}

/// A connected upstream.
struct Upstream {
    link: Link<TcpStream>,
    address: SocketAddr,
    _own: Option<Box<OwnDial>>,
}

/// An upstream that has answered a request and may answer another one, and the leave it was dialled with.
struct Standing {
    upstream: Upstream,
    permit: Permit,
    /// Who asked by it: some servers know connections rather than requests.
    identity: Identity,
}

/// The story of a connection: one visit, or one for each of its requests, until its end or a tunnel.
async fn tell(
    stream: TcpStream,
    peer: ClientAddr,
    slot: Option<ConnectionSlot>,
    entrance: Arc<Listener>,
    services: Arc<Services>,
    guest: DrainGuard,
) -> Option<Box<Tunnel>> {
    let mut record = services.book.open(&entrance.name, peer);
    let Some(mut slot) = slot else {
        stream::reset(&stream);
        record.refuse(&Refusal::new(Reason::TooManyConnections, Stage::Limit));
        return None;
    };
    let mut limits = services.peek_limits();
    let mut client =
        match arrived(stream, peer, &entrance, &services, &guest, &mut limits, &mut record, &mut slot).await {
            Ok(client) => client,
            Err(NotAccepted::Refused(refusal)) => {
                record.refuse(&refusal);
                return None;
            }
            Err(NotAccepted::Empty) => {
                record.empty();
                return None;
            }
        };
    let (mut standing, mut before) = (None, None);
    let eviction = client.window.eviction();
    loop {
        let services = &services;
        let visited = tokio::select! {
            biased;
            visited = visit(&mut client, services, &guest, limits, &mut record, &mut standing, before.as_ref()) => visited,
            // Whatever has been said by now, the memory is another client's: nothing is left to do but to reset.
            () = eviction.evicted() => {
                record.evict();
                return None;
            }
        };
        match visited {
            Ok((Visit::Relay { upstream, up }, grounds)) => {
                record.allowed();
                return Some(Box::new(Tunnel {
                    client: client.link,
                    upstream,
                    up,
                    shared: Shared::default(),
                    record,
                    grounds,
                    services: Arc::clone(services),
                    _slot: slot,
                }));
            }
            Ok((Visit::Over(ending), _)) => {
                record.close(ending);
                if ending == Ending::Closed {
                    client.linger().await;
                }
                return None;
            }
            Ok((Visit::Next, grounds)) => {
                record.close(Ending::Closed);
                before = Some(grounds.claim);
            }
            Err(_) if client.window.stayed_empty() => {
                record.empty();
                return None;
            }
            Err(refusal) => {
                let name = record.name();
                record.refuse(&refusal);
                client.refuse(&refusal, name.as_deref()).await;
                return None;
            }
        }
        let waits = slot.between_requests();
        let more = tokio::select! {
            biased;
            () = guest.stopping() => false,
            () = waits.evicted() => false,
            () = eviction.evicted() => false,
            more = async {
                client.waits_for_more(services.limits.next_request).await
                    && admitted(services, client.address.ip(), &guest).await
            } => more,
        };
        if !waits.end() {
            client.link.end();
            return None;
        }
        if !more {
            client.leave().await;
            return None;
        }
        limits = services.peek_limits();
        record = services.book.open(&entrance.name, client.address);
        record.of_request();
    }
}

/// One claim from the first byte to the last. `before` is the claim of an earlier request on the connection, and
/// `standing` the upstream that answered it.
async fn visit(
    client: &mut Client,
    services: &Services,
    guest: &DrainGuard,
    peek_limits: PeekLimits,
    record: &mut Record,
    standing: &mut Option<Standing>,
    before: Option<&Claim>,
) -> Result<(Visit, Authorization), Refusal> {
    let claimed = client.claim(peek_limits, before).await;
    let claimed = claimed.inspect_err(|_| client.raw_host().into_iter().for_each(|raw| record.raw_name(raw)))?;
    let mut claim = claimed.claim;
    record.claim(&claim);
    if let Some(sighting) = &claimed.sighting {
        record.sighting(sighting);
    }
    // What its certificate says is known already.
    record.identity(&claim.identity);
    client.authenticate(&mut claim, peek_limits).await?;
    record.identity(&claim.identity);

    // One policy from here to the dial: a clearance means nothing to another one.
    let reviewed = guest.reviews();
    let policy = services.policy.get();
    // Judge the claim first: to see a CONNECT client's bytes it must be told to go ahead, and from then on
    // a refusal can only be spoken in the protocol of those bytes.
    let (clearance, mut sighting, seen) = match policy.by_claim(&claim)? {
        Passage::Passthrough(clearance) => {
            if claimed.sighting.is_none() {
                record.straight();
            }
            (clearance, claimed.sighting, false)
        }
        Passage::Peek(expectation) => {
            let sighting = match claimed.sighting {
                Some(sighting) => sighting,
                None => {
                    client.go_ahead().await;
                    let expected = expectation.expected();
                    // Where requests have begun in a tunnel, nothing else follows.
                    let begun = before.is_some_and(|before| before.via != Via::Absolute);
                    let expected = if begun { Expected { tls: false, ..expected } } else { expected };
                    let sighting = client.sight(expected, peek_limits).await;
                    let sighting =
                        sighting.inspect_err(|_| client.raw_host().into_iter().for_each(|raw| record.raw_name(raw)))?;
                    record.sighting(&sighting);
                    sighting
                }
            };
            (policy.by_sighting(&claim, expectation, &sighting)?, Some(sighting), true)
        }
    };
    let permit = permitted(&claim, &policy, &clearance, services, record).await?;
    client.window.settle();
    // What is judged needs it no longer, however long it lasts.
    drop(policy);
    if let Some(Sighting::Tls(hello)) = &mut sighting {
        // Long, and no rule asks for it.
        hello.ja4 = Parts::default();
    }
    let grounds = Authorization { claim, sighting, reviewed };
    if let Some(Sighting::Http(request)) = &grounds.sighting {
        let visit = requested(client, &grounds, request, permit, seen, services, guest, record, standing).await?;
        return Ok((visit, grounds));
    }

    let ip = client.address.ip();
    let departure = SourceAddress::of(ip, client.preserves_source(), &services.sources);
    let mut upstream = dialled(&permit, ip, departure, services, record).await?;
    client.go_ahead().await;
    let meter = record.meter();
    meter.touch();
    let up = client.window.take();
    // What a client of a network rule sent while it was being dialled for goes first, unseen.
    let Some(Sighting::Tls(first)) = &grounds.sighting else {
        client.window.release();
        return Ok((Visit::Relay { upstream, up }, grounds));
    };
    let Limits { hello, peek, idle, .. } = services.limits;
    let limits = SettleLimits { hello, again: peek };
    let watch = IdleWatch { idle, lasting: &*record };
    let (stream, dialled) = (&mut upstream.link.stream, upstream.address.ip());
    let settled = handshake::settle(&mut client.link.stream, stream, first, up, limits, watch);
    let settled = grounds.during(dialled, services, guest, settled).await;
    client.window.release();
    match settled {
        Ok(()) => Ok((Visit::Relay { upstream, up: Vec::new() }, grounds)),
        Err(Halt::Refused(refusal)) => Err(refusal),
        Err(Halt::Broken(ending)) => Ok((Visit::Over(ending), grounds)),
    }
}

/// One request, by an upstream that stands or by a new one.
#[allow(clippy::too_many_arguments, reason = "everything that is known of one request")]
async fn requested(
    client: &mut Client,
    grounds: &Authorization,
    request: &RequestHead,
    permit: Permit,
    seen: bool,
    services: &Services,
    guest: &DrainGuard,
    record: &mut Record,
    standing: &mut Option<Standing>,
) -> Result<Visit, Refusal> {
    let Limits { head, idle, .. } = services.limits;
    let identity = &grounds.claim.identity;
    let ip = client.address.ip();
    let departure = SourceAddress::of(ip, client.preserves_source(), &services.sources);
    let is_fit = |old: &Standing| {
        old.permit.is_same(&permit) && old.identity == *identity && is_quiet(&old.upstream.link.stream)
    };
    let reused = standing.take().filter(|old| !request.needs_own_connection() && is_fit(old));
    let is_reused = reused.is_some();
    let mut upstream = match reused {
        Some(Standing { mut upstream, .. }) => {
            record.upstream(upstream.address);
            upstream.link.begin();
            upstream
        }
        None => dialled(&permit, ip, departure, services, record).await?,
    };
    client.go_ahead().await;
    let raw = client.window.take();
    let meter = record.meter();
    meter.touch();
    let adds = client.adds();
    let fields = adds.to_request(client.address, request.is_http_10());
    let outgoing = Outgoing { head: request, raw: &raw, may_switch: seen, fields: &fields, adds };
    let limits = ExchangeLimits { head };
    let client_stream = &mut client.link.stream;
    let mut ask = async |upstream: &mut Upstream, record: &Record| {
        let (stream, dialled) = (&mut upstream.link.stream, upstream.address.ip());
        let watch = IdleWatch { idle, lasting: record };
        let exchange = exchange::run(client_stream, stream, outgoing, limits, watch);
        grounds.during(dialled, services, guest, exchange).await
    };
    let mut result = ask(&mut upstream, record).await;
    // A server may close a standing connection at any moment; what changes nothing is asked once more.
    let unheard = is_reused && meter.totals().down == 0 && request.is_repeatable();
    if unheard
        && result
            .as_ref()
            .is_err_and(|halt| !matches!(halt, Halt::Broken(Ending::ClientReset | Ending::Idle | Ending::Revoked)))
    {
        upstream = dialled(&permit, ip, departure, services, record).await?;
        result = ask(&mut upstream, record).await;
    }
    client.window.release();
    match result {
        Ok(Answered { status, then }) => {
            record.status(status);
            match then {
                Then::Next { behind, upstream_stays } => {
                    client.window.put_back(behind);
                    // Nothing is left to be said, now or until it is asked again.
                    upstream.link.end();
                    *standing = upstream_stays.then(|| Standing { upstream, permit, identity: identity.clone() });
                    Ok(Visit::Next)
                }
                Then::Over => {
                    upstream.link.end();
                    Ok(Visit::Over(Ending::Closed))
                }
                Then::Switch { up } => Ok(Visit::Relay { upstream, up }),
            }
        }
        // What stopped halfway becomes a reset of both sides, but for a client that is still to be told why.
        Err(Halt::Refused(refusal)) => Err(refusal),
        Err(Halt::Broken(ending)) => Ok(Visit::Over(ending)),
    }
}

/// Whether a standing upstream is still there and silent: one that speaks without being asked answers nobody.
fn is_quiet(stream: &TcpStream) -> bool {
    stream.try_read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
}

/// Resolves what was cleared, and judges what came back.
async fn permitted(
    claim: &Claim,
    policy: &Policy,
    clearance: &Clearance,
    services: &Services,
    record: &mut Record,
) -> Result<Permit, Refusal> {
    policy.matched_rule_of(clearance).iter().for_each(|because| record.matched_rule(because));
    let mut answers = services.dns.resolve(clearance).await?;
    let mut judged = policy.by_address(clearance, &answers);
    if let (Err(Refusal { reason: Reason::DstNotInDns, .. }), Some(dst)) = (&judged, clearance.dst()) {
        // The client may have asked at another time, or be told another part of a large answer.
        if services.dns.remembers(clearance, dst) {
            answers = Answers::literal(dst);
        } else {
            answers = Box::pin(services.dns.resolve_again(clearance)).await?;
        }
        judged = policy.by_address(clearance, &answers);
    }
    if claim.name().is_some() || clearance.is_name() {
        record.answers(&answers);
    }
    let permit = judged?;
    record.matched_rule(permit.matched_rule());
    Ok(permit)
}

/// Dials what was judged.
async fn dialled(
    permit: &Permit,
    client: IpAddr,
    departure: SourceAddress<'_>,
    services: &Services,
    record: &mut Record,
) -> Result<Upstream, Refusal> {
    let Limits { dial: deadline, dial_addresses: addresses, keepalive, .. } = services.limits;
    let limits = DialLimits {
        deadline,
        addresses,
        parallel: &services.parallel_dials,
        client,
        own: services.own_dials.as_ref(),
    };
    let Dialled { stream, address, own } = upstream::dial(permit, departure, limits).await?;
    // A socket whose options cannot be set is gone already; the first write will say so.
    let _ = socket::set_options(&SockRef::from(&stream), keepalive);
    record.upstream(address);
    Ok(Upstream { link: Link::new(stream), address, _own: own })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a tunnel keeps in its task for all its life, besides its record and its sockets.
    #[test]
    fn a_session_is_small() {
        type Slot = Option<ConnectionSlot>;
        fn size<F: Future>(
            _: impl FnOnce(TcpStream, SocketAddr, Slot, Arc<Listener>, Arc<Services>, DrainGuard) -> F,
        ) -> usize {
            size_of::<F>()
        }
        let size = size(serve);
        assert!(size <= 608, "a session takes {size} bytes");
    }
}
