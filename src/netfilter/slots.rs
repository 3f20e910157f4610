//! What the table's sets hold, slot by slot, and what leads from one content to another.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv6Net;
use tokio::time::Instant;

use super::batch::{Batch, Element};
use super::elements::{Addresses, Elements};
use super::names::set_name;
use super::plan::{Opening, RuleSet, RuleSets, all_names, learned, mapped};
use egret_core::learned::Known;
use egret_core::policy::{SteeredNames, Wild};
use egret_core::rule::{LearnedName, guard};

/// Every set that changes while egret runs.
#[derive(Clone, Debug)]
pub(super) struct Sets {
    captured: BTreeSet<u16>,
    pub(super) nat64: Option<Ipv6Net>,
    steered_names: SteeredNames,
    /// The real addresses behind synthetic ones.
    mapped: BTreeMap<IpAddr, IpAddr>,
    pub(super) allows: Slots,
    pub(super) denies: Slots,
}

/// The slots of rules of one action.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    action: &'static str,
    taken: Vec<Option<Slot>>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    rule: Arc<str>,
    elements: Elements,
    /// Names whose addresses are destinations too.
    names: Vec<LearnedName>,
    /// Wildcards that list others.
    wild: Option<Wild>,
    /// What the sets have of those, and until when each counts.
    learned: BTreeMap<Opening, Instant>,
}

/// Learned addresses that one rule's sets hold: names under a wildcard have no end.
const MOST_LEARNED: usize = 16_384;

/// What has about as long as before is left alone: most of a long list.
const TOLERABLE: Duration = Duration::from_secs(1);

/// More rules than slots.
#[derive(Debug)]
pub(super) struct NoSlot(pub(super) usize, pub(super) &'static str);

impl Sets {
    pub(super) fn of(filter: &RuleSets, [allows, denies]: [usize; 2]) -> Self {
        Self {
            captured: filter.captured.clone(),
            nat64: filter.nat64,
            steered_names: filter.steered_names.clone(),
            mapped: filter.mapped.clone(),
            allows: Slots::of("allow", &filter.allows, allows),
            denies: Slots::of("deny", &filter.denies, denies),
        }
    }

    /// The same slots under other rules.
    pub(super) fn next(&self, filter: &RuleSets) -> Result<Self, NoSlot> {
        let (allows, denies) = (self.allows.next(&filter.allows)?, self.denies.next(&filter.denies)?);
        let RuleSets { captured, nat64, steered_names, mapped, .. } = filter.clone();
        Ok(Self { captured, nat64, steered_names, mapped, allows, denies })
    }

    /// How many slots there are.
    pub(super) const fn counts(&self) -> [usize; 2] {
        [self.allows.len(), self.denies.len()]
    }

    /// The same for a table with so many slots.
    pub(super) fn resized(&self, [allows, denies]: [usize; 2]) -> Result<Self, NoSlot> {
        let (allows, denies) = (self.allows.resized(allows)?, self.denies.resized(denies)?);
        Ok(Self { allows, denies, ..self.clone() })
    }

    /// What stands while one policy follows another: what both let out, and no more. A port that either captures is
    /// captured: egret judges it by whatever policy it has.
    pub(super) fn between(&self, next: &Self) -> Self {
        Self {
            captured: self.captured.union(&next.captured).copied().collect(),
            nat64: next.nat64,
            steered_names: next.steered_names.clone(),
            mapped: next.mapped.clone(),
            allows: self.allows.common(&next.allows),
            denies: self.denies.together(&next.denies),
        }
    }

    /// The same, and what stands meanwhile in slots that it leaves empty. A packet may be looked at while a transaction comes
    /// into force, and find its old slot empty and its new one not filled yet: so whatever moves is put in by one
    /// transaction, and taken out by another.
    pub(super) fn beside(self, meanwhile: &Self) -> Self {
        Self { allows: self.allows.beside(&meanwhile.allows), denies: self.denies.beside(&meanwhile.denies), ..self }
    }

    /// Writes what leads from here to there.
    pub(super) fn change(&self, next: &Self, batch: &mut Batch) {
        let only = |one: &BTreeSet<u16>, other: &BTreeSet<u16>| -> Vec<Element> {
            one.difference(other).map(|port| Element::value(&port.to_be_bytes())).collect()
        };
        batch.take("captured", &only(&self.captured, &next.captured));
        batch.add("captured", &only(&next.captured, &self.captured));
        lead(&self.mapped, &next.mapped, batch);
        self.allows.change(&next.allows, batch);
        self.denies.change(&next.denies, batch);
    }

    /// Writes all of it into sets that hold whatever they hold.
    pub(super) fn fill(&self, batch: &mut Batch) {
        ["captured", "steered4", "steered6"].into_iter().for_each(|set| batch.flush(set));
        let empty = |slots: &Slots| Slots { action: slots.action, taken: slots.taken.iter().map(|_| None).collect() };
        let empty = Self {
            captured: BTreeSet::new(),
            nat64: self.nat64,
            steered_names: self.steered_names.clone(),
            mapped: BTreeMap::new(),
            allows: empty(&self.allows),
            denies: empty(&self.denies),
        };
        [&self.allows, &self.denies].into_iter().for_each(|slots| slots.flush(batch));
        empty.change(self, batch);
    }

    /// Writes what has been learned since for some names into the sets of the rules that keep them.
    pub(super) fn follow(&mut self, learned_names: &[LearnedName], known: Known<'_>, batch: &mut Batch) {
        let (nat64, steered_names) = (self.nat64, &self.steered_names);
        self.allows.follow(learned_names, |names| learned(names, steered_names, nat64, known), batch);
        for (synthetic, _) in learned_names.iter().flat_map(|name| known.of(name)) {
            let Some(real) = known.behind(synthetic).filter(|_| steered_names.is_synthetic(synthetic)) else {
                continue;
            };
            let (one, before) = (BTreeMap::from([(synthetic, real)]), self.mapped.insert(synthetic, real));
            lead(&before.map(|before| (synthetic, before)).into_iter().collect(), &one, batch);
        }
    }

    /// Writes that a synthetic address leads nowhere.
    pub(super) fn unmap(&mut self, synthetic: IpAddr, batch: &mut Batch) {
        let was = self.mapped.remove(&synthetic).map(|real| (synthetic, real));
        lead(&was.into_iter().collect(), &BTreeMap::new(), batch);
    }

    /// Takes in what has been learned, without a word to the kernel.
    pub(super) fn know(&mut self, known: Known<'_>) {
        for slot in self.allows.taken.iter_mut().flatten() {
            let names = all_names(&slot.names, slot.wild.as_ref(), known);
            slot.learned = until(&learned(&names, &self.steered_names, self.nat64, known));
        }
        self.mapped = mapped(&self.steered_names, known);
    }
}

impl Slots {
    fn of(action: &'static str, slots: &[RuleSet], count: usize) -> Self {
        let mut taken: Vec<Option<Slot>> = slots.iter().map(|set| Some(Slot::of(set))).collect();
        taken.resize_with(count, || None);
        Self { action, taken }
    }

    /// A rule that survives a reload keeps its slot, even if renamed: conntrack marks carry the slot number. A new rule
    /// takes a slot that no rule has just left, if there is one.
    fn next(&self, slots: &[RuleSet]) -> Result<Self, NoSlot> {
        let mut new: Vec<&RuleSet> = slots.iter().collect();
        let mut taken: Vec<Option<Slot>> = self.taken.iter().map(|_| None).collect();
        let is_named = |old: &Slot, set: &RuleSet| old.rule == set.rule;
        let is_like = |old: &Slot, set: &RuleSet| old.is_like(&Slot::of(set));
        for stays in [&is_named as &dyn Fn(&Slot, &RuleSet) -> bool, &is_like] {
            for (old, taken) in self.taken.iter().zip(&mut taken).filter(|(_, taken)| taken.is_none()) {
                let at = old.as_ref().and_then(|old| new.iter().position(|set| stays(old, set)));
                *taken = at.map(|at| Slot::of(new.remove(at)));
            }
        }
        for is_untouched in [true, false] {
            let free = self
                .taken
                .iter()
                .zip(&mut taken)
                .filter(|(old, taken)| taken.is_none() && (old.is_none() || !is_untouched));
            for (_, taken) in free {
                *taken = new.pop().map(Slot::of);
            }
        }
        if new.is_empty() { Ok(Self { action: self.action, taken }) } else { Err(NoSlot(taken.len(), self.action)) }
    }

    /// A rule whose slot does not exist any more gets another one.
    fn resized(&self, count: usize) -> Result<Self, NoSlot> {
        let mut taken = self.taken.clone();
        let behind = taken.split_off(count.min(taken.len()));
        taken.resize_with(count, || None);
        let mut free = taken.iter_mut().filter(|taken| taken.is_none());
        for moved in behind.into_iter().flatten() {
            *free.next().ok_or(NoSlot(count, self.action))? = Some(moved);
        }
        Ok(Self { action: self.action, taken })
    }

    /// The rules, each with the number of its slot.
    pub(super) fn rules(&self) -> impl Iterator<Item = (usize, &Arc<str>)> {
        self.taken.iter().enumerate().filter_map(|(number, taken)| Some((number, &taken.as_ref()?.rule)))
    }

    const fn len(&self) -> usize {
        self.taken.len()
    }

    /// Learns for every slot what there is for its names among these: writes it, and takes out what counts no more.
    fn follow(
        &mut self,
        news: &[LearnedName],
        learned: impl Fn(&[LearnedName]) -> Vec<(Opening, Duration)>,
        batch: &mut Batch,
    ) {
        for number in 0..self.taken.len() {
            let Some(Some(slot)) = self.taken.get(number) else { continue };
            let is_kept = |name: &LearnedName| slot.names.contains(name);
            match &slot.wild {
                None if news.iter().any(is_kept) => self.learn(number, &learned(&slot.names), batch),
                None => {}
                Some(wild) => {
                    let own = news.iter().filter(|name| wild.covers(name) || is_kept(name));
                    let own: Vec<LearnedName> = own.cloned().collect();
                    self.learn_more(number, &learned(&own), batch);
                }
            }
        }
    }

    /// What is learned for a slot beside what it has: the kernel itself takes out what counts no more. Of more than a set
    /// may hold, what would go first goes now.
    fn learn_more(&mut self, number: usize, addresses: &[(Opening, Duration)], batch: &mut Batch) {
        let Some(Some(slot)) = self.taken.get(number).filter(|_| !addresses.is_empty()) else { return };
        let now = Instant::now();
        let mut all: BTreeMap<Opening, Duration> =
            slot.learned.iter().map(|(opening, until)| (*opening, until.saturating_duration_since(now))).collect();
        all.retain(|_, left| !left.is_zero());
        for (opening, left) in addresses {
            let longest = all.entry(*opening).or_default();
            *longest = (*left).max(*longest);
        }
        let mut all: Vec<(Opening, Duration)> = all.into_iter().collect();
        if all.len() > MOST_LEARNED {
            all.sort_by_key(|(_, left)| std::cmp::Reverse(*left));
            all.truncate(MOST_LEARNED);
        }
        self.learn(number, &all, batch);
    }

    /// What is learned for a slot, from now on: writes it, and takes out what counts no more.
    fn learn(&mut self, number: usize, addresses: &[(Opening, Duration)], batch: &mut Batch) {
        let Some(Some(slot)) = self.taken.get_mut(number) else { return };
        let before = std::mem::replace(&mut slot.learned, until(addresses));
        let mut due: Vec<(Opening, Duration)> = Vec::new();
        for (opening, left) in addresses {
            let Some(will) = slot.learned.get_mut(opening) else { continue };
            match before.get(opening) {
                Some(was) if *will < *was + TOLERABLE && *was < *will + TOLERABLE => *will = *was,
                _ => due.push((*opening, *left)),
            }
        }
        for kind in LEARNED {
            let set = set_name(self.action, number, kind.set);
            forget(batch, &set, only(&before, &slot.learned, kind));
            let of_kind = due.iter().filter(|(opening, _)| kind.holds(*opening));
            let elements: Vec<Element> = of_kind.map(|(opening, left)| Element::learned(*opening, *left)).collect();
            batch.renew(&set, &elements);
        }
    }

    /// Whether some rule's sets hold what goes from here to there.
    pub(super) fn hold(&self, from: IpAddr, to: SocketAddr, protocol: u8) -> bool {
        self.taken.iter().flatten().any(|taken| taken.holds(from, to, protocol))
    }

    /// Whether some rule's sets hold what goes from here to a synthetic address, and its names may lead to what answers there.
    pub(super) fn hold_on(
        &self,
        from: IpAddr,
        to: SocketAddr,
        end: IpAddr,
        nat64: Option<Ipv6Net>,
        protocol: u8,
    ) -> bool {
        self.taken.iter().flatten().any(|taken| taken.holds(from, to, protocol) && taken.may_lead_to(end, nat64))
    }

    /// Whether the sets of one slot do.
    pub(super) fn holds(&self, number: usize, from: IpAddr, to: SocketAddr, protocol: u8) -> bool {
        matches!(self.taken.get(number), Some(Some(taken)) if taken.holds(from, to, protocol))
    }

    /// What both hold, whichever rules hold it.
    fn common(&self, next: &Self) -> Self {
        let both = self.taken.iter().zip(&next.taken).map(|(old, new)| Some(old.as_ref()?.common(new.as_ref()?)));
        let mut common = Self { action: self.action, taken: both.collect() };
        // What moves from one rule to another; a rule that stays as it was holds all that it shares with others.
        let changed: Vec<_> = self.changed(next).collect();
        for (from, old) in changed.iter().filter_map(|(at, old, _)| Some((*at, (*old)?))) {
            for (to, new) in changed.iter().filter_map(|(at, _, new)| Some((*at, (*new)?))) {
                let moves = old.common(new);
                // At best where nothing is taken out for it, now or next.
                let is_free = |taken: &[Option<Slot>], at: usize| taken.get(at).is_some_and(Option::is_none);
                let at_best = [to].into_iter().filter(|to| is_free(&self.taken, *to));
                let at_best = at_best.chain([from].into_iter().filter(|from| is_free(&next.taken, *from)));
                let slots: Vec<usize> = at_best.chain(self.unused(next)).chain([to, from]).collect();
                if from != to && !common.hosts(&moves, &slots) {
                    tracing::warn!(from = %old.rule, to = %new.rule, "the kernel's table has no room to keep open what goes from one rule to another: new flows are refused until the reload is done");
                }
            }
        }
        // A slot is its rule's, whatever it holds meanwhile.
        for (taken, (old, new)) in common.taken.iter_mut().zip(self.taken.iter().zip(&next.taken)) {
            if let (Some(taken), Some(owner)) = (taken, new.as_ref().or(old.as_ref())) {
                taken.rule = Arc::clone(&owner.rule);
            }
        }
        common
    }

    /// What either holds. More than that where the table has no room to tell it apart.
    fn together(&self, next: &Self) -> Self {
        let mut all = self.clone();
        for (at, new) in self.changed(next).filter_map(|(at, _, new)| Some((at, new?))) {
            if !all.hosts(new, &[at])
                && !all.hosts(new, &self.unused(next))
                && let Some(Some(old)) = all.taken.get_mut(at)
            {
                tracing::warn!(rule = %new.rule, "the kernel's table has no room to keep a denial's old and new sources and destinations apart: each denies the other's until the reload is done");
                *old = old.and(new);
            }
        }
        all
    }

    fn beside(mut self, meanwhile: &Self) -> Self {
        for (own, other) in self.taken.iter_mut().zip(&meanwhile.taken).filter(|(own, _)| own.is_none()) {
            own.clone_from(other);
        }
        self
    }

    /// Takes something in at one of some slots, where that slot then holds just what it did, and this.
    fn hosts(&mut self, guard: &Slot, slots: &[usize]) -> bool {
        for at in slots {
            let Some(taken) = self.taken.get_mut(*at) else { continue };
            let joined = taken.as_ref().map_or_else(|| Some(guard.clone()), |host| host.joined(guard));
            if joined.is_some() {
                *taken = joined;
                return true;
            }
        }
        false
    }

    /// Slots that hold something else next.
    fn changed<'a>(&'a self, next: &'a Self) -> impl Iterator<Item = (usize, Option<&'a Slot>, Option<&'a Slot>)> {
        let pairs = self.taken.iter().map(Option::as_ref).zip(next.taken.iter().map(Option::as_ref)).enumerate();
        let pairs = pairs.filter(|(_, pair)| match pair {
            (Some(old), Some(new)) => !old.is_like(new),
            (old, new) => old.is_some() || new.is_some(),
        });
        pairs.map(|(at, (old, new))| (at, old, new))
    }

    /// Slots of no rule, now and next.
    fn unused(&self, next: &Self) -> Vec<usize> {
        let unused =
            self.taken.iter().zip(&next.taken).enumerate().filter(|(_, (old, new))| old.is_none() && new.is_none());
        unused.map(|(at, _)| at).collect()
    }

    fn change(&self, next: &Self, batch: &mut Batch) {
        let nothing = Slot::default();
        for (number, (old, new)) in self.taken.iter().zip(&next.taken).enumerate() {
            let (old, new) = (old.as_ref().unwrap_or(&nothing), new.as_ref().unwrap_or(&nothing));
            let set = |what: &str| set_name(self.action, number, what);
            for (what, was, will) in [
                ("sources", &old.elements.sources, &new.elements.sources),
                ("destinations", &old.elements.destinations, &new.elements.destinations),
            ] {
                swap(batch, &set(&format!("{what}4")), &was.v4, &will.v4, Element::v4);
                swap(batch, &set(&format!("{what}6")), &was.v6, &will.v6, Element::v6);
            }
            let port = |(protocol, low, high)| std::iter::once(Element::ports(protocol, low, high));
            swap(batch, &set("ports"), &old.elements.ports, &new.elements.ports, port);
            // Denials learn nothing, and have no such sets.
            for kind in LEARNED.into_iter().filter(|_| self.action == "allow") {
                forget(batch, &set(kind.set), only(&old.learned, &new.learned, kind));
                let fresh = only(&new.learned, &old.learned, kind).filter(|(_, left)| !left.is_zero());
                batch.add(&set(kind.set), &fresh.map(element).collect::<Vec<_>>());
                // The kernel's own time for what stays is the one it was put in with.
                let now = Instant::now();
                let stays = new.learned.iter().filter(|(opening, until)| {
                    let was = old.learned.get(opening).filter(|_| kind.holds(**opening));
                    was.is_some_and(|was| *was > **until + TOLERABLE || **until > *was + TOLERABLE)
                });
                let stays = stays.map(|(opening, until)| element((*opening, until.saturating_duration_since(now))));
                batch.renew(&set(kind.set), &stays.collect::<Vec<_>>());
            }
        }
    }

    fn flush(&self, batch: &mut Batch) {
        let mut whats: Vec<&str> = vec!["sources4", "sources6", "destinations4", "destinations6", "ports"];
        if self.action == "allow" {
            whats.extend(LEARNED.map(|kind| kind.set));
        }
        for number in 0..self.taken.len() {
            whats.iter().for_each(|what| batch.flush(&set_name(self.action, number, what)));
        }
    }
}

impl Slot {
    fn holds(&self, from: IpAddr, to: SocketAddr, protocol: u8) -> bool {
        let mut ports = self.elements.ports.iter();
        self.elements.sources.contains(from)
            && self.leads(Opening { asker: Some(from), to: to.ip() })
            && ports.any(|(of, low, high)| *of == protocol && (*low..=*high).contains(&to.port()))
    }

    fn of(set: &RuleSet) -> Self {
        let RuleSet { rule, elements, names, wild, learned } = set;
        let (rule, elements) = (Arc::clone(rule), elements.clone());
        Self { rule, elements, names: names.clone(), wild: wild.clone(), learned: until(learned) }
    }

    fn is_empty(&self) -> bool {
        let Elements { sources, destinations, ports } = &self.elements;
        sources.is_empty() || ports.is_empty() || (destinations.is_empty() && self.learned.is_empty())
    }

    /// Whether its names may lead to an address.
    fn may_lead_to(&self, ip: IpAddr, nat64: Option<Ipv6Net>) -> bool {
        let mut reaches = self.names.iter().map(LearnedName::reach).chain(self.wild.as_ref().map(Wild::reach));
        reaches.any(|reach| guard::judge(ip, reach, nat64) == guard::Judgement::Permitted)
    }

    /// Whether it leads to an address, for one client or for all of its own.
    fn leads(&self, opening: Opening) -> bool {
        let is_learned = |opening| self.learned.get(&opening).is_some_and(|until| *until > Instant::now());
        let for_all = Opening { asker: None, ..opening };
        self.elements.destinations.contains(opening.to) || is_learned(for_all) || is_learned(opening)
    }

    /// What both hold.
    fn common(&self, next: &Self) -> Self {
        let all = self.learned.iter().filter(|(opening, _)| next.leads(**opening));
        let all = all.chain(next.learned.iter().filter(|(opening, _)| self.leads(**opening)));
        Self {
            rule: Arc::clone(&next.rule),
            // While one policy follows another, nothing is learned.
            names: Vec::new(),
            wild: None,
            elements: self.elements.common(&next.elements),
            learned: all.map(|(opening, until)| (*opening, *until)).collect(),
        }
    }

    /// What either holds, source by destination by port, and so more where they differ in several.
    fn and(&self, next: &Self) -> Self {
        let learned = self.learned.iter().chain(&next.learned).map(|(opening, until)| (*opening, *until)).collect();
        let (rule, elements) = (Arc::clone(&next.rule), self.elements.clone().and(next.elements.clone()));
        Self { rule, elements, names: Vec::new(), wild: None, learned }
    }

    /// What either holds, where one slot can say just that.
    fn joined(&self, next: &Self) -> Option<Self> {
        let common = self.common(next);
        if next.is_empty() || common.is_like(next) {
            return Some(self.clone());
        }
        if self.is_empty() || common.is_like(self) {
            return Some(next.clone());
        }
        (self.differences(next).into_iter().filter(|differs| *differs).count() < 2).then(|| self.and(next))
    }

    /// Whether both hold the same.
    fn is_like(&self, other: &Self) -> bool {
        self.differences(other) == [false; 3]
    }

    /// Whether they differ in sources, in ports, in where they lead.
    fn differences(&self, other: &Self) -> [bool; 3] {
        let (one, two) = (&self.elements, &other.elements);
        let leads_elsewhere = one.destinations != two.destinations || !self.learned.keys().eq(other.learned.keys());
        [one.sources != two.sources, one.ports != two.ports, leads_elsewhere]
    }
}

fn until(addresses: &[(Opening, Duration)]) -> BTreeMap<Opening, Instant> {
    let now = Instant::now();
    addresses.iter().map(|(opening, left)| (*opening, now + *left)).collect()
}

/// Writes what leads from one content of the maps of synthetic addresses to another.
fn lead(was: &BTreeMap<IpAddr, IpAddr>, will: &BTreeMap<IpAddr, IpAddr>, batch: &mut Batch) {
    let only = |one: &BTreeMap<IpAddr, IpAddr>, other: &BTreeMap<IpAddr, IpAddr>, is_v4: bool| -> Vec<Element> {
        let only = one
            .iter()
            .filter(|(from, to)| (from.is_ipv4(), to.is_ipv4()) == (is_v4, is_v4) && other.get(*from) != Some(*to));
        only.map(|(from, to)| Element::mapped(*from, *to)).collect()
    };
    for (map, is_v4) in [("steered4", true), ("steered6", false)] {
        batch.take(map, &only(was, will, is_v4));
        batch.add(map, &only(will, was, is_v4));
    }
}

/// Writes addresses into a pair of sets that hold whatever they hold.
pub(super) fn fill_addresses(batch: &mut Batch, name: &str, addresses: &Addresses) {
    let (v4, v6) = (format!("{name}4"), format!("{name}6"));
    batch.flush(&v4);
    batch.flush(&v6);
    swap(batch, &v4, &[], &addresses.v4, Element::v4);
    swap(batch, &v6, &[], &addresses.v6, Element::v6);
}

/// Takes out what only the one has, and puts in what only the other has, each in just this shape.
fn swap<T: Copy + Eq + Hash, E: Iterator<Item = Element>>(
    batch: &mut Batch,
    set: &str,
    was: &[T],
    will: &[T],
    elements: impl Fn(T) -> E,
) {
    if was == will {
        return;
    }
    let only = |one: &[T], other: &[T]| -> Vec<Element> {
        let other: HashSet<T> = other.iter().copied().collect();
        one.iter().filter(|item| !other.contains(item)).flat_map(|item| elements(*item)).collect()
    };
    batch.take(set, &only(was, will));
    batch.add(set, &only(will, was));
}

/// A set of learned addresses.
#[derive(Clone, Copy)]
struct LearnedSet {
    set: &'static str,
    is_v4: bool,
    /// Whether each is for one client.
    is_asked: bool,
}

impl LearnedSet {
    fn holds(self, opening: Opening) -> bool {
        opening.is_of(self.is_v4) && opening.asker.is_some() == self.is_asked
    }
}

const LEARNED: [LearnedSet; 4] = [
    LearnedSet { set: "learned4", is_v4: true, is_asked: false },
    LearnedSet { set: "learned6", is_v4: false, is_asked: false },
    LearnedSet { set: "asked4", is_v4: true, is_asked: true },
    LearnedSet { set: "asked6", is_v4: false, is_asked: true },
];

/// What of one kind only the one has, each with the time that is left of it.
fn only<'a>(
    one: &'a BTreeMap<Opening, Instant>,
    other: &'a BTreeMap<Opening, Instant>,
    kind: LearnedSet,
) -> impl Iterator<Item = (Opening, Duration)> + 'a {
    let now = Instant::now();
    let only = one.iter().filter(move |(opening, _)| kind.holds(**opening) && !other.contains_key(opening));
    only.map(move |(opening, until)| (*opening, until.saturating_duration_since(now)))
}

fn element((opening, left): (Opening, Duration)) -> Element {
    Element::learned(opening, left.max(Duration::from_secs(1)))
}

/// Takes addresses out. What has run out meanwhile is put back, so that it can be taken out.
fn forget(batch: &mut Batch, set: &str, gone: impl Iterator<Item = (Opening, Duration)>) {
    let gone: Vec<Element> = gone.map(element).collect();
    batch.add(set, &gone);
    batch.take(set, &gone);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::elements::TCP;
    use egret_core::rule::NetRule;
    use ipnet::IpNet;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn set(rule: &str, net: &str) -> RuleSet {
        let destinations = Addresses::of(&[net.parse::<IpNet>().unwrap()]);
        RuleSet {
            rule: rule.into(),
            elements: Elements { destinations, ..Elements::default() },
            names: Vec::new(),
            wild: None,
            learned: Vec::new(),
        }
    }

    fn rules(slots: &Slots) -> Vec<Option<String>> {
        let mut rules = vec![None; slots.len()];
        slots.rules().for_each(|(number, rule)| rules[number] = Some(rule.to_string()));
        rules
    }

    #[test]
    fn a_rule_that_stays_keeps_its_slot_and_a_new_one_takes_an_unused_slot() {
        let (a, b, c) = (set("a", "1.1.1.1/32"), set("b", "1.1.1.2/32"), set("c", "1.1.1.3/32"));
        let slots = Slots::of("allow", &[a, b.clone()], 4);
        let next = slots.next(&[c.clone(), b.clone()]).unwrap();
        assert_eq!(rules(&next), [None, Some("b".into()), Some("c".into()), None]);
        let renamed = set("other", "1.1.1.2/32");
        assert_eq!(rules(&next.next(&[renamed, c]).unwrap())[1..3], [Some("other".into()), Some("c".into())]);
        let many: Vec<RuleSet> = (0..4).map(|n| set(&format!("n{n}"), "2.2.2.2/32")).collect();
        assert!(slots.next(&many).is_ok(), "left slots serve where nothing else is free");
        let named = |rule: &str, host: u8| RuleSet {
            learned: vec![(IpAddr::from([2, 2, 2, host]).into(), Duration::from_secs(9))],
            ..set(rule, "1.1.1.4/32")
        };
        let by_name = Slots::of("allow", &[named("x", 1)], 2);
        assert_eq!(rules(&by_name.next(&[named("y", 2)]).unwrap()), [None, Some("y".into())], "another name");
        assert_eq!(rules(&by_name.next(&[named("y", 1)]).unwrap()), [Some("y".into()), None], "the same one");
        assert_eq!(rules(&next.resized(2).unwrap()), [Some("c".into()), Some("b".into())]);
        assert_eq!(rules(&next.resized(5).unwrap())[1..3], rules(&next)[1..3]);
        assert!(next.resized(1).is_err());
        let too_many: Vec<RuleSet> = (0..5).map(|n| set(&format!("n{n}"), "2.2.2.2/32")).collect();
        assert!(matches!(slots.next(&too_many), Err(NoSlot(4, "allow"))));
    }

    #[test]
    fn what_is_learned_no_more_goes_and_what_has_run_out_stays_out() {
        let [known, both, late] = [[2, 2, 2, 1], [2, 2, 2, 2], [2, 2, 2, 3]].map(Ipv4Addr::from);
        let learned = |all: &[Ipv4Addr], left| all.iter().map(|ip| (IpAddr::V4(*ip).into(), left)).collect::<Vec<_>>();
        let minute = Duration::from_secs(60);
        let mut slots = Slots::of("allow", &[set("a", "1.1.1.1/32")], 1);
        slots.learn(0, &learned(&[known, both], minute), &mut Batch::of("t"));
        let mut batch = Batch::of("t");
        slots.learn(0, &learned(&[both, late], minute), &mut batch);
        assert!(batch.names(known) && batch.names(late) && !batch.names(both), "what has as long as before stays");
        let mut batch = Batch::of("t");
        slots.learn(0, &learned(&[both, late], 2 * minute), &mut batch);
        assert!(batch.names(late) && batch.names(both) && !batch.names(known), "each for longer");
        assert!(
            slots.taken[0]
                .as_ref()
                .unwrap()
                .learned
                .keys()
                .map(|opening| opening.to)
                .eq([IpAddr::V4(both), IpAddr::V4(late)])
        );
        // A table that is filled again, after their time.
        slots.learn(0, &learned(&[both], Duration::ZERO), &mut Batch::of("t"));
        let (mut batch, nothing) = (Batch::of("t"), Slots { action: "allow", taken: vec![None] });
        nothing.change(&slots, &mut batch);
        assert!(batch.names([1, 1, 1, 1].into()) && !batch.names(both));
        assert!(!slots.taken[0].as_ref().unwrap().leads(IpAddr::V4(both).into()));
    }

    #[test]
    fn an_address_that_stays_has_the_time_of_the_rule_that_has_it_now() {
        let (ip, minute) = (Ipv4Addr::from([2, 2, 2, 2]), Duration::from_secs(60));
        let of = |lasts| {
            Slots::of(
                "allow",
                &[RuleSet { learned: vec![(IpAddr::V4(ip).into(), lasts)], ..set("a", "1.1.1.1/32") }],
                1,
            )
        };
        let changes = |to: Duration| {
            let mut batch = Batch::of("t");
            of(minute).change(&of(to), &mut batch);
            batch.names(ip)
        };
        assert!(changes(minute / 2) && changes(2 * minute) && !changes(minute));
    }

    #[test]
    fn what_is_answered_under_a_wildcard_comes_to_what_was_and_is_bounded() {
        let rule = NetRule {
            name: "w".into(),
            action: egret_core::rule::Action::Allow,
            sources: egret_core::rule::Sources::default(),
            destinations: std::iter::empty().collect(),
            kept: Vec::new(),
            fqdns: vec![egret_core::rule::pattern::Pattern::parse("*.w.example").unwrap()],
            ports: Vec::new(),
            steer: true,
            reach: egret_core::rule::Reach::default(),
        };
        let wild = Wild::of(&rule);
        let mut slots = Slots::of("allow", &[RuleSet { wild, ..set("w", "1.1.1.1/32") }], 1);
        let learned = egret_core::learned::Learned::new(Duration::from_secs(86_400));
        let now = Instant::now().into_std();
        let mut follow = |name: &str, ip: [u8; 4]| {
            let name = egret_core::name::HostName::from_wire(name.as_bytes()).unwrap();
            let name = LearnedName::new(name, egret_core::rule::Reach::default());
            learned.learn_for(&"w".into(), &name, &[ip.into()], Duration::from_secs(60), now);
            let mut batch = Batch::of("t");
            let known = Known::at(&learned, now);
            let of = |names: &[LearnedName]| super::learned(names, &SteeredNames::default(), None, known);
            slots.follow(&[name], of, &mut batch);
            (batch.names(ip.into()), slots.taken[0].as_ref().unwrap().learned.len())
        };
        assert_eq!(follow("a.w.example", [20, 0, 0, 1]), (true, 1));
        assert_eq!(follow("b.w.example", [20, 0, 0, 2]), (true, 2));
        assert_eq!(follow("a.other.example", [20, 0, 0, 3]), (false, 2), "another name");
        for n in 0..40u8 {
            let all: Vec<IpAddr> =
                (0..=u16::MAX).step_by(128).map(|at| IpAddr::from([30, n, (at >> 8) as u8, at as u8])).collect();
            let many: Vec<(Opening, Duration)> =
                all.into_iter().map(|ip| (ip.into(), Duration::from_secs(90))).collect();
            slots.learn_more(0, &many, &mut Batch::of("t"));
        }
        assert_eq!(slots.taken[0].as_ref().unwrap().learned.len(), MOST_LEARNED);
    }

    /// Some of four addresses, or ports, by the bits of a number; two sources, destinations, addresses learned, ports.
    fn rule(name: &str, [from, to, learned, ports]: [u8; 4]) -> RuleSet {
        let bits = |bits: u8| (0..4u8).filter(move |bit| bits & (1 << bit) != 0);
        let at = |net: u8| move |host: u8| IpNet::from(IpAddr::from(Ipv4Addr::new(10, 0, net, host)));
        let all = |on: u8, net| Addresses::of(&bits(on).map(at(net)).collect::<Vec<_>>());
        let ports = bits(ports).map(|port| (TCP, port.into(), port.into())).collect();
        let elements = Elements { sources: all(from, 1), destinations: all(to, 2), ports };
        // One of them is for one source alone.
        let opening = |host| Opening { asker: (host == 3).then(|| at(1)(0).addr()), to: at(2)(host).addr() };
        let learned = bits(learned).map(|host| (opening(host), Duration::from_secs(60))).collect();
        RuleSet { rule: name.into(), elements, names: Vec::new(), wild: None, learned }
    }

    proptest! {
        #[test]
        fn while_one_policy_follows_another_what_both_let_out_goes_out_and_no_more(
            old in proptest::collection::vec(any::<[u8; 4]>(), 0..4),
            new in proptest::collection::vec(any::<[u8; 4]>(), 0..4),
            names in Just(["a", "b", "c", "d"]).prop_shuffle(),
        ) {
            let slots = |rules: &[[u8; 4]], names: [&str; 4]| -> Vec<RuleSet> {
                names.into_iter().zip(rules).map(|(name, bits)| rule(name, *bits)).collect()
            };
            let (old, new) = (slots(&old, ["a", "b", "c", "d"]), slots(&new, names));
            let before = |action| Slots::of(action, &old, 40);
            let after = |slots: &Slots| slots.next(&new).unwrap();
            let (allows, denies) = (before("allow"), before("deny"));
            let (next_allows, next_denies) = (after(&allows), after(&denies));
            let (common, together) = (allows.common(&next_allows), denies.together(&next_denies));
            for (from, to, port) in (0..4).flat_map(|a| (0..4).flat_map(move |b| (0..4).map(move |c| (a, b, c)))) {
                let (from, to) = (IpAddr::from([10, 0, 1, from]), SocketAddr::from(([10, 0, 2, to], port)));
                let holds = |slots: &Slots| slots.hold(from, to, TCP);
                prop_assert_eq!(holds(&common), holds(&allows) && holds(&next_allows), "{} {}", from, to);
                prop_assert_eq!(holds(&together), holds(&denies) || holds(&next_denies), "{} {}", from, to);
                for (old, meanwhile, new) in [(&allows, &common, &next_allows), (&denies, &together, &next_denies)] {
                    let steps = [old.clone(), old.clone().beside(meanwhile), meanwhile.clone(), new.clone().beside(meanwhile), new.clone()];
                    if old.action == "allow" {
                        prop_assert_eq!((holds(&steps[1]), holds(&steps[3])), (holds(old), holds(new)), "{} {}", from, to);
                    }
                    // However the kernel comes upon a step, one slot holds it before and after.
                    for (one, other) in steps.iter().zip(&steps[1..]).filter(|_| holds(old) && holds(new)) {
                        let stays = (0..one.len()).any(|slot| one.holds(slot, from, to, TCP) && other.holds(slot, from, to, TCP));
                        prop_assert!(stays, "{} {} {}", old.action, from, to);
                    }
                }
            }
        }
    }
}
