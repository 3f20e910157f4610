//! One plain HTTP request and its answer, and then the end of both connections.
//!
//! Owns the request's framing, so that not one byte behind its body reaches the upstream, and the
//! `Connection: close` on both sides. Does not choose where the request goes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest, Ready};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::ending::{Ending, Halt, Reason, Refusal, Stage};
use crate::peek::http_head::{AnswerLength, BodyLength, HeadReader, RequestHead};
use crate::relay::{Meter, Way};

/// One read of a body.
const CHUNK: usize = 32 << 10;
/// RFC 9112 §7.1 bounds nothing; extensions this long are an attack.
const MAX_CHUNK_LINE: usize = 256;
/// Trailers of one message.
const MAX_TRAILERS: usize = 16 << 10;

/// What one direction must know of the other.
#[derive(Debug, Default)]
struct Seen {
    /// The head of the answer is on its way to the client.
    answer: AtomicBool,
    /// The request could not be sent to its end. The kernel tells a reset once; the end of an answer without a
    /// length must then not be taken for a polite one.
    broken: AtomicBool,
}

/// What an exchange may take.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeLimits {
    pub head: usize,
    pub idle: Duration,
}

/// Sends one request on and its answer back. `raw` holds the head and whatever of the body came with it.
///
/// # Errors
/// [`Halt`]; refused only while nothing of the answer has reached the client.
pub async fn run(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    head: &RequestHead,
    raw: &[u8],
    limits: ExchangeLimits,
    meter: &Meter,
) -> Result<Ending, Halt> {
    let (mut client_read, client_write) = client.split();
    let (upstream_read, upstream_write) = upstream.split();
    let seen = Seen::default();
    let request = async {
        match send_request(&mut client_read, upstream_write, head, raw, meter).await {
            Ok(()) => Err(watch(&mut client_read).await),
            // A word of ours inside the upstream's answer would be taken for a part of it.
            Err(Halt::Refused(_)) if seen.answer.load(Ordering::Relaxed) => Err(Halt::Broken(Ending::ClientReset)),
            Err(halt) => {
                seen.broken.store(true, Ordering::Relaxed);
                Err(halt)
            }
        }
    };
    let answer = send_answer(upstream_read, client_write, head, limits.head, &seen, meter);
    let both = async {
        tokio::pin!(request, answer);
        // The answer may come before the request has been read to its end; then the rest is not wanted.
        tokio::select! {
            sent = &mut request => match sent {
                // What the upstream said before it stopped reading is still an answer.
                Err(Halt::Broken(Ending::UpstreamReset)) => answer.await,
                halt => halt,
            },
            answered = &mut answer => answered,
        }
    };
    tokio::select! {
        result = both => result,
        () = meter.idle(limits.idle) => Err(Halt::Broken(Ending::Idle)),
    }
}

/// Watches a client whose request is on its way. What it still sends is not part of what was judged and
/// goes nowhere; a reset means that nobody waits for the answer any more.
async fn watch(client: &mut ReadHalf<'_>) -> Halt {
    let mut waste = vec![0; 4096];
    loop {
        match client.read(&mut waste).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return Halt::Broken(Ending::ClientReset),
        }
    }
    // It may have closed one way only; a socket that is gone answers a keepalive with a reset.
    if client.ready(Interest::ERROR).await.is_ok_and(Ready::is_error) {
        return Halt::Broken(Ending::ClientReset);
    }
    std::future::pending().await
}

async fn send_request(
    client: &mut ReadHalf<'_>,
    mut upstream: WriteHalf<'_>,
    head: &RequestHead,
    raw: &[u8],
    meter: &Meter,
) -> Result<(), Halt> {
    let sent = head.for_origin(raw);
    write(&mut upstream, &sent, Way::Up, meter).await?;
    let mut bytes = raw.get(head.len..).unwrap_or_default().to_vec();
    let mut body = Body::new(head.body);
    loop {
        let n = body.take(&bytes).map_err(|reason| Halt::Refused(Refusal::new(reason, Stage::Http)))?;
        write(&mut upstream, bytes.get(..n).unwrap_or_default(), Way::Up, meter).await?;
        if body.is_done() {
            // Whatever follows is not part of the request that was judged.
            return Ok(());
        }
        bytes.drain(..n);
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

async fn send_answer(
    mut upstream: ReadHalf<'_>,
    mut client: WriteHalf<'_>,
    request: &RequestHead,
    limit: usize,
    seen: &Seen,
    meter: &Meter,
) -> Result<Ending, Halt> {
    let no_answer = |reason| Halt::Refused(Refusal::new(reason, Stage::Relay));
    let mut held = Vec::new();
    let length = loop {
        let mut reader = HeadReader::default();
        let head = loop {
            match reader.closing_response(&held, limit) {
                Ok(Some(head)) => break head,
                Ok(None) => {}
                Err(reason) => return Err(no_answer(reason)),
            }
            if !matches!(upstream.read_buf(&mut held).await, Ok(1..)) {
                return Err(no_answer(Reason::Unreachable));
            }
        };
        let is_head = &*request.method == "HEAD";
        let body = if is_head { AnswerLength::Framed(BodyLength::Exactly(0)) } else { head.body.map_err(no_answer)? };
        if !head.is_interim {
            seen.answer.store(true, Ordering::Relaxed);
        }
        write(&mut client, &head.bytes, Way::Down, meter).await?;
        held.drain(..head.len);
        if !head.is_interim {
            break body;
        }
    };
    let cut = |_| Halt::Broken(Ending::UpstreamReset);
    let mut body = match length {
        AnswerLength::Framed(length) => Some(Body::of_answer(length)),
        AnswerLength::ToTheEnd => None,
    };
    loop {
        let n = match &mut body {
            Some(body) => body.take(&held).map_err(cut)?,
            None => held.len(),
        };
        write(&mut client, held.get(..n).unwrap_or_default(), Way::Down, meter).await?;
        held.drain(..n);
        // What an upstream says behind its answer is nobody's answer.
        if body.as_ref().is_some_and(Body::is_done) {
            break;
        }
        held.reserve(CHUNK);
        match upstream.read_buf(&mut held).await.map_err(|_| Halt::Broken(Ending::UpstreamReset))? {
            0 if body.is_none() && !seen.broken.load(Ordering::Relaxed) => break,
            0 => return Err(Halt::Broken(Ending::UpstreamReset)),
            _ => {}
        }
    }
    let _ = client.shutdown().await;
    Ok(Ending::Closed)
}

async fn write(to: &mut WriteHalf<'_>, bytes: &[u8], way: Way, meter: &Meter) -> Result<(), Halt> {
    let broken = match way {
        Way::Up => Ending::UpstreamReset,
        Way::Down => Ending::ClientReset,
    };
    to.write_all(bytes).await.map_err(|_| Halt::Broken(broken))?;
    if !bytes.is_empty() {
        meter.count(way, bytes.len());
    }
    Ok(())
}

/// Where a request's body ends (RFC 9112 §6.3, §7.1), byte by byte as it passes.
#[derive(Debug)]
struct Body {
    state: BodyState,
    /// Whether blanks around a chunk's size are taken (RFC 9112 §7.1.1): old servers pad, and nobody gains by
    /// their being cut off. A request is held to the letter.
    padded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyState {
    Done,
    /// Bytes of a body of known length still to come.
    Plain {
        left: u64,
    },
    /// A chunk's size line comes next.
    Size,
    Data {
        left: u64,
    },
    /// The CRLF behind a chunk's data.
    DataEnd,
    Trailers {
        seen: usize,
    },
}

impl Body {
    const fn new(length: BodyLength) -> Self {
        let state = match length {
            BodyLength::Exactly(0) => BodyState::Done,
            BodyLength::Exactly(left) => BodyState::Plain { left },
            BodyLength::Chunked => BodyState::Size,
        };
        Self { state, padded: false }
    }

    const fn of_answer(length: BodyLength) -> Self {
        Self { padded: true, ..Self::new(length) }
    }

    fn is_done(&self) -> bool {
        self.state == BodyState::Done
    }

    /// How many of these bytes belong to the body and are well framed; what is left over comes again with
    /// more behind it.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Reason> {
        let mut taken = 0;
        loop {
            let rest = bytes.get(taken..).unwrap_or_default();
            let step = match self.state {
                BodyState::Done => None,
                BodyState::Plain { left } => {
                    Some(self.data(rest, left, |left| BodyState::Plain { left }, BodyState::Done))
                }
                BodyState::Data { left } => {
                    Some(self.data(rest, left, |left| BodyState::Data { left }, BodyState::DataEnd))
                }
                BodyState::Size => self.size_line(rest)?,
                BodyState::DataEnd => self.data_end(rest)?,
                BodyState::Trailers { seen } => self.trailer(rest, seen)?,
            };
            match step {
                Some(n) if n > 0 => taken += n,
                _ => return Ok(taken),
            }
        }
    }

    fn data(&mut self, rest: &[u8], left: u64, more: fn(u64) -> BodyState, end: BodyState) -> usize {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
        let left = left - n as u64;
        self.state = if left == 0 { end } else { more(left) };
        n
    }

    fn size_line(&mut self, rest: &[u8]) -> Result<Option<usize>, Reason> {
        let Some(line) = line(rest, MAX_CHUNK_LINE)? else { return Ok(None) };
        let digits = line.split(|b| *b == b';').next().unwrap_or_default();
        let digits = if self.padded { digits.trim_ascii_end() } else { digits };
        // Fifteen digits cannot overflow, and no chunk is that long.
        if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(Reason::BadRequest);
        }
        let size = digits.iter().fold(0u64, |sum, digit| (sum << 4) | u64::from(hex(*digit)));
        self.state = if size == 0 { BodyState::Trailers { seen: 0 } } else { BodyState::Data { left: size } };
        Ok(Some(line.len() + 2))
    }

    fn data_end(&mut self, rest: &[u8]) -> Result<Option<usize>, Reason> {
        match rest {
            [b'\r', b'\n', ..] => {
                self.state = BodyState::Size;
                Ok(Some(2))
            }
            [] | [b'\r'] => Ok(None),
            _ => Err(Reason::BadRequest),
        }
    }

    fn trailer(&mut self, rest: &[u8], seen: usize) -> Result<Option<usize>, Reason> {
        let Some(line) = line(rest, MAX_TRAILERS.saturating_sub(seen))? else { return Ok(None) };
        let n = line.len() + 2;
        self.state = if line.is_empty() { BodyState::Done } else { BodyState::Trailers { seen: seen + n } };
        Ok(Some(n))
    }
}

/// A line up to its CRLF, without it; a bare CR or LF, or a control byte, is a refusal.
fn line(rest: &[u8], most: usize) -> Result<Option<&[u8]>, Reason> {
    let end = rest.iter().position(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f);
    match end.and_then(|at| Some((at, rest.get(at..)?))) {
        Some((at, _)) if at > most => Err(Reason::BadRequest),
        Some((at, [b'\r', b'\n', ..])) => Ok(rest.get(..at)),
        Some((_, [b'\r'])) => Ok(None),
        Some(_) => Err(Reason::BadRequest),
        None if rest.len() > most => Err(Reason::BadRequest),
        None => Ok(None),
    }
}

const fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes belong to the body, fed whole and byte by byte; `None` while it has not ended.
    #[track_caller]
    fn check(length: BodyLength, bytes: &[u8], expected: Result<Option<usize>, Reason>) {
        let mut body = Body::new(length);
        let whole = body.take(bytes).map(|n| body.is_done().then_some(n));
        assert_eq!(whole, expected, "whole");
        let mut body = Body::new(length);
        let (mut held, mut taken) = (Vec::new(), 0);
        for byte in bytes {
            held.push(*byte);
            match body.take(&held) {
                Ok(n) => {
                    held.drain(..n);
                    taken += n;
                }
                Err(reason) => return assert_eq!(Err(reason), expected, "byte by byte"),
            }
        }
        assert_eq!(Ok(body.is_done().then_some(taken)), expected, "byte by byte");
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        use BodyLength::{Chunked, Exactly};
        check(Exactly(0), b"GET /second", Ok(Some(0)));
        check(Exactly(3), b"abcGET /second", Ok(Some(3)));
        check(Exactly(4), b"abc", Ok(None));
        check(Chunked, b"3\r\nabc\r\n0\r\n\r\nGET /second", Ok(Some(13)));
        check(Chunked, b"A;x=\"y\"\r\n0123456789\r\n0\r\nT: v\r\n\r\n!", Ok(Some(32)));
        check(Chunked, b"3\r\nabc\r\n", Ok(None));
        for bad in [
            &b"3\nabc\r\n0\r\n\r\n"[..],
            b"\r\n",
            b"g\r\n",
            b"0x3\r\n",
            b" 3\r\n",
            b"-3\r\n",
            b"10000000000000000\r\n",
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n",
            b"0\r\nT: v\n\r\n",
            b"3\x0b\r\n",
        ] {
            check(Chunked, bad, Err(Reason::BadRequest));
        }
        let mut answer = Body::of_answer(Chunked);
        assert_eq!((answer.take(b"3  \r\nabc\r\n0 ;x\r\n\r\n"), answer.is_done()), (Ok(18), true));
        check(Chunked, &[&b"1;"[..], &[b'a'; 300]].concat(), Err(Reason::BadRequest));
    }
}
