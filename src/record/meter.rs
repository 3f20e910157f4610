//! What is counted of a connection while it lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Metrics;
use egret_core::outcome::Totals;

/// Counts bytes as they go, so that a connection cut at any moment still has true totals.
#[derive(Debug)]
pub struct Meter {
    /// Where the bytes of all connections are counted too.
    metrics: Option<Arc<Metrics>>,
    up: AtomicU64,
    down: AtomicU64,
    begun: Instant,
    /// Milliseconds after `begun` at which a byte last moved.
    moved: AtomicU64,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Client to upstream.
    Up,
    Down,
}

impl Meter {
    #[must_use]
    pub fn new(metrics: Option<Arc<Metrics>>) -> Self {
        Self {
            metrics,
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            begun: Instant::now(),
            moved: AtomicU64::new(0),
        }
    }

    pub fn count(&self, way: Way, bytes: usize) {
        let total = match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        };
        total.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(metrics) = &self.metrics {
            metrics.moved(way == Way::Up, bytes as u64);
        }
        self.touch();
    }

    /// Idleness counts from now. Called once as bytes begin to move, too: what came before was waited for under
    /// limits of its own.
    pub fn touch(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(now, Ordering::Relaxed);
    }

    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals { up: self.up.load(Ordering::Relaxed), down: self.down.load(Ordering::Relaxed) }
    }

    /// When no byte will have moved for `idle`, if none moves until then.
    pub fn deadline(&self, idle: Duration) -> Instant {
        self.begun + Duration::from_millis(self.moved.load(Ordering::Relaxed)) + idle
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new(None)
    }
}

/// A connection's record, as far as those need it that move its bytes.
pub trait Lasting: std::fmt::Debug + Sync {
    /// Where its bytes are counted.
    fn meter(&self) -> &Meter;

    /// Writes the line that is due now, if any, and says when the next one will be.
    fn report_due(&self) -> Option<Instant>;
}
