//! One connection, from accept to close: the order of the story, and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::claim::{Claim, ClientAddr, Identity, Via};
use crate::config::{Adds, Limits};
use crate::dns::Resolver;
use crate::drain::Guest;
use crate::ending::{Ending, Halt, Reason, Refusal, Stage};
use crate::exchange::{self, Answered, ExchangeLimits, Outgoing, Then};
use crate::handshake::{self, SettleLimits};
use crate::listen::{Client, Door, Entrance, Ticket, arrival};
use crate::peek::http_head::RequestHead;
use crate::peek::{Expected, PeekBudget, PeekLimits, Sighting, Window};
use crate::policy::{Clearance, Passage, Permit, Policy};
use crate::record::{Book, Record};
use crate::relay::{self, Link, Meter};
use crate::upstream;

/// What every connection shares.
#[derive(Debug)]
pub struct House {
    pub policy: Policy,
    pub dns: Resolver,
    pub limits: Limits,
    pub budget: Arc<PeekBudget>,
    pub door: Arc<Door>,
    pub book: Arc<Book>,
}

impl House {
    /// One deadline for all that a client must show, from now.
    fn peek_limits(&self) -> PeekLimits {
        let Limits { hello, head, peek, .. } = self.limits;
        PeekLimits { hello, head, until: Instant::now() + peek }
    }
}

/// Serves one connection. Whatever happens becomes the record's ending.
pub async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    entrance: Arc<Entrance>,
    house: Arc<House>,
    mut guest: Guest,
) {
    let peer = ClientAddr(address);
    let mut record = house.book.open(&entrance.name, peer);
    let too_many = Refusal::new(Reason::TooManyConnections, Stage::Limit);
    let Some(mut ticket) = house.door.enter() else {
        relay::reset(&stream);
        return record.refuse(&too_many);
    };
    let stopping = guest.clone();
    let limits = house.peek_limits();
    let telling = async {
        let client = match arrived(stream, peer, &entrance, &house, limits, &mut record, &mut ticket).await {
            Ok(client) => client,
            Err(refusal) => return record.refuse(&refusal),
        };
        tell(client, &entrance, &house, limits, record, stopping).await;
    };
    tokio::select! {
        // The end of a drain wins over a busy connection. What is dropped then says so itself: the sockets
        // by a reset, the record by its line.
        biased;
        () = guest.cut() => {}
        () = telling => {}
    }
    drop(ticket);
}

/// A client that may speak: it is known whose connection it is, and there is room for it.
async fn arrived(
    mut stream: TcpStream,
    peer: ClientAddr,
    entrance: &Arc<Entrance>,
    house: &House,
    limits: PeekLimits,
    record: &mut Record,
    ticket: &mut Ticket,
) -> Result<Client, Refusal> {
    // A socket whose options cannot be set is gone already; the first read will say so.
    let _ = upstream::set_options(&stream, house.limits.keepalive);
    let until = limits.until;
    let address = arrival::whose(&mut stream, peer, entrance, until).await?;
    record.client(address);
    if !ticket.is_for(address.ip()) {
        relay::reset(&stream);
        return Err(Refusal::new(Reason::TooManyConnections, Stage::Limit));
    }
    let arrived = arrival::welcome(stream, address, entrance, until).await?;
    Ok(Client::new(arrived, Arc::clone(entrance), Window::new(Arc::clone(&house.budget))))
}

/// What a visit comes to.
enum Visit {
    Over(Ending),
    /// An answered request, after which another one may follow.
    Next,
}

/// A connected upstream, and the leave it was dialled with.
struct Standing {
    link: Link<TcpStream>,
    permit: Permit,
    /// Who asked by it: some servers know connections rather than requests.
    identity: Identity,
    /// It has answered before: it may have gone since.
    is_used: bool,
}

/// The story of a connection: one visit, or one for each of its requests.
async fn tell(
    mut client: Client,
    entrance: &Entrance,
    house: &House,
    mut limits: PeekLimits,
    first: Record,
    mut guest: Guest,
) {
    let mut record = first;
    let mut standing = None;
    let mut before = None;
    loop {
        match visit(&mut client, entrance.adds, house, limits, &mut record, &mut standing, &mut before).await {
            Ok(Visit::Over(ending)) => {
                record.close(ending);
                if ending == Ending::Closed {
                    client.linger().await;
                }
                return;
            }
            Ok(Visit::Next) => record.close(Ending::Closed),
            Err(refusal) => {
                record.refuse(&refusal);
                return client.refuse(&refusal).await;
            }
        }
        let more = tokio::select! {
            biased;
            () = guest.stopping() => false,
            more = client.waits_for_more(house.limits.idle) => more,
        };
        if !more {
            return client.leave().await;
        }
        limits = house.peek_limits();
        record = house.book.open(&entrance.name, client.address);
        record.of_request();
    }
}

/// One claim from the first byte to the last. `before` is the claim of an earlier request on the connection, and
/// `standing` the upstream that answered it.
async fn visit(
    client: &mut Client,
    adds: Adds,
    house: &House,
    peek_limits: PeekLimits,
    record: &mut Record,
    standing: &mut Option<Standing>,
    before: &mut Option<Claim>,
) -> Result<Visit, Refusal> {
    let House { policy, .. } = house;
    let claimed = client.claim(peek_limits, before.as_ref()).await;
    let claimed = claimed.inspect_err(|_| client.raw_target().into_iter().for_each(|raw| record.raw_name(raw)))?;
    let mut claim = claimed.claim;
    record.claim(&claim);
    if let Some(sighting) = &claimed.sighting {
        record.sighting(sighting);
    }
    client.authenticate(&mut claim, peek_limits).await?;
    record.identity(&claim.identity);

    // Judge the claim first: to see a CONNECT client's bytes it must be told to go ahead, and from then on
    // a refusal can only be spoken in the protocol of those bytes.
    let (clearance, sighting, seen) = match policy.by_claim(&claim)? {
        Passage::Straight(clearance) => {
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
                    let begun = before.as_ref().is_some_and(|before| before.via != Via::Absolute);
                    let expected = if begun { Expected { tls: false, ..expected } } else { expected };
                    let sighting = client.sight(expected, peek_limits).await?;
                    record.sighting(&sighting);
                    sighting
                }
            };
            (policy.by_sighting(&claim, expectation, &sighting)?, Some(sighting), true)
        }
    };
    if let Some(Sighting::Http(request)) = sighting {
        let answered = requested(client, adds, &claim, &clearance, &request, seen, house, record, standing).await?;
        *before = Some(claim);
        return Ok(answered);
    }

    let permit = permitted(&claim, &clearance, house, record).await?;
    let mut upstream = dialled(&permit, house, record).await?;
    client.go_ahead().await;
    let meter = record.meter();
    meter.touch();
    ended(tunnel(client, &mut upstream.stream, sighting, house, &meter).await, &mut upstream).map(Visit::Over)
}

/// One request, by an upstream that stands or by a new one.
#[allow(clippy::too_many_arguments, reason = "everything that is known of one request")]
async fn requested(
    client: &mut Client,
    adds: Adds,
    claim: &Claim,
    clearance: &Clearance,
    request: &RequestHead,
    seen: bool,
    house: &House,
    record: &mut Record,
    standing: &mut Option<Standing>,
) -> Result<Visit, Refusal> {
    let Limits { head, idle, .. } = house.limits;
    let permit = permitted(claim, clearance, house, record).await?;
    let reused = standing
        .take()
        .filter(|old| old.permit.is_same(&permit) && old.identity == claim.identity && is_quiet(&old.link.stream));
    let mut upstream = match reused {
        Some(mut old) => {
            record.upstream_of(&old.link.stream);
            old.link.begin();
            old
        }
        None => {
            let (link, permit) = (dialled(&permit, house, record).await?, permit.clone());
            Standing { link, permit, identity: claim.identity.clone(), is_used: false }
        }
    };
    client.go_ahead().await;
    let raw = client.window.take();
    let meter = record.meter();
    meter.touch();
    let fields = adds.to_request(client.address, request.is_http_10());
    let outgoing = Outgoing { head: request, raw: &raw, may_stay: true, may_switch: seen, fields: &fields, adds };
    let limits = ExchangeLimits { head, idle };
    let client_stream = &mut client.link.stream;
    let mut result = exchange::run(client_stream, &mut upstream.link.stream, outgoing, limits, &meter).await;
    // A server may close a standing connection at any moment; what changes nothing is asked once more.
    let unheard = result.is_err() && upstream.is_used && meter.totals().down == 0;
    if unheard && request.is_repeatable() && !matches!(result, Err(Halt::Broken(Ending::ClientReset | Ending::Idle))) {
        upstream = Standing { link: dialled(&permit, house, record).await?, permit, is_used: false, ..upstream };
        result = exchange::run(client_stream, &mut upstream.link.stream, outgoing, limits, &meter).await;
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
                    *standing = upstream_stays.then(|| Standing { is_used: true, ..upstream });
                    Ok(Visit::Next)
                }
                Then::Over => {
                    upstream.link.end();
                    Ok(Visit::Over(Ending::Closed))
                }
                // Unseen from here.
                Then::Switch { up } => {
                    let ending = relay::run(client_stream, &mut upstream.link.stream, &up, idle, &meter).await;
                    ended(Ok(ending), &mut upstream.link).map(Visit::Over)
                }
            }
        }
        Err(halt) => ended(Err(halt), &mut upstream.link).map(Visit::Over),
    }
}

/// Whether a standing upstream is still there and silent: one that speaks without being asked answers nobody.
fn is_quiet(stream: &TcpStream) -> bool {
    stream.try_read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
}

/// Resolves what was cleared, and judges what came back.
async fn permitted(
    claim: &Claim,
    clearance: &Clearance,
    house: &House,
    record: &mut Record,
) -> Result<Permit, Refusal> {
    let House { policy, dns, .. } = house;
    policy.because_of(clearance).iter().for_each(|because| record.because(because));
    let answers = dns.resolve(clearance).await?;
    if claim.name().is_some() || clearance.is_name() {
        record.answers(&answers.addresses);
    }
    let permit = policy.by_address(clearance, &answers)?;
    record.because(permit.because());
    Ok(permit)
}

/// Dials what was judged.
async fn dialled(permit: &Permit, house: &House, record: &mut Record) -> Result<Link<TcpStream>, Refusal> {
    let upstream = Link::new(upstream::dial(permit, house.limits.dial).await?);
    let _ = upstream::set_options(&upstream.stream, house.limits.keepalive);
    record.upstream_of(&upstream.stream);
    Ok(upstream)
}

/// What stopped halfway becomes a reset of both sides, but for a client that is still to be told why.
fn ended(result: Result<Ending, Halt>, upstream: &mut Link<TcpStream>) -> Result<Ending, Refusal> {
    match result {
        Ok(ending) => {
            if ending == Ending::Closed {
                upstream.end();
            }
            Ok(ending)
        }
        Err(Halt::Refused(refusal)) => Err(refusal),
        Err(Halt::Broken(ending)) => Ok(ending),
    }
}

/// Sends on what was peeked, and relays the rest.
async fn tunnel(
    client: &mut Client,
    upstream: &mut TcpStream,
    sighting: Option<Sighting>,
    house: &House,
    meter: &Meter,
) -> Result<Ending, Halt> {
    let Limits { hello, peek, idle, .. } = house.limits;
    let mut peeked = client.window.take();
    let stream = &mut client.link.stream;
    // What a client of a network rule sent while it was being dialled for goes first, unseen.
    if let Some(Sighting::Tls(first)) = sighting {
        let limits = SettleLimits { hello, again: peek, idle };
        handshake::settle(stream, upstream, &first, std::mem::take(&mut peeked), limits, meter).await?;
    }
    client.window.release();
    Ok(relay::run(stream, upstream, &peeked, idle, meter).await)
}
