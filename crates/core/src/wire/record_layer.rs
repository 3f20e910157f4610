//! TLS records back into one handshake message, however they were cut (RFC 8446 §5.1).
//!
//! ```text
//! raw   | 16 03 01 len | fragment | 16 03 01 len | fragment | ...   as it came; never changed
//!                        `----------- message ------------'         borrowed while it is one piece
//! ```
//!
//! Owns reassembly and its bound. Does not look inside the message.

use super::reader::Reader;
use crate::outcome::Reason;

/// RFC 8446 §5.1: a plaintext fragment is 2^14 bytes at most.
const MAX_FRAGMENT: usize = 1 << 14;
const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
const HANDSHAKE: u8 = 22;

/// Joins the fragments of the first handshake message. Work is linear in the bytes, in whatever pieces
/// they arrive: `next` remembers what has been read.
#[derive(Debug, Default)]
pub(super) struct Deframer {
    /// Offset in the raw bytes of the first record not yet taken.
    next: usize,
    /// Empty until a second record is needed.
    joined: Vec<u8>,
}

/// A whole handshake message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: u8,
    pub(super) body: &'a [u8],
    /// How many raw bytes its records took.
    pub(super) raw_len: usize,
}

impl Deframer {
    /// Looks at `raw`, which must begin with what earlier calls saw.
    ///
    /// # Errors
    /// [`Reason::NotTls`] where the first byte begins no TLS handshake, [`Reason::HelloTooLarge`] past
    /// `limit` bytes of message, [`Reason::BadTls`] for everything a TLS peer would refuse.
    pub(super) fn message<'a>(&'a mut self, raw: &'a [u8], limit: usize) -> Result<Option<Message<'a>>, Reason> {
        loop {
            let Some(fragment) = self.record(raw)? else { return Ok(None) };
            let start = self.next + RECORD_HEADER;
            self.next = start + fragment.len();
            let only = self.joined.is_empty() && is_whole(fragment);
            if !only {
                self.joined.extend_from_slice(fragment);
            }
            let so_far = if only { fragment } else { &self.joined };
            let Some((kind, len)) = handshake_header(so_far) else { continue };
            if HANDSHAKE_HEADER + len > limit {
                return Err(Reason::HelloTooLarge);
            }
            match so_far.len().cmp(&(HANDSHAKE_HEADER + len)) {
                std::cmp::Ordering::Less => {}
                // Bytes of a second message in the hello's record: no client may send one before the
                // server has answered, and two hellos are two answers.
                std::cmp::Ordering::Greater => return Err(Reason::BadTls),
                std::cmp::Ordering::Equal => {
                    let raw_len = self.next;
                    let whole = if only { raw.get(start..raw_len).unwrap_or_default() } else { &self.joined };
                    let body = whole.get(HANDSHAKE_HEADER..).unwrap_or_default();
                    return Ok(Some(Message { kind, body, raw_len }));
                }
            }
        }
    }

    /// The fragment of the next record, once all of it is here.
    fn record<'a>(&self, raw: &'a [u8]) -> Result<Option<&'a [u8]>, Reason> {
        let rest = raw.get(self.next..).unwrap_or_default();
        check_start(rest, self.next == 0)?;
        let mut reader = Reader::new(rest);
        let (Ok(_type), Ok(_version), Ok(len)) = (reader.u8(), reader.u16(), reader.u16()) else { return Ok(None) };
        let len = usize::from(len);
        // RFC 8446 §5.1 forbids empty handshake fragments, and no stack sends them by accident.
        if len == 0 || len > MAX_FRAGMENT {
            return Err(Reason::BadTls);
        }
        Ok(reader.take(len).ok())
    }
}

fn is_whole(fragment: &[u8]) -> bool {
    handshake_header(fragment).is_some_and(|(_, len)| fragment.len() >= HANDSHAKE_HEADER + len)
}

fn handshake_header(message: &[u8]) -> Option<(u8, usize)> {
    let mut reader = Reader::new(message);
    Some((reader.u8().ok()?, reader.u24().ok()?))
}

/// The first bytes of a record: a handshake of any SSL 3 or TLS version, or a refusal.
fn check_start(record: &[u8], first: bool) -> Result<(), Reason> {
    match record {
        [HANDSHAKE] | [HANDSHAKE, 3, ..] | [] => Ok(()),
        [HANDSHAKE, ..] => Err(if first { Reason::NotTls } else { Reason::BadTls }),
        _ if !first => Err(Reason::BadTls),
        // RFC 5246 appendix E.2: a two-byte length with the high bit set, then client-hello.
        [0x80..=0xff, _, 1, ..] => Err(Reason::BadTls),
        [0x80..=0xff] | [0x80..=0xff, _] => Ok(()),
        // Other records of TLS: it is TLS, and no hello.
        [20 | 21 | 23 | 24, 3, ..] => Err(Reason::BadTls),
        [20 | 21 | 23 | 24] => Ok(()),
        _ => Err(Reason::NotTls),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fragment: &[u8]) -> Vec<u8> {
        let mut out = vec![22, 3, 1];
        out.extend_from_slice(&u16::try_from(fragment.len()).unwrap().to_be_bytes());
        out.extend_from_slice(fragment);
        out
    }

    #[track_caller]
    fn check(raw: &[u8], expected: Result<Option<&[u8]>, Reason>) {
        let mut deframer = Deframer::default();
        let got = deframer.message(raw, 1000).map(|m| m.map(|m| m.body.to_vec()));
        assert_eq!(got, expected.map(|m| m.map(<[u8]>::to_vec)));
    }

    #[test]
    fn a_message_is_one_however_it_is_cut() {
        let message = [1, 0, 0, 3, 7, 8, 9];
        check(&record(&message), Ok(Some(&[7, 8, 9])));
        let cut: Vec<u8> = message.iter().flat_map(|b| record(&[*b])).collect();
        check(&cut, Ok(Some(&[7, 8, 9])));
        for end in 0..cut.len() {
            check(&cut[..end], Ok(None));
        }
        // Arriving byte by byte into one deframer gives the same.
        let mut deframer = Deframer::default();
        for end in 0..cut.len() {
            assert_eq!(deframer.message(&cut[..end], 1000), Ok(None));
        }
        assert_eq!(deframer.message(&cut, 1000).unwrap().unwrap().raw_len, cut.len());
    }

    #[test]
    fn what_is_no_handshake_is_refused() {
        check(b"GET / HTTP/1.1\r\n", Err(Reason::NotTls));
        check(&[0x80, 0x2e, 1, 0, 2], Err(Reason::BadTls));
        check(&[0x80, 0x2e, 4], Err(Reason::NotTls));
        check(&[21, 3, 1, 0, 2, 1, 0], Err(Reason::BadTls));
        check(&[22, 9, 1], Err(Reason::NotTls));
        check(&[22, 3, 1, 0, 0], Err(Reason::BadTls));
        check(&[22, 3, 1, 0x40, 1], Err(Reason::BadTls));
    }

    #[test]
    fn another_record_inside_the_hello_is_refused() {
        let mut raw = record(&[1, 0, 0, 3, 7]);
        raw.extend_from_slice(&[20, 3, 3, 0, 1, 1]);
        check(&raw, Err(Reason::BadTls));
    }

    #[test]
    fn bytes_behind_the_hello_in_its_record_are_refused() {
        check(&record(&[1, 0, 0, 1, 7, 1]), Err(Reason::BadTls));
        let mut raw = record(&[1, 0, 0, 1]);
        raw.extend_from_slice(&record(&[7, 1]));
        check(&raw, Err(Reason::BadTls));
    }

    #[test]
    fn the_limit_is_on_the_message() {
        check(&record(&[1, 0, 3, 0xe5, 0]), Err(Reason::HelloTooLarge));
        check(&record(&[1, 0, 3, 0xe4, 0]), Ok(None));
    }
}
