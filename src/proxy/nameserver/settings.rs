//! What a configuration says of answering DNS clients.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use ipnet::IpNet;

use crate::learn::settings::SteerSettings;
use egret_core::rule::AppPort;

/// How DNS clients are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameserverSettings {
    /// How refused names are answered.
    pub refused: RefusedNames,
    /// How long clients may keep that a name is refused.
    pub refused_ttl: Duration,
    /// Clients that ask on behalf of others: judged for all sources, and counted by name.
    pub forwarders: Vec<IpNet>,
    /// Private ranges that answers may have.
    pub local_ranges: Vec<IpNet>,
    /// Whether what servers signed is passed on unchanged to clients that ask for signatures.
    pub is_intact: bool,
    /// Whether aliases are passed on, instead of standing under the question's name.
    pub keeps_chain: bool,
    /// Kinds of records that are answered beside the usual ones.
    pub kinds: Vec<RecordType>,
    /// Synthetic addresses, where clients are answered with them.
    pub steer: Option<SteerSettings>,
    /// Egret's own addresses, where clients are answered with those.
    pub own_answers: Option<OwnAnswers>,
    /// How long an answer opens a network rule's wildcard at least, and how much longer than it may be kept.
    pub floor: Duration,
    pub grace: Duration,
    /// Whether it opens for the client alone that asked.
    pub opens_for_asker: bool,
}

/// Answers that lead clients to the listeners that read names in the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnAnswers {
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// What clients may speak there, and the port that names are dialled at.
    pub ports: Vec<AppPort>,
}

/// How a name that may not be asked for is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedNames {
    /// NXDOMAIN: resolvers go on as they do for a name that does not exist.
    NoName,
    /// REFUSED: many go to their next server.
    Refused,
}

/// Kinds of records that signatures are validated by (RFC 4034, RFC 5155).
#[must_use]
pub const fn is_of_dnssec(kind: RecordType) -> bool {
    matches!(
        kind,
        RecordType::DS
            | RecordType::DNSKEY
            | RecordType::NSEC
            | RecordType::NSEC3
            | RecordType::NSEC3PARAM
            | RecordType::RRSIG
    )
}

impl NameserverSettings {
    /// How long the addresses of an answer stand for a name under a network rule's wildcard.
    #[must_use]
    pub fn stands(&self, ttl: Duration) -> Duration {
        ttl.max(self.floor) + self.grace
    }

    /// Whether a client asks on behalf of others.
    #[must_use]
    pub fn is_forwarder(&self, client: IpAddr) -> bool {
        self.forwarders.iter().any(|net| net.contains(&client))
    }

    /// Whether records of a kind are answered.
    #[must_use]
    pub fn answers(&self, kind: RecordType) -> bool {
        const USUAL: [RecordType; 9] = [
            RecordType::A,
            RecordType::AAAA,
            RecordType::CNAME,
            RecordType::HTTPS,
            RecordType::SVCB,
            RecordType::SRV,
            RecordType::PTR,
            RecordType::NS,
            RecordType::SOA,
        ];
        USUAL.contains(&kind) || is_of_dnssec(kind) || self.kinds.contains(&kind)
    }
}
