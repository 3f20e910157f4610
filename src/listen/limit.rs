//! How many connections may be open at once, in all and from one client, and which of them make room.
//!
//! A connection that waits for another request holds its place for nothing: where every place is taken, the one that
//! has waited longest is evicted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;

use crate::budget::Eviction;
use crate::claim::network_of;
use crate::config::PerClient;

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
    waiting_of: BTreeSet<(IpAddr, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

    /// A place for a connection, if there is one or one can be made.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Option<ConnectionSlot> {
        let mut state = self.state();
        if state.open >= self.most {
            let longest = *state.waiting.first_key_value()?.0;
            state.evict(longest);
        }
        state.open += 1;
        drop(state);
        Some(ConnectionSlot { limit: Arc::clone(self), client: None, eviction: Arc::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn evict(&mut self, number: u64) {
        let Some(Waiting { client, eviction }) = self.waiting.remove(&number) else { return };
        if let Some(client) = client {
            self.waiting_of.remove(&(client, number));
        }
        self.leave(client);
        eviction.come();
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

    fn open_of(&self, counted: Counted) -> usize {
        self.by_client.get(&counted).copied().unwrap_or(0)
    }
}

fn counted(client: IpAddr) -> impl Iterator<Item = Counted> {
    let network = client.is_ipv6().then(|| Counted::Network(network_of(client)));
    std::iter::once(Counted::Address(client)).chain(network)
}

impl ConnectionSlot {
    /// Says whose the connection is; whether this client may have another one. `stands_for_all`: the address is that
    /// of every client of the listener, and has no limit unless the configuration has a number.
    #[must_use]
    pub fn is_for(&mut self, client: IpAddr, stands_for_all: bool) -> bool {
        let limit = Arc::clone(&self.limit);
        let Some(most) = limit.per_client().filter(|_| !stands_for_all || limit.per_client != PerClient::Auto) else {
            return true;
        };
        let mut state = limit.state();
        for counted in counted(client) {
            let most = match counted {
                Counted::Address(_) => most,
                // A whole cluster may share a /64; all the others still find a place.
                Counted::Network(_) => most.max(limit.most - limit.most / SHARES),
            };
            if state.open_of(counted) >= most {
                let own = state.waiting_of.range((client, 0)..=(client, u64::MAX)).next().map(|(_, number)| *number);
                let Some(own) = own else { return false };
                state.evict(own);
            }
        }
        counted(client).for_each(|counted| *state.by_client.entry(counted).or_default() += 1);
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
        if let Some(client) = self.client {
            state.waiting_of.insert((client, number));
        }
        BetweenRequests { slot: self, number }
    }
}

impl BetweenRequests<'_> {
    /// Takes the mark off; whether the connection still has its place.
    #[must_use]
    pub fn end(self) -> bool {
        let slot = self.slot;
        drop(self);
        !slot.eviction.has_come()
    }

    /// Returns once the connection must make room.
    pub async fn evicted(&self) {
        self.slot.eviction.comes().await;
    }
}

impl Drop for BetweenRequests<'_> {
    fn drop(&mut self) {
        let mut state = self.slot.limit.state();
        state.waiting.remove(&self.number);
        if let Some(client) = self.slot.client {
            state.waiting_of.remove(&(client, self.number));
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut state = self.limit.state();
        // An evicted one has been given to another connection.
        if !self.eviction.has_come() {
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
        limit.enter().and_then(|mut slot| slot.is_for(ip(client), false).then_some(slot))
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
        assert!(limit.enter().is_none(), "all together have one");
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
        assert!(!new.eviction.has_come());
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
        assert!(third.is_some() && first.eviction.has_come());
        assert!(limit.enter().unwrap().is_for(ip("192.0.2.1"), true), "where it stands for all, it has no limit");
        drop(waits);
        drop((first, second, third));
        is_empty(&limit);
    }

    #[test]
    fn a_64_has_three_quarters_and_its_addresses_one_each() {
        let limit = ConnectionLimit::new(8, PerClient::Auto);
        let of = |n: u32| enter(&limit, &format!("2001:db8::{n}"));
        let inside: Vec<_> = (0..6).map(|n| of(n / 2).unwrap()).collect();
        assert!(of(0).is_none() && of(9).is_none());
        assert!(enter(&limit, "2001:db8:0:1::9").is_some());
        drop(inside);
        is_empty(&limit);
    }
}
