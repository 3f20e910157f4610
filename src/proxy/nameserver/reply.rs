//! What is said to a question, and its bytes for each client: with the client's own number, letters and manner.

use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};

use egret_core::outcome::Reason;
use egret_core::wire::dns::{
    CHECKING_DISABLED, DNSSEC_OK, DnsQuery, HEADER, IS_RESPONSE, OPT, RECURSION_AVAILABLE, RECURSION_DESIRED,
    TRUNCATED, lives,
};

/// The largest answer that is sent over UDP (DNS flag day 2020): a larger one would travel in fragments.
pub(super) const MOST_OVER_UDP: u16 = 1232;
/// The longest text of an extended error, in bytes.
const LONGEST_TEXT: usize = 160;
/// How long a stale answer may be used, in seconds (RFC 8767 §4).
const STALE_LIFE: u32 = 30;

/// RFC 8914 §2: the number of the option.
const EXTENDED_ERROR: u16 = 15;

/// RFC 8914 §4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExtendedError {
    code: u16,
    text: Box<str>,
}

impl ExtendedError {
    const OTHER: u16 = 0;
    const STALE: u16 = 3;
    const BLOCKED: u16 = 15;
    const FILTERED: u16 = 17;
    const NOT_READY: u16 = 14;
    const NO_AUTHORITY: u16 = 22;

    /// A refused name.
    pub(super) fn blocked(reason: Reason) -> Self {
        Self { code: Self::BLOCKED, text: reason.as_str().into() }
    }

    /// A name that is listed, and an answer that is kept back.
    pub(super) fn filtered(reason: Reason) -> Self {
        Self { code: Self::FILTERED, text: reason.as_str().into() }
    }

    pub(super) fn stale() -> Self {
        Self { code: Self::STALE, text: "".into() }
    }

    /// There is no answer. What servers said is not a client's to know.
    pub(super) fn unanswered(reason: Reason) -> Self {
        let code = match reason {
            Reason::DnsTimeout | Reason::DnsFailed => Self::NO_AUTHORITY,
            Reason::RateLimited => Self::NOT_READY,
            _ => Self::OTHER,
        };
        let text = if reason == Reason::RateLimited { reason.as_str() } else { "" };
        Self { code, text: text.into() }
    }
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    code: ResponseCode,
    /// Answers and authorities, as they stand behind the question.
    records: Box<[u8]>,
    /// How many of each.
    counts: [u16; 2],
    /// Where in `records` their lives stand.
    lives: Box<[usize]>,
    error: Option<ExtendedError>,
    is_stale: bool,
}

impl Reply {
    /// A response code, and nothing else.
    pub(super) fn bare(code: ResponseCode, error: Option<ExtendedError>) -> Self {
        Self { code, records: [].into(), counts: [0, 0], lives: [].into(), error, is_stale: false }
    }

    /// Records that answer a question, and those that say where they are from, or that there are none. `None` where they are more than a message holds.
    pub(super) fn of(
        name: &Name,
        kind: RecordType,
        code: ResponseCode,
        answers: Vec<Record>,
        authorities: Vec<Record>,
    ) -> Option<Self> {
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(name.clone(), kind));
        let counts = [answers.len(), authorities.len()];
        message.add_answers(answers).add_authorities(authorities);
        let bytes = message.to_vec().ok()?;
        // A host's name (with its final dot, one byte shorter than on the wire), its type and its class.
        let question = if name.is_root() { 1 } else { name.to_ascii().len() + 1 } + 4;
        let records: Box<[u8]> = bytes.get(HEADER + question..)?.into();
        let lives = lives(&records, counts.iter().sum())?.into();
        let [answers, authorities] = counts.map(u16::try_from);
        Some(Self { code, records, counts: [answers.ok()?, authorities.ok()?], lives, error: None, is_stale: false })
    }

    /// What it takes behind a question, in bytes, about.
    pub(super) fn len(&self) -> usize {
        self.records.len() + self.lives.len() * size_of::<usize>() + 64
    }

    /// The same with an extended error for clients that know what it is.
    pub(super) fn with(self, error: ExtendedError) -> Self {
        Self { error: Some(error), ..self }
    }

    /// The same from records whose time is over.
    pub(super) fn stale(self) -> Self {
        Self { is_stale: true, ..self.with(ExtendedError::stale()) }
    }

    /// Writes it for a client's message. What does not fit into `room` is left out, and the client asks again over TCP.
    /// `age` is how long ago the records were answered.
    pub(super) fn write(&self, query: &DnsQuery, message: &[u8], room: usize, age: Duration, out: &mut Vec<u8>) {
        let question = message.get(query.question.clone()).unwrap_or_default();
        let left = room.saturating_sub(HEADER + question.len());
        let with = |error| query.edns.map(|edns| self.opt(edns.dnssec_ok, error));
        let mut opt = with(self.error.as_ref());
        let takes = |opt: &Option<Vec<u8>>| opt.as_ref().map_or(0, Vec::len);
        // The error's text goes first.
        if self.records.len() + takes(&opt) > left {
            opt = with(None);
        }
        let fits = self.records.len() + takes(&opt) <= left;
        let mut flags = IS_RESPONSE | RECURSION_AVAILABLE | (u16::from(self.code) & 15);
        for (is_set, flag) in [
            (query.recursion_desired, RECURSION_DESIRED),
            (query.checking_disabled, CHECKING_DISABLED),
            (!fits, TRUNCATED),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        let [answers, authorities] = if fits { self.counts } else { [0, 0] };
        for word in [query.id, flags, 1, answers, authorities, u16::from(opt.is_some())] {
            out.extend(word.to_be_bytes());
        }
        out.extend_from_slice(question);
        if fits {
            let records = out.len();
            out.extend_from_slice(&self.records);
            self.grow_old(out.get_mut(records..).unwrap_or_default(), age);
        }
        out.extend(opt.into_iter().flatten());
    }

    fn grow_old(&self, records: &mut [u8], age: Duration) {
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for place in &self.lives {
            let Some(life) = records.get_mut(*place..).and_then(<[u8]>::first_chunk_mut::<4>) else { continue };
            let left = u32::from_be_bytes(*life).saturating_sub(age);
            *life = if self.is_stale { STALE_LIFE } else { left }.to_be_bytes();
        }
    }

    /// RFC 6891 §6.1.2.
    fn opt(&self, dnssec_ok: bool, error: Option<&ExtendedError>) -> Vec<u8> {
        let mut opt = vec![0];
        let high = (u16::from(self.code) >> 4).to_be_bytes()[1];
        opt.extend(OPT.to_be_bytes());
        opt.extend(MOST_OVER_UDP.to_be_bytes());
        opt.extend([high, 0]);
        opt.extend(if dnssec_ok { DNSSEC_OK } else { 0 }.to_be_bytes());
        let Some(ExtendedError { code, text }) = error else {
            opt.extend([0, 0]);
            return opt;
        };
        let text = text.as_bytes().get(..LONGEST_TEXT).unwrap_or(text.as_bytes());
        let len = u16::try_from(text.len()).unwrap_or_default();
        for word in [len + 6, EXTENDED_ERROR, len + 2, *code] {
            opt.extend(word.to_be_bytes());
        }
        opt.extend_from_slice(text);
        opt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Edns;
    use hickory_proto::rr::RData;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::rdata::opt::EdnsCode;

    fn question(edns: bool) -> (DnsQuery, Vec<u8>) {
        let mut message = Message::query();
        (message.metadata.id, message.metadata.recursion_desired) = (7, true);
        message.add_query(Query::query(Name::from_ascii("A.eXample.").unwrap(), RecordType::A));
        if edns {
            let mut edns = Edns::new();
            edns.set_max_payload(1232).set_version(0).set_dnssec_ok(true);
            message.set_edns(edns);
        }
        let bytes = message.to_vec().unwrap();
        (DnsQuery::read(&bytes).unwrap(), bytes)
    }

    fn reply(count: u8) -> Reply {
        let name = Name::from_ascii("a.example.").unwrap();
        let record = |n: u8| Record::from_rdata(name.clone(), 60, RData::A(A([192, 0, 2, n].into())));
        Reply::of(&name, RecordType::A, ResponseCode::NoError, (0..count).map(record).collect(), Vec::new()).unwrap()
    }

    fn written(reply: &Reply, edns: bool, room: usize, age: u64) -> (Message, usize) {
        let (query, message) = question(edns);
        let mut out = Vec::new();
        reply.write(&query, &message, room, Duration::from_secs(age), &mut out);
        (Message::from_vec(&out).unwrap(), out.len())
    }

    #[test]
    fn an_answer_has_the_clients_letters_and_grows_old() {
        let (message, _) = written(&reply(2), false, 512, 20);
        assert_eq!(
            (message.id, message.message_type, message.response_code),
            (7, MessageType::Response, ResponseCode::NoError)
        );
        assert!(
            message.recursion_desired && message.recursion_available && !message.truncation && message.edns.is_none()
        );
        assert_eq!(message.queries[0].name.to_ascii(), "A.eXample.");
        assert_eq!(message.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [40, 40]);
        assert!(message.answers.iter().all(|record| record.name == message.queries[0].name));
        let (message, _) = written(&reply(1), false, 512, 61);
        assert_eq!(message.answers[0].ttl, 0);
        let (message, _) = written(&reply(1).stale(), true, 512, 61);
        assert_eq!(message.answers[0].ttl, 30);
    }

    #[test]
    fn what_does_not_fit_is_to_be_asked_for_over_tcp() {
        let (message, len) = written(&reply(200), true, 1232, 0);
        assert!(message.truncation && message.answers.is_empty() && message.edns.is_some() && len < 60);
        let (message, len) = written(&reply(200), true, 65535, 0);
        assert!(!message.truncation && message.answers.len() == 200, "{len}");
    }

    #[test]
    fn an_error_says_why() {
        let refused = Reply::bare(ResponseCode::NXDomain, Some(ExtendedError::blocked(Reason::NoRule)));
        let (message, _) = written(&refused, true, 512, 0);
        let edns = message.edns.as_ref().unwrap();
        let option: Vec<u8> = edns.option(EdnsCode::Unknown(15)).unwrap().try_into().unwrap();
        assert_eq!(option, [&[0, 15][..], b"no_rule"].concat());
        assert!(edns.flags().dnssec_ok && message.response_code == ResponseCode::NXDomain);
        let (message, _) = written(&refused, false, 512, 0);
        assert!(message.edns.is_none() && message.response_code == ResponseCode::NXDomain);
        let (message, _) = written(&refused, true, 45, 0);
        assert!(message.edns.unwrap().option(EdnsCode::Unknown(15)).is_none(), "without its text");
        let version = Reply::bare(ResponseCode::BADVERS, None);
        assert_eq!(u16::from(written(&version, true, 512, 0).0.response_code), 16);
    }
}
