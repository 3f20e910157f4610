//! Answers and absences, each until its time. The time is an argument: nothing here asks the clock.

use std::time::Duration;

use foldhash::quality::RandomState;
use moka::sync::Cache as Store;
use tokio::time::Instant;

use super::no_answer::NoAnswer;
use egret_core::answers::Answers;
use egret_core::name::HostName;

/// What is kept for a name.
#[derive(Clone, Debug, Default)]
struct Kept {
    /// The last answer, and when its time is over.
    answer: Option<(Answers, Instant)>,
    /// When it came.
    answered: Option<Instant>,
    /// What came of a later question, and how long that holds.
    failure: Option<(NoAnswer, Instant)>,
}

/// What is known of a name at some time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    Answer(Answers),
    /// Its absence, or a failure that has just been met.
    Failure(NoAnswer),
    /// An answer whose time is over, and what has been met since, if that was a moment ago.
    Stale(Answers, Option<NoAnswer>),
    Nothing,
}

/// What an entry takes beside its name and addresses, in bytes: the store's own part, measured with many entries.
const ENTRY: usize = 256;

#[derive(Debug)]
pub(super) struct Cache {
    /// Bounded in bytes: a server chooses how many addresses there are, and names under a wildcard have no
    /// end. The least used go first.
    now: Store<HostName, Kept, RandomState>,
    /// How long an answer may still be used when its time is over.
    stale: Duration,
}

impl Cache {
    /// A cache of so many bytes.
    pub(super) fn new(bytes: usize, stale: Duration) -> Self {
        let weight = |name: &HostName, kept: &Kept| {
            let addresses = kept.answer.as_ref().map_or(0, |(answers, _)| size_of_val(&*answers.addresses));
            let words = kept.failure.as_ref().map_or(0, |(failure, _)| failure.words.len());
            u32::try_from(ENTRY + name.as_str().len() + addresses + words).unwrap_or(u32::MAX)
        };
        let now = Store::builder().max_capacity(bytes as u64).weigher(weight);
        let now = now.build_with_hasher(RandomState::default());
        Self { now, stale }
    }

    /// What is known at `now`.
    pub(super) fn get(&self, name: &HostName, now: Instant) -> Known {
        let Some(Kept { answer, failure, .. }) = self.now.get(name) else { return Known::Nothing };
        let failure = failure.and_then(|(failure, until)| (now < until).then_some(failure));
        match (answer, failure) {
            (Some((answers, until)), _) if now < until => Known::Answer(answers),
            (Some((answers, until)), failure) if now < until + self.stale => {
                Known::Stale(Answers { is_stale: true, ..answers }, failure)
            }
            (_, Some(failure)) => Known::Failure(failure),
            (_, None) => Known::Nothing,
        }
    }

    /// Keeps an answer, which takes the place of all that was known.
    pub(super) fn answered(&self, name: &HostName, answers: Answers, now: Instant) {
        let until = now + answers.ttl;
        self.now.insert(name.clone(), Kept { answer: Some((answers, until)), answered: Some(now), failure: None });
    }

    /// Keeps a failure. An absence takes the place of former answers (RFC 8767 §4), any other stands beside them.
    pub(super) fn failed(&self, name: &HostName, failure: NoAnswer, until: Instant) {
        self.now.entry_by_ref(name).and_upsert_with(|known| {
            let known = known.filter(|_| failure.is_passing).map(moka::Entry::into_value).unwrap_or_default();
            Kept { failure: Some((failure, until)), ..known }
        });
    }

    /// Bytes that are kept now, about.
    #[cfg(test)]
    fn weight(&self) -> u64 {
        self.now.run_pending_tasks();
        self.now.weighted_size()
    }

    /// Whether a name was answered within some time.
    pub(super) fn answered_within(&self, name: &HostName, time: Duration, now: Instant) -> bool {
        let known = self.now.get(name).and_then(|known| known.answered);
        known.is_some_and(|answered| now.saturating_duration_since(answered) < time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_core::outcome::Reason;
    use std::net::IpAddr;

    #[test]
    fn an_answer_holds_until_its_time_and_not_a_moment_longer() {
        let cache = Cache::new(1 << 20, Duration::ZERO);
        let [name, other] = [b"a.example", b"b.example"].map(|name| HostName::from_wire(name).unwrap());
        let now = Instant::now();
        let ttl = Duration::from_secs(60);
        let answers = Answers { addresses: vec![[192, 0, 2, 1].into()], ttl, is_stale: false, from_servers: true };
        cache.answered(&other, answers.clone(), now);
        assert_eq!(cache.get(&other, now + ttl - Duration::from_millis(1)), Known::Answer(answers));
        assert_eq!(cache.get(&other, now + ttl), Known::Nothing);
        assert!(cache.answered_within(&other, Duration::from_secs(2), now + Duration::from_secs(1)));
        assert!(!cache.answered_within(&other, Duration::from_secs(2), now + Duration::from_secs(2)));
        assert!(!cache.answered_within(&name, Duration::from_secs(2), now));
        let until = now + Duration::from_secs(5);
        assert_eq!(cache.get(&name, now), Known::Nothing);
        let absent = NoAnswer::of(Reason::NoSuchName, "");
        cache.failed(&name, absent.clone(), until);
        assert_eq!(cache.get(&name, until - Duration::from_millis(1)), Known::Failure(absent));
        assert_eq!(cache.get(&name, until), Known::Nothing);
    }

    #[test]
    fn an_old_answer_stands_in_for_a_while_and_not_for_an_absence() {
        let hour = Duration::from_secs(3600);
        let cache = Cache::new(1 << 20, hour);
        let name = HostName::from_wire(b"a.example").unwrap();
        let now = Instant::now();
        let until = now + Duration::from_secs(5);
        let fresh = Answers {
            addresses: vec![[192, 0, 2, 1].into()],
            ttl: Duration::from_secs(5),
            is_stale: false,
            from_servers: true,
        };
        let stale = || Answers { is_stale: true, ..fresh.clone() };
        let moment = Duration::from_millis(1);
        cache.answered(&name, fresh.clone(), now);
        assert_eq!(cache.get(&name, until - moment), Known::Answer(fresh.clone()));
        assert_eq!(cache.get(&name, until), Known::Stale(stale(), None));
        assert_eq!(cache.get(&name, until + hour), Known::Nothing);
        let passing = NoAnswer { is_passing: true, ..NoAnswer::of(Reason::DnsFailed, "x") };
        cache.failed(&name, passing.clone(), until + Duration::from_secs(10));
        assert_eq!(cache.get(&name, until), Known::Stale(stale(), Some(passing)));
        assert_eq!(cache.get(&name, until + hour - moment), Known::Stale(stale(), None));
        let absent = NoAnswer::of(Reason::NoSuchName, "");
        cache.failed(&name, absent.clone(), until + Duration::from_secs(10));
        assert_eq!(cache.get(&name, until), Known::Failure(absent));
    }

    #[test]
    fn the_cache_is_bounded_in_bytes() {
        let cache = Cache::new(1 << 20, Duration::ZERO);
        let now = Instant::now();
        let put = |count: usize, names: usize| {
            for n in 0..names {
                let name = HostName::from_wire(format!("n{n}.example").as_bytes()).unwrap();
                let addresses = vec![IpAddr::from([192, 0, 2, 1]); count];
                let ttl = Duration::from_secs(60);
                cache.answered(&name, Answers { addresses, ttl, is_stale: false, from_servers: true }, now);
            }
            (cache.weight(), cache.now.entry_count())
        };
        let (weight, entries) = put(1, 1000);
        assert!(weight < 1 << 20 && entries == 1000, "{weight} {entries}");
        let (weight, entries) = put(512, 1000);
        assert!(weight <= 1 << 20 && entries <= 120, "{weight} {entries}");
    }
}
