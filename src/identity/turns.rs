//! Fair queueing for expensive work: password checks and TLS handshakes.
//!
//! Each client has a queue of its own ([`ClientQueues`]). Of clients that wait for the same thing ([`FairSemaphore`]),
//! those with recent failures are served last, and otherwise the newest first: a crowd of wrong passwords is older than
//! the honest client that joins it, or has failed before.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use moka::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use egret_core::claim::network_of;

/// How long a failure counts, and of how many clients.
const FAILURE: Duration = Duration::from_secs(600);
const MAX_FAILED: u64 = 65_536;

/// So many at once of each client. IPv6 clients of one /64 are one client.
#[derive(Debug)]
pub struct ClientQueues {
    most: usize,
    queues: Mutex<HashMap<IpAddr, Arc<Semaphore>, RandomState>>,
}

/// A client's place; its queue goes with the last one.
#[derive(Debug)]
pub struct ClientPermit {
    of: Arc<ClientQueues>,
    client: IpAddr,
    queue: Option<Arc<Semaphore>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl ClientQueues {
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, queues: Mutex::default() })
    }

    /// Waits until the client has fewer than that many places.
    pub async fn enter(self: &Arc<Self>, client: IpAddr) -> ClientPermit {
        let client = network_of(client);
        let queue = {
            let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(queues.entry(client).or_insert_with(|| Arc::new(Semaphore::new(self.most))))
        };
        // There while it waits, so that the queue goes with the last one however that ends.
        let mut place = ClientPermit { of: Arc::clone(self), client, queue: Some(Arc::clone(&queue)), permit: None };
        // A queue is never closed.
        place.permit = queue.acquire_owned().await.ok();
        place
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut queues = self.of.queues.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.queue.take());
        // Only the map's own is left.
        if queues.get(&self.client).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            queues.remove(&self.client);
        }
    }
}

/// A bounded number of turns for all clients.
#[derive(Debug)]
pub(super) struct FairSemaphore {
    state: Mutex<State>,
    /// Failures of late, by client.
    failed: Cache<IpAddr, u32, RandomState>,
}

#[derive(Debug)]
struct State {
    free: usize,
    next: u64,
    waiting: BTreeMap<(u32, Reverse<u64>), oneshot::Sender<Permit>>,
}

/// A permit; passed to the next waiter when dropped.
#[derive(Debug)]
pub(super) struct Permit(Option<Arc<FairSemaphore>>);

impl FairSemaphore {
    pub(super) fn new(at_once: usize) -> Arc<Self> {
        let failed = Cache::builder().max_capacity(MAX_FAILED).time_to_live(FAILURE);
        let state = State { free: at_once, next: 0, waiting: BTreeMap::new() };
        Arc::new(Self { state: Mutex::new(state), failed: failed.build_with_hasher(RandomState::default()) })
    }

    /// Waits for a turn.
    pub(super) async fn next(self: &Arc<Self>, client: IpAddr) -> Permit {
        let waiting = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return Permit(Some(Arc::clone(self)));
            }
            let (gives, takes) = oneshot::channel();
            state.next += 1;
            let place = (self.failed.get(&network_of(client)).unwrap_or(0), Reverse(state.next));
            state.waiting.insert(place, gives);
            takes
        };
        // A sender stays on the list until it gives, or until its receiver is gone.
        waiting.await.unwrap_or(Permit(None))
    }

    /// The client has failed.
    pub(super) fn failed(&self, client: IpAddr) {
        let client = network_of(client);
        self.failed.insert(client, self.failed.get(&client).unwrap_or(0).saturating_add(1));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        let mut state = turns.state();
        // What has no receiver any more is passed over; it was bounded by the connections that waited.
        state.waiting.retain(|_, waits| !waits.is_closed());
        while let Some((_, next)) = state.waiting.pop_first() {
            match next.send(Self(Some(Arc::clone(&turns)))) {
                Ok(()) => return,
                // It left in this moment: its turn must not be dropped under the lock.
                Err(mut turn) => drop(turn.0.take()),
            }
        }
        state.free += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_that_has_not_failed_comes_first() {
        let turns = FairSemaphore::new(1);
        turns.failed(ip(4));
        let first = turns.next(ip(0)).await;
        let order: Arc<Mutex<Vec<u8>>> = Arc::default();
        let mut all = Vec::new();
        for client in [1, 2, 3, 4] {
            let (turns, order) = (Arc::clone(&turns), Arc::clone(&order));
            all.push(tokio::spawn(async move {
                let turn = turns.next(ip(client)).await;
                order.lock().unwrap().push(client);
                drop(turn);
            }));
            tokio::task::yield_now().await;
        }
        all[1].abort();
        tokio::task::yield_now().await;
        drop(first);
        for (client, waits) in all.into_iter().enumerate() {
            assert_eq!(waits.await.is_ok(), client != 1);
        }
        assert_eq!(*order.lock().unwrap(), [3, 1, 4]);
        assert_eq!(turns.state().free, 1);
    }

    #[tokio::test]
    async fn one_client_waits_behind_itself() {
        let places = ClientQueues::new(1);
        let first = places.enter(ip(1)).await;
        let second = places.enter(ip(2)).await;
        let behind = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.enter(ip(1)).await }
        });
        tokio::task::yield_now().await;
        assert!(!behind.is_finished());
        drop(first);
        drop((behind.await.unwrap(), second));
        assert!(places.is_empty());
    }
}
