//! The addresses that stand behind a name, as egret itself learned them.
//!
//! A and AAAA together are one answer. Knows no room; whether an address is good is policy's to say.

use std::net::IpAddr;
use std::time::Duration;

/// One look-up's outcome, pinned for one connection attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Never empty; IPv4 and IPv6 as they came, without duplicates.
    pub addresses: Vec<IpAddr>,
    /// How long the shortest-lived record on the way holds.
    pub ttl: Duration,
    /// Whether that time is over and no server gave newer ones (RFC 8767).
    pub is_stale: bool,
    /// Whether DNS servers said so, and not a file of the operator's, or the client itself.
    pub from_servers: bool,
}

impl Answers {
    /// A literal address stands for itself.
    #[must_use]
    pub fn literal(ip: IpAddr) -> Self {
        Self { addresses: vec![ip], ttl: Duration::ZERO, is_stale: false, from_servers: false }
    }
}
