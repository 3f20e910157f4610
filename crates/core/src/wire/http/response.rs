//! The head of an answer.

use super::fields::{
    BodyLength, Framing, Onward, Upgrade, closes, content_length, first_line, kept_fields, named, split_at_colon,
    upgrade, with_fields,
};
use crate::outcome::Reason;

/// One response head.
#[derive(Debug, PartialEq, Eq)]
pub struct ResponseHead {
    pub status: u16,
    /// Bytes up to and including the empty line.
    pub len: usize,
    /// What the fields say of the body, whether the answer has one or not.
    says: Result<AnswerLength, Reason>,
    /// The protocol that the server goes on in.
    pub upgrade: Option<Upgrade>,
    stays: bool,
    pub is_http_10: bool,
}

/// How long an answer's body is (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerLength {
    Framed(BodyLength),
    /// Until the upstream closes.
    ToTheEnd,
}

impl ResponseHead {
    pub(super) fn read(head: &[u8], fields: usize) -> Result<Self, Reason> {
        with_fields(fields, |fields| Self::read_into(head, fields))
    }

    fn read_into<'a>(head: &'a [u8], fields: &mut [httparse::Header<'a>]) -> Result<Self, Reason> {
        let mut response = httparse::Response::new(fields);
        // RFC 9112 §5.1: a proxy removes them from an answer; in a request they are refused.
        let parsed = httparse::ParserConfig::default()
            .allow_spaces_after_header_name_in_responses(true)
            .parse_response(&mut response, head);
        // RFC 9110 §15: clients take 600 to 999 for a server's error, and nothing below 100 for an answer.
        let (Ok(httparse::Status::Complete(_)), Some(status @ 100..)) = (parsed, response.code) else {
            return Err(Reason::BadAnswer);
        };
        let is_http_10 = response.version == Some(0);
        let says = answer_length(response.headers, is_http_10);
        let stays = !is_http_10 && !closes(response.headers);
        let mut upgrades = named(response.headers, "upgrade");
        let upgrade = upgrades.next().and_then(upgrade).filter(|_| upgrades.next().is_none());
        Ok(Self { status, len: head.len(), says, upgrade, stays, is_http_10 })
    }

    /// 1xx but for a switch: another head follows.
    #[must_use]
    pub const fn is_interim(&self) -> bool {
        self.status >= 100 && self.status < 200 && self.status != 101
    }

    /// Whether the server may be asked again.
    #[must_use]
    pub const fn stays(&self) -> bool {
        self.stays
    }

    /// How long the body of the answer to a request with this method is (RFC 9112 §6.3).
    ///
    /// # Errors
    /// [`Reason::BadAnswer`] where its fields contradict each other.
    pub fn body(&self, method: &str) -> Result<AnswerLength, Reason> {
        if self.has_body(method) { self.says } else { Ok(AnswerLength::Framed(BodyLength::Exactly(0))) }
    }

    /// Whether a body is announced that must not come. Some servers send it all the same, and what would come of it
    /// after the head cannot be known.
    #[must_use]
    pub fn announces_forbidden_body(&self, method: &str) -> bool {
        let is_silent = matches!(self.says, Ok(AnswerLength::ToTheEnd | AnswerLength::Framed(BodyLength::Exactly(0))));
        !self.has_body(method) && !is_silent
    }

    fn has_body(&self, method: &str) -> bool {
        method != "HEAD" && !matches!(self.status, 100..200 | 204 | 304)
    }

    /// The head as it goes to the client, without what concerned the other hop only. What frames the answer is written
    /// from what was read of it, and left out of answers that never have a body (RFC 9112 §6.1, RFC 9110 §8.6).
    #[must_use]
    pub fn for_client(&self, raw: &[u8], adds: &[u8], onward: Onward) -> Vec<u8> {
        let head = raw.get(..self.len).unwrap_or_default();
        let mut out = head.get(first_line(head)).unwrap_or_default().to_vec();
        let framing = match self.says {
            Ok(AnswerLength::Framed(length)) if !matches!(self.status, 100..200 | 204) => length.field(),
            _ => String::new(),
        };
        for line in kept_fields(head) {
            let is_framing = matches!(Framing::of(line), Some(Framing::ContentLength | Framing::TransferEncoding));
            if is_framing {
                out.extend_from_slice(framing.as_bytes());
            } else if let Some((name, rest)) = split_at_colon(line) {
                out.extend_from_slice(name);
                out.extend_from_slice(rest);
            }
        }
        out.extend_from_slice(adds);
        out.extend_from_slice(onward.fields());
        out
    }
}

/// What an answer's fields say of its body. Two lengths are not a length: a client behind could be made to read one
/// answer as two. HTTP/1.0 knows no codings (RFC 9112 §6.1).
fn answer_length(headers: &[httparse::Header<'_>], is_http_10: bool) -> Result<AnswerLength, Reason> {
    let codings: Vec<&[u8]> = named(headers, "transfer-encoding").collect();
    let lengths: Vec<Option<u64>> = named(headers, "content-length").map(|value| content_length(value).ok()).collect();
    match (codings.as_slice(), lengths.as_slice()) {
        ([], []) => Ok(AnswerLength::ToTheEnd),
        ([], [Some(n)]) => Ok(AnswerLength::Framed(BodyLength::Exactly(*n))),
        ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") && !is_http_10 => {
            Ok(AnswerLength::Framed(BodyLength::Chunked))
        }
        _ => Err(Reason::BadAnswer),
    }
}
