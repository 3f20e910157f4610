//! What all guests are told at once: to finish, to leave, or to have another look at their leave to be here. And the wait
//! until the last one has left.
//!
//! ```text
//! Drain --guest()--> Guest, held by each session
//! stop(grace):  Stopping ... the last guest leaves, or grace is over: Cut ... the last guest leaves
//! ```
//! A guest leaves by being dropped; there is no counter to forget.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::Context;
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// The owner's side.
#[derive(Debug)]
pub struct Drain {
    phases: Arc<Phases>,
    guests: mpsc::Sender<()>,
    gone: mpsc::Receiver<()>,
}

/// What has begun.
#[derive(Debug, Default)]
struct Phases {
    stopping: CancellationToken,
    /// Wakes every guest that listens, after one of the following has changed: a look at those is enough then, and nobody
    /// queues for a lock.
    call: Notify,
    is_cut: AtomicBool,
    reviews: AtomicU32,
}

/// Held by whoever must be waited for.
#[derive(Clone, Debug)]
pub struct Guest {
    phases: Arc<Phases>,
    /// Dropped with the guest; the channel closes with the last one.
    _presence: mpsc::Sender<()>,
}

/// Asks every guest to have another look at its leave to be here.
#[derive(Clone, Debug)]
pub struct Reviewer(Arc<Phases>);

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

    #[must_use]
    pub fn reviewer(&self) -> Reviewer {
        Reviewer(Arc::clone(&self.phases))
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
        phases.call.notify_waiters();
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
    pub async fn cut(&self) {
        let mut call = self.call();
        while !self.is_cut() {
            call.await;
            call = self.call();
        }
    }

    /// Wakes whoever waits for it at the next call.
    pub fn call(&self) -> Notified<'_> {
        self.phases.call.notified()
    }

    /// Has a task that polls other things too woken by the next call; it looks at [`Guest::is_cut`] afterwards. Whether
    /// a review was asked for since the last time. `heard`: what this has left there.
    pub fn listen<'a>(
        &'a self,
        mut call: Pin<&mut Notified<'a>>,
        heard: &mut Option<u32>,
        cx: &mut Context<'_>,
    ) -> bool {
        let before = *heard;
        loop {
            let reviews = self.phases.reviews.load(Ordering::Acquire);
            if heard.replace(reviews) == Some(reviews) {
                return before.is_some_and(|before| before != reviews);
            }
            call.set(self.call());
            let _ = call.as_mut().poll(cx);
        }
    }
}

impl Reviewer {
    pub fn ask(&self) {
        self.0.reviews.fetch_add(1, Ordering::Release);
        self.0.call.notify_waiters();
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
