//! Answers and absences, each until its time. The time is an argument: nothing here asks the clock.

use foldhash::quality::RandomState;
use moka::sync::Cache as Store;
use tokio::time::Instant;

use crate::answers::Answers;
use crate::ending::Reason;
use crate::name::HostName;

/// Names kept at once; the least used go first. Only listed names come here, so a flood cannot be chosen
/// by strangers, but a wildcard may still be asked for without end.
const MAX_NAMES: u64 = 65_536;

/// What is kept for a name.
pub(super) type Kept = Result<Answers, Reason>;

#[derive(Debug)]
pub(super) struct Cache(Store<HostName, (Kept, Instant), RandomState>);

impl Cache {
    pub(super) fn new() -> Self {
        Self(Store::builder().max_capacity(MAX_NAMES).build_with_hasher(RandomState::default()))
    }

    /// What is kept and still holds at `now`.
    pub(super) fn get(&self, name: &HostName, now: Instant) -> Option<Kept> {
        let (kept, until) = self.0.get(name)?;
        (now < until).then_some(kept)
    }

    pub(super) fn put(&self, name: &HostName, kept: Kept, until: Instant) {
        self.0.insert(name.clone(), (kept, until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_answer_holds_until_its_time_and_not_a_moment_longer() {
        let cache = Cache::new();
        let name = HostName::from_wire(b"a.example").unwrap();
        let now = Instant::now();
        let until = now + Duration::from_secs(5);
        assert!(cache.get(&name, now).is_none());
        cache.put(&name, Err(Reason::NoSuchName), until);
        assert_eq!(cache.get(&name, until - Duration::from_millis(1)), Some(Err(Reason::NoSuchName)));
        assert_eq!(cache.get(&name, until), None);
    }
}
