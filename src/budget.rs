//! Bounded amounts that clients share, such as memory or look-ups: where all of it is taken, the client that holds most
//! makes room for the others.
//!
//! A share is charged to its client. An evicted share stops counting immediately; its owner watches for the eviction and
//! ends the work. Does not know what is counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use egret_core::claim::network_of;

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
    /// Each client's shares: those that are not settled first, and of each kind the oldest.
    shares: BTreeMap<(IpAddr, bool, u64), Part>,
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
    is_settled: bool,
    eviction: Arc<Eviction>,
}

/// Whether a share had to make room.
#[derive(Debug, Default)]
pub struct Eviction {
    happened: AtomicBool,
    happens: Notify,
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
        Share {
            budget: Arc::clone(self),
            client: network_of(client),
            number: None,
            is_settled: false,
            eviction: Arc::default(),
        }
    }

    /// Returns after something may have been given back. Enable the future before checking, so
    /// that no wake-up is lost.
    pub fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Wakes another waiter: what this one was woken for it did not take.
    pub fn pass_on(&self) {
        self.freed.notify_one();
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
        let own = (client, false, 0)..=(client, true, u64::MAX);
        let oldest = self.shares.range(own).next().map(|(key, _)| *key).ok_or(Full)?;
        let part = self.shares.remove(&oldest).ok_or(Full)?;
        self.set(client, most - part.amount);
        part.eviction.evict();
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
        if self.eviction.is_evicted() {
            return Err(Full);
        }
        let own = state.of(self.client) + by;
        while state.held + by > self.budget.limit {
            // A client never evicts its own shares.
            state.evict(own)?;
        }
        let number = *self.number.get_or_insert_with(|| {
            state.next += 1;
            state.next
        });
        let part = || Part { amount: 0, eviction: Arc::clone(&self.eviction) };
        state.shares.entry((self.client, self.is_settled, number)).or_insert_with(part).amount += by;
        state.set(self.client, own);
        Ok(())
    }

    /// What it is held for has been allowed: the client's other shares are evicted before it.
    pub fn settle(&mut self) {
        let Some(number) = self.number.filter(|_| !self.is_settled) else { return };
        let mut state = self.budget.state();
        if let Some(part) = state.shares.remove(&(self.client, false, number)) {
            state.shares.insert((self.client, true, number), part);
            self.is_settled = true;
        }
    }

    /// Gives everything back. What is taken later counts anew.
    pub fn shrink(&mut self) {
        let Some(number) = self.number.take() else { return };
        let mut state = self.budget.state();
        if let Some(part) = state.shares.remove(&(self.client, std::mem::take(&mut self.is_settled), number)) {
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
    pub(crate) fn evict(&self) {
        self.happened.store(true, Ordering::Release);
        self.happens.notify_one();
    }

    pub(crate) fn is_evicted(&self) -> bool {
        self.happened.load(Ordering::Acquire)
    }

    /// Returns once the share has had to make room. For one waiter.
    pub async fn evicted(&self) {
        while !self.is_evicted() {
            self.happens.notified().await;
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
        assert_eq!(budget.share(a).grow(1), Err(Full), "no client makes room for itself");
        let mut other = budget.share(b);
        other.grow(2).unwrap();
        let gone: Vec<bool> = hog.iter().map(|share| share.eviction.is_evicted()).collect();
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
    fn what_is_settled_goes_last() {
        let budget = Budget::new(3);
        let mut own: Vec<Share> = (0..3).map(|_| budget.share(ip("192.0.2.1"))).collect();
        own.iter_mut().for_each(|share| share.grow(1).unwrap());
        own[0].settle();
        let mut other = budget.share(ip("192.0.2.2"));
        other.grow(1).unwrap();
        let gone: Vec<bool> = own.iter().map(|share| share.eviction.is_evicted()).collect();
        assert_eq!(gone, [false, true, false]);
        own.iter_mut().for_each(Share::shrink);
        own[0].grow(1).unwrap();
        assert!(!own[0].is_settled && budget.held() == 2, "what is taken later is not settled");
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
    async fn a_waiter_is_woken_when_something_is_given_back() {
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
        assert!(!eviction.is_evicted(), "as much as one is not more");
    }
}
