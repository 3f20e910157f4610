//! Why a server brought no addresses: the reason, and the words for the log.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hickory_net::{DnsError, NetError, NoRecords};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::SOA;

use egret_core::outcome::Reason;

/// What came of a question to one server, other than an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// NXDOMAIN.
    NoName(Absence),
    /// The name is there, without a record of the kind.
    NoRecord(Absence),
    /// The server says no.
    Code(ResponseCode),
    Silent,
    Unreachable(String),
    /// This machine could not ask, for want of a socket for example.
    Local(String),
    /// The question came back in other letter case (draft-vixie-dnsext-dns0x20), and nothing else helped.
    OtherCase,
    NoQuestion,
    /// The answer was cut (RFC 1035 §4.1.1, TC), and is not to be had over TCP.
    CutShort(String),
    Broken(String),
}

/// What a negative answer says beside its code (RFC 2308).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Absence {
    /// How long to believe it, where the server said so.
    pub(super) ttl: Option<Duration>,
    /// The zone's SOA record.
    pub(super) soa: Option<Box<Record<SOA>>>,
    /// Its authority section, with the proof of absence where it was asked for.
    pub(super) authorities: Option<Arc<[Record]>>,
}

impl Trouble {
    /// The name, or a record of the kind, is known not to be there: as good an answer as any.
    pub(super) const fn is_absence(&self) -> bool {
        matches!(self, Self::NoName(_) | Self::NoRecord(_))
    }

    /// It says nothing about the name and something about the server.
    pub(super) const fn is_silence(&self) -> bool {
        matches!(self, Self::Silent | Self::Unreachable(_))
    }

    /// Former answers may stand in for the missing one (RFC 8767 §4).
    pub(super) const fn is_passing(&self) -> bool {
        !self.is_absence() && !matches!(self, Self::Broken(_))
    }

    pub(super) const fn reason(&self) -> Reason {
        match self {
            Self::NoName(_) | Self::NoRecord(_) => Reason::NoSuchName,
            Self::Code(_) | Self::Unreachable(_) | Self::Local(_) | Self::CutShort(_) => Reason::DnsFailed,
            Self::Silent => Reason::DnsTimeout,
            Self::OtherCase | Self::NoQuestion | Self::Broken(_) => Reason::BadDns,
        }
    }

    /// How long to believe it, where the server said so.
    pub(super) const fn ttl(&self) -> Option<Duration> {
        match self {
            Self::NoName(absence) | Self::NoRecord(absence) => absence.ttl,
            _ => None,
        }
    }

    /// Of several, the one that says most: a server that says no, rather than one that says nothing.
    pub(super) const fn says(&self) -> u8 {
        match self {
            Self::Silent => 0,
            Self::Unreachable(_) | Self::Local(_) => 1,
            Self::OtherCase | Self::NoQuestion | Self::Broken(_) => 2,
            Self::CutShort(_) => 3,
            Self::Code(_) | Self::NoName(_) | Self::NoRecord(_) => 4,
        }
    }
}

/// The rest of a sentence that begins with the server.
impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoName(_) => f.write_str("says that there is no such name (NXDOMAIN)"),
            Self::NoRecord(_) => f.write_str("has no address for the name"),
            Self::Code(code) => write!(f, "refused the question: {code}"),
            Self::Silent => f.write_str("did not answer in time"),
            Self::Unreachable(why) => write!(f, "cannot be reached: {why}"),
            Self::Local(why) => write!(f, "could not be asked: {why}"),
            Self::OtherCase => f.write_str(
                "changes the letter case of the question (0x20), and answered neither over TCP nor in lower case",
            ),
            Self::NoQuestion => f.write_str("answered without repeating the question"),
            Self::CutShort(why) => write!(f, "cut its answer short, and TCP to it failed: {why}"),
            Self::Broken(why) => write!(f, "sent what is not a DNS answer: {why}"),
        }
    }
}

impl From<NetError> for Trouble {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Dns(DnsError::NoRecordsFound(NoRecords {
                response_code,
                negative_ttl,
                soa,
                authorities,
                ..
            })) => {
                let ttl = negative_ttl.map(|seconds| Duration::from_secs(seconds.into()));
                let absence = Absence { ttl, soa, authorities };
                match response_code {
                    ResponseCode::NoError => Self::NoRecord(absence),
                    ResponseCode::NXDomain => Self::NoName(absence),
                    code => Self::Code(code),
                }
            }
            NetError::Dns(DnsError::ResponseCode(code)) => Self::Code(code),
            NetError::Timeout => Self::Silent,
            NetError::Io(error) => Self::Unreachable(error.to_string()),
            NetError::NoConnections | NetError::Busy => Self::Unreachable(error.to_string()),
            other => Self::Broken(other.to_string()),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(error.to_string())
    }
}
