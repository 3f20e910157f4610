//! What servers said to a question of a DNS client, record by record.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{DnsResponse, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use tokio::time::Instant;

use super::cache::{Keepable, Question};
use super::trouble::Absence;
use egret_core::name::HostName;

/// One question, as servers are asked it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RecordQuestion {
    pub(super) name: HostName,
    pub(super) kind: RecordType,
    /// With signatures.
    pub(super) is_signed: bool,
}

impl Question for RecordQuestion {
    fn name(&self) -> &HostName {
        &self.name
    }
}

/// What servers said, an absence among it.
#[derive(Debug, PartialEq)]
pub struct RecordSet {
    /// NOERROR or NXDOMAIN.
    pub code: ResponseCode,
    /// As they came; what belongs to the question is a matter of the chain of aliases.
    pub answers: Vec<Record>,
    /// Of an absence: the zone's SOA record (RFC 2308 §3), where the server sent one.
    pub soa: Option<Record>,
    /// Of an answer with signatures: the authority section.
    pub authorities: Vec<Record>,
}

/// A record set, and for how long it holds.
#[derive(Clone, Debug)]
pub struct Records {
    pub set: Arc<RecordSet>,
    /// When it was answered: its records' lives are counted from then.
    pub answered: Instant,
    pub life: Duration,
    /// Its time is over, and no server gives a newer one (RFC 8767).
    pub is_stale: bool,
}

/// What a record takes, in bytes, measured with many.
const RECORD: usize = 320;

impl Keepable for Records {
    fn life(&self) -> Duration {
        self.life
    }

    fn weight(&self) -> usize {
        (self.set.answers.len() + usize::from(self.set.soa.is_some()) + self.set.authorities.len()) * RECORD
    }

    fn stale(self) -> Self {
        Self { is_stale: true, ..self }
    }
}

impl RecordSet {
    /// An answer with records, each of whose lives is within bounds.
    pub(super) fn of(response: DnsResponse, is_signed: bool, [least, most]: [u32; 2]) -> Self {
        let code = response.response_code;
        let mut message = response.into_message();
        message.answers.iter_mut().for_each(|record| record.ttl = record.ttl.clamp(least, most));
        let authorities = if is_signed { message.authorities } else { Vec::new() };
        Self { code, answers: message.answers, soa: None, authorities }
    }

    /// An absence.
    pub(super) fn absent(code: ResponseCode, is_signed: bool, absence: Absence) -> Self {
        let authorities = absence.authorities.filter(|_| is_signed).map(|all| all.to_vec()).unwrap_or_default();
        let soa = absence.soa.map(|soa| (*soa).into_record_of_rdata());
        Self { code, answers: Vec::new(), soa, authorities }
    }

    /// Whether a server has signed it.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.answers.iter().chain(&self.authorities).any(|record| record.record_type() == RecordType::RRSIG)
    }

    /// The shortest life of its records.
    pub(super) fn shortest(&self) -> Option<Duration> {
        self.answers.iter().map(|record| Duration::from_secs(record.ttl.into())).min()
    }
}

/// A name as servers are asked for it: with a final dot, so that no search list ever applies.
///
/// # Errors
/// What is wrong with the name; a host's name never is.
pub fn absolute(name: &HostName) -> Result<Name, String> {
    Name::from_ascii(format!("{name}.")).map_err(|error| error.to_string())
}
