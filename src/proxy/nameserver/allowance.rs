//! What one client may take of something that many share, and regains over time.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use moka::sync::Cache;
use tokio::time::Instant;

/// Clients that are counted.
const MOST: u64 = 262_144;

/// Allowances by what they are of and by client.
#[derive(Debug)]
pub(super) struct Allowance {
    /// What may be taken in `time`.
    most: u32,
    time: Duration,
    spent: Cache<(Arc<str>, IpAddr), Spent, RandomState>,
}

/// What has been spent, as of a time.
#[derive(Clone, Copy, Debug)]
struct Spent {
    amount: f64,
    at: Instant,
}

impl Allowance {
    pub(super) fn new(most: u32, time: Duration) -> Self {
        let spent = Cache::builder().max_capacity(MOST).time_to_idle(time);
        Self { most, time, spent: spent.build_with_hasher(RandomState::default()) }
    }

    /// Takes so much of something for a client; whether there was enough.
    pub(super) fn take(&self, of: Arc<str>, client: IpAddr, amount: u32, now: Instant) -> bool {
        let most = f64::from(self.most);
        let mut is_enough = false;
        self.spent.entry((of, client)).and_upsert_with(|spent| {
            let before = spent.map_or(0.0, |spent| {
                let Spent { amount, at } = spent.into_value();
                let regained = now.saturating_duration_since(at).as_secs_f64() * most / self.time.as_secs_f64();
                (amount - regained).max(0.0)
            });
            let after = before + f64::from(amount);
            is_enough = after <= most;
            Spent { amount: if is_enough { after } else { before }, at: now }
        });
        is_enough
    }
}
