//! The table while egret runs, as those see it that do not change it: whether it stands, what its counters and marks mean.
//!
//! It is changed by one thread (`writer`), which reads no more of the kernel than the acknowledgements of its own
//! transactions. What takes long to read, such as all rules or all flows, is read here, over sockets of its own.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::conntrack::Flow;
use super::marks::{BYPASSED, FORWARDED, INGRESS, INGRESS_PLAIN, STATE};
use super::plan::{Plan, RuleSets};
use super::writer::{self, Held, Job, Narrowed, ReloadError, Seen};
use super::{batch, conntrack, names, nflog, routes, ruleset, sysctl};
use crate::netlink::Socket;
use egret_core::learned::Learned;
use egret_core::outcome::Reason;
use egret_core::rule::LearnedName;

/// The kernel's rules, from this process's side.
#[derive(Debug)]
pub struct LiveTable {
    plan: Plan,
    /// How the table's name for itself begins, if it was made of this plan.
    id: String,
    /// What the sets hold, as the writer last changed them.
    held: Arc<Held>,
    jobs: Sender<Job>,
    /// For what is looked at.
    socket: Mutex<Socket>,
    is_in_place: AtomicBool,
    /// When this process began to know of flows.
    since: Instant,
    /// Refused packets that have a line and are not counted yet, by reason.
    lines: Mutex<HashMap<Reason, u64>>,
    /// Flows that the last reload has ended and whose end has no line yet.
    revoked: Mutex<HashSet<(SocketAddr, SocketAddr, u8)>>,
}

impl LiveTable {
    /// The table of a plan, which was put into the kernel by this process or by `egret netfilter apply`. Starts the thread
    /// that writes to it.
    ///
    /// # Errors
    /// The kernel's; it takes CAP_NET_ADMIN.
    pub fn new(plan: Plan, learned: Arc<Learned>) -> io::Result<Self> {
        let held = Arc::new(Held::of(&plan));
        let jobs = writer::start(&plan, Arc::clone(&held), learned)?;
        Ok(Self {
            id: ruleset::id(&plan),
            plan,
            held,
            jobs,
            socket: Mutex::new(batch::socket()?),
            since: Instant::now(),
            is_in_place: AtomicBool::new(false),
            lines: Mutex::default(),
            revoked: Mutex::default(),
        })
    }

    /// Whether table and routes stood at the last look.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.is_in_place.load(Ordering::Relaxed)
    }

    /// Looks whether everything is there that it takes to serve: what [`Self::inspect`] finds, and the clients' interfaces.
    /// Blocks.
    ///
    /// # Errors
    /// What is missing.
    pub fn look(&self) -> Result<Vec<(String, u64)>, String> {
        let looked = match (self.inspect(), sysctl::absent_interfaces(&self.plan).next()) {
            (Err(fault), _) => Err(format!(
                "{fault}: not ready until `egret netfilter apply` with this egret's configuration, or a start with --netfilter"
            )),
            (Ok(_), Some(name)) => Err(format!("netfilter.interfaces: {name} is missing: not ready until it is there")),
            (Ok(counters), None) => Ok(counters),
        };
        self.is_in_place.store(looked.is_ok(), Ordering::Relaxed);
        looked
    }

    /// Looks whether table and routes stand as they were put up. A table that was made anew of the same plan gets what
    /// this process knows into its sets. Returns what its counters show. Blocks.
    ///
    /// # Errors
    /// What is missing.
    pub fn inspect(&self) -> Result<Vec<(String, u64)>, String> {
        let failed = |error: io::Error| format!("the kernel's rules cannot be read: {error}");
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = batch::generation(&socket).map_err(failed)?;
        let counters = nflog::counters(&socket).map_err(failed)?;
        let table = counters.iter().map(|(name, _)| name.clone()).find(|name| name.starts_with(names::TABLE_ID));
        let name = table.ok_or("the kernel's table `inet egret` is not there")?;
        let other = "the kernel's table was made of another configuration, or by another egret";
        let slots = names::slots(&name, &self.id).ok_or(other)?;
        let (count, rules) = batch::rules(&socket).map_err(failed)?;
        drop(socket);
        let expected = ruleset::rules(&self.plan, slots);
        if count != expected {
            return Err(format!("the kernel's table has {count} rules instead of {expected}"));
        }
        self.ask(|done| Job::Seen(Seen { name, slots, rules, changes }, done)).blocking_recv().map_err(|_| GONE)??;
        if let Some(route) = routes::missing(&self.plan).map_err(failed)? {
            return Err(format!("a policy route is gone ({route})"));
        }
        match sysctl::not_forwarding(&self.plan) {
            None => Ok(counters),
            Some(setting) => Err(format!("{setting} is off")),
        }
    }

    /// A refused packet has its line.
    pub fn has_line(&self, reason: Reason) {
        *self.lines.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    /// Of so many packets refused since the last time, those that have no line. A line that comes before its count
    /// stands for a later one.
    pub fn left_out(&self, reason: Reason, refused: u64) -> u64 {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let written = lines.entry(reason).or_default();
        let left = refused.saturating_sub(*written);
        *written = written.saturating_sub(refused);
        left
    }

    /// The rule whose flows a counter counts.
    #[must_use]
    pub fn rule_of_counter(&self, name: &str) -> Option<Arc<str>> {
        self.held.rule(name.strip_prefix("allow")?.parse().ok()?)
    }

    /// Ends the flows that the rules of now would not let through; how many there were. Blocks.
    ///
    /// # Errors
    /// The kernel's.
    pub fn cut(&self) -> io::Result<usize> {
        let (allows, denies, nat64) = self.held.slots();
        let mut revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        revoked.clear();
        conntrack::cut(|flow| {
            // Of slots, too, that a table before this one had.
            let is_of_rule = ![BYPASSED, INGRESS, INGRESS_PLAIN].contains(&flow.mark);
            let Flow { client, destination, upstream, protocol, .. } = flow;
            let from = client.ip();
            let is_let_out = match destination.ip() == upstream.ip() {
                true => allows.hold(from, *destination, *protocol),
                // A synthetic address leads to a real one.
                false => allows.hold_on(from, *destination, upstream.ip(), nat64, *protocol),
            };
            let stays = !is_of_rule || (is_let_out && !denies.hold(from, *upstream, *protocol));
            if !stays {
                revoked.insert((flow.client, flow.destination, flow.protocol));
            }
            stays
        })
    }

    /// Whether a flow ended because a reload has cut it; asked once for each.
    pub fn was_cut(&self, flow: &Flow) -> bool {
        let mut revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        revoked.remove(&(flow.client, flow.destination, flow.protocol))
    }

    /// The rule that let a flow through, from its conntrack mark. What an earlier egret let through may have been
    /// another rule's, unless the one that has the slot now would let it through too.
    #[must_use]
    pub fn rule(&self, flow: &Flow) -> Option<Arc<str>> {
        let number = usize::try_from(flow.mark & !STATE).ok().filter(|_| flow.mark & STATE == FORWARDED)?;
        let is_ours = flow.duration.is_some_and(|lasted| lasted < self.since.elapsed());
        let fits = is_ours || self.held.holds(number, flow.client.ip(), flow.destination, flow.protocol);
        self.held.rule(number).filter(|_| fits)
    }

    /// Lets the rules that keep a name lead to what has been learned for it. Returns when the kernel has it.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn follow(&self, name: &LearnedName) -> io::Result<()> {
        self.ask(|done| Job::Follow(name.clone(), done)).await.unwrap_or_else(|_| Err(io::Error::other(GONE)))
    }

    /// Leads a synthetic address nowhere. Returns when the kernel knows.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn unmap(&self, synthetic: IpAddr) -> io::Result<()> {
        self.ask(|done| Job::Unmap(synthetic, done)).await.unwrap_or_else(|_| Err(io::Error::other(GONE)))
    }

    /// Begins a reload: lets out what both the old and the new rules let out, and denies what either denies.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing has changed.
    pub async fn narrow(&self, rule_sets: RuleSets) -> Result<Narrowed, ReloadError> {
        self.ask(|done| Job::Narrow(rule_sets, done)).await.unwrap_or(Err(ReloadError::NoTable))
    }

    /// Ends a reload: lets out what the new rules let out.
    ///
    /// # Errors
    /// [`ReloadError`]; the old policy must be put back then, and the sets are as they were before the reload, or else
    /// hold what both policies let out.
    pub async fn widen(&self, narrowed: Narrowed) -> Result<(), ReloadError> {
        self.ask(|done| Job::Widen(Box::new(narrowed), done)).await.unwrap_or(Err(ReloadError::NoTable))
    }

    /// Gives the writer a job; its outcome comes when it is done.
    fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> oneshot::Receiver<T> {
        let (done, outcome) = oneshot::channel();
        // Where the thread is gone, the outcome is too.
        let _ = self.jobs.send(job(done));
        outcome
    }
}

/// The writer has panicked.
const GONE: &str = "the thread that writes the kernel's rules is gone; start egret anew";
