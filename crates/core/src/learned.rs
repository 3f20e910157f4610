//! Addresses that were answered for names and stand for them: which, and since when.
//!
//! One store for all that needs them: network rules that name their destinations, rules that want a client's own
//! destination to be the name's, the kernel's sets, and the file that outlives a restart. What is in it has been judged:
//! an answer that a name's [`Reach`](crate::rule::Reach) does not cover whole is never learned. The time is an argument.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;

use crate::name::HostName;
use crate::rule::LearnedName;

/// Addresses of one name; of more, the longest unseen go.
pub const MOST_OF_ONE: usize = 1024;
/// Addresses of all names that no rule keeps. Clients may ask for names without end under a wildcard: the names longest
/// unseen go. 32 MiB.
const MOST_OF_OTHERS: usize = 512 << 10;
/// The same of names that one rule lists by wildcard: no rule's names make room for another's. As many names with an address
/// each as the kernel's sets have room for; 18 MiB.
const MOST_OF_RULE: usize = (16 << 10) * (NAME + 1);
/// Names under wildcards that one address is known for; of more, the longest unseen go.
const MOST_AT_ONE: usize = 16;
/// The same of names that are one client's each.
const MOST_ASKED_AT_ONE: usize = 1024;
/// What a name takes beside its addresses, in addresses.
const NAME: usize = 8;
/// What was learned a moment ago need not be learned again: connections to one name follow each other fast.
const MOMENT: Duration = Duration::from_secs(1);

/// An address and when it was answered last.
pub type Seen = (IpAddr, Instant);

/// What DNS clients were answered for a name under a rule's wildcards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub rule: Arc<str>,
    pub name: LearnedName,
    pub addresses: Vec<Seen>,
    /// How long they stand for the name.
    pub until: Instant,
}

/// The store.
#[derive(Debug)]
pub struct Learned {
    /// How long an address stands for its name that is answered no more: connections are older than answers.
    remember: Duration,
    state: RwLock<State>,
    /// The real addresses behind synthetic ones, to which the kernel leads flows.
    behind: RwLock<HashMap<IpAddr, IpAddr, RandomState>>,
    /// Counts changes of addresses, not of their times.
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    names: HashMap<LearnedName, Entry, RandomState>,
    /// Names that no rule keeps.
    others: HashMap<Group, Others, RandomState>,
    /// The names under rules' wildcards that an address was answered for, the last one last.
    answered: HashMap<IpAddr, Vec<LearnedName>, RandomState>,
    next: u64,
}

/// Names that make room for each other: those that DNS clients ask for under one rule's wildcards, and, as `None`, all the
/// others.
type Group = Option<Arc<str>>;

#[derive(Debug, Default)]
struct Others {
    /// The longest unseen first, and what each takes.
    names: BTreeMap<Age, (LearnedName, usize)>,
    /// What they take together.
    held: usize,
}

/// When a name was answered last, and a number of its own.
type Age = (Instant, u64);

#[derive(Debug, Default)]
struct Entry {
    /// The longest unseen first.
    addresses: Vec<Seen>,
    is_kept: bool,
    /// Its place among the others.
    other: Option<(Group, Age)>,
    /// The rule whose wildcards it is under.
    group: Group,
    /// How long its addresses stand for it, where that is shorter than they are remembered.
    until: Option<Instant>,
}

impl Learned {
    #[must_use]
    pub fn new(remember: Duration) -> Self {
        Self { remember, state: RwLock::default(), behind: RwLock::default(), changes: AtomicU64::new(0) }
    }

    /// How long an address stands for its name that is answered no more.
    #[must_use]
    pub const fn remember(&self) -> Duration {
        self.remember
    }

    /// Replaces the names that rules keep: their addresses make room for no others. A name that is new takes over what is
    /// known of the same name for other rules, as far as `leads` lets it lead there. Those of a name that no rule keeps any
    /// more stay until their time is over, or until others need the room.
    pub fn keep(
        &self,
        names: impl IntoIterator<Item = LearnedName>,
        leads: impl Fn(&LearnedName, IpAddr) -> bool,
        now: Instant,
    ) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let names: HashSet<LearnedName> = names.into_iter().collect();
        let mut new: HashMap<HostName, Vec<LearnedName>> = HashMap::new();
        for name in names.iter().filter(|name| !state.names.contains_key(*name)) {
            new.entry(name.name().clone()).or_default().push(name.clone());
        }
        // One pass, however many there are: connections wait for it.
        let mut inherited: Vec<(LearnedName, Vec<Seen>)> = Vec::new();
        for (other, entry) in &state.names {
            for name in new.get(other.name()).into_iter().flatten() {
                let known = entry.addresses.iter().filter(|(ip, _)| leads(name, *ip));
                inherited.push((name.clone(), known.copied().collect()));
            }
        }
        for name in new.into_values().flatten() {
            state.names.insert(name, Entry::default());
        }
        for (name, known) in inherited {
            state.merge(&name, &known, |seen| self.holds(seen, now));
        }
        for (name, entry) in &mut state.names {
            entry.is_kept = names.contains(name);
        }
        let all: Vec<LearnedName> = state.names.keys().cloned().collect();
        all.iter().for_each(|name| state.settle(name, now));
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Learns the addresses of an answer, which must have been judged; whether any of them is new.
    pub fn learn(&self, name: &LearnedName, found: &[IpAddr], now: Instant) -> bool {
        let is_fresh = |entry: &Entry| {
            let of = |ip: &IpAddr| entry.addresses.iter().find(|(known, _)| known == ip);
            found.iter().all(|ip| of(ip).is_some_and(|(_, seen)| now.saturating_duration_since(*seen) < MOMENT))
        };
        let read = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if read.names.get(name).is_some_and(is_fresh) {
            return false;
        }
        drop(read);
        self.merge(name, &found.iter().map(|ip| (*ip, now)).collect::<Vec<_>>(), now)
    }

    /// Learns the addresses of an answer that a DNS client was given for a name under a rule's wildcards. They stand for it
    /// for so long, and so do those of former answers that are remembered: caches hand them out while they ask anew.
    pub fn learn_for(&self, rule: &Arc<str>, name: &LearnedName, found: &[IpAddr], lasts: Duration, now: Instant) {
        let until = now + lasts.min(self.remember);
        let addresses = found.iter().map(|ip| (*ip, now)).collect();
        self.learn_answered(&Answered { rule: Arc::clone(rule), name: name.clone(), addresses, until }, now);
    }

    /// The same of answers that were given before.
    pub fn learn_answered(&self, answered: &Answered, now: Instant) {
        let Answered { rule, name, addresses: seen, until } = answered;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let entry = state.names.entry(name.clone()).or_default();
        let until = (*until).min(now + self.remember);
        if entry.group.is_some() || entry.addresses.is_empty() {
            entry.group = Some(Arc::clone(rule));
            entry.until = Some(entry.until.map_or(until, |before| before.max(until)));
        }
        if state.merge(name, seen, |seen| self.holds(seen, now)) {
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
        let State { names, answered, .. } = &mut *state;
        let group = |name: &LearnedName| names.get(name).map(|entry| &entry.group);
        for (ip, _) in seen {
            let of_address = answered.entry(*ip).or_default();
            of_address.retain(|other| other != name);
            let most = if name.asker().is_some() { MOST_ASKED_AT_ONE } else { MOST_AT_ONE };
            if of_address.len() >= most {
                // No rule's names make room for another's, while there are some of its own.
                let own = of_address.iter().position(|other| group(other) == group(name));
                of_address.remove(own.unwrap_or(0));
            }
            of_address.push(name.clone());
        }
        state.settle(name, now);
    }

    /// Takes in what is known elsewhere, with its times; whether any of it is new. An address keeps the later of its times.
    pub fn merge(&self, name: &LearnedName, known: &[Seen], now: Instant) -> bool {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = state.merge(name, known, |seen| self.holds(seen, now));
        state.settle(name, now);
        if is_new {
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
        is_new
    }

    /// Leads a synthetic address to one of those that were found for its name, which must have been judged: the one that it
    /// led to stays while it is among them. Whether it leads elsewhere now.
    pub fn map(&self, synthetic: IpAddr, found: &[IpAddr]) -> bool {
        let mut behind = self.behind.write().unwrap_or_else(PoisonError::into_inner);
        let is_there = behind.get(&synthetic).is_some_and(|ip| found.contains(ip));
        let Some(first) = found.first().filter(|_| !is_there) else { return false };
        behind.insert(synthetic, *first);
        self.changes.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Leads a synthetic address nowhere. Whether it led anywhere.
    pub fn unmap(&self, synthetic: IpAddr) -> bool {
        let was_led = self.behind.write().unwrap_or_else(PoisonError::into_inner).remove(&synthetic).is_some();
        self.changes.fetch_add(u64::from(was_led), Ordering::Relaxed);
        was_led
    }

    fn holds(&self, seen: Instant, now: Instant) -> bool {
        now.saturating_duration_since(seen) < self.remember
    }

    /// How often addresses have changed.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// What stands for the names that rules keep, with their times.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> Vec<(LearnedName, Vec<Seen>)> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let holds = |(_, seen): &&Seen| self.holds(*seen, now);
        let kept = state.names.iter().filter(|(_, entry)| entry.is_kept);
        kept.map(|(name, entry)| (name.clone(), entry.addresses.iter().filter(holds).copied().collect())).collect()
    }

    /// What DNS clients were answered under rules' wildcards, as far as it still stands.
    #[must_use]
    pub fn answers(&self, now: Instant) -> Vec<Answered> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let answered = state.names.iter().filter_map(|(name, entry)| {
            let (rule, until) = (entry.group.clone()?, entry.until.filter(|until| *until > now)?);
            Some(Answered { rule, name: name.clone(), addresses: entry.addresses.clone(), until })
        });
        answered.collect()
    }

    /// Forgets addresses of names that are not wanted.
    pub fn retain(&self, is_wanted: impl Fn(&HostName, IpAddr) -> bool, now: Instant) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let State { names, answered, .. } = &mut *state;
        for (name, entry) in &mut *names {
            let is_gone = |ip: &IpAddr| !is_wanted(name.name(), *ip);
            forget(answered, name, entry.addresses.iter().map(|(ip, _)| ip).filter(|ip| is_gone(ip)));
            entry.addresses.retain(|(ip, _)| !is_gone(ip));
        }
        let all: Vec<LearnedName> = names.keys().cloned().collect();
        all.iter().for_each(|name| state.settle(name, now));
    }
}

impl Entry {
    fn merge(&mut self, known: &[Seen], holds: impl Fn(Instant) -> bool) {
        self.addresses.extend(known);
        // Of several times of one address, the last one.
        self.addresses.sort_by_key(|(ip, seen)| (*ip, Reverse(*seen)));
        self.addresses.dedup_by_key(|(ip, _)| *ip);
        self.addresses.retain(|(_, seen)| holds(*seen));
        self.addresses.sort_by_key(|(_, seen)| *seen);
        self.addresses.drain(..self.addresses.len().saturating_sub(MOST_OF_ONE));
    }
}

impl State {
    /// Takes in addresses of a name; whether any is new.
    fn merge(&mut self, name: &LearnedName, known: &[Seen], holds: impl Fn(Instant) -> bool) -> bool {
        let entry = self.names.entry(name.clone()).or_default();
        let before = entry.addresses.clone();
        entry.merge(known, &holds);
        let after: HashSet<IpAddr> = entry.addresses.iter().map(|(ip, _)| *ip).collect();
        forget(&mut self.answered, name, before.iter().map(|(ip, _)| ip).filter(|ip| !after.contains(ip)));
        let held: HashSet<IpAddr> = before.iter().filter(|(_, seen)| holds(*seen)).map(|(ip, _)| *ip).collect();
        !after.is_subset(&held)
    }

    fn remove(&mut self, name: &LearnedName) {
        let entry = self.names.remove(name).unwrap_or_default();
        forget(&mut self.answered, name, entry.addresses.iter().map(|(ip, _)| ip));
    }

    /// Counts a name where it belongs, after a change.
    fn settle(&mut self, name: &LearnedName, now: Instant) {
        let Some(entry) = self.names.get_mut(name) else { return };
        if let Some((group, age)) = entry.other.take()
            && let Some(others) = self.others.get_mut(&group)
            && let Some((_, before)) = others.names.remove(&age)
        {
            others.held -= before;
        }
        if entry.is_kept {
            return;
        }
        let Some((_, seen)) = entry.addresses.last() else {
            self.remove(name);
            return;
        };
        self.next += 1;
        let (age, takes) = ((*seen.min(&now), self.next), NAME + entry.addresses.len());
        let group = entry.group.clone();
        entry.other = Some((group.clone(), age));
        let most = if group.is_some() { MOST_OF_RULE } else { MOST_OF_OTHERS };
        let others = self.others.entry(group).or_default();
        others.held += takes;
        others.names.insert(age, (name.clone(), takes));
        let mut gone = Vec::new();
        while others.held > most
            && let Some((_, (name, takes))) = others.names.pop_first()
        {
            others.held -= takes;
            gone.push(name);
        }
        gone.iter().for_each(|name| self.remove(name));
    }
}

/// Takes addresses out of the index where this name stands for them.
fn forget<'a>(
    answered: &mut HashMap<IpAddr, Vec<LearnedName>, RandomState>,
    name: &LearnedName,
    gone: impl IntoIterator<Item = &'a IpAddr>,
) {
    for ip in gone {
        let Some(names) = answered.get_mut(ip) else { continue };
        names.retain(|other| other != name);
        if names.is_empty() {
            answered.remove(ip);
        }
    }
}

impl Entry {
    /// How long an address that was seen then still stands for the name; zero: no more.
    fn left(&self, seen: Instant, remember: Duration, now: Instant) -> Duration {
        let left = remember.saturating_sub(now.saturating_duration_since(seen));
        let until = self.until.filter(|_| !self.is_kept);
        until.map_or(left, |until| left.min(until.saturating_duration_since(now)))
    }
}

/// What has been learned, as it is at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a>(Option<(&'a Learned, Instant)>);

impl<'a> Known<'a> {
    /// Nothing has been learned: what a policy says by itself.
    #[must_use]
    pub const fn nothing() -> Self {
        Self(None)
    }

    #[must_use]
    pub const fn at(learned: &'a Learned, now: Instant) -> Self {
        Self(Some((learned, now)))
    }

    /// Whether an address stands for a name.
    #[must_use]
    pub fn has(self, name: &LearnedName, ip: IpAddr) -> bool {
        self.read(name, |learned, now, entry| {
            let stands = |seen| !entry.left(seen, learned.remember, now).is_zero();
            entry.addresses.iter().any(|(of, seen)| *of == ip && stands(*seen))
        })
    }

    /// The addresses that stand for a name, and how long each still does.
    #[must_use]
    pub fn of(self, name: &LearnedName) -> Vec<(IpAddr, Duration)> {
        self.read(name, |learned, now, entry| {
            let left = |seen| entry.left(seen, learned.remember, now);
            entry.addresses.iter().map(|(ip, seen)| (*ip, left(*seen))).filter(|(_, left)| !left.is_zero()).collect()
        })
    }

    /// The real address behind a synthetic one.
    #[must_use]
    pub fn behind(self, synthetic: IpAddr) -> Option<IpAddr> {
        let (learned, _) = self.0?;
        learned.behind.read().unwrap_or_else(PoisonError::into_inner).get(&synthetic).copied()
    }

    /// Every synthetic address that leads to a real one, with that.
    #[must_use]
    pub fn mapped(self) -> Vec<(IpAddr, IpAddr)> {
        let Some((learned, _)) = self.0 else { return Vec::new() };
        let behind = learned.behind.read().unwrap_or_else(PoisonError::into_inner);
        behind.iter().map(|(synthetic, real)| (*synthetic, *real)).collect()
    }

    /// The name under a rule's wildcards that an address was answered for last, whether or not its time is over: of a packet
    /// that the kernel refused, one learns only later, and the name may have been asked for again.
    #[must_use]
    pub fn answered(self, ip: IpAddr) -> Option<HostName> {
        let (learned, _) = self.0?;
        let state = learned.state.read().unwrap_or_else(PoisonError::into_inner);
        state.answered.get(&ip)?.last().map(|name| name.name().clone())
    }

    /// The names under rules' wildcards that an address stands for.
    #[must_use]
    pub fn stands_for(self, ip: IpAddr) -> Vec<LearnedName> {
        let Some((learned, _)) = self.0 else { return Vec::new() };
        let state = learned.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut names = state.answered.get(&ip).cloned().unwrap_or_default();
        drop(state);
        names.retain(|name| self.has(name, ip));
        names
    }

    /// The names that no rule keeps, as far as they are wanted.
    #[must_use]
    pub fn others(self, wanted: impl Fn(&LearnedName) -> bool) -> Vec<LearnedName> {
        let Some((learned, _)) = self.0 else { return Vec::new() };
        let state = learned.state.read().unwrap_or_else(PoisonError::into_inner);
        let others = state.names.iter().filter(|(_, entry)| !entry.is_kept).map(|(name, _)| name);
        others.filter(|name| wanted(name)).cloned().collect()
    }

    fn read<T: Default>(self, name: &LearnedName, read: impl FnOnce(&Learned, Instant, &Entry) -> T) -> T {
        let Some((learned, now)) = self.0 else { return T::default() };
        let state = learned.state.read().unwrap_or_else(PoisonError::into_inner);
        state.names.get(name).map(|entry| read(learned, now, entry)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::Reach;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn name(text: &str) -> LearnedName {
        LearnedName::new(HostName::from_wire(text.as_bytes()).unwrap(), Reach::default())
    }

    fn ip(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    fn start() -> Instant {
        #[allow(clippy::disallowed_methods, reason = "any time will do")]
        Instant::now()
    }

    fn known(learned: &Learned, name: &LearnedName, now: Instant) -> Vec<IpAddr> {
        Known::at(learned, now).of(name).into_iter().map(|(ip, _)| ip).collect()
    }

    #[test]
    fn the_name_that_an_address_was_answered_for_last_is_known_while_it_is_remembered() {
        let (learned, a, b, start) = (Learned::new(DAY), name("a.example"), name("b.example"), start());
        let (rule, minute) = (Arc::from("rule"), Duration::from_secs(60));
        let answered = |n| Known::at(&learned, start).answered(ip(n)).map(|name| name.to_string());
        learned.learn_for(&rule, &a, &[ip(1), ip(2)], minute, start);
        assert_eq!((answered(1).as_deref(), answered(3)), (Some("a.example"), None), "one that never was");
        learned.learn_for(&rule, &b, &[ip(1)], minute, start + 2 * minute);
        assert_eq!([answered(1), answered(2)], [Some("b.example".to_owned()), Some("a.example".to_owned())]);
        // What makes room leaves nothing behind.
        for n in 0..MOST_OF_RULE / NAME {
            learned.learn_for(&rule, &name(&format!("n{n}.example")), &[ip(9)], minute, start + 3 * minute);
        }
        assert_eq!((answered(1), answered(2)), (None, None));
        assert_eq!(learned.state.read().unwrap().answered.len(), 1);
        // Nor does an address that is remembered no more.
        let (single, c) = (Learned::new(DAY), name("c.example"));
        for day in 0..5 {
            single.learn_for(&rule, &c, &[ip(day)], minute, start + day * 2 * DAY);
        }
        assert_eq!(single.state.read().unwrap().answered.len(), 1);
    }

    #[test]
    fn an_old_address_stands_for_its_name_for_a_day() {
        let (learned, a, start) = (Learned::new(DAY), name("a.example"), start());
        let second = Duration::from_secs(1);
        assert!(learned.learn(&a, &[ip(1)], start));
        assert!(learned.learn(&a, &[ip(2)], start + DAY - second));
        assert_eq!(known(&learned, &a, start + DAY - second), [ip(1), ip(2)]);
        assert!(Known::at(&learned, start + DAY - second).has(&a, ip(1)));
        assert!(!Known::at(&learned, start + DAY).has(&a, ip(1)));
        assert_eq!(known(&learned, &a, start + DAY), [ip(2)]);
        assert!(learned.learn(&a, &[ip(2), ip(1)], start + DAY), "it has been forgotten");
        assert!(!learned.learn(&a, &[ip(1)], start + DAY + 2 * second), "known, and longer from now on");
        assert_eq!(Known::at(&learned, start + DAY).of(&a).len(), 2);
        assert_eq!(known(&learned, &a, start + 2 * DAY), [ip(1)]);
        assert!(!Known::at(&learned, start).has(&name("b.example"), ip(1)) && !Known::nothing().has(&a, ip(1)));
    }

    #[test]
    fn a_name_that_may_lead_elsewhere_is_another_one() {
        let (learned, start) = (Learned::new(DAY), start());
        let reach = Reach { public: false, prefixes: vec!["10.0.0.0/8".parse().unwrap()] };
        let inside = LearnedName::new(HostName::from_wire(b"a.example").unwrap(), reach);
        learned.learn(&inside, &[ip(0x0a00_0001)], start);
        assert_eq!(known(&learned, &name("a.example"), start), [] as [IpAddr; 0]);
        assert_eq!(known(&learned, &inside.clone(), start), [ip(0x0a00_0001)]);
        // What is known of it for another rule is taken over where it may lead there too.
        learned.learn(&name("a.example"), &[ip(0x1401_0101)], start);
        let reach = Reach { public: true, prefixes: vec!["10.0.0.0/8".parse().unwrap()] };
        let both = LearnedName::new(HostName::from_wire(b"a.example").unwrap(), reach);
        learned.keep([both.clone()], |_, other| other != ip(0x0a00_0001), start);
        assert_eq!(known(&learned, &both, start), [ip(0x1401_0101)]);
    }

    #[test]
    fn of_too_many_addresses_the_longest_unseen_go() {
        let (learned, a, start) = (Learned::new(DAY), name("a.example"), start());
        let most = u32::try_from(MOST_OF_ONE).unwrap();
        for n in 0..2 * most {
            learned.learn(&a, &[ip(n)], start + Duration::from_millis(n.into()));
        }
        let left = known(&learned, &a, start + Duration::from_secs(3));
        assert_eq!((left.len(), left[0], left[left.len() - 1]), (MOST_OF_ONE, ip(most), ip(2 * most - 1)));
    }

    #[test]
    fn names_without_end_take_no_room_from_those_that_rules_keep() {
        let (learned, kept, start) = (Learned::new(DAY), name("kept.example"), start());
        learned.keep([kept.clone()], |_, _| true, start);
        learned.learn(&kept, &[ip(1)], start);
        let addresses: Vec<IpAddr> = (0..1024).map(ip).collect();
        let names = u32::try_from(MOST_OF_OTHERS / 1024).unwrap() + 100;
        for n in 0..names {
            learned.learn(&name(&format!("n{n}.example")), &addresses, start + Duration::from_millis(n.into()));
        }
        let now = start + Duration::from_secs(3);
        assert!(learned.state.read().unwrap().others[&None].held <= MOST_OF_OTHERS);
        assert_eq!(known(&learned, &name("n0.example"), now), [] as [IpAddr; 0], "longest unseen");
        assert_eq!(known(&learned, &name(&format!("n{}.example", names - 1)), now).len(), 1024);
        assert_eq!(known(&learned, &kept, now), [ip(1)]);
        assert_eq!(learned.snapshot(now), [(kept.clone(), vec![(ip(1), start)])]);
        // No rule keeps it any more: it is one of the others, and what stood for it still does.
        learned.keep([], |_, _| true, now);
        assert_eq!(known(&learned, &kept, now), [ip(1)]);
        learned.learn(&name("last.example"), &addresses, now);
        assert_eq!(known(&learned, &kept, now), [] as [IpAddr; 0], "longest unseen by now");
    }

    #[test]
    fn an_answer_under_a_wildcard_stands_for_its_time_and_a_question_renews_the_old_ones() {
        let (learned, a, start) = (Learned::new(DAY), name("x.wild.example"), start());
        let (rule, minute): (Arc<str>, _) = ("wild".into(), Duration::from_secs(60));
        learned.learn_for(&rule, &a, &[ip(1)], minute, start);
        assert_eq!(known(&learned, &a, start + minute - Duration::from_secs(1)), [ip(1)]);
        assert!(Known::at(&learned, start).has(&a, ip(1)) && !Known::at(&learned, start + minute).has(&a, ip(1)));
        assert_eq!(known(&learned, &a, start + minute), [] as [IpAddr; 0]);
        learned.learn_for(&rule, &a, &[ip(2)], minute, start + 10 * minute);
        let now = start + 11 * minute - Duration::from_secs(1);
        assert_eq!(known(&learned, &a, now), [ip(1), ip(2)], "both were answered within a day");
        learned.learn_for(&rule, &a, &[ip(3)], minute, start + DAY + minute);
        assert_eq!(known(&learned, &a, start + DAY + minute), [ip(2), ip(3)], "and the first is forgotten");
        let others = |learned: &Learned| Known::at(learned, now).others(|other| *other == a);
        assert_eq!(others(&learned), std::slice::from_ref(&a));
        learned.keep([a.clone()], |_, _| true, now);
        assert_eq!(others(&learned), []);
        assert_eq!(known(&learned, &a, start + DAY + 2 * minute), [ip(2), ip(3)], "what a rule keeps stays for a day");
    }

    #[test]
    fn names_under_one_wildcard_take_no_room_from_those_of_another() {
        let (learned, start) = (Learned::new(DAY), start());
        let [mine, flooded]: [Arc<str>; 2] = ["mine".into(), "flooded".into()];
        learned.learn_for(&mine, &name("a.mine.example"), &[ip(1)], DAY, start);
        learned.learn(&name("verified.example"), &[ip(2)], start);
        for n in 0..100_000 {
            let at = start + Duration::from_millis(n);
            learned.learn_for(&flooded, &name(&format!("n{n}.flooded.example")), &[ip(3)], DAY, at);
        }
        let now = start + Duration::from_secs(200);
        assert_eq!(known(&learned, &name("a.mine.example"), now), [ip(1)]);
        assert_eq!(known(&learned, &name("verified.example"), now), [ip(2)]);
        assert_eq!(known(&learned, &name("n0.flooded.example"), now), [] as [IpAddr; 0]);
        assert_eq!(known(&learned, &name("n99999.flooded.example"), now), [ip(3)]);
        assert!(learned.state.read().unwrap().names.len() < 20_000);
    }

    proptest! {
        /// Against the plainest store there could be.
        #[test]
        fn what_is_known_is_what_was_learned_in_time(
            steps in proptest::collection::vec((0usize..3, 0u32..6, 0u64..40, any::<bool>()), 1..60),
        ) {
            let (learned, start) = (Learned::new(Duration::from_secs(60)), start());
            let names = ["a.example", "b.example", "c.example"].map(name);
            let mut plain: Vec<(usize, u32, Instant)> = Vec::new();
            let mut now = start;
            for (of, address, later, keeps) in steps {
                now += Duration::from_secs(later);
                if keeps {
                    learned.keep([names[of].clone()], |_, _| true, now);
                }
                learned.learn(&names[of], &[ip(address)], now);
                plain.retain(|(other, known, _)| (*other, *known) != (of, address));
                plain.push((of, address, now));
                for (at, name) in names.iter().enumerate() {
                    for address in 0..6 {
                        let is_known = plain.iter().any(|(of, known, seen)| {
                            (*of, *known) == (at, address) && now.duration_since(*seen) < Duration::from_secs(60)
                        });
                        prop_assert_eq!(Known::at(&learned, now).has(name, ip(address)), is_known);
                    }
                }
            }
        }
    }
}
