//! DNS messages (RFC 1035 §4.1): what a client asks, and in which manner the answer must come.
//!
//! Pure: bytes in, value out. Strict where two readers could disagree: one question, no compression in it, and nothing
//! behind the records that the header counts.

use std::fmt;
use std::ops::Range;

use super::reader::{Reader, Short};
use crate::name::{HostName, MAX_LABEL, NameFault};

/// RFC 1035 §4.1.1.
pub const HEADER: usize = 12;
/// RFC 1035 §2.3.4: the octets of a name on the wire.
const LONGEST_NAME: usize = 255;
/// RFC 6891 §6.1.1.
pub const OPT: u16 = 41;
/// RFC 6891 §6.2.3: the least that a client with EDNS takes.
const LEAST_PAYLOAD: u16 = 512;

/// In the header's second word (RFC 1035 §4.1.1, RFC 4035 §3.2).
pub const IS_RESPONSE: u16 = 0x8000;
pub const TRUNCATED: u16 = 0x0200;
pub const RECURSION_DESIRED: u16 = 0x0100;
pub const RECURSION_AVAILABLE: u16 = 0x0080;
pub const CHECKING_DISABLED: u16 = 0x0010;
/// In an OPT record's last sixteen bits (RFC 3225 §3).
pub const DNSSEC_OK: u16 = 0x8000;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsQuery {
    pub id: u16,
    pub recursion_desired: bool,
    pub checking_disabled: bool,
    pub name: Name,
    pub kind: u16,
    pub class: u16,
    /// Where the question stands in the message: name, type and class. Its letters are the client's.
    pub question: Range<usize>,
    pub edns: Option<Edns>,
}

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    Root,
    Host(HostName),
    /// A name that is not a host's, and why.
    Odd(NameFault),
}

/// RFC 6891: what the client said in its OPT record. Its options are not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP payload that the client takes, in bytes; at least 512.
    pub payload: u16,
    pub version: u8,
    pub dnssec_ok: bool,
}

/// Why a message is not a question that can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Not a question, or less than a header: to answer it could begin a loop.
    Silent,
    /// An operation other than QUERY, in the message of this number.
    Opcode { id: u16, opcode: u8 },
    /// Malformed behind its header, which has this number.
    Malformed { id: u16 },
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("the message is not a question"),
            Self::Opcode { opcode, .. } => write!(f, "operation {opcode} is not supported, QUERY (0) is"),
            Self::Malformed { .. } => f.write_str("the message is malformed, or has not exactly one question"),
        }
    }
}

impl Unreadable {
    /// What its sender reads, if anything: a header.
    #[must_use]
    pub fn reply(self) -> Option<[u8; HEADER]> {
        /// RFC 1035 §4.1.1.
        const FORMAT_ERROR: u8 = 1;
        const NOT_IMPLEMENTED: u8 = 4;
        let (id, opcode, code) = match self {
            Self::Silent => return None,
            Self::Opcode { id, opcode } => (id, opcode, NOT_IMPLEMENTED),
            Self::Malformed { id } => (id, 0, FORMAT_ERROR),
        };
        let ([high, low], [flags, _]) = (id.to_be_bytes(), IS_RESPONSE.to_be_bytes());
        Some([high, low, flags | (opcode << 3), code, 0, 0, 0, 0, 0, 0, 0, 0])
    }
}

impl DnsQuery {
    /// Reads a whole message.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn read(message: &[u8]) -> Result<Self, Unreadable> {
        let mut reader = Reader::new(message);
        let mut word = || reader.u16().map_err(|Short| Unreadable::Silent);
        let (id, flags) = (word()?, word()?);
        let [questions, answers, authorities, additionals] = [word()?, word()?, word()?, word()?];
        if flags & IS_RESPONSE != 0 {
            return Err(Unreadable::Silent);
        }
        let opcode = (flags.to_be_bytes()[0] >> 3) & 15;
        if opcode != 0 {
            return Err(Unreadable::Opcode { id, opcode });
        }
        let malformed = |Short| Unreadable::Malformed { id };
        if (questions, answers, authorities) != (1, 0, 0) {
            return Err(malformed(Short));
        }
        let name = name(&mut reader).map_err(malformed)?;
        let (kind, class) = (reader.u16().map_err(malformed)?, reader.u16().map_err(malformed)?);
        let question = HEADER..message.len() - reader.rest().len();
        let edns = additional(&mut reader, additionals).map_err(malformed)?;
        Ok(Self {
            id,
            recursion_desired: flags & RECURSION_DESIRED != 0,
            checking_disabled: flags & CHECKING_DISABLED != 0,
            name,
            kind,
            class,
            question,
            edns,
        })
    }

    /// The largest answer over UDP, in bytes (RFC 1035 §4.2.1, RFC 6891 §6.2.5).
    #[must_use]
    pub fn udp_room(&self, most: u16) -> usize {
        usize::from(self.edns.map_or(LEAST_PAYLOAD, |edns| edns.payload.min(most)))
    }
}

/// A name without compression: labels behind their lengths, up to the root.
fn name(reader: &mut Reader<'_>) -> Result<Name, Short> {
    let mut text = Vec::with_capacity(64);
    let (mut taken, mut fault) = (1, None);
    loop {
        let len = usize::from(reader.u8()?);
        if len > MAX_LABEL {
            return Err(Short);
        }
        if len == 0 {
            break;
        }
        taken += len + 1;
        if taken > LONGEST_NAME {
            return Err(Short);
        }
        let label = reader.take(len)?;
        // A dot inside a label would make two of it.
        if label.contains(&b'.') {
            fault = Some(NameFault::BadByte(b'.'));
        }
        if !text.is_empty() {
            text.push(b'.');
        }
        text.extend_from_slice(label);
    }
    if text.is_empty() {
        return Ok(Name::Root);
    }
    let name = fault.map_or_else(|| HostName::from_wire(&text), Err);
    Ok(name.map_or_else(Name::Odd, Name::Host))
}

/// The additional records: at most one OPT (RFC 6891 §6.1.1), others are stepped over. Nothing may follow them.
fn additional(reader: &mut Reader<'_>, count: u16) -> Result<Option<Edns>, Short> {
    let mut edns = None;
    for _ in 0..count {
        let is_root = name(reader)? == Name::Root;
        let (kind, class) = (reader.u16()?, reader.u16()?);
        let (high, low) = (reader.u16()?, reader.u16()?);
        reader.vec16()?;
        if kind != OPT {
            continue;
        }
        if edns.is_some() || !is_root {
            return Err(Short);
        }
        let [_, version] = high.to_be_bytes();
        edns = Some(Edns { payload: class.max(LEAST_PAYLOAD), version, dnssec_ok: low & DNSSEC_OK != 0 });
    }
    if reader.is_empty() { Ok(edns) } else { Err(Short) }
}

/// Where the lives (TTL) of records stand, in bytes from their beginning; `None` where they are not so many records and
/// nothing else.
#[must_use]
pub fn lives(records: &[u8], count: usize) -> Option<Vec<usize>> {
    let mut reader = Reader::new(records);
    let mut places = Vec::with_capacity(count.min(records.len()));
    for _ in 0..count {
        owner(&mut reader).ok()?;
        reader.take(4).ok()?;
        places.push(records.len() - reader.rest().len());
        reader.take(4).ok()?;
        reader.vec16().ok()?;
    }
    reader.is_empty().then_some(places)
}

/// Steps over a name that may end in a pointer (RFC 1035 §4.1.4).
fn owner(reader: &mut Reader<'_>) -> Result<(), Short> {
    loop {
        match usize::from(reader.u8()?) {
            0 => return Ok(()),
            pointer if pointer >= 0xc0 => return reader.u8().map(drop),
            len => drop(reader.take(len)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(flags: u16, counts: [u16; 4], rest: &[&[u8]]) -> Vec<u8> {
        let mut all = vec![0xab, 0xcd];
        all.extend(flags.to_be_bytes());
        counts.iter().for_each(|count| all.extend(count.to_be_bytes()));
        rest.iter().for_each(|part| all.extend_from_slice(part));
        all
    }

    const QUESTION: &[u8] = b"\x01a\x07eXample\x00\x00\x1c\x00\x01";
    const OPT_RECORD: &[u8] = b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x04\x00\x0a\x00\x00";

    #[test]
    fn a_question_is_read_with_its_manner() {
        let bytes = message(0x0130, [1, 0, 0, 1], &[QUESTION, OPT_RECORD]);
        let query = DnsQuery::read(&bytes).unwrap();
        assert_eq!(query.name, Name::Host(HostName::from_wire(b"a.example").unwrap()));
        assert_eq!((query.id, query.kind, query.class), (0xabcd, 28, 1));
        assert!(query.recursion_desired && query.checking_disabled && query.edns.unwrap().dnssec_ok);
        assert_eq!(&bytes[query.question.clone()], QUESTION, "with the client's own letters");
        assert_eq!((query.udp_room(4096), query.udp_room(1000)), (1232, 1000));
        let plain = DnsQuery::read(&message(0, [1, 0, 0, 0], &[QUESTION])).unwrap();
        assert!(!plain.recursion_desired && plain.edns.is_none());
        assert_eq!(plain.udp_room(4096), 512);
        let small = message(0, [1, 0, 0, 1], &[QUESTION, b"\x00\x00\x29\x00\x01\x00\x00\x00\x00\x00\x00"]);
        assert_eq!(DnsQuery::read(&small).unwrap().udp_room(4096), 512);
        let root = DnsQuery::read(&message(0, [1, 0, 0, 0], &[b"\x00\x00\x02\x00\x01"])).unwrap();
        assert_eq!(root.name, Name::Root);
    }

    #[test]
    fn a_name_that_is_not_a_hosts_has_its_fault() {
        let fault =
            |name: &[u8]| DnsQuery::read(&message(0, [1, 0, 0, 0], &[name, b"\x00\x00\x01\x00\x01"])).unwrap().name;
        assert_eq!(fault(b"\x03a.b\x01c"), Name::Odd(NameFault::BadByte(b'.')));
        assert_eq!(fault(b"\x02a \x01c"), Name::Odd(NameFault::BadByte(b' ')));
        assert_eq!(fault(b"\x01\x00\x01c"), Name::Odd(NameFault::BadByte(0)));
        assert_eq!(fault(b"\x0210\x010\x010\x011"), Name::Odd(NameFault::Address));
        assert_eq!(
            fault(b"\x011\x010\x010\x0210\x07in-addr\x04arpa"),
            Name::Host(HostName::from_wire(b"1.0.0.10.in-addr.arpa").unwrap())
        );
    }

    #[test]
    fn what_is_not_one_question_is_refused() {
        let malformed = Err(Unreadable::Malformed { id: 0xabcd });
        let read = |flags, counts, rest: &[&[u8]]| DnsQuery::read(&message(flags, counts, rest));
        assert_eq!(read(0x8000, [1, 0, 0, 0], &[QUESTION]), Err(Unreadable::Silent), "a response");
        assert_eq!(DnsQuery::read(&[0; 11]), Err(Unreadable::Silent));
        assert_eq!(
            read(0x2800, [1, 0, 0, 0], &[QUESTION]),
            Err(Unreadable::Opcode { id: 0xabcd, opcode: 5 }),
            "an update"
        );
        assert_eq!(Unreadable::Opcode { id: 0xabcd, opcode: 5 }.reply().unwrap()[..4], [0xab, 0xcd, 0xa8, 4]);
        assert_eq!(Unreadable::Malformed { id: 1 }.reply().unwrap()[..4], [0, 1, 0x80, 1]);
        assert_eq!(Unreadable::Silent.reply(), None);
        assert_eq!(read(0, [0, 0, 0, 0], &[]), malformed);
        assert_eq!(read(0, [2, 0, 0, 0], &[QUESTION, QUESTION]), malformed);
        assert_eq!(read(0, [1, 1, 0, 0], &[QUESTION]), malformed);
        assert_eq!(read(0, [1, 0, 0, 0], &[QUESTION, b"x"]), malformed, "with something behind it");
        assert_eq!(read(0, [1, 0, 0, 0], &[&QUESTION[..QUESTION.len() - 1]]), malformed);
        assert_eq!(read(0, [1, 0, 0, 2], &[QUESTION, OPT_RECORD, OPT_RECORD]), malformed);
        assert_eq!(read(0, [1, 0, 0, 0], &[b"\xc0\x0c\x00\x01\x00\x01"]), malformed, "compressed");
        let long: Vec<u8> = (0..4).flat_map(|_| [&[63][..], &[b'a'; 63]].concat()).collect();
        assert_eq!(read(0, [1, 0, 0, 0], &[&long, b"\x00\x00\x01\x00\x01"]), malformed);
    }

    #[test]
    fn the_lives_of_records_are_found() {
        let records = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04abcd\x01b\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x05\x00\x02\xc0\x0c";
        assert_eq!(lives(records, 2), Some(vec![6, 24]));
        assert_eq!(lives(records, 1), None, "something is behind them");
        assert_eq!(lives(records, 3), None);
        assert_eq!(lives(&records[..30], 2), None);
        assert_eq!(lives(&[], 0), Some(Vec::new()));
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(bytes in proptest::collection::vec(any::<u8>(), 0..80), cut in 0usize..40) {
            let _ = DnsQuery::read(&bytes);
            let _ = lives(&bytes, cut);
            let whole = message(0, [1, 0, 0, 1], &[QUESTION, OPT_RECORD]);
            prop_assert!(DnsQuery::read(&whole[..whole.len() - 1 - cut % whole.len()]).is_err());
        }
    }
}
