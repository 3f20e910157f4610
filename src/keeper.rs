//! Keeps names resolved whose addresses stand for them: clients of a cluster's API server dial its address
//! and may show no name.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ending::Refusal;
use crate::policy::kept::Kept;
use crate::policy::{Clearance, Policy};
use crate::session::House;

/// Between two look-ups of a name: as long as its answer lasts, within these bounds.
const EVERY: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);
/// After a look-up that brought nothing.
const RETRY: Duration = Duration::from_secs(2);
/// How long an address stays open that is answered no more: connections are older than answers.
const REMEMBER: Duration = Duration::from_secs(24 * 3600);
/// Addresses of one name that are open at once; an API server has one or two, and moves seldom.
const MOST: usize = 64;

/// Looks up every name that a policy keeps, at once and then again and again, until the house is gone.
pub async fn run(house: Weak<House>, policy: Arc<Policy>) {
    let mut names = JoinSet::new();
    for (kept, clearance) in policy.kept() {
        names.spawn(keep(Weak::clone(&house), Arc::clone(&policy), kept, clearance));
    }
    while names.join_next().await.is_some() {}
}

async fn keep(house: Weak<House>, policy: Arc<Policy>, kept: Arc<Kept>, clearance: Clearance) {
    // What an earlier policy found, when it found it.
    let mut memory = Memory(kept.addresses());
    let mut failed = false;
    while let Some(house) = house.upgrade() {
        let ttl = match look_up(&house, &policy, &clearance).await {
            Ok((found, ttl)) => {
                memory.see(&found, Instant::now());
                kept.set(memory.0.clone());
                if std::mem::replace(&mut failed, false) {
                    tracing::info!(name = %kept.name(), "resolved again");
                }
                ttl
            }
            // What was found before stays open, until it is forgotten.
            Err(refusal) => {
                memory.see(&[], Instant::now());
                kept.set(memory.0.clone());
                if !std::mem::replace(&mut failed, true) {
                    let reason = refusal.reason.as_str();
                    tracing::warn!(name = %kept.name(), reason, "cannot be resolved: new addresses of the API server stay closed, old ones open");
                }
                RETRY
            }
        };
        drop(house);
        tokio::time::sleep(ttl.clamp(*EVERY.start(), *EVERY.end())).await;
    }
}

async fn look_up(house: &House, policy: &Policy, clearance: &Clearance) -> Result<(Vec<IpAddr>, Duration), Refusal> {
    let answers = house.dns.resolve(clearance).await?;
    let permit = policy.by_address(clearance, &answers)?;
    Ok((permit.addresses().iter().map(std::net::SocketAddr::ip).collect(), answers.ttl))
}

/// Addresses and when they were answered last.
#[derive(Default)]
struct Memory(Vec<(IpAddr, Instant)>);

impl Memory {
    fn see(&mut self, found: &[IpAddr], now: Instant) {
        self.0.retain(|(ip, seen)| !found.contains(ip) && now.duration_since(*seen) < REMEMBER);
        self.0.extend(found.iter().map(|ip| (*ip, now)));
        // The longest unseen stand first.
        self.0.drain(..self.0.len().saturating_sub(MOST));
    }

    #[cfg(test)]
    fn addresses(&self) -> Vec<IpAddr> {
        self.0.iter().map(|(ip, _)| *ip).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_old_address_is_remembered_for_a_day() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (old, new) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let start = Instant::now();
        let mut memory = Memory::default();
        memory.see(&[old], start);
        memory.see(&[new], start + REMEMBER - Duration::from_secs(1));
        assert_eq!(memory.addresses(), [old, new]);
        memory.see(&[new], start + REMEMBER);
        assert_eq!(memory.addresses(), [new]);
        memory.see(&[new, old], start + REMEMBER);
        assert_eq!(memory.addresses(), [new, old]);
        // A name that is answered no more is forgotten too.
        memory.see(&[], start + 2 * REMEMBER);
        assert!(memory.addresses().is_empty());
        for n in 0..=u8::MAX {
            memory.see(&[IpAddr::from([192, 0, 2, n])], start);
        }
        assert_eq!((memory.addresses().len(), memory.addresses().last()), (MOST, Some(&ip("192.0.2.255"))));
    }
}
