//! Bounded amounts that clients share, such as memory or look-ups: where all of it is taken, the client that holds most
//! makes room for the others.
//!
//! A share is charged to its client. One that must make room is evicted: it counts no more at once, and its owner, which
//! watches for it, ends what it was held for. Knows neither tokio's sockets nor what is counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use tokio::sync::Notify;

use crate::claim::network_of;

/// An amount that all clients share.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    state: Mutex<State>,
    /// Wakes one waiter after something was given back.
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    next: u64,
    clients: HashMap<IpAddr, usize, RandomState>,
    by_amount: BTreeSet<(usize, IpAddr)>,
    /// Each client's shares, the oldest first.
    shares: BTreeMap<(IpAddr, u64), Part>,
}

#[derive(Debug)]
struct Part {
    amount: usize,
    eviction: Arc<Eviction>,
}

/// A client's part of a budget; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    client: IpAddr,
    /// There once something is held.
    number: Option<u64>,
    eviction: Arc<Eviction>,
}

/// Whether a share had to make room.
#[derive(Debug, Default)]
pub struct Eviction {
    has_come: AtomicBool,
    comes: Notify,
}

/// All of it is taken, and no other client holds more than the one that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Budget {
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default(), freed: Notify::new() })
    }

    /// How much is held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.state().held
    }

    /// A share for a client, which holds nothing yet. IPv6 clients of one /64 are one client.
    #[must_use]
    pub fn share(self: &Arc<Self>, client: IpAddr) -> Share {
        Share { budget: Arc::clone(self), client: network_of(client), number: None, eviction: Arc::default() }
    }

    /// Returns after something may have been given back. Begin to wait before the look that finds nothing.
    pub fn freed(&self) -> impl Future<Output = ()> + '_ {
        self.freed.notified()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sets what a client holds.
    fn set(&mut self, client: IpAddr, amount: usize) {
        let before = if amount == 0 { self.clients.remove(&client) } else { self.clients.insert(client, amount) };
        if let Some(before) = before {
            self.by_amount.remove(&(before, client));
        }
        if amount > 0 {
            self.by_amount.insert((amount, client));
        }
        self.held = self.held - before.unwrap_or(0) + amount;
    }

    fn of(&self, client: IpAddr) -> usize {
        self.clients.get(&client).copied().unwrap_or(0)
    }

    /// Takes the oldest share of the client that holds most, where that is more than `least`.
    fn evict(&mut self, least: usize) -> Result<(), Full> {
        let (most, client) = *self.by_amount.last().filter(|(most, _)| *most > least).ok_or(Full)?;
        let oldest = self.shares.range((client, 0)..=(client, u64::MAX)).next().map(|(key, _)| *key).ok_or(Full)?;
        let part = self.shares.remove(&oldest).ok_or(Full)?;
        self.set(client, most - part.amount);
        part.eviction.come();
        Ok(())
    }
}

impl Share {
    /// Takes so much more.
    ///
    /// # Errors
    /// [`Full`].
    pub fn grow(&mut self, by: usize) -> Result<(), Full> {
        let mut state = self.budget.state();
        if self.eviction.has_come() {
            return Err(Full);
        }
        let own = state.of(self.client) + by;
        while state.held + by > self.budget.limit {
            // A client never makes room for itself: its own are all as dear to it.
            state.evict(own)?;
        }
        let number = *self.number.get_or_insert_with(|| {
            state.next += 1;
            state.next
        });
        let part = || Part { amount: 0, eviction: Arc::clone(&self.eviction) };
        state.shares.entry((self.client, number)).or_insert_with(part).amount += by;
        state.set(self.client, own);
        Ok(())
    }

    /// Gives everything back. What is taken later counts anew.
    pub fn shrink(&mut self) {
        let Some(number) = self.number.take() else { return };
        let mut state = self.budget.state();
        if let Some(part) = state.shares.remove(&(self.client, number)) {
            let left = state.of(self.client) - part.amount;
            state.set(self.client, left);
        }
        drop(state);
        self.budget.freed.notify_one();
    }

    /// Tells when the share has had to make room.
    #[must_use]
    pub fn eviction(&self) -> Arc<Eviction> {
        Arc::clone(&self.eviction)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink();
    }
}

impl Eviction {
    pub(crate) fn come(&self) {
        self.has_come.store(true, Ordering::Release);
        self.comes.notify_one();
    }

    pub(crate) fn has_come(&self) -> bool {
        self.has_come.load(Ordering::Acquire)
    }

    /// Returns once the share has had to make room. For one waiter.
    pub async fn comes(&self) {
        while !self.has_come() {
            self.comes.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_client_that_holds_most_makes_room() {
        let budget = Budget::new(10);
        let (a, b) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let mut hog: Vec<Share> = (0..10).map(|_| budget.share(a)).collect();
        hog.iter_mut().for_each(|share| share.grow(1).unwrap());
        assert_eq!(budget.share(a).grow(1), Err(Full), "nobody makes room for itself");
        let mut other = budget.share(b);
        other.grow(2).unwrap();
        let gone: Vec<bool> = hog.iter().map(|share| share.eviction.has_come()).collect();
        assert_eq!(gone[..3], [true, true, false], "the oldest go, and no more than must");
        assert_eq!((budget.held(), hog[0].grow(1)), (10, Err(Full)), "what is evicted stays so");
        other.grow(2).unwrap();
        assert_eq!(budget.share(b).grow(2), Err(Full), "six hold as much as four and two");
        drop(hog);
        assert_eq!(budget.held(), 4);
        drop(other);
        let state = budget.state();
        assert_eq!((state.held, state.clients.len(), state.by_amount.len(), state.shares.len()), (0, 0, 0, 0));
    }

    #[test]
    fn neighbours_of_one_64_are_one_client() {
        let budget = Budget::new(4);
        let mut shares: Vec<Share> = (1..=4).map(|n| budget.share(ip(&format!("2001:db8::{n}")))).collect();
        shares.iter_mut().for_each(|share| share.grow(1).unwrap());
        assert_eq!(budget.share(ip("2001:db8::5")).grow(1), Err(Full));
        budget.share(ip("2001:db8:0:1::5")).grow(1).unwrap();
        shares.iter_mut().for_each(Share::shrink);
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_what_is_given_back() {
        let budget = Budget::new(1);
        let mut first = budget.share(ip("192.0.2.1"));
        first.grow(1).unwrap();
        let mut second = budget.share(ip("192.0.2.1"));
        let waiting = budget.freed();
        assert_eq!(second.grow(1), Err(Full));
        first.shrink();
        waiting.await;
        assert_eq!(second.grow(1), Ok(()));
        let eviction = second.eviction();
        budget.share(ip("192.0.2.2")).grow(1).unwrap_err();
        assert!(!eviction.has_come(), "as much as one is not more");
    }
}
