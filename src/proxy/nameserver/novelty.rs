//! How much a client may say in names: new names under a wildcard carry data to the servers that are asked for them.

use std::net::IpAddr;
use std::time::Duration;

use foldhash::quality::RandomState;
use moka::sync::Cache;
use tokio::time::Instant;

use super::allowance::Allowance;
use egret_core::name::HostName;

/// A name that was answered so long ago is not a new one.
const KNOWN: Duration = Duration::from_secs(24 * 3600);
/// A new name counts once in this time, however often and for whichever records it is asked for.
const COUNTED: Duration = Duration::from_secs(60);
/// Names that are known.
const MOST: u64 = 262_144;

/// Allowances of characters, by wildcard and client.
#[derive(Debug)]
pub(super) struct Novelty {
    /// Characters a minute.
    allowance: Allowance,
    /// Names that brought an answer, and names that have been counted.
    known: Cache<HostName, (), RandomState>,
    counted: Cache<HostName, (), RandomState>,
}

impl Novelty {
    pub(super) fn new(allowance: u32) -> Self {
        let names =
            |lasts| Cache::builder().max_capacity(MOST).time_to_live(lasts).build_with_hasher(RandomState::default());
        Self { allowance: Allowance::new(allowance, COUNTED), known: names(KNOWN), counted: names(COUNTED) }
    }

    /// The name brought an answer.
    pub(super) fn know(&self, name: &HostName) {
        if !self.known.contains_key(name) {
            self.known.insert(name.clone(), ());
        }
    }

    /// Whether a client may ask for a name under a wildcard now. A new one is counted.
    pub(super) fn permits(&self, name: &HostName, wildcard: &str, holder: IpAddr, now: Instant) -> bool {
        if self.known.contains_key(name) || self.counted.contains_key(name) {
            return true;
        }
        let literal = wildcard.rsplit('*').next().unwrap_or_default();
        let says = u32::try_from(name.as_str().len().saturating_sub(literal.len())).unwrap_or(u32::MAX);
        let permits = self.allowance.take(wildcard.into(), holder, says, now);
        if permits {
            self.counted.insert(name.clone(), ());
        }
        permits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        HostName::from_wire(text.as_bytes()).unwrap()
    }

    #[test]
    fn new_names_have_an_allowance_and_known_ones_need_none() {
        let (novelty, now) = (Novelty::new(100), Instant::now());
        let [one, two] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
        let asks =
            |n: u32, holder, at| novelty.permits(&name(&format!("{n:020}.a.example")), "*.a.example", holder, at);
        assert!((0..5).all(|n| asks(n, one, now)), "twenty characters each");
        assert!(!asks(5, one, now) && asks(6, two, now), "another client has its own");
        assert!(asks(0, one, now), "one that has been counted");
        assert!(novelty.permits(&name("x.b.example"), "*.b.example", one, now), "under another wildcard");
        novelty.know(&name("known.a.example"));
        assert!(novelty.permits(&name("known.a.example"), "*.a.example", one, now));
        let later = now + Duration::from_secs(12);
        assert!(asks(7, one, later) && !asks(8, one, later), "a fifth of a minute later");
    }
}
