//! Where a head ends.

use crate::outcome::Reason;

/// Finds the end of a growing head, reading each byte once however they arrive.
#[derive(Debug, Default)]
pub(super) struct HeadEnd {
    /// Bytes read so far.
    at: usize,
    /// Bytes of the current line, its CR included.
    line: usize,
    previous: Option<u8>,
}

impl HeadEnd {
    /// Bytes up to and including the empty line, if it is there; a bare CR or LF is a refusal as soon as it
    /// is seen.
    pub(super) fn find<'a>(&mut self, raw: &'a [u8], limit: usize) -> Result<Option<&'a [u8]>, Reason> {
        for byte in raw.iter().skip(self.at) {
            self.at += 1;
            if self.at > limit {
                return Err(Reason::HeadTooLarge);
            }
            // No method begins like this, and no more of it need be waited for.
            if self.at == 1 && !byte.is_ascii_graphic() && *byte != b'\r' && *byte != b'\n' {
                return Err(Reason::BadRequest);
            }
            match (self.previous.replace(*byte), byte) {
                (Some(b'\r'), b'\n') if self.line == 1 => {
                    // RFC 9112 §2.2 lets a server skip an empty line in front; two servers would not agree.
                    return if self.at == 2 { Err(Reason::BadRequest) } else { Ok(raw.get(..self.at)) };
                }
                (Some(b'\r'), b'\n') => self.line = 0,
                (_, b'\n') => return Err(Reason::AmbiguousRequest),
                (Some(b'\r'), _) => return Err(Reason::BadRequest),
                _ => self.line += 1,
            }
        }
        if raw.len() >= limit { Err(Reason::HeadTooLarge) } else { Ok(None) }
    }
}
