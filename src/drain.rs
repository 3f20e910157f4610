//! The way to stop: a signal everybody sees, a wait until the last guest has left, and an end to patience.
//!
//! ```text
//! Drain --guest()--> Guest, held by each session
//! stop(grace):  Stopping ... the last guest leaves, or grace is over: Cut ... the last guest leaves
//! ```
//! A guest leaves by being dropped; there is no counter to forget.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The owner's side.
#[derive(Debug)]
pub struct Drain {
    phases: Arc<Phases>,
    guests: mpsc::Sender<()>,
    gone: mpsc::Receiver<()>,
}

/// What has begun: both wait in tasks as small as a tunnel's.
#[derive(Debug, Default)]
struct Phases {
    stopping: CancellationToken,
    cut: CancellationToken,
    /// Set before `cut` is: asking the token would take a lock that all connections share.
    is_cut: AtomicBool,
}

/// Held by whoever must be waited for.
#[derive(Clone, Debug)]
pub struct Guest {
    phases: Arc<Phases>,
    /// Dropped with the guest; the channel closes with the last one.
    _presence: mpsc::Sender<()>,
}

/// Sees the phase without being waited for.
#[derive(Clone, Debug)]
pub struct Watcher(CancellationToken);

impl Drain {
    #[must_use]
    pub fn new() -> Self {
        let (guests, gone) = mpsc::channel(1);
        Self { phases: Arc::default(), guests, gone }
    }

    #[must_use]
    pub fn guest(&self) -> Guest {
        Guest { phases: Arc::clone(&self.phases), _presence: self.guests.clone() }
    }

    #[must_use]
    pub fn watcher(&self) -> Watcher {
        Watcher(self.phases.stopping.clone())
    }

    /// Tells every guest to finish; after `grace`, or when `hurry` is ready, to leave at once. Returns when
    /// the last one has left.
    pub async fn stop(self, grace: Duration, hurry: impl Future<Output = ()>) {
        let Self { phases, guests, mut gone } = self;
        phases.stopping.cancel();
        drop(guests);
        // Nothing is ever sent: the end of the channel is the message.
        let patience = async {
            tokio::select! {
                () = tokio::time::sleep(grace) => {}
                () = hurry => {}
            }
        };
        tokio::select! {
            _ = gone.recv() => return,
            () = patience => {}
        }
        phases.is_cut.store(true, Ordering::Release);
        phases.cut.cancel();
        let _ = gone.recv().await;
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// Returns once nothing new should begin.
    pub fn stopping(&self) -> impl Future<Output = ()> + '_ {
        self.phases.stopping.cancelled()
    }

    /// Whether nothing may go on.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.phases.is_cut.load(Ordering::Acquire)
    }

    /// Returns once nothing may go on.
    pub fn cut(&self) -> impl Future<Output = ()> + '_ {
        self.phases.cut.cancelled()
    }
}

impl Watcher {
    #[must_use]
    pub fn is_serving(&self) -> bool {
        !self.0.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stopping_waits_for_the_last_guest_and_then_no_longer() {
        let drain = Drain::new();
        let (polite, stubborn, watcher) = (drain.guest(), drain.guest(), drain.watcher());
        assert!(watcher.is_serving());
        let begun = tokio::time::Instant::now();
        let stopping = tokio::spawn(drain.stop(Duration::from_secs(30), std::future::pending()));
        polite.stopping().await;
        assert!(!watcher.is_serving());
        drop(polite);
        stubborn.cut().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(30));
        assert!(!stopping.is_finished());
        drop(stubborn);
        stopping.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_left_means_no_wait() {
        let begun = tokio::time::Instant::now();
        Drain::new().stop(Duration::from_secs(30), std::future::pending()).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
