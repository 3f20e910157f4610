//! Accepted connections that wait to be started, in one queue per client.
//!
//! Without this, one client's burst would delay another client's connection.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use foldhash::quality::RandomState;

use egret_core::claim::network_of;

/// First come, first served among those of one client; the clients take turns.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    waiting: HashMap<IpAddr, VecDeque<T>, RandomState>,
    /// Clients with something in the queue, each once.
    turns: VecDeque<IpAddr>,
}

impl<T> FairQueue<T> {
    pub(super) fn new() -> Self {
        Self { waiting: HashMap::default(), turns: VecDeque::new() }
    }

    pub(super) fn push(&mut self, client: IpAddr, item: T) {
        let client = network_of(client);
        let of_client = self.waiting.entry(client).or_default();
        if of_client.is_empty() {
            self.turns.push_back(client);
        }
        of_client.push_back(item);
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let client = self.turns.pop_front()?;
        let of_client = self.waiting.get_mut(&client)?;
        let item = of_client.pop_front();
        if of_client.is_empty() {
            self.waiting.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        item
    }

    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_take_turns() {
        let mut queue = FairQueue::new();
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        for (client, item) in [(1, "a1"), (1, "a2"), (1, "a3"), (2, "b1"), (3, "c1"), (2, "b2")] {
            queue.push(ip(client), item);
        }
        let mut order: Vec<&str> = (0..4).filter_map(|_| queue.pop()).collect();
        queue.push(ip(3), "c2");
        order.extend(std::iter::from_fn(|| queue.pop()));
        assert_eq!(order, ["a1", "b1", "c1", "a2", "b2", "a3", "c2"]);
        assert!(queue.is_empty() && queue.waiting.is_empty());
    }
}
