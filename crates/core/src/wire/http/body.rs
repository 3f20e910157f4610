//! Where a body ends (RFC 9112 §6.3, §7.1), byte by byte as it passes.

use super::fields::{BodyLength, Overrides, as_gateways_spell, is_token_byte};
use crate::outcome::Reason;

/// RFC 9112 §7.1 bounds nothing; extensions this long are an attack.
const MAX_CHUNK_LINE: usize = 256;

/// Trailers of one message.
const MAX_TRAILERS: usize = 16 << 10;

/// Where a request's body ends (RFC 9112 §6.3, §7.1), byte by byte as it passes.
#[derive(Debug)]
pub struct Body {
    state: BodyState,
    /// Whether blanks around a chunk's size are taken (RFC 9112 §7.1.1): old servers pad, and cutting them
    /// off gains nothing. A request is held to the letter.
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
    /// A request's body, held to the letter.
    #[must_use]
    pub const fn new(length: BodyLength) -> Self {
        let state = match length {
            BodyLength::Exactly(0) => BodyState::Done,
            BodyLength::Exactly(left) => BodyState::Plain { left },
            BodyLength::Chunked => BodyState::Size,
        };
        Self { state, padded: false }
    }

    /// The body of an answer: blanks around a chunk's size are taken.
    #[must_use]
    pub const fn of_answer(length: BodyLength) -> Self {
        Self { padded: true, ..Self::new(length) }
    }

    /// Bytes of data that come next and need not be looked at.
    #[must_use]
    pub const fn opaque(&self) -> Option<u64> {
        match self.state {
            BodyState::Plain { left } | BodyState::Data { left } => Some(left),
            _ => None,
        }
    }

    /// All of those bytes have gone by.
    pub const fn passed(&mut self) {
        match self.state {
            BodyState::Plain { .. } => self.state = BodyState::Done,
            BodyState::Data { .. } => self.state = BodyState::DataEnd,
            _ => {}
        }
    }

    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == BodyState::Done
    }

    /// How many of these bytes belong to the body and are well framed; what is left over comes again with
    /// more behind it.
    ///
    /// # Errors
    /// [`Reason::BadRequest`] where the framing is broken.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Reason> {
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
        if !self.padded && !are_extensions(line.get(digits.len()..).unwrap_or_default()) {
            return Err(Reason::BadRequest);
        }
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
        if !self.padded && !line.is_empty() && !is_trailer(line) {
            return Err(Reason::BadRequest);
        }
        self.state = if line.is_empty() { BodyState::Done } else { BodyState::Trailers { seen: seen + n } };
        Ok(Some(n))
    }
}

/// RFC 9110 §6.5.1: a field, and none that frames, routes, overrides or authenticates, which some recipients would merge into the head.
fn is_trailer(line: &[u8]) -> bool {
    const NEVER: [&[u8]; 10] = [
        b"transfer-encoding",
        b"content-length",
        b"host",
        b"connection",
        b"te",
        b"upgrade",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"authorization",
    ];
    let name = line.split(|b| *b == b':').next().filter(|name| name.len() < line.len()).unwrap_or_default();
    let is_token = !name.is_empty() && name.iter().copied().all(is_token_byte);
    let name = as_gateways_spell(name);
    is_token && Overrides::of(&name) == Overrides::default() && !NEVER.contains(&name.as_slice())
}

/// RFC 9112 §7.1.1, without the blanks that it grudges: `;name`, `;name=token`, `;name="text"`, any number.
fn are_extensions(mut text: &[u8]) -> bool {
    let token = |text: &[u8]| text.iter().take_while(|b| is_token_byte(**b)).count();
    while let Some((b';', rest)) = text.split_first() {
        let name = token(rest);
        text = rest.get(name..).unwrap_or_default();
        if name == 0 {
            return false;
        }
        let Some((b'=', value)) = text.split_first() else { continue };
        let len = match value.strip_prefix(b"\"") {
            Some(quoted) => quoted_len(quoted).map(|n| n + 1),
            None => Some(token(value)).filter(|n| *n > 0),
        };
        let Some(len) = len else { return false };
        text = value.get(len..).unwrap_or_default();
    }
    text.is_empty()
}

/// Bytes up to and with the closing quote.
fn quoted_len(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
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
        check(Chunked, b"1;a;b=c;d=\"e;\\\"\"\r\nx\r\n0\r\n\r\n", Ok(Some(26)));
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
            b"3;\r\n",
            b"3;a=\r\n",
            b"3;a=\"b\r\n",
            b"3;a=b c\r\n",
            b"0\r\nno field\r\n\r\n",
            b"0\r\n folded: x\r\n\r\n",
            b"0\r\nContent-Length: 3\r\n\r\n",
            b"0\r\nhost: b\r\n\r\n",
            b"0\r\ncontent_length: 3\r\n\r\n",
            b"0\r\nX-Original-URL: /b\r\n\r\n",
            b"0\r\nProxy-Authorization: Basic eDp5\r\n\r\n",
            b"3 ;a\r\n",
            b"3;=b\r\n",
        ] {
            check(Chunked, bad, Err(Reason::BadRequest));
        }
        let mut answer = Body::of_answer(Chunked);
        assert_eq!((answer.take(b"3  \r\nabc\r\n0 ;x\r\n\r\n"), answer.is_done()), (Ok(18), true));
        check(Chunked, &[&b"1;"[..], &[b'a'; 300]].concat(), Err(Reason::BadRequest));
    }
}
