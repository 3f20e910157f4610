//! One connection, from accept to close: the order of the story, and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

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
use crate::relay::{self, Meter};
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
    const fn peek_limits(&self) -> PeekLimits {
        PeekLimits { hello: self.limits.hello, head: self.limits.head, time: self.limits.peek }
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
    let Some(ticket) = house.door.enter(address.ip()) else {
        relay::reset(&stream);
        return record.refuse(&Refusal::new(Reason::TooManyConnections, Stage::Limit));
    };
    let window = Window::new(Arc::clone(&house.budget));
    let client = Client::new(stream, address, name, kind, window);
    tokio::select! {
        // The end of a drain wins over a busy connection; the record, dropped, still writes its line.
        biased;
        () = guest.cut() => {}
        () = tell(client, &house, record) => {}
    }
    drop(ticket);
}

async fn tell(mut client: Client, house: &House, mut record: Record) {
    match visit(&mut client, house, &mut record).await {
        Ok(ending) => record.close(ending),
        Err(refusal) => {
            record.refuse(&refusal);
            client.refuse(&refusal).await;
        }
    }
}

async fn visit(client: &mut Client, house: &House, record: &mut Record) -> Result<Ending, Refusal> {
    let House { policy, dns, limits, .. } = house;
    // A socket whose options cannot be set is gone already; the first read will say so.
    let _ = upstream::set_options(&client.stream, limits.keepalive);

    let claimed = client.claim(house.peek_limits()).await;
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
                    client.go_ahead().await?;
                    let sighting = client.sight(expectation.expected(), house.peek_limits()).await?;
                    record.sighting(&sighting);
                    sighting
                }
            };
            (policy.by_sighting(&claim, expectation, &sighting)?, Some(sighting))
        }
    };

    let mut upstream = connect(&claim, &clearance, policy, dns, limits, record).await?;
    client.go_ahead().await?;
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
) -> Result<TcpStream, Refusal> {
    policy.because_of(clearance).iter().for_each(|because| record.because(because));
    let answers = dns.resolve(clearance).await?;
    if claim.name().is_some() || clearance.is_name() {
        record.answers(&answers.addresses);
    }
    let permit = policy.by_address(clearance, &answers)?;
    record.because(permit.because());
    let upstream = upstream::dial(&permit, limits.dial).await?;
    let _ = upstream::set_options(&upstream, limits.keepalive);
    if let Ok(address) = upstream.peer_addr() {
        record.upstream(address);
    }
    Ok(upstream)
}

/// Sends on what was peeked, and relays the rest. What stops halfway becomes a reset of both sides, but for
/// a client that is still to be told why.
async fn converse(
    client: &mut Client,
    upstream: &mut TcpStream,
    sighting: Option<Sighting>,
    house: &House,
    record: &Record,
) -> Result<Ending, Refusal> {
    match talk(client, upstream, sighting, house, &record.meter()).await {
        Ok(ending) => Ok(ending),
        Err(Halt::Refused(refusal)) => {
            relay::reset(upstream);
            Err(refusal)
        }
        Err(Halt::Broken(ending)) => {
            relay::reset(&client.stream);
            relay::reset(upstream);
            Ok(ending)
        }
    }
}

async fn talk(
    client: &mut Client,
    upstream: &mut TcpStream,
    sighting: Option<Sighting>,
    house: &House,
    meter: &Meter,
) -> Result<Ending, Halt> {
    let Limits { head, idle, .. } = house.limits;
    let mut peeked = client.take_peeked();
    match sighting {
        Some(Sighting::Http(request)) => {
            let limits = ExchangeLimits { head, idle };
            return exchange::run(&mut client.stream, upstream, &request, &peeked, limits, meter).await;
        }
        Some(Sighting::Tls(hello)) => {
            let limits = SettleLimits { peek: house.peek_limits(), idle };
            handshake::settle(&mut client.stream, upstream, &hello, &peeked, limits, meter).await?;
            peeked = Vec::new();
        }
        // What a client of a network rule sent while it was being dialled for goes first.
        None => {}
    }
    Ok(relay::run(&mut client.stream, upstream, &peeked, idle, meter).await)
}
