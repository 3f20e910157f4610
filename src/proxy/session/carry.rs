//! The third act: what was permitted is dialled, and carries the client's bytes.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::authorization::Authorization;
use super::decide::Decision;
use super::turn::Turn;
use crate::proxy::exchange::{self, Answered, ExchangeLimits, Outgoing, Then};
use crate::proxy::handshake::{self, SettleLimits};
use crate::proxy::limits::Limits;
use crate::proxy::relay::IdleWatch;
use crate::proxy::stream::Link;
use crate::proxy::upstream::{self, DialLimits, Dialled, OwnDial, SourceAddress};
use crate::socket;
use egret_core::claim::Identity;
use egret_core::outcome::{Ending, Halt, Refusal};
use egret_core::policy::Permit;
use egret_core::wire::Sighting;
use egret_core::wire::client_hello::ClientHello;
use egret_core::wire::http::RequestHead;

/// What serving a claim comes to.
pub(super) enum Outcome {
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
pub(super) struct Upstream {
    pub(super) link: Link<TcpStream>,
    pub(super) address: SocketAddr,
    _own: Option<Box<OwnDial>>,
}

/// An upstream that has answered a request and may answer another one, and the permit it was dialled with.
pub(super) struct IdleUpstream {
    upstream: Upstream,
    permit: Permit,
    /// Whose requests it has answered: some servers know connections rather than requests.
    identity: Identity,
}

/// Carries what was decided: a request and its answer, or bytes to be relayed. `idle` is the upstream that answered an
/// earlier request.
///
/// # Errors
/// A refusal that can still be sent to the client.
pub(super) async fn carry(
    turn: &mut Turn<'_>,
    decision: Decision,
    idle: &mut Option<IdleUpstream>,
) -> Result<(Outcome, Authorization), Refusal> {
    let Decision { permit, authorization, was_seen } = decision;
    if let Some(Sighting::Http(head)) = &authorization.sighting {
        let request = Request { head, permit, was_seen, authorization: &authorization };
        let outcome = serve_request(turn, request, idle).await?;
        return Ok((outcome, authorization));
    }
    let mut upstream = dial(turn, &permit).await?;
    turn.client.go_ahead().await;
    turn.record.meter().touch();
    let up = turn.client.window.take();
    let settled = match &authorization.sighting {
        Some(Sighting::Tls(hello)) => settle(turn, &mut upstream, hello, up, &authorization).await.map(|()| Vec::new()),
        // What a client of a network rule sent while it was being dialled for goes first, unseen.
        _ => Ok(up),
    };
    turn.client.window.release();
    match settled {
        Ok(up) => Ok((Outcome::Relay { upstream, up }, authorization)),
        Err(Halt::Refused(refusal)) => Err(refusal),
        Err(Halt::Broken(ending)) => Ok((Outcome::Over(ending), authorization)),
    }
}

/// Sends the hello on, and follows TLS until the relay may run free.
async fn settle(
    turn: &mut Turn<'_>,
    upstream: &mut Upstream,
    hello: &ClientHello,
    up: Vec<u8>,
    authorization: &Authorization,
) -> Result<(), Halt> {
    let Limits { hello: bytes, peek, idle, .. } = turn.services.limits;
    let limits = SettleLimits { hello: bytes, again: peek };
    let watch = IdleWatch { idle, lasting: &*turn.record };
    let (stream, dialled) = (&mut upstream.link.stream, upstream.address.ip());
    let settled = handshake::settle(&mut turn.client.link.stream, stream, hello, up, limits, watch);
    authorization.during(dialled, turn.services, turn.guard, settled).await
}

/// One plain HTTP request that may go out.
struct Request<'a> {
    head: &'a RequestHead,
    permit: Permit,
    was_seen: bool,
    authorization: &'a Authorization,
}

/// One request, by an idle upstream or by a new one.
async fn serve_request(
    turn: &mut Turn<'_>,
    request: Request<'_>,
    idle: &mut Option<IdleUpstream>,
) -> Result<Outcome, Refusal> {
    let head = request.head;
    let reused = idle.take().filter(|idle| !head.needs_own_connection() && idle.fits(&request));
    let is_reused = reused.is_some();
    let mut upstream = match reused {
        Some(IdleUpstream { mut upstream, .. }) => {
            turn.record.upstream(upstream.address);
            upstream.link.begin();
            upstream
        }
        None => dial(turn, &request.permit).await?,
    };
    turn.client.go_ahead().await;
    let raw = turn.client.window.take();
    turn.record.meter().touch();
    let mut result = ask(turn, &request, &raw, &mut upstream).await;
    // A server may close an idle connection at any moment; what changes nothing is asked once more.
    let unheard = is_reused && turn.record.meter().totals().down == 0 && head.is_repeatable();
    if unheard && result.as_ref().is_err_and(is_of_upstream) {
        upstream = dial(turn, &request.permit).await?;
        result = ask(turn, &request, &raw, &mut upstream).await;
    }
    turn.client.window.release();
    match result {
        Ok(answered) => Ok(answered_by(turn, request, upstream, answered, idle)),
        // What stopped halfway becomes a reset of both sides, but for a client that can still read a refusal.
        Err(Halt::Refused(refusal)) => Err(refusal),
        Err(Halt::Broken(ending)) => Ok(Outcome::Over(ending)),
    }
}

const fn is_of_upstream(halt: &Halt) -> bool {
    !matches!(halt, Halt::Broken(Ending::ClientReset | Ending::Idle | Ending::Revoked))
}

/// Sends the request, and its answer back.
async fn ask(
    turn: &mut Turn<'_>,
    request: &Request<'_>,
    raw: &[u8],
    upstream: &mut Upstream,
) -> Result<Answered, Halt> {
    let Limits { head: limit, idle, .. } = turn.services.limits;
    let adds = turn.client.adds();
    let fields = adds.to_request(turn.client.address, request.head.is_http_10());
    let outgoing = Outgoing { head: request.head, raw, may_switch: request.was_seen, fields: &fields, adds };
    let watch = IdleWatch { idle, lasting: &*turn.record };
    let (stream, dialled) = (&mut upstream.link.stream, upstream.address.ip());
    let limits = ExchangeLimits { head: limit };
    let exchange = exchange::run(&mut turn.client.link.stream, stream, outgoing, limits, watch);
    request.authorization.during(dialled, turn.services, turn.guard, exchange).await
}

/// What follows an answer.
fn answered_by(
    turn: &mut Turn<'_>,
    request: Request<'_>,
    mut upstream: Upstream,
    answered: Answered,
    idle: &mut Option<IdleUpstream>,
) -> Outcome {
    let Answered { status, then } = answered;
    turn.record.status(status);
    match then {
        Then::Next { behind, upstream_stays } => {
            turn.client.window.put_back(behind);
            // Nothing is left to be said, now or until it is asked again.
            upstream.link.end();
            let identity = request.authorization.claim.identity.clone();
            *idle = upstream_stays.then(|| IdleUpstream { upstream, permit: request.permit, identity });
            Outcome::Next
        }
        Then::Over => {
            upstream.link.end();
            Outcome::Over(Ending::Closed)
        }
        Then::Switch { up } => Outcome::Relay { upstream, up },
    }
}

impl IdleUpstream {
    /// Whether it may answer this request too: dialled for the same, for the same client, still there and silent. One
    /// that speaks without being asked answers no request.
    fn fits(&self, request: &Request<'_>) -> bool {
        let is_quiet = || {
            let read = self.upstream.link.stream.try_read(&mut [0]);
            read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        self.permit.is_same(&request.permit) && self.identity == request.authorization.claim.identity && is_quiet()
    }
}

/// Dials what was judged.
async fn dial(turn: &mut Turn<'_>, permit: &Permit) -> Result<Upstream, Refusal> {
    let (services, client) = (turn.services, turn.client.address.ip());
    let from = SourceAddress::of(client, turn.client.preserves_source(), &services.sources);
    let Limits { dial: deadline, dial_addresses: addresses, keepalive, .. } = services.limits;
    let (parallel, own) = (&services.parallel_dials, services.own_dials.as_ref());
    let limits = DialLimits { deadline, addresses, parallel, client, own };
    let Dialled { stream, address, own } = upstream::dial(permit, from, limits).await?;
    // A socket whose options cannot be set is gone already; the first write will say so.
    let _ = socket::set_options(&SockRef::from(&stream), keepalive);
    turn.record.upstream(address);
    Ok(Upstream { link: Link::new(stream), address, _own: own })
}
