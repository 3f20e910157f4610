//! Answers and absences, each until its time. The time is an argument: nothing here asks the clock.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use moka::sync::Cache as Store;
use tokio::time::Instant;

use crate::answers::Answers;
use crate::ending::Reason;
use crate::name::HostName;

/// What is kept for a name.
pub(super) type Kept = Result<Answers, Reason>;

/// What an entry takes beside its name and addresses, in bytes: the store's own part, measured with many entries.
const ENTRY: usize = 256;

#[derive(Debug)]
pub(super) struct Cache {
    /// Bounded in bytes: whoever answers chooses how many addresses there are, and a wildcard may be asked for without
    /// end. The least used go first.
    now: Store<HostName, (Kept, Instant), RandomState>,
    /// What was answered before: addresses and when they were answered last.
    before: Store<HostName, Arc<[(IpAddr, Instant)]>, RandomState>,
    remember: Duration,
}

/// Names whose former addresses are remembered, and how many of each; the longest unseen go first. 40 MiB at most.
const MAX_REMEMBERING: u64 = 16_384;
const MAX_REMEMBERED: usize = 64;

impl Cache {
    /// A cache of so many bytes.
    pub(super) fn new(bytes: usize, remember: Duration) -> Self {
        let weight = |name: &HostName, (kept, _): &(Kept, Instant)| {
            let addresses = kept.as_ref().map_or(0, |answers| size_of_val(&*answers.addresses));
            u32::try_from(ENTRY + name.as_str().len() + addresses).unwrap_or(u32::MAX)
        };
        let now = Store::builder().max_capacity(bytes as u64).weigher(weight);
        let now = now.build_with_hasher(RandomState::default());
        let before = Store::builder().max_capacity(MAX_REMEMBERING).time_to_live(remember);
        Self { now, before: before.build_with_hasher(RandomState::default()), remember }
    }

    /// What is kept and still holds at `now`.
    pub(super) fn get(&self, name: &HostName, now: Instant) -> Option<Kept> {
        let (kept, until) = self.now.get(name)?;
        (now < until).then_some(kept)
    }

    pub(super) fn put(&self, name: &HostName, kept: Kept, until: Instant) {
        self.now.insert(name.clone(), (kept, until));
    }

    /// Bytes that are kept now, about.
    #[cfg(test)]
    fn weight(&self) -> u64 {
        self.now.run_pending_tasks();
        self.now.weighted_size()
    }

    /// Remembers what was answered.
    pub(super) fn remember(&self, name: &HostName, answered: &[IpAddr], now: Instant) {
        let known = self.before.get(name);
        let holds =
            |(ip, seen): &&(IpAddr, Instant)| !answered.contains(ip) && now.duration_since(*seen) < self.remember;
        let mut all: Vec<_> = known.iter().flat_map(|known| known.iter().filter(holds)).copied().collect();
        all.extend(answered.iter().map(|ip| (*ip, now)));
        all.drain(..all.len().saturating_sub(MAX_REMEMBERED));
        self.before.insert(name.clone(), all.into());
    }

    /// Whether a name was answered within some time.
    pub(super) fn answered_within(&self, name: &HostName, time: Duration, now: Instant) -> bool {
        self.before.get(name).is_some_and(|known| known.iter().any(|(_, seen)| now.duration_since(*seen) < time))
    }

    /// Whether an address was answered for a name, not too long ago.
    pub(super) fn remembers(&self, name: &HostName, ip: IpAddr, now: Instant) -> bool {
        let known = self.before.get(name);
        let mut known = known.iter().flat_map(|known| known.iter());
        known.any(|(other, seen)| *other == ip && now.duration_since(*seen) < self.remember)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_until_its_time_and_not_a_moment_longer() {
        let cache = Cache::new(1 << 20, Duration::from_secs(60));
        let name = HostName::from_wire(b"a.example").unwrap();
        let now = Instant::now();
        let (first, second) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        cache.remember(&name, &[first], now);
        cache.remember(&name, &[second], now + Duration::from_secs(59));
        assert!(cache.answered_within(&name, Duration::from_secs(2), now + Duration::from_secs(60)));
        assert!(!cache.answered_within(&name, Duration::from_secs(2), now + Duration::from_secs(61)));
        assert!(cache.remembers(&name, first, now + Duration::from_secs(59)));
        assert!(!cache.remembers(&name, first, now + Duration::from_secs(60)));
        assert!(cache.remembers(&name, second, now + Duration::from_secs(60)));
        let until = now + Duration::from_secs(5);
        assert!(cache.get(&name, now).is_none());
        cache.put(&name, Err(Reason::NoSuchName), until);
        assert_eq!(cache.get(&name, until - Duration::from_millis(1)), Some(Err(Reason::NoSuchName)));
        assert_eq!(cache.get(&name, until), None);
    }

    #[test]
    fn the_cache_is_bounded_in_bytes() {
        let cache = Cache::new(1 << 20, Duration::from_secs(60));
        let until = Instant::now() + Duration::from_secs(60);
        let put = |count: usize, names: usize| {
            for n in 0..names {
                let name = HostName::from_wire(format!("n{n}.example").as_bytes()).unwrap();
                let addresses = vec![IpAddr::from([192, 0, 2, 1]); count];
                cache.put(&name, Ok(Answers { addresses, ttl: Duration::from_secs(60) }), until);
            }
            (cache.weight(), cache.now.entry_count())
        };
        let (weight, entries) = put(1, 1000);
        assert!(weight < 1 << 20 && entries == 1000, "{weight} {entries}");
        let (weight, entries) = put(512, 1000);
        assert!(weight <= 1 << 20 && entries <= 120, "{weight} {entries}");
    }
}
