//! The table while egret runs: its sets follow the policy and what was learned; its chains stay.
//!
//! Every change is one transaction. A reload takes two: first what both policies let out, whichever of their rules do,
//! then what the new one lets out, with the change of policy between them. So no moment passes what neither lists, and
//! none refuses what both do.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::batch::{self, Batch};
use super::conntrack::Flow;
use super::marks::{BYPASSED, FORWARDED, INGRESS, INGRESS_PLAIN, STATE};
use super::plan::{Plan, RuleSets};
use super::ruleset;
use super::slots::{NoSlot, Sets, Slots, fill_addresses};
use super::{conntrack, names, nflog, routes, sysctl};
use crate::netlink::Socket;
use egret_core::outcome::Reason;

/// The kernel's rules, from this process's side.
#[derive(Debug)]
pub struct LiveTable {
    plan: Plan,
    /// How the table's name for itself begins, if it was made of this plan.
    id: String,
    state: Mutex<State>,
    is_in_place: AtomicBool,
    /// When this process began to know of flows.
    since: Instant,
    /// Refused packets that have a line and are not counted yet, by reason.
    lines: Mutex<HashMap<Reason, u64>>,
    /// Flows that the last reload has ended and whose end is not told yet.
    revoked: Mutex<HashSet<(SocketAddr, SocketAddr, u8)>>,
}

#[derive(Debug)]
struct State {
    socket: Socket,
    sets: Sets,
    /// Who had each place last, of rules that allow: flows bear it in their marks for longer than a rule lasts.
    rules: HashMap<usize, Arc<str>>,
    /// The table whose sets hold this. Another one, however alike, was filled by somebody else.
    table: Option<Table>,
    /// Counts the reloads: what was found for an older policy is learned no more.
    generation: u64,
}

/// A table as this process has filled it.
#[derive(Debug)]
struct Table {
    name: String,
    /// A hash of its rules.
    rules: u64,
    /// How often the kernel's tables had changed after this process's last change.
    changes: u32,
    /// When its sets were filled last.
    filled: Instant,
}

/// Some other program may change tables of its own all the time: so often at most are ours filled again for it.
const FILL_EVERY: Duration = Duration::from_secs(10);

/// Why a reload cannot reach the kernel.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(
        "the kernel's table has {0} places for network rules that {1}, and the new policy needs more; `egret netfilter apply` makes room, then reload again"
    )]
    NoSlot(usize, &'static str),
    #[error("the kernel's rules are not in place; `egret netfilter apply` mends it")]
    NoTable,
    #[error("the kernel refused the new rules: {0}; start egret anew")]
    Refused(#[source] io::Error),
}

impl From<io::Error> for ReloadError {
    fn from(error: io::Error) -> Self {
        // The table that they were for is not there, or another one is.
        if error.raw_os_error() == Some(nix::libc::ENOENT) { Self::NoTable } else { Self::Refused(error) }
    }
}

impl From<NoSlot> for ReloadError {
    fn from(NoSlot(places, action): NoSlot) -> Self {
        Self::NoSlot(places, action)
    }
}

/// A change of rules that has begun: what both policies let out is let out.
#[derive(Debug)]
pub struct Narrowed {
    before: Sets,
    after: Sets,
}

impl LiveTable {
    /// The table of a plan, which was put into the kernel by this process or by `egret netfilter apply`.
    ///
    /// # Errors
    /// The kernel's; it takes CAP_NET_ADMIN.
    pub fn new(plan: Plan) -> io::Result<Self> {
        let sets = Sets::of(&plan.filter, plan.places);
        let mut state = State { socket: batch::socket()?, rules: HashMap::new(), table: None, generation: 0, sets };
        state.know_rules();
        Ok(Self {
            id: ruleset::id(&plan),
            plan,
            state: Mutex::new(state),
            since: Instant::now(),
            is_in_place: AtomicBool::new(false),
            lines: Mutex::default(),
            revoked: Mutex::default(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether table and routes stood at the last look.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.is_in_place.load(Ordering::Relaxed)
    }

    /// Looks whether everything is there that it takes to serve: what [`Self::inspect`] finds, and the clients' interfaces.
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
    /// this process knows into its sets. Returns what its counters show.
    ///
    /// # Errors
    /// What is missing.
    pub fn inspect(&self) -> Result<Vec<(String, u64)>, String> {
        let mut state = self.state();
        let failed = |error: io::Error| format!("the kernel's rules cannot be read: {error}");
        let counters = nflog::counters(&state.socket).map_err(failed)?;
        let table = counters.iter().map(|(name, _)| name.clone()).find(|name| name.starts_with(names::TABLE_ID));
        let table = table.ok_or("the kernel's table `inet egret` is not there")?;
        let other = "the kernel's table was made of another configuration, or by another egret";
        let places = names::places(&table, &self.id).ok_or(other)?;
        let (count, rules) = batch::rules(&state.socket).map_err(failed)?;
        let expected = ruleset::rules(&self.plan, places);
        if count != expected {
            return Err(format!("the kernel's table has {count} rules instead of {expected}"));
        }
        let changes = batch::generation(&state.socket).map_err(failed)?;
        let known = state.table.as_ref().filter(|known| known.name == table);
        if known.is_some_and(|known| known.rules != rules) {
            return Err("somebody has changed rules in the kernel's table".to_owned());
        }
        // Somebody has changed some table since: this one has what it should have, whoever it was.
        let is_due = |known: &Table| known.changes != changes && known.filled.elapsed() >= FILL_EVERY;
        if known.is_none_or(is_due) {
            let mut batch = Batch::of(&table);
            let Plan { clients, bypass, own, .. } = &self.plan;
            for (name, addresses) in [("clients", clients), ("bypass", bypass), ("own", own)] {
                fill_addresses(&mut batch, name, addresses);
            }
            // Only a table that has just been made can have other places than these.
            let sets = state.sets.resized(places).map_err(|NoSlot(places, action)| {
                format!("the kernel's table has only {places} places for network rules that {action}")
            })?;
            sets.fill(&mut batch);
            batch.commit(&state.socket).map_err(|error| format!("the kernel's table takes no rules: {error}"))?;
            state.sets = sets;
            state.know_rules();
            let changes = batch::generation(&state.socket).map_err(failed)?;
            state.table = Some(Table { name: table, rules, changes, filled: Instant::now() });
        }
        if let Some(route) = routes::missing(&self.plan).map_err(failed)? {
            return Err(format!("a policy route is gone ({route})"));
        }
        match sysctl::not_forwarding(&self.plan) {
            None => Ok(counters),
            Some(setting) => Err(format!("{setting} is off")),
        }
    }

    /// A refused packet has its line.
    pub fn told(&self, reason: Reason) {
        *self.lines.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    /// Of so many packets refused since the last time, those that have no line. A line that comes before its count
    /// stands for a later one.
    pub fn left_out(&self, reason: Reason, refused: u64) -> u64 {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let told = lines.entry(reason).or_default();
        let left = refused.saturating_sub(*told);
        *told = told.saturating_sub(refused);
        left
    }

    /// The rule whose flows a counter counts.
    pub fn rule_of_counter(&self, name: &str) -> Option<Arc<str>> {
        self.state().rules.get(&name.strip_prefix("allow")?.parse().ok()?).cloned()
    }

    /// Ends the flows that the rules of now would not let through; how many there were.
    ///
    /// # Errors
    /// The kernel's.
    pub fn cut(&self) -> io::Result<usize> {
        let Sets { allows, denies, .. } = self.state().sets.clone();
        let mut revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        revoked.clear();
        conntrack::cut(|flow| {
            // Of places, too, that a table before this one had.
            let is_of_rule = ![BYPASSED, INGRESS, INGRESS_PLAIN].contains(&flow.mark);
            let holds = |places: &Slots| places.hold(flow.client.ip(), flow.destination, flow.protocol);
            let stays = !is_of_rule || (holds(&allows) && !holds(&denies));
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
    /// another rule's, unless the one that has the place now would let it through too.
    #[must_use]
    pub fn rule(&self, flow: &Flow) -> Option<Arc<str>> {
        let number = usize::try_from(flow.mark & !STATE).ok().filter(|_| flow.mark & STATE == FORWARDED)?;
        let is_ours = flow.duration.is_some_and(|lasted| lasted < self.since.elapsed());
        let state = self.state();
        let fits = is_ours || state.sets.allows.holds(number, flow.client.ip(), flow.destination, flow.protocol);
        state.rules.get(&number).filter(|_| fits).cloned()
    }

    /// Counts the reloads so far.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Lets a rule lead to addresses that were found for its names, each for its time from now. What was found for a
    /// policy that is not in force any more changes nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn learn(&self, generation: u64, rule: &str, addresses: &[(IpAddr, Duration)]) -> io::Result<()> {
        let mut state = self.state();
        let number = state.sets.allows.number(rule).filter(|_| state.generation == generation);
        let Some(number) = number else { return Ok(()) };
        let table = state.table.as_ref().map(|table| table.name.clone());
        let mut batch = Batch::of(table.as_deref().unwrap_or_default());
        state.sets.allows.learn(number, addresses, &mut batch);
        // Without a table, they are put in as soon as there is one.
        if table.is_none() {
            return Ok(());
        }
        // Where the kernel does not follow, its sets are filled from the start at the next look.
        state.commit(batch).inspect_err(|_| state.table = None)
    }

    /// Begins a reload: lets out what both the old and the new rules let out, and denies what either denies.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing has changed.
    pub fn narrow(&self, filter: &RuleSets) -> Result<Narrowed, ReloadError> {
        let mut state = self.state();
        let after = state.sets.next(filter)?;
        let between = state.sets.between(&after);
        let before = state.turn_into(between)?;
        state.generation += 1;
        Ok(Narrowed { before, after })
    }

    /// Ends a reload: lets out what the new rules let out.
    ///
    /// # Errors
    /// [`ReloadError`]; the old policy must be put back then, and the sets are as they were before the reload, or else
    /// hold what both policies let out.
    pub fn widen(&self, narrowed: Narrowed) -> Result<(), ReloadError> {
        let Narrowed { before, after } = narrowed;
        let mut state = self.state();
        let Err(error) = state.turn_into(after) else { return Ok(()) };
        if let Err(second) = state.turn_into(before) {
            tracing::error!(error = %second, "the kernel does not take the old rules back either: what both policies let out is let out");
        }
        state.generation -= 1;
        Err(error)
    }
}

impl State {
    /// Carries out a change of this process's own.
    fn commit(&mut self, batch: Batch) -> io::Result<()> {
        let before = batch::generation(&self.socket)?;
        batch.commit(&self.socket)?;
        // Somebody else's change before this one stays to be seen.
        if let Some(table) = self.table.as_mut().filter(|table| table.changes == before) {
            table.changes = batch::generation(&self.socket)?;
        }
        Ok(())
    }

    /// One transaction from what the sets hold to what they shall hold; what they held is returned.
    fn turn_into(&mut self, next: Sets) -> Result<Sets, ReloadError> {
        let mut batch = Batch::of(&self.table.as_ref().ok_or(ReloadError::NoTable)?.name);
        self.sets.change(&next, &mut batch);
        self.commit(batch)?;
        let before = std::mem::replace(&mut self.sets, next);
        self.know_rules();
        Ok(before)
    }

    fn know_rules(&mut self) {
        self.rules.extend(self.sets.allows.rules().map(|(number, rule)| (number, Arc::clone(rule))));
    }
}
