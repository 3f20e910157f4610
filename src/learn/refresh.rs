//! Keeps names resolved whose addresses stand for them: those of network rules, and a cluster's API server, which
//! clients dial by address and may show no name.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::state_file;
use crate::netfilter::plan::learned;
use crate::proxy::services::Services;
use egret_core::learned::Kept;
use egret_core::outcome::{Reason, Refusal};
use egret_core::policy::{Clearance, Policy};
use egret_core::rule::{NetPort, NetRule};

/// However long an answer lasts, what is behind a name may change before that.
const AT_LEAST_EVERY: Duration = Duration::from_secs(300);
/// After a look-up that brought nothing.
const RETRY: Duration = Duration::from_secs(2);
/// Addresses of one name that are open at once; the longest unseen go first.
const MOST: usize = 1024;

/// Looks up every name that a policy keeps, at once and then again and again, until the services is gone.
pub async fn run(services: Weak<Services>, policy: Arc<Policy>) {
    let mut names = JoinSet::new();
    let generation = services.upgrade().and_then(|services| services.kernel.as_ref().map(|kernel| kernel.generation()));
    let (has_kernel, generation) = (generation.is_some(), generation.unwrap_or(0));
    // Without the kernel's part, addresses matter for TCP alone: a client may dial one by CONNECT.
    let is_tcp = |rule: &NetRule| rule.ports.iter().any(|port| matches!(port, NetPort::Tcp(_)));
    let is_of_use = |kept: &Arc<Kept>| {
        let mut rules = policy.network_rules().iter().filter(|rule| rule.kept.iter().any(|own| Arc::ptr_eq(own, kept)));
        rules.any(|rule| has_kernel || is_tcp(rule))
    };
    for (kept, clearance) in policy.kept().filter(|(kept, _)| is_of_use(kept)) {
        names.spawn(keep(Weak::clone(&services), Arc::clone(&policy), generation, kept, clearance));
    }
    if let Some(dir) = services.upgrade().and_then(|services| services.learn.state_dir.clone()) {
        names.spawn(state_file::keep_writing(dir, policy));
    }
    while names.join_next().await.is_some() {}
}

async fn keep(services: Weak<Services>, policy: Arc<Policy>, generation: u64, kept: Arc<Kept>, clearance: Clearance) {
    let Some(learn) = services.upgrade().map(|services| services.learn.clone()) else { return };
    // What an earlier policy found, when it found it.
    let mut memory = Memory::of(kept.addresses(), learn.remember);
    let mut failed = false;
    while let Some(services) = services.upgrade() {
        let pause = match look_up(&services, &policy, &clearance).await {
            Ok((found, ttl)) => {
                memory.see(&found, Instant::now().into_std());
                kept.set(memory.addresses.clone());
                tokio::task::block_in_place(|| tell_kernel(&services, &policy, generation, &kept));
                if std::mem::replace(&mut failed, false) {
                    tracing::info!(name = %kept.name(), "resolved again");
                }
                // Before the answer ends, so that no client sees the gap.
                (ttl * 3 / 4).clamp(learn.refresh, AT_LEAST_EVERY.max(learn.refresh))
            }
            // What was found before stays open, until it is forgotten.
            Err(refusal) => {
                memory.see(&[], Instant::now().into_std());
                kept.set(memory.addresses.clone());
                if !std::mem::replace(&mut failed, true) {
                    let reason = refusal.reason.as_str();
                    tracing::warn!(name = %kept.name(), reason, "cannot be resolved: its new addresses stay closed, old ones open");
                }
                // Who has said no need not be asked more often than who has said yes.
                if refusal.reason == Reason::DnsTimeout { RETRY } else { RETRY.max(learn.refresh) }
            }
        };
        drop(services);
        tokio::time::sleep(pause).await;
    }
}

/// Opens the kernel's way to what was found. Should it refuse, the table is gone, and whoever looks will say so.
fn tell_kernel(services: &Services, policy: &Policy, generation: u64, kept: &Arc<Kept>) {
    let Some(kernel) = &services.kernel else { return };
    let nat64 = policy.nat64();
    let rules = policy.network_rules().iter().filter(|rule| rule.kept.iter().any(|own| Arc::ptr_eq(own, kept)));
    for rule in rules {
        if let Err(error) = kernel.learn(generation, &rule.name, &learned(rule, nat64, services.learn.remember)) {
            tracing::warn!(%error, name = %kept.name(), rule = %rule.name, "the kernel does not take the addresses");
        }
    }
}

async fn look_up(
    services: &Services,
    policy: &Policy,
    clearance: &Clearance,
) -> Result<(Vec<IpAddr>, Duration), Refusal> {
    let answers = services.dns.resolve_anew(clearance).await?;
    let permit = policy.by_address(clearance, &answers)?;
    Ok((permit.addresses().iter().map(std::net::SocketAddr::ip).collect(), answers.ttl))
}

/// Addresses and when they were answered last.
struct Memory {
    /// The longest unseen first.
    addresses: Vec<(IpAddr, std::time::Instant)>,
    /// How long an address stays open that is answered no more: connections are older than answers.
    remember: Duration,
}

impl Memory {
    fn of(mut addresses: Vec<(IpAddr, std::time::Instant)>, remember: Duration) -> Self {
        addresses.sort_by_key(|(_, seen)| *seen);
        Self { addresses, remember }
    }

    fn see(&mut self, found: &[IpAddr], now: std::time::Instant) {
        self.addresses.retain(|(ip, seen)| !found.contains(ip) && now.duration_since(*seen) < self.remember);
        self.addresses.extend(found.iter().map(|ip| (*ip, now)));
        self.addresses.drain(..self.addresses.len().saturating_sub(MOST));
    }

    #[cfg(test)]
    fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|(ip, _)| *ip).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_old_address_is_remembered_for_a_day() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (old, new) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let start = Instant::now().into_std();
        const REMEMBER: Duration = Duration::from_secs(24 * 3600);
        let mut memory = Memory::of(Vec::new(), REMEMBER);
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
        for n in 0..2 * u16::try_from(MOST).unwrap() {
            let [high, low] = n.to_be_bytes();
            memory.see(&[IpAddr::from([192, 0, high, low])], start);
        }
        let many = (0..MOST).map(|n| IpAddr::from(u32::try_from(n).unwrap().to_be_bytes()));
        let mut known: Vec<_> = many.map(|ip| (ip, start)).collect();
        known.insert(0, (old, start + Duration::from_secs(1)));
        let mut inherited = Memory::of(known, REMEMBER);
        inherited.see(&[new], start + Duration::from_secs(2));
        assert!(inherited.addresses().ends_with(&[old, new]), "of too many, the longest unseen go");
        assert_eq!((memory.addresses().len(), memory.addresses().last()), (MOST, Some(&ip("192.0.7.255"))));
    }
}
