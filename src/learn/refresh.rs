//! Keeps names resolved whose addresses stand for them: those of network rules, and a cluster's API server, which
//! clients dial by address and may show no name.
//!
//! A name's refresh goes on through reloads for as long as some rule keeps the name.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::settings::LearnSettings;
use super::steering::Steering;
use crate::dns::Resolver;
use crate::netfilter::LiveTable;
use egret_core::learned::Learned;
use egret_core::outcome::{Reason, Refusal};
use egret_core::policy::Policy;
use egret_core::rule::{LearnedName, NetPort, NetRule};

/// However long an answer lasts, what is behind a name may change before that.
const AT_LEAST_EVERY: Duration = Duration::from_secs(300);
/// Names that are looked up at once.
pub const AT_ONCE: usize = 32;
/// After a look-up that brought nothing.
const RETRY: Duration = Duration::from_secs(2);

/// What a refresh needs.
#[derive(Debug)]
pub struct Refresh {
    pub dns: Arc<Resolver>,
    pub learned: Arc<Learned>,
    pub steering: Option<Arc<Steering>>,
    /// On a next hop.
    pub table: Option<Arc<LiveTable>>,
    pub settings: LearnSettings,
    /// For look-ups at once: each takes sockets that nothing is counted for.
    pub turns: Semaphore,
}

/// Looks up every name that the newest policy keeps, at once and then again and again, until there is no policy any more.
pub async fn run(refresh: Refresh, mut policies: watch::Receiver<Arc<Policy>>) {
    let refresh = Arc::new(refresh);
    let mut tasks: HashMap<LearnedName, AbortOnDrop> = HashMap::new();
    loop {
        let names = refresh.names(&policies.borrow_and_update());
        // A task may have ended by itself, at a policy that came between two looks.
        tasks.retain(|name, task| names.contains(name) && !task.0.is_finished());
        for name in names {
            let task = || AbortOnDrop(tokio::spawn(keep(Arc::clone(&refresh), policies.clone(), name.clone())));
            tasks.entry(name.clone()).or_insert_with(task);
        }
        if policies.changed().await.is_err() {
            return;
        }
    }
}

impl Refresh {
    /// The names that matter. Without the kernel's part, addresses matter for TCP alone: a client may dial one by CONNECT.
    fn names(&self, policy: &Policy) -> HashSet<LearnedName> {
        let is_tcp = |rule: &&NetRule| rule.ports.iter().any(|port| matches!(port, NetPort::Tcp(_)));
        let rules = policy.network_rules().iter().filter(|rule| self.table.is_some() || is_tcp(rule));
        rules.flat_map(|rule| &rule.kept).cloned().collect()
    }

    /// What stands behind a name now, and for how long; `None` where no rule keeps it any more.
    async fn look_up(
        &self,
        policy: Arc<Policy>,
        name: &LearnedName,
    ) -> Option<Result<(Vec<IpAddr>, Duration), Refusal>> {
        let clearance = policy.clearance_to_keep(name)?;
        // It never closes.
        let _turn = self.turns.acquire().await;
        let answers = match self.dns.resolve_anew(&clearance).await {
            Ok(answers) => answers,
            Err(refusal) => return Some(Err(refusal)),
        };
        Some(policy.by_kept_answer(&clearance, &answers).map(|addresses| (addresses, answers.ttl)))
    }

    /// Learns what was found. Should the kernel refuse it, the table is gone, which the next look says.
    async fn learn(&self, policy: &Policy, name: &LearnedName, found: &[IpAddr]) {
        let now = Instant::now().into_std();
        match self.steering.as_ref().filter(|_| policy.steered_names().include(name.name())) {
            None => drop(self.learned.learn(name, found, now)),
            // Clients have synthetic addresses, and what is behind those is what was found.
            Some(steering) => {
                for synthetic in steering.keep(name.name()).into_iter().flatten() {
                    let is_of_family = |ip: &IpAddr| ip.is_ipv4() == synthetic.is_ipv4();
                    let found: Vec<IpAddr> = found.iter().copied().filter(is_of_family).collect();
                    let behind = policy.forwardable(name.name(), &found);
                    if !behind.is_empty() {
                        self.learned.map(synthetic, &behind);
                        self.learned.learn(name, &[synthetic], now);
                    }
                }
            }
        }
        if let Some(table) = &self.table
            && let Err(error) = table.follow(name).await
        {
            tracing::warn!(%error, name = %name.name(), "the kernel does not take the addresses");
        }
    }
}

async fn keep(refresh: Arc<Refresh>, policies: watch::Receiver<Arc<Policy>>, name: LearnedName) {
    let mut failed = false;
    loop {
        let policy = Arc::clone(&policies.borrow());
        let Some(looked_up) = refresh.look_up(Arc::clone(&policy), &name).await else { return };
        let every = refresh.settings.refresh;
        let pause = match looked_up {
            Ok((found, ttl)) => {
                refresh.learn(&policy, &name, &found).await;
                if std::mem::replace(&mut failed, false) {
                    tracing::info!(name = %name.name(), "resolved again");
                }
                // Before the answer ends, so that no client sees the gap.
                (ttl * 3 / 4).clamp(every, AT_LEAST_EVERY.max(every))
            }
            // What was found before stays open, until its time is over.
            Err(refusal) => {
                if !std::mem::replace(&mut failed, true) {
                    let reason = refusal.reason.as_str();
                    tracing::warn!(name = %name.name(), reason, "cannot be resolved: its new addresses stay closed, old ones open");
                }
                // A negative answer is retried no faster than a positive one is refreshed.
                if refusal.reason == Reason::DnsTimeout { RETRY } else { RETRY.max(every) }
            }
        };
        tokio::time::sleep(pause).await;
    }
}

#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
