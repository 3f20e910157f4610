//! One plain HTTP request and its answer.
//!
//! Owns the framing of both, so that not one byte behind a request's body goes with it, and what is said of
//! either connection's end. Does not choose where the request goes, or whether another one follows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::listen::settings::Adds;
use crate::proxy::relay::{self, IdleWatch};
use crate::proxy::stream::{self, ClientStream, ReadSide, WriteSide, send};
use crate::record::{Meter, Way};
use egret_core::outcome::{Ending, Halt, Reason, Refusal, Stage};
use egret_core::wire::http::{
    AnswerLength, Body, BodyLength, HeadLimits, HeadReader, Onward, RequestHead, ResponseHead,
};

/// From so many bytes on, a body is passed between the sockets without a look.
const MANY: u64 = 64 << 10;

/// One read of a body.
const CHUNK: usize = 32 << 10;

/// Heads before the answer's own: a server that says nothing else says too much.
const MAX_INTERIM: usize = 32;

/// What one direction must know of the other.
#[derive(Debug, Default)]
struct Seen {
    /// The head of the answer is on its way to the client.
    answer: AtomicBool,
    /// The request could not be sent to its end. The kernel tells a reset once; the end of an answer without a
    /// length must then not be taken for a polite one.
    broken: AtomicBool,
    /// What the client sent behind its request; there once the request has been sent to its end.
    behind: Mutex<Option<Vec<u8>>>,
}

/// What an exchange may take.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeLimits {
    pub head: HeadLimits,
}

/// A request on its way out.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub head: &'a RequestHead,
    /// The head, and whatever of the body and of later requests came with it.
    pub raw: &'a [u8],
    /// Whether the client may go on in the protocol it asked for.
    pub may_switch: bool,
    /// Fields to add to the request, each with its CRLF.
    pub fields: &'a [u8],
    /// And what to add to its answer.
    pub adds: Adds,
}

/// How an exchange ended well.
#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    pub then: Then,
}

/// What comes after an answer.
#[derive(Debug)]
pub enum Then {
    /// The client's connection is over.
    Over,
    /// Another request may follow; these bytes of it are here already.
    Next {
        behind: Vec<u8>,
        /// The upstream may be asked again.
        upstream_stays: bool,
    },
    /// Both sides go on in another protocol; this is what the client has sent of it.
    Switch { up: Vec<u8> },
}

/// Sends one request on and its answer back.
///
/// # Errors
/// [`Halt`]; refused only while nothing of the answer has reached the client.
pub async fn run(
    client: &mut ClientStream,
    upstream: &mut TcpStream,
    request: Outgoing<'_>,
    limits: ExchangeLimits,
    watch: IdleWatch<'_>,
) -> Result<Answered, Halt> {
    let meter = watch.meter();
    let (mut client_read, client_write) = stream::split(client);
    let (upstream_read, upstream_write) = upstream.split();
    let seen = Seen::default();
    let asking = async {
        match send_request(&mut client_read, upstream_write, request, meter).await {
            Ok(behind) => {
                *seen.behind.lock().unwrap_or_else(PoisonError::into_inner) = Some(behind);
                Err(gone(&client_read).await)
            }
            // A word of ours inside the upstream's answer would be taken for a part of it.
            Err(Halt::Refused(_)) if seen.answer.load(Ordering::Relaxed) => Err(Halt::Broken(Ending::ClientReset)),
            Err(halt) => {
                seen.broken.store(true, Ordering::Relaxed);
                Err(halt)
            }
        }
    };
    let answering = send_answer(upstream_read, client_write, request, limits.head, &seen, meter);
    let both = async {
        tokio::pin!(asking, answering);
        // The answer may come before the request has been read to its end; then the rest is not wanted.
        tokio::select! {
            sent = &mut asking => match sent {
                // What the upstream said before it stopped reading is still an answer.
                Err(Halt::Broken(Ending::UpstreamReset)) => answering.await,
                halt => halt,
            },
            answered = &mut answering => answered,
        }
    };
    tokio::select! {
        result = both => result,
        () = watch.idle() => Err(Halt::Broken(Ending::Idle)),
    }
}

/// Waits for the reset of a client whose request is on its way: the answer has no reader any more. What it
/// sends meanwhile stays where it is; it is part of another request.
async fn gone(client: &ReadSide<'_>) -> Halt {
    client.gone().await;
    Halt::Broken(Ending::ClientReset)
}

/// What came behind the request.
async fn send_request(
    client: &mut ReadSide<'_>,
    mut upstream: WriteHalf<'_>,
    request: Outgoing<'_>,
    meter: &Meter,
) -> Result<Vec<u8>, Halt> {
    let Outgoing { head, raw, .. } = request;
    write(&mut upstream, &head.for_origin(raw, request.fields, request.onward()), Way::Up, meter).await?;
    let mut bytes = raw.get(head.len..).unwrap_or_default().to_vec();
    let mut body = Body::new(head.body);
    loop {
        let n = body.take(&bytes).map_err(|reason| Halt::Refused(Refusal::new(reason, Stage::Http)))?;
        write(&mut upstream, bytes.get(..n).unwrap_or_default(), Way::Up, meter).await?;
        bytes.drain(..n);
        if body.is_done() {
            return Ok(bytes);
        }
        if bytes.is_empty()
            && let Some(left) = body.opaque().filter(|left| *left >= MANY)
            && let Some(client) = client.tcp()
        {
            let passed = relay::pass(client, upstream.as_ref(), Way::Up, left, meter).await.map_err(Halt::Broken)?;
            if passed < left {
                return Err(Halt::Broken(Ending::ClientReset));
            }
            body.passed();
            continue;
        }
        let had = bytes.len();
        bytes.resize(had + CHUNK, 0);
        let read = client.read(bytes.get_mut(had..).unwrap_or_default()).await;
        let read = read.map_err(|_| Halt::Broken(Ending::ClientReset))?;
        if read == 0 {
            return Err(Halt::Broken(Ending::ClientReset));
        }
        bytes.truncate(had + read);
    }
}

impl Outgoing<'_> {
    /// What is said to the upstream.
    fn onward(self) -> Onward {
        match self.head.upgrade {
            Some(_) if self.may_switch => Onward::Switch,
            _ if self.head.stays() && !self.head.needs_own_connection() => Onward::Stay,
            _ => Onward::Close,
        }
    }
}

async fn send_answer(
    mut upstream: ReadHalf<'_>,
    mut client: WriteSide<'_>,
    request: Outgoing<'_>,
    limit: HeadLimits,
    seen: &Seen,
    meter: &Meter,
) -> Result<Answered, Halt> {
    let no_answer = |reason| Halt::Refused(Refusal::new(reason, Stage::Relay));
    let asked = request.onward();
    let mut held = Vec::new();
    let mut interim = 0;
    let (head, length) = loop {
        let head = next_head(&mut upstream, &mut held, limit).await.map_err(no_answer)?;
        if head.is_interim() {
            interim += 1;
            if interim > MAX_INTERIM {
                return Err(no_answer(Reason::BadAnswer));
            }
            // HTTP/1.0 does not know them (RFC 9110 §15.2).
            if !request.head.is_http_10() {
                write(&mut client, &head.for_client(&held, &[], Onward::Stay), Way::Down, meter).await?;
            }
            held.drain(..head.len);
            continue;
        }
        if head.status == 101 {
            if asked != Onward::Switch || head.upgrade.is_none() || head.upgrade != request.head.upgrade {
                return Err(no_answer(Reason::UpgradeDenied));
            }
            seen.answer.store(true, Ordering::Relaxed);
            write(
                &mut client,
                &head.for_client(&held, request.adds.via(head.is_http_10), Onward::Switch),
                Way::Down,
                meter,
            )
            .await?;
            // What the upstream has sent of the other protocol already.
            write(&mut client, held.get(head.len..).unwrap_or_default(), Way::Down, meter).await?;
            let up = seen.behind.lock().unwrap_or_else(PoisonError::into_inner).take();
            // It has no body: it was sent to its end before anything could be answered.
            let up = up.ok_or_else(|| no_answer(Reason::Internal))?;
            return Ok(Answered { status: head.status, then: Then::Switch { up } });
        }
        let body = head.body(&request.head.method).map_err(no_answer)?;
        // Nor does it know chunks, which it was asked in (RFC 9112 §6.1).
        if request.head.is_http_10() && body == AnswerLength::Framed(BodyLength::Chunked) {
            return Err(no_answer(Reason::BadAnswer));
        }
        break (head, body);
    };
    let is_framed = matches!(length, AnswerLength::Framed(_)) && !head.announces_forbidden_body(&request.head.method);
    let upstream_stays = asked == Onward::Stay && head.stays() && is_framed;
    // The client stays where its request says so and the answer has an end of its own.
    let client_stays = request.head.stays() && matches!(length, AnswerLength::Framed(_));
    let onward = if client_stays { Onward::Stay } else { Onward::Close };
    seen.answer.store(true, Ordering::Relaxed);
    write(&mut client, &head.for_client(&held, request.adds.via(head.is_http_10), onward), Way::Down, meter).await?;
    held.drain(..head.len);
    send_body(&mut upstream, &mut client, length, &mut held, seen, meter).await?;
    let behind = seen.behind.lock().unwrap_or_else(PoisonError::into_inner).take();
    let then = match behind {
        // What an upstream says behind its answer is not an answer.
        Some(behind) if client_stays => Then::Next { behind, upstream_stays: upstream_stays && held.is_empty() },
        // Told so, or answered before it had asked to the end.
        _ => {
            let _ = client.shutdown().await;
            Then::Over
        }
    };
    Ok(Answered { status: head.status, then })
}

/// The next head of an answer, which stays in front of what is held.
async fn next_head(upstream: &mut ReadHalf<'_>, held: &mut Vec<u8>, limit: HeadLimits) -> Result<ResponseHead, Reason> {
    let mut reader = HeadReader::default();
    loop {
        if let Some(head) = reader.response(held, limit)? {
            return Ok(head);
        }
        if !matches!(upstream.read_buf(held).await, Ok(1..)) {
            return Err(if held.is_empty() { Reason::Unreachable } else { Reason::BadAnswer });
        }
    }
}

async fn send_body(
    upstream: &mut ReadHalf<'_>,
    client: &mut WriteSide<'_>,
    length: AnswerLength,
    held: &mut Vec<u8>,
    seen: &Seen,
    meter: &Meter,
) -> Result<(), Halt> {
    let cut = |_| Halt::Broken(Ending::UpstreamReset);
    let mut body = match length {
        AnswerLength::Framed(length) => Some(Body::of_answer(length)),
        AnswerLength::ToTheEnd => None,
    };
    loop {
        let n = match &mut body {
            Some(body) => body.take(held).map_err(cut)?,
            None => held.len(),
        };
        write(client, held.get(..n).unwrap_or_default(), Way::Down, meter).await?;
        held.drain(..n);
        if body.as_ref().is_some_and(Body::is_done) {
            return Ok(());
        }
        if held.is_empty()
            && let Some(left) = body.as_ref().map_or(Some(u64::MAX), Body::opaque).filter(|left| *left >= MANY)
            && let WriteSide::Left(client) = &*client
        {
            let passed = relay::pass(upstream.as_ref(), client.as_ref(), Way::Down, left, meter).await;
            let passed = passed.map_err(Halt::Broken)?;
            match &mut body {
                None if seen.broken.load(Ordering::Relaxed) => return Err(Halt::Broken(Ending::UpstreamReset)),
                None => return Ok(()),
                Some(_) if passed < left => return Err(Halt::Broken(Ending::UpstreamReset)),
                Some(body) => body.passed(),
            }
            continue;
        }
        held.reserve(CHUNK);
        match upstream.read_buf(held).await.map_err(|_| Halt::Broken(Ending::UpstreamReset))? {
            0 if body.is_none() && !seen.broken.load(Ordering::Relaxed) => return Ok(()),
            0 => return Err(Halt::Broken(Ending::UpstreamReset)),
            _ => {}
        }
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], way: Way, meter: &Meter) -> Result<(), Halt> {
    let broken = match way {
        Way::Up => Ending::UpstreamReset,
        Way::Down => Ending::ClientReset,
    };
    send(to, bytes).await.map_err(|_| Halt::Broken(broken))?;
    if !bytes.is_empty() {
        meter.count(way, bytes.len());
    }
    Ok(())
}
