//! The thread that writes the table's sets; its chains stay.
//!
//! Every change is one transaction. A reload takes two: first what both policies let out, whichever of their rules do,
//! then what the new one lets out, with the change of policy between them. So no moment passes what neither lists, and
//! none refuses what both do.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use ipnet::Ipv6Net;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::batch::{self, Batch};
use super::plan::{Plan, RuleSets};
use super::slots::{NoSlot, Sets, Slots, fill_addresses};
use crate::netlink::Socket;
use egret_core::learned::{Known, Learned};
use egret_core::rule::LearnedName;

/// Some other program may change tables of its own all the time: so often at most are ours filled again for it.
const FILL_EVERY: Duration = Duration::from_secs(10);

/// What the writer is asked to do, and where the outcome goes.
#[derive(Debug)]
pub(super) enum Job {
    /// Something has been learned for a name.
    Follow(LearnedName, oneshot::Sender<io::Result<()>>),
    /// A synthetic address leads nowhere.
    Unmap(IpAddr, oneshot::Sender<io::Result<()>>),
    Narrow(RuleSets, oneshot::Sender<Result<Narrowed, ReloadError>>),
    Widen(Box<Narrowed>, oneshot::Sender<Result<(), ReloadError>>),
    /// A table has been seen in the kernel.
    Seen(Seen, oneshot::Sender<Result<(), String>>),
}

/// A table as it was read from the kernel.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) slots: [usize; 2],
    /// A hash of its rules.
    pub(super) rules: u64,
    /// How often the kernel's tables had changed before it was read.
    pub(super) changes: u32,
}

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
    fn from(NoSlot(slots, action): NoSlot) -> Self {
        Self::NoSlot(slots, action)
    }
}

/// A change of rules that has begun: what both policies let out is let out.
#[derive(Debug)]
pub struct Narrowed {
    before: Sets,
    after: Sets,
}

/// What the sets hold, for those that only read it. The writer alone changes it, and never while it waits for the kernel.
#[derive(Debug)]
pub(super) struct Held(RwLock<Contents>);

#[derive(Debug)]
struct Contents {
    sets: Sets,
    /// The last rule of each slot that allows: flows bear it in their marks for longer than a rule lasts.
    rules: HashMap<usize, Arc<str>>,
}

impl Held {
    pub(super) fn of(plan: &Plan) -> Self {
        let sets = Sets::of(&plan.rule_sets, plan.slots);
        Self(RwLock::new(Contents { rules: rules(&sets), sets }))
    }

    /// The last rule of a slot.
    pub(super) fn rule(&self, number: usize) -> Option<Arc<str>> {
        self.read(|contents| contents.rules.get(&number).cloned())
    }

    /// Whether one slot's sets hold what goes from here to there.
    pub(super) fn holds(&self, number: usize, from: IpAddr, to: SocketAddr, protocol: u8) -> bool {
        self.read(|contents| contents.sets.allows.holds(number, from, to, protocol))
    }

    /// The slots of rules that allow, of those that deny, and the translator's prefix that they were made for.
    pub(super) fn slots(&self) -> (Slots, Slots, Option<Ipv6Net>) {
        self.read(|Contents { sets, .. }| (sets.allows.clone(), sets.denies.clone(), sets.nat64))
    }

    fn read<T>(&self, read: impl FnOnce(&Contents) -> T) -> T {
        read(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn sets(&self) -> Sets {
        self.read(|contents| contents.sets.clone())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Sets) -> T) -> T {
        let mut contents = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut contents.sets);
        let now = rules(&contents.sets);
        contents.rules.extend(now);
        changed
    }
}

fn rules(sets: &Sets) -> HashMap<usize, Arc<str>> {
    sets.allows.rules().map(|(number, rule)| (number, Arc::clone(rule))).collect()
}

/// Starts the thread; it ends when the last sender of jobs is gone.
///
/// # Errors
/// The kernel's.
pub(super) fn start(plan: &Plan, held: Arc<Held>, learned: Arc<Learned>) -> io::Result<Sender<Job>> {
    let (jobs, queue) = unbounded();
    let writer = Writer {
        socket: batch::socket()?,
        plan: plan.clone(),
        held,
        learned,
        table: None,
        is_narrowed: false,
        deferred: Vec::new(),
    };
    std::thread::Builder::new().name("net-writer".to_owned()).spawn(move || writer.run(&queue))?;
    Ok(jobs)
}

struct Writer {
    socket: Socket,
    plan: Plan,
    held: Arc<Held>,
    learned: Arc<Learned>,
    /// The table whose sets hold this. Another one, however alike, was filled by another process.
    table: Option<Table>,
    /// A reload has begun: what is learned meanwhile is written, and acknowledged, at its end.
    is_narrowed: bool,
    deferred: Vec<Following>,
}

/// A name that is to be followed, and where the outcome goes.
type Following = (LearnedName, oneshot::Sender<io::Result<()>>);

/// A table as this process has filled it.
#[derive(Debug)]
struct Table {
    name: String,
    rules: u64,
    /// How often the kernel's tables had changed after this process's last change.
    changes: u32,
    /// When its sets were filled last.
    filled: Instant,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Job>) {
        let mut next = None;
        // The receiver of an outcome may be gone.
        while let Some(job) = next.take().or_else(|| queue.recv().ok()) {
            match job {
                Job::Follow(name, done) => {
                    // What waits already goes into the same transaction.
                    let mut all = vec![(name, done)];
                    while let Ok(job) = queue.try_recv() {
                        let Job::Follow(name, done) = job else {
                            next = Some(job);
                            break;
                        };
                        all.push((name, done));
                    }
                    if self.is_narrowed {
                        self.deferred.extend(all);
                    } else {
                        self.follow_all(all);
                    }
                }
                Job::Unmap(synthetic, done) => {
                    let _ = done.send(self.write(|sets, _, batch| sets.unmap(synthetic, batch)));
                }
                Job::Narrow(rule_sets, done) => drop(done.send(self.narrow(&rule_sets))),
                Job::Widen(narrowed, done) => {
                    let _ = done.send(self.widen(&narrowed));
                    let deferred = std::mem::take(&mut self.deferred);
                    self.follow_all(deferred);
                }
                Job::Seen(seen, done) => drop(done.send(self.seen(seen))),
            }
        }
    }

    /// What has been learned, as of now.
    fn known<T>(&self, read: impl FnOnce(Known<'_>) -> T) -> T {
        read(Known::at(&self.learned, Instant::now().into_std()))
    }

    fn follow_all(&mut self, all: Vec<Following>) {
        let (names, waiting): (Vec<LearnedName>, Vec<_>) = all.into_iter().unzip();
        let outcome = self.follow(&names).map_err(|error| (error.kind(), error.to_string()));
        for done in waiting {
            let _ = done.send(outcome.clone().map_err(|(kind, why)| io::Error::new(kind, why)));
        }
    }

    fn follow(&mut self, names: &[LearnedName]) -> io::Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        self.write(|sets, known, batch| sets.follow(names, known, batch))
    }

    /// Changes the sets, and writes the change.
    fn write(&mut self, change: impl FnOnce(&mut Sets, Known<'_>, &mut Batch)) -> io::Result<()> {
        let table = self.table.as_ref().map(|table| table.name.clone());
        let mut batch = Batch::of(table.as_deref().unwrap_or_default());
        self.known(|known| self.held.change(|sets| change(sets, known, &mut batch)));
        // Without a table, it is put in as soon as there is one.
        if table.is_none() {
            return Ok(());
        }
        // Where the kernel does not follow, its sets are filled from the start at the next look.
        self.commit(batch).inspect_err(|_| self.table = None)
    }

    fn narrow(&mut self, rule_sets: &RuleSets) -> Result<Narrowed, ReloadError> {
        let before = self.held.sets();
        let mut after = before.next(rule_sets)?;
        // What was learned since the rules were read is open already.
        self.known(|known| after.know(known));
        let between = before.between(&after);
        self.turn_into(before.clone().beside(&between))?;
        if let Err(error) = self.turn_into(between) {
            // What was put in beside the old rules is theirs.
            let _ = self.turn_into(before);
            return Err(error);
        }
        self.is_narrowed = true;
        Ok(Narrowed { before, after })
    }

    fn widen(&mut self, narrowed: &Narrowed) -> Result<(), ReloadError> {
        self.is_narrowed = false;
        // Meanwhile another table may have been put in the place of the one that it began with.
        let slots = self.held.read(|contents| contents.sets.counts());
        let (mut before, mut after) = (narrowed.before.resized(slots)?, narrowed.after.resized(slots)?);
        self.known(|known| [&mut before, &mut after].into_iter().for_each(|sets| sets.know(known)));
        let both = after.clone().beside(&self.held.sets());
        let Err(error) = self.turn_into(both).and_then(|()| self.turn_into(after)) else { return Ok(()) };
        if let Err(second) = self.turn_into(before.clone()) {
            tracing::error!(error = %second, "the kernel does not take the old rules back either: what both policies let out is let out until its table is seen again");
            self.held.change(|held| *held = before);
            self.table = None;
        }
        Err(error)
    }

    /// A table that was made anew, or may have been changed, gets what its sets should hold.
    fn seen(&mut self, seen: Seen) -> Result<(), String> {
        let Seen { name, slots, rules, changes } = seen;
        let known = self.table.as_ref().filter(|known| known.name == name);
        if known.is_some_and(|known| known.rules != rules) {
            return Err("another program has changed rules in the kernel's table".to_owned());
        }
        // Some table has been changed since by another program: this one gets what it should have, whichever that was.
        let is_newer = |known: &Table| changes.wrapping_sub(known.changes).cast_signed() > 0;
        let is_due = |known: &Table| is_newer(known) && known.filled.elapsed() >= FILL_EVERY;
        if !known.is_none_or(is_due) {
            return Ok(());
        }
        let mut batch = Batch::of(&name);
        let Plan { clients, bypass, own, .. } = &self.plan;
        for (set, addresses) in [("clients", clients), ("bypass", bypass), ("own", own)] {
            fill_addresses(&mut batch, set, addresses);
        }
        // Only a table that has just been made can have other slots than these.
        let sets = self.held.sets().resized(slots).map_err(|NoSlot(slots, action)| {
            format!("the kernel's table has only {slots} places for network rules that {action}")
        })?;
        sets.fill(&mut batch);
        batch.commit(&self.socket).map_err(|error| format!("the kernel's table takes no rules: {error}"))?;
        self.held.change(|held| *held = sets);
        let changes = batch::generation(&self.socket).map_err(|error| error.to_string())?;
        self.table = Some(Table { name, rules, changes, filled: Instant::now() });
        Ok(())
    }

    /// Carries out a change of this process's own.
    fn commit(&mut self, batch: Batch) -> io::Result<()> {
        let before = batch::generation(&self.socket)?;
        batch.commit(&self.socket)?;
        // Another program's change before this one stays to be seen.
        if let Some(table) = self.table.as_mut().filter(|table| table.changes == before) {
            table.changes = batch::generation(&self.socket)?;
        }
        Ok(())
    }

    /// One transaction from what the sets hold to what they shall hold.
    fn turn_into(&mut self, next: Sets) -> Result<(), ReloadError> {
        let mut batch = Batch::of(&self.table.as_ref().ok_or(ReloadError::NoTable)?.name);
        self.held.read(|contents| contents.sets.change(&next, &mut batch));
        self.commit(batch)?;
        self.held.change(|held| *held = next);
        Ok(())
    }
}
