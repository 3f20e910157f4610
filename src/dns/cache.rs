//! Answers and absences, each until its time. The time is an argument: nothing here asks the clock.

use std::fmt;
use std::hash::Hash;
use std::time::Duration;

use foldhash::quality::RandomState;
use moka::sync::Cache as Store;
use tokio::time::Instant;

use super::no_answer::NoAnswer;
use egret_core::answers::Answers;
use egret_core::name::HostName;

/// What can be kept: an answer to a question.
pub(super) trait Keepable: Clone + Send + Sync + 'static {
    /// How long it holds.
    fn life(&self) -> Duration;

    /// What it takes, in bytes.
    fn weight(&self) -> usize;

    /// The same, past its time (RFC 8767).
    fn stale(self) -> Self;
}

impl Keepable for Answers {
    fn life(&self) -> Duration {
        self.ttl
    }

    fn weight(&self) -> usize {
        size_of_val(&*self.addresses)
    }

    fn stale(self) -> Self {
        Self { is_stale: true, ..self }
    }
}

/// A question that answers are kept for.
pub(super) trait Question: Clone + Eq + Hash + Send + Sync + 'static {
    fn name(&self) -> &HostName;
}

impl Question for HostName {
    fn name(&self) -> &HostName {
        self
    }
}

/// What is kept for a question.
#[derive(Clone, Debug)]
struct Kept<V> {
    /// The last answer, and when its time is over.
    answer: Option<(V, Instant)>,
    /// When it came.
    answered: Option<Instant>,
    /// What came of a later question, and how long that holds.
    failure: Option<(NoAnswer, Instant)>,
}

impl<V> Default for Kept<V> {
    fn default() -> Self {
        Self { answer: None, answered: None, failure: None }
    }
}

/// What is known of a question at some time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known<V> {
    Answer(V),
    /// An answer in the last tenth of its time: what is asked for now may be asked for again when that is over.
    Aging(V),
    /// Its absence, or a failure that has just been met.
    Failure(NoAnswer),
    /// An answer whose time is over, and what has been met since, if that was a moment ago.
    Stale(V, Option<NoAnswer>),
    Nothing,
}

/// What an entry takes beside its name and answer, in bytes: the store's own part, measured with many entries.
const ENTRY: usize = 256;

pub(super) struct Cache<K, V> {
    /// Bounded in bytes: a server chooses how much there is, and names under a wildcard have no end. The least used
    /// go first.
    now: Store<K, Kept<V>, RandomState>,
    /// How long an answer may still be used when its time is over.
    stale: Duration,
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("stale", &self.stale).finish_non_exhaustive()
    }
}

impl<K: Question, V: Keepable> Cache<K, V> {
    /// A cache of so many bytes.
    pub(super) fn new(bytes: usize, stale: Duration) -> Self {
        let weight = |question: &K, kept: &Kept<V>| {
            let answer = kept.answer.as_ref().map_or(0, |(answer, _)| answer.weight());
            let words = kept.failure.as_ref().map_or(0, |(failure, _)| failure.words.len());
            u32::try_from(ENTRY + question.name().as_str().len() + answer + words).unwrap_or(u32::MAX)
        };
        let now = Store::builder().max_capacity(bytes as u64).weigher(weight);
        let now = now.build_with_hasher(RandomState::default());
        Self { now, stale }
    }

    /// What is known at `now`.
    pub(super) fn get(&self, question: &K, now: Instant) -> Known<V> {
        let Some(Kept { answer, failure, .. }) = self.now.get(question) else { return Known::Nothing };
        let failure = failure.and_then(|(failure, until)| (now < until).then_some(failure));
        match (answer, failure) {
            (Some((answer, until)), None) if now < until && now >= until - answer.life() / 10 => Known::Aging(answer),
            (Some((answer, until)), _) if now < until => Known::Answer(answer),
            (Some((answer, until)), failure) if now < until + self.stale => Known::Stale(answer.stale(), failure),
            (_, Some(failure)) => Known::Failure(failure),
            (_, None) => Known::Nothing,
        }
    }

    /// Keeps an answer, which takes the place of all that was known.
    pub(super) fn answered(&self, question: &K, answer: V, now: Instant) {
        let until = now + answer.life();
        self.now.insert(question.clone(), Kept { answer: Some((answer, until)), answered: Some(now), failure: None });
    }

    /// Keeps a failure. An absence takes the place of former answers (RFC 8767 §4), any other stands beside them.
    pub(super) fn failed(&self, question: &K, failure: NoAnswer, until: Instant) {
        self.now.entry_by_ref(question).and_upsert_with(|known| {
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

    /// Whether a question was answered within some time.
    pub(super) fn answered_within(&self, question: &K, time: Duration, now: Instant) -> bool {
        let known = self.now.get(question).and_then(|known| known.answered);
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
        assert_eq!(cache.get(&other, now + ttl * 9 / 10 - Duration::from_millis(1)), Known::Answer(answers.clone()));
        assert_eq!(cache.get(&other, now + ttl * 9 / 10), Known::Aging(answers.clone()));
        assert_eq!(cache.get(&other, now + ttl - Duration::from_millis(1)), Known::Aging(answers));
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
        assert_eq!(cache.get(&name, until - moment), Known::Aging(fresh.clone()));
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
