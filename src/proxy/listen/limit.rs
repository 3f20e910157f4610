//! How many connections may be open at once, in all and from one client, and which of them make room.
//!
//! A connection that waits for another request holds its place for nothing: where every place is taken, the one that
//! has waited longest is evicted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;

use crate::budget::Eviction;
use crate::proxy::limits::PerClient;
use egret_core::claim::network_of;

/// A client by `limits.connections_per_client: auto`: one quarter of all places.
const SHARES: usize = 4;

/// How many connections may be open at once.
#[derive(Debug)]
pub struct ConnectionLimit {
    most: usize,
    per_client: PerClient,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: usize,
    next: u64,
    /// By address, and for IPv6 by /64 too.
    by_client: HashMap<Counted, usize, RandomState>,
    /// Connections that wait for a request, the longest waiting first.
    waiting: BTreeMap<u64, Waiting>,
    waiting_of: BTreeSet<(Counted, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Counted {
    Address(IpAddr),
    Network(IpAddr),
}

#[derive(Debug)]
struct Waiting {
    client: Option<IpAddr>,
    eviction: Arc<Eviction>,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    limit: Arc<ConnectionLimit>,
    /// Whose it is, where clients are counted.
    client: Option<IpAddr>,
    eviction: Arc<Eviction>,
}

/// The mark of a connection that waits for a request; taken off when dropped.
#[derive(Debug)]
pub struct BetweenRequests<'a> {
    slot: &'a ConnectionSlot,
    number: u64,
}

impl ConnectionLimit {
    #[must_use]
    pub fn new(most: usize, per_client: PerClient) -> Arc<Self> {
        Arc::new(Self { most, per_client, state: Mutex::default() })
    }

    /// Connections at once that one client may have, where clients have addresses of their own; `None`: all.
    #[must_use]
    pub fn per_client(&self) -> Option<usize> {
        match self.per_client {
            PerClient::Auto => Some((self.most / SHARES).max(1)),
            PerClient::Unlimited => None,
            PerClient::Most(most) => Some(most),
        }
    }

    /// A place for a connection, if there is one or one can be made. `client`: whose it is, where that is known and
    /// counts.
    #[must_use]
    pub fn enter(self: &Arc<Self>, client: Option<IpAddr>) -> Option<ConnectionSlot> {
        let mut state = self.state();
        // First, so that no client at its own limit takes a place from another one.
        if !client.is_none_or(|client| self.has_room_for(&mut state, client)) {
            return None;
        }
        if state.open >= self.most {
            let longest = *state.waiting.first_key_value()?.0;
            state.evict(longest);
        }
        state.open += 1;
        client.into_iter().for_each(|client| state.count(client));
        drop(state);
        Some(ConnectionSlot { limit: Arc::clone(self), client, eviction: Arc::default() })
    }

    /// Whether a client may have another place, which one of its own that wait for a request may have to give up.
    fn has_room_for(&self, state: &mut State, client: IpAddr) -> bool {
        let Some(most) = self.per_client() else { return true };
        counted(client).all(|counted| {
            let most = match counted {
                Counted::Address(_) => most,
                // A whole cluster may share a /64; all the others still find a place.
                Counted::Network(_) => most.max(self.most - self.most / SHARES),
            };
            if state.open_of(counted) < most {
                return true;
            }
            let own = state.waiting_of.range((counted, 0)..=(counted, u64::MAX)).next().map(|(_, number)| *number);
            own.is_some_and(|own| {
                state.evict(own);
                true
            })
        })
    }

    /// The client that a connection is counted for; `None` where its address stands for every client of its listener,
    /// and the configuration has no number for that.
    #[must_use]
    pub fn counts(&self, client: IpAddr, is_shared: bool) -> Option<IpAddr> {
        let is_counted = match self.per_client {
            PerClient::Auto => !is_shared,
            PerClient::Unlimited => false,
            PerClient::Most(_) => true,
        };
        is_counted.then_some(client)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn evict(&mut self, number: u64) {
        let Some(Waiting { client, eviction }) = self.waiting.remove(&number) else { return };
        for counted in client.into_iter().flat_map(counted) {
            self.waiting_of.remove(&(counted, number));
        }
        self.leave(client);
        eviction.evict();
    }

    fn leave(&mut self, client: Option<IpAddr>) {
        self.open -= 1;
        for counted in client.into_iter().flat_map(counted) {
            // Clients that are gone leave no entry: the map is as small as the crowd.
            match self.by_client.get_mut(&counted) {
                Some(open) if *open > 1 => *open -= 1,
                _ => drop(self.by_client.remove(&counted)),
            }
        }
    }

    fn count(&mut self, client: IpAddr) {
        counted(client).for_each(|counted| *self.by_client.entry(counted).or_default() += 1);
    }

    fn open_of(&self, counted: Counted) -> usize {
        self.by_client.get(&counted).copied().unwrap_or(0)
    }
}

fn counted(client: IpAddr) -> impl Iterator<Item = Counted> {
    let network = client.is_ipv6().then(|| Counted::Network(network_of(client)));
    std::iter::once(Counted::Address(client)).chain(network)
}

impl ConnectionSlot {
    /// Assigns the connection to a client that was not known before; false if the client is at its limit.
    #[must_use]
    pub fn assign(&mut self, client: Option<IpAddr>) -> bool {
        let Some(client) = client else { return true };
        let limit = Arc::clone(&self.limit);
        let mut state = limit.state();
        if !limit.has_room_for(&mut state, client) {
            return false;
        }
        state.count(client);
        self.client = Some(client);
        true
    }

    /// Marks the connection as one that waits for a request.
    #[must_use]
    pub fn between_requests(&self) -> BetweenRequests<'_> {
        let mut state = self.limit.state();
        state.next += 1;
        let number = state.next;
        state.waiting.insert(number, Waiting { client: self.client, eviction: Arc::clone(&self.eviction) });
        state.waiting_of.extend(self.client.into_iter().flat_map(counted).map(|counted| (counted, number)));
        BetweenRequests { slot: self, number }
    }
}

impl BetweenRequests<'_> {
    /// Takes the mark off; whether the connection still has its place.
    #[must_use]
    pub fn end(self) -> bool {
        let slot = self.slot;
        drop(self);
        !slot.eviction.is_evicted()
    }

    /// Returns once the connection must make room.
    pub async fn evicted(&self) {
        self.slot.eviction.evicted().await;
    }
}

impl Drop for BetweenRequests<'_> {
    fn drop(&mut self) {
        let mut state = self.slot.limit.state();
        state.waiting.remove(&self.number);
        for counted in self.slot.client.into_iter().flat_map(counted) {
            state.waiting_of.remove(&(counted, self.number));
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut state = self.limit.state();
        // An evicted one has been given to another connection.
        if !self.eviction.is_evicted() {
            state.leave(self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn enter(limit: &Arc<ConnectionLimit>, client: &str) -> Option<ConnectionSlot> {
        limit.enter(limit.counts(ip(client), false))
    }

    #[track_caller]
    fn is_empty(limit: &ConnectionLimit) {
        let state = limit.state();
        let sizes = [state.open, state.by_client.len(), state.waiting.len(), state.waiting_of.len()];
        assert_eq!(sizes, [0; 4], "nothing open, nothing kept");
    }

    #[test]
    fn all_together_and_each_client_are_counted() {
        let limit = ConnectionLimit::new(3, PerClient::Most(2));
        let (a, b) = ("192.0.2.1", "192.0.2.2");
        let first = enter(&limit, a);
        let second = enter(&limit, a);
        assert!(first.is_some() && second.is_some());
        assert!(enter(&limit, a).is_none(), "one client has its own limit");
        let third = enter(&limit, b);
        assert!(third.is_some());
        assert!(limit.enter(None).is_none(), "all together have one");
        drop(first);
        assert!(enter(&limit, a).is_some());
        drop((second, third));
        is_empty(&limit);
    }

    #[tokio::test]
    async fn the_connection_that_waits_longest_for_a_request_makes_room() {
        let limit = ConnectionLimit::new(2, PerClient::Unlimited);
        let (old, new) = (enter(&limit, "192.0.2.1").unwrap(), enter(&limit, "192.0.2.1").unwrap());
        let (waits, waits_too) = (old.between_requests(), new.between_requests());
        let third = enter(&limit, "192.0.2.2").unwrap();
        waits.evicted().await;
        assert!(!new.eviction.is_evicted());
        drop(waits_too);
        assert!(enter(&limit, "192.0.2.2").is_none(), "a request is under way on the other one");
        drop(waits);
        drop((old, third));
        assert!(enter(&limit, "192.0.2.2").is_some());
        drop(new);
        is_empty(&limit);
    }

    #[test]
    fn a_client_makes_room_for_itself() {
        let limit = ConnectionLimit::new(8, PerClient::Auto);
        assert_eq!(limit.per_client(), Some(2));
        let (first, second) = (enter(&limit, "192.0.2.1").unwrap(), enter(&limit, "192.0.2.1").unwrap());
        assert!(enter(&limit, "192.0.2.1").is_none());
        let waits = first.between_requests();
        let third = enter(&limit, "192.0.2.1");
        assert!(third.is_some() && first.eviction.is_evicted());
        assert_eq!(limit.counts(ip("192.0.2.1"), true), None, "where it stands for all, it has no limit");
        let mut fourth = limit.enter(None).unwrap();
        assert!(!fourth.assign(Some(ip("192.0.2.1"))) && fourth.assign(Some(ip("192.0.2.9"))));
        drop(waits);
        drop((first, second, third, fourth));
        is_empty(&limit);
    }

    #[test]
    fn a_client_at_its_limit_takes_no_place_from_another_one() {
        let limit = ConnectionLimit::new(4, PerClient::Most(2));
        let others = [enter(&limit, "192.0.2.2").unwrap(), enter(&limit, "192.0.2.2").unwrap()];
        let own = [enter(&limit, "192.0.2.1").unwrap(), enter(&limit, "192.0.2.1").unwrap()];
        let waits = others[0].between_requests();
        assert!(enter(&limit, "192.0.2.1").is_none() && !others[0].eviction.is_evicted());
        assert!(enter(&limit, "192.0.2.3").is_some() && others[0].eviction.is_evicted());
        drop(waits);
        drop((others, own));
        is_empty(&limit);
    }

    #[test]
    fn a_64_has_three_quarters_and_its_addresses_one_each() {
        let limit = ConnectionLimit::new(8, PerClient::Auto);
        let of = |n: u32| enter(&limit, &format!("2001:db8::{n}"));
        let inside: Vec<_> = (0..6).map(|n| of(n / 2).unwrap()).collect();
        assert!(of(0).is_none() && of(9).is_none());
        let waits = inside[5].between_requests();
        assert!(of(9).is_some() && inside[5].eviction.is_evicted(), "one of the /64's own makes room");
        drop(waits);
        assert!(enter(&limit, "2001:db8:0:1::9").is_some());
        drop(inside);
        is_empty(&limit);
    }
}
