//! One connection, from accept to close: the order of the story, and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::claim::{Claim, ClientAddr};
use crate::config::{Limits, ListenerKind};
use crate::dns::Resolver;
use crate::drain::Guest;
use crate::ending::{Ending, Halt, Reason, Refusal, Stage};
use crate::exchange::{self, ExchangeLimits};
use crate::handshake::{self, SettleLimits};
use crate::listen::{Client, Door};
use crate::peek::{PeekBudget, PeekLimits, Sighting, Window};
use crate::policy::{Clearance, Passage, Policy};
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
    listener: (Arc<str>, ListenerKind),
    house: Arc<House>,
    mut guest: Guest,
) {
    let (name, kind) = listener;
    let address = ClientAddr(address);
    let record = house.book.open(&name, address);
    let stream = Link::new(stream);
    let Some(ticket) = house.door.enter(address.ip()) else {
        return record.refuse(&Refusal::new(Reason::TooManyConnections, Stage::Limit));
    };
    let window = Window::new(Arc::clone(&house.budget));
    let client = Client::new(stream, address, name, kind, window);
    tokio::select! {
        // The end of a drain wins over a busy connection. What is dropped then says so itself: the sockets
        // by a reset, the record by its line.
        biased;
        () = guest.cut() => {}
        () = tell(client, &house, record) => {}
    }
    drop(ticket);
}

async fn tell(mut client: Client, house: &House, mut record: Record) {
    match visit(&mut client, house, &mut record).await {
        Ok(ending) => {
            record.close(ending);
            if ending == Ending::Closed {
                client.linger().await;
            }
        }
        Err(refusal) => {
            record.refuse(&refusal);
            client.refuse(&refusal).await;
        }
    }
}

async fn visit(client: &mut Client, house: &House, record: &mut Record) -> Result<Ending, Refusal> {
    let House { policy, dns, limits, .. } = house;
    // A socket whose options cannot be set is gone already; the first read will say so.
    let _ = upstream::set_options(&client.link.stream, limits.keepalive);

    let peek_limits = house.peek_limits();
    let claimed = client.claim(peek_limits).await;
    let claimed = claimed.inspect_err(|_| client.raw_target().into_iter().for_each(|raw| record.raw_name(raw)))?;
    let claim = claimed.claim;
    record.claim(&claim);
    if let Some(sighting) = &claimed.sighting {
        record.sighting(sighting);
    }

    // Judge the claim first: to see a CONNECT client's bytes it must be told to go ahead, and from then on
    // a refusal can only be spoken in the protocol of those bytes.
    let (clearance, sighting) = match policy.by_claim(&claim)? {
        Passage::Straight(clearance) => {
            if claimed.sighting.is_none() {
                record.straight();
            }
            (clearance, claimed.sighting)
        }
        Passage::Peek(expectation) => {
            let sighting = match claimed.sighting {
                Some(sighting) => sighting,
                None => {
                    client.go_ahead().await;
                    let sighting = client.sight(expectation.expected(), peek_limits).await?;
                    record.sighting(&sighting);
                    sighting
                }
            };
            (policy.by_sighting(&claim, expectation, &sighting)?, Some(sighting))
        }
    };

    let mut upstream = connect(&claim, &clearance, policy, dns, limits, record).await?;
    client.go_ahead().await;
    converse(client, &mut upstream, sighting, house, record).await
}

/// Resolves what was cleared, judges what came back, and dials what was judged.
async fn connect(
    claim: &Claim,
    clearance: &Clearance,
    policy: &Policy,
    dns: &Resolver,
    limits: &Limits,
    record: &mut Record,
) -> Result<Link, Refusal> {
    policy.because_of(clearance).iter().for_each(|because| record.because(because));
    let answers = dns.resolve(clearance).await?;
    if claim.name().is_some() || clearance.is_name() {
        record.answers(&answers.addresses);
    }
    let permit = policy.by_address(clearance, &answers)?;
    record.because(permit.because());
    let upstream = Link::new(upstream::dial(&permit, limits.dial).await?);
    let _ = upstream::set_options(&upstream.stream, limits.keepalive);
    if let Ok(address) = upstream.stream.peer_addr() {
        record.upstream(address);
    }
    Ok(upstream)
}

/// Sends on what was peeked, and relays the rest. What stops halfway becomes a reset of both sides, but for
/// a client that is still to be told why.
async fn converse(
    client: &mut Client,
    upstream: &mut Link,
    sighting: Option<Sighting>,
    house: &House,
    record: &Record,
) -> Result<Ending, Refusal> {
    let meter = record.meter();
    meter.touch();
    match talk(client, &mut upstream.stream, sighting, house, &meter).await {
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

async fn talk(
    client: &mut Client,
    upstream: &mut TcpStream,
    sighting: Option<Sighting>,
    house: &House,
    meter: &Meter,
) -> Result<Ending, Halt> {
    let Limits { hello, head, peek, idle, .. } = house.limits;
    let mut peeked = client.window.take();
    let stream = &mut client.link.stream;
    match sighting {
        Some(Sighting::Http(request)) => {
            let limits = ExchangeLimits { head, idle };
            return exchange::run(stream, upstream, &request, &peeked, limits, meter).await;
        }
        Some(Sighting::Tls(first)) => {
            let limits = SettleLimits { hello, again: peek, idle };
            handshake::settle(stream, upstream, &first, std::mem::take(&mut peeked), limits, meter).await?;
        }
        // What a client of a network rule sent while it was being dialled for goes first.
        None => {}
    }
    client.window.release();
    Ok(relay::run(stream, upstream, &peeked, idle, meter).await)
}
