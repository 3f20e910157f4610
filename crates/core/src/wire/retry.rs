//! Reading past the first hello: did the server ask for another, and is the other one like the first?
//!
//! A HelloRetryRequest (RFC 8446 §4.1.4) makes the client send a second hello, which must carry the same
//! name; a filter that does not look lets it carry another. Pure: bytes in, value out.

use super::client_hello::{ClientHello, HelloReader};
use super::reader::Reader;
use crate::outcome::Reason;

/// RFC 8446 §4.1.3: the `random` that marks a ServerHello as a HelloRetryRequest.
const RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11,
    0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
/// RFC 8446 §6: the level of an alert that ends nothing.
const WARNING: u8 = 1;
const HANDSHAKE: u8 = 22;
const SERVER_HELLO: u8 = 2;
/// Handshake header, version, random.
const NEEDED: usize = 4 + 2 + 32;

/// Enough of the server's first bytes to decide, however small its records are, with room for warnings
/// before them.
pub const SERVER_FIRST_MAX: usize = 1024;

/// What the server answered the hello with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFirst {
    Retry,
    /// A ServerHello, an alert, or no TLS at all: no second hello will follow.
    Other,
}

/// Looks at the server's bytes so far; `None` for "need more".
#[must_use]
pub fn server_first(raw: &[u8]) -> Option<ServerFirst> {
    let mut records = Reader::new(raw);
    let mut message = Vec::with_capacity(NEEDED);
    while message.len() < NEEDED {
        let mut header = records;
        let (Ok(kind), Ok(_version), Ok(len)) = (header.u8(), header.u16(), header.u16()) else {
            // The first byte of what is not TLS is enough.
            return raw.first().filter(|first| !(20..=24).contains(*first)).map(|_| ServerFirst::Other);
        };
        let body = header.take(usize::from(len));
        match kind {
            HANDSHAKE => {
                let part = body.unwrap_or_else(|_| header.rest());
                message.extend_from_slice(part);
                // RFC 5246 §7.4.1.1: a HelloRequest in the middle of a handshake is skipped by clients.
                while message.starts_with(&[0; 4]) {
                    message.drain(..4);
                }
                let is_request = message.iter().all(|byte| *byte == 0);
                if !is_request && message.first() != Some(&SERVER_HELLO) {
                    return Some(ServerFirst::Other);
                }
                if message.len() >= NEEDED {
                    break;
                }
            }
            // A warning other than close_notify, or a change of cipher spec, decides nothing: the answer is still to come.
            ALERT if body.is_ok_and(|body| !matches!(body, [WARNING, description, ..] if *description > 0)) => {
                return Some(ServerFirst::Other);
            }
            ALERT | CHANGE_CIPHER_SPEC => {}
            _ => return Some(ServerFirst::Other),
        }
        if body.is_err() {
            return None;
        }
        records = header;
    }
    let random = message.get(NEEDED - 32..NEEDED);
    Some(if random == Some(&RETRY_RANDOM) { ServerFirst::Retry } else { ServerFirst::Other })
}

/// Watches what the client sends between its hello and the server's answer. Early data may go on at once;
/// a handshake record must wait, for it may be a second hello.
#[derive(Debug, Default)]
pub struct ClientGate {
    /// Bytes of the current record's body still to come.
    left: usize,
    closed: bool,
}

impl ClientGate {
    /// Whether a handshake record has begun: from it on everything waits.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// How many of these bytes, which follow those of earlier calls that were let through, may go on now.
    pub fn passable(&mut self, bytes: &[u8]) -> usize {
        let mut passed = 0;
        while !self.closed {
            let rest = bytes.get(passed..).unwrap_or_default();
            if self.left > 0 {
                let step = self.left.min(rest.len());
                self.left -= step;
                passed += step;
                if self.left > 0 {
                    break;
                }
                continue;
            }
            let mut header = Reader::new(rest);
            let (Ok(kind), Ok(_version), Ok(len)) = (header.u8(), header.u16(), header.u16()) else { break };
            // Change cipher spec, alert, application data; whatever else comes is held and then read.
            if !matches!(kind, 20 | 21 | 23) {
                self.closed = true;
                break;
            }
            self.left = usize::from(len);
            passed += 5;
        }
        passed
    }
}

/// Compares the second hello with the first, once it is whole. Hiding what was in the clear is a difference.
///
/// # Errors
/// [`Reason::NameMismatch`] where name or protocols differ, else the reason why it is not a hello.
pub fn second_hello(
    reader: &mut HelloReader,
    raw: &[u8],
    limit: usize,
    first: &ClientHello,
) -> Result<Option<()>, Reason> {
    let Some(second) = reader.look(raw, limit)? else { return Ok(None) };
    let alike =
        second.sni == first.sni && second.alpn == first.alpn && (second.ech, second.esni) == (first.ech, first.esni);
    if alike { Ok(Some(())) } else { Err(Reason::NameMismatch) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_hello(random: [u8; 32], fragment: usize) -> Vec<u8> {
        let message = [&[2, 0, 0, 40, 3, 3][..], &random, &[0; 6]].concat();
        let mut out = Vec::new();
        for part in message.chunks(fragment) {
            out.extend_from_slice(&[22, 3, 3, 0, part.len() as u8]);
            out.extend_from_slice(part);
        }
        out
    }

    #[test]
    fn a_retry_is_known_by_its_random_in_any_cut() {
        for fragment in [1, 7, 200] {
            let retry = server_hello(RETRY_RANDOM, fragment);
            assert_eq!(server_first(&retry), Some(ServerFirst::Retry));
            assert_eq!(server_first(&server_hello([1; 32], fragment)), Some(ServerFirst::Other));
            let decided = (0..retry.len()).find(|end| server_first(&retry[..*end]).is_some()).unwrap();
            assert!(decided <= SERVER_FIRST_MAX, "{decided} bytes are enough");
            assert!((0..decided).all(|end| server_first(&retry[..end]).is_none()));
        }
        assert_eq!(server_first(&[21, 3, 3, 0, 2, 2, 40]), Some(ServerFirst::Other));
        let warned =
            [&[21, 3, 3, 0, 2, 1, 112][..], &[20, 3, 3, 0, 1, 1], &[22, 3, 3, 0, 0], &server_hello(RETRY_RANDOM, 9)]
                .concat();
        assert_eq!(server_first(&warned), Some(ServerFirst::Retry), "behind a warning it is still one");
        assert!((1..warned.len() - 60).all(|end| server_first(&warned[..end]).is_none()));
        let requested = [&[22, 3, 3, 0, 4, 0, 0, 0, 0][..], &server_hello(RETRY_RANDOM, 9)].concat();
        assert_eq!(server_first(&requested), Some(ServerFirst::Retry), "behind a HelloRequest, too");
        assert_eq!(server_first(b"HTTP/1.1 400"), Some(ServerFirst::Other));
        assert_eq!(server_first(&[]), None);
    }

    #[test]
    fn early_data_goes_on_and_a_handshake_waits() {
        let early = [&[20, 3, 3, 0, 1, 1][..], &[23, 3, 3, 0, 3, 9, 9, 9]].concat();
        let hello = [22, 3, 3, 0, 4, 1, 0, 0, 0];
        let all = [&early[..], &hello].concat();
        assert_eq!(ClientGate::default().passable(&all), early.len());
        // However the bytes arrive, the same ones go on.
        let mut gate = ClientGate::default();
        let (mut held, mut passed) = (Vec::new(), 0);
        for byte in &all {
            held.push(*byte);
            let n = gate.passable(&held);
            held.drain(..n);
            passed += n;
        }
        assert_eq!(passed, early.len());
        assert_eq!(held, hello);
        // Behind a held record nothing overtakes.
        held.extend_from_slice(&early);
        assert_eq!(gate.passable(&held), 0);
    }
}
