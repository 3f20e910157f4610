//! The way to stop: a signal everybody sees, a wait until the last guest has left, and an end to patience.
//!
//! ```text
//! Drain --guest()--> Guest, held by each session
//! stop(grace):  Stopping ... the last guest leaves, or grace is over: Cut ... the last guest leaves
//! ```
//! A guest leaves by being dropped; there is no counter to forget.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Stopping,
    Cut,
}

/// The owner's side.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    guests: mpsc::Sender<()>,
    gone: mpsc::Receiver<()>,
}

/// Held by whoever must be waited for.
#[derive(Clone, Debug)]
pub struct Guest {
    phase: watch::Receiver<Phase>,
    /// Dropped with the guest; the channel closes with the last one.
    _presence: mpsc::Sender<()>,
}

/// Sees the phase without being waited for.
#[derive(Clone, Debug)]
pub struct Watcher(watch::Receiver<Phase>);

impl Drain {
    #[must_use]
    pub fn new() -> Self {
        let (guests, gone) = mpsc::channel(1);
        Self { phase: watch::Sender::new(Phase::Serving), guests, gone }
    }

    #[must_use]
    pub fn guest(&self) -> Guest {
        Guest { phase: self.phase.subscribe(), _presence: self.guests.clone() }
    }

    #[must_use]
    pub fn watcher(&self) -> Watcher {
        Watcher(self.phase.subscribe())
    }

    /// Tells every guest to finish; after `grace`, or when `hurry` is ready, to leave at once. Returns when
    /// the last one has left.
    pub async fn stop(self, grace: Duration, hurry: impl Future<Output = ()>) {
        let Self { phase, guests, mut gone } = self;
        phase.send_replace(Phase::Stopping);
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
        phase.send_replace(Phase::Cut);
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
    pub async fn stopping(&mut self) {
        let _ = self.phase.wait_for(|phase| *phase >= Phase::Stopping).await;
    }

    /// Returns once nothing may go on.
    pub async fn cut(&mut self) {
        let _ = self.phase.wait_for(|phase| *phase >= Phase::Cut).await;
    }
}

impl Watcher {
    #[must_use]
    pub fn is_serving(&self) -> bool {
        *self.0.borrow() == Phase::Serving
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stopping_waits_for_the_last_guest_and_then_no_longer() {
        let drain = Drain::new();
        let (mut polite, mut stubborn, watcher) = (drain.guest(), drain.guest(), drain.watcher());
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
