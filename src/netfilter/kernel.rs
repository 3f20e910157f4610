//! The table while egret runs: its sets follow the policy and what was learned; its chains stay.
//!
//! Every change is one transaction. A reload takes two: what both policies let out first, then what the new one lets
//! out, with the change of policy between them. So no moment drops what both list, or passes what neither does.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::batch::{self, Batch, Element};
use super::flows::{self, Flow};
use super::members::{Addresses, Members};
use super::plan::{Filter, Place, Plan};
use super::ruleset::{self, set_name};
use super::{FORWARDED, STATE, refusals, routes};
use crate::ending::Reason;
use crate::netlink::Socket;

/// The kernel's rules, from this process's side.
#[derive(Debug)]
pub struct Kernel {
    plan: Plan,
    /// How many rules the chains have.
    rules: usize,
    state: Mutex<State>,
    is_in_place: AtomicBool,
    /// Refused packets that have a line and are not counted yet, by reason.
    lines: Mutex<HashMap<Reason, u64>>,
}

#[derive(Debug)]
struct State {
    socket: Socket,
    captured: BTreeSet<u16>,
    allows: Places,
    denies: Places,
}

/// Which rule has which place, and what its sets hold.
#[derive(Clone, Debug, Default)]
struct Places {
    taken: Vec<Option<Taken>>,
}

#[derive(Clone, Debug)]
struct Taken {
    rule: Arc<str>,
    members: Members,
    learned: BTreeSet<IpAddr>,
}

/// Why a reload cannot reach the kernel.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(
        "the kernel's table has {0} places for network rules that {1}, and the new policy needs more; run `egret netfilter apply`, or start egret anew"
    )]
    NoPlace(usize, &'static str),
    #[error("the kernel refused the new rules: {0}; `egret netfilter apply` makes the table anew")]
    Refused(#[from] io::Error),
}

impl Places {
    fn of(places: &[Place], count: usize) -> Self {
        let mut taken: Vec<Option<Taken>> = places.iter().map(|place| Some(Taken::of(place))).collect();
        taken.resize_with(count, || None);
        Self { taken }
    }

    /// The same places under other rules: who stays keeps its place, so that the marks of its flows still tell it.
    fn next(&self, places: &[Place], action: &'static str) -> Result<Self, ReloadError> {
        let mut new: Vec<&Place> = places.iter().collect();
        let mut taken: Vec<Option<Taken>> = Vec::with_capacity(self.taken.len());
        for old in &self.taken {
            let at = old.as_ref().and_then(|old| new.iter().position(|place| place.rule == old.rule));
            taken.push(at.map(|at| Taken::of(new.remove(at))));
        }
        for place in new {
            let free = taken.iter_mut().find(|taken| taken.is_none());
            *free.ok_or(ReloadError::NoPlace(self.taken.len(), action))? = Some(Taken::of(place));
        }
        Ok(Self { taken })
    }

    /// Whether some rule's sets hold a flow.
    fn let_through(&self, flow: &Flow) -> bool {
        let (from, to, port) = (flow.client.ip(), flow.destination.ip(), flow.destination.port());
        self.taken.iter().flatten().any(|Taken { members, learned, .. }| {
            members.sources.contains(from)
                && (members.destinations.contains(to) || learned.contains(&to))
                && members.ports.iter().any(|(of, low, high)| *of == flow.protocol && (*low..=*high).contains(&port))
        })
    }

    fn number(&self, rule: &str) -> Option<usize> {
        self.taken.iter().position(|taken| taken.as_ref().is_some_and(|taken| *taken.rule == *rule))
    }

    /// What two have in common, place by place.
    fn common(&self, other: &Self) -> Self {
        let both = self.taken.iter().zip(&other.taken).map(|(one, other)| match (one, other) {
            (Some(one), Some(other)) if one.rule == other.rule => Some(Taken {
                rule: Arc::clone(&one.rule),
                members: one.members.common(&other.members),
                learned: one.learned.intersection(&other.learned).copied().collect(),
            }),
            _ => None,
        });
        Self { taken: both.collect() }
    }

    /// What either has, place by place.
    fn together(&self, other: &Self) -> Self {
        let all = self.taken.iter().zip(&other.taken).map(|(one, other)| match (one, other) {
            (Some(one), Some(other)) => {
                let rule = Arc::clone(&other.rule);
                Some(Taken { rule, members: one.members.clone().and(other.members.clone()), learned: BTreeSet::new() })
            }
            (one, other) => one.clone().or_else(|| other.clone()),
        });
        Self { taken: all.collect() }
    }

    /// Writes what leads from these places' sets to another's.
    fn change(&self, next: &Self, action: &str, timeouts: &HashMap<IpAddr, Duration>, batch: &mut Batch) {
        let nothing = Members::default();
        for (number, (old, new)) in self.taken.iter().zip(&next.taken).enumerate() {
            let members = |taken: &Option<Taken>| taken.as_ref().map_or_else(|| nothing.clone(), |t| t.members.clone());
            let (was, will) = (members(old), members(new));
            let mut swap = |what: &str, was: Vec<Element>, will: Vec<Element>| {
                batch.swap(&set_name(action, number, what), &was, &will);
            };
            for (what, was, will) in
                [("sources", &was.sources, &will.sources), ("destinations", &was.destinations, &will.destinations)]
            {
                swap(&format!("{what}4"), intervals4(was, will), intervals4(will, was));
                swap(&format!("{what}6"), intervals6(was, will), intervals6(will, was));
            }
            swap("ports", ports(&was, &will), ports(&will, &was));
            let learned = |taken: &Option<Taken>| taken.as_ref().map_or_else(BTreeSet::new, |t| t.learned.clone());
            let (was, will) = (learned(old), learned(new));
            for family in ["4", "6"] {
                let is_of = |ip: &&IpAddr| ip.is_ipv4() == (family == "4");
                let set = set_name(action, number, &format!("learned{family}"));
                // What has run out meanwhile is put back, so that it can be taken out.
                let gone: Vec<Element> = was
                    .difference(&will)
                    .filter(is_of)
                    .map(|ip| Element::learned(*ip, Duration::from_secs(60)))
                    .collect();
                batch.add(&set, &gone);
                batch.take(&set, &gone);
                let time = |ip: &IpAddr| timeouts.get(ip).copied().unwrap_or(Duration::from_secs(1));
                let new: Vec<Element> =
                    will.difference(&was).filter(is_of).map(|ip| Element::learned(*ip, time(ip))).collect();
                batch.add(&set, &new);
            }
        }
    }
}

impl Taken {
    fn of(place: &Place) -> Self {
        let learned = place.learned.iter().map(|(ip, _)| *ip).collect();
        Self { rule: Arc::clone(&place.rule), members: place.members.clone(), learned }
    }
}

/// The intervals of one that the other has not in just this shape.
fn intervals4(one: &Addresses, other: &Addresses) -> Vec<Element> {
    let other: std::collections::HashSet<_> = other.v4.iter().collect();
    one.v4.iter().filter(|range| !other.contains(range)).copied().flat_map(Element::v4).collect()
}

fn intervals6(one: &Addresses, other: &Addresses) -> Vec<Element> {
    let other: std::collections::HashSet<_> = other.v6.iter().collect();
    one.v6.iter().filter(|range| !other.contains(range)).copied().flat_map(Element::v6).collect()
}

fn ports(one: &Members, other: &Members) -> Vec<Element> {
    let ranges = one.ports.iter().filter(|range| !other.ports.contains(range));
    ranges.map(|(protocol, low, high)| Element::ports(*protocol, *low, *high)).collect()
}

/// A change of rules that has begun: what both policies let out is let out.
#[derive(Debug)]
pub struct Narrowed {
    captured: BTreeSet<u16>,
    allows: Places,
    denies: Places,
    timeouts: HashMap<IpAddr, Duration>,
    before: (BTreeSet<u16>, Places, Places),
}

impl Kernel {
    /// The table of a plan, which was put into the kernel by this process or by `egret netfilter apply`.
    ///
    /// # Errors
    /// The kernel's; it takes CAP_NET_ADMIN.
    pub fn new(plan: Plan) -> io::Result<Self> {
        let [allows, denies] = plan.places;
        let state = State {
            socket: batch::socket()?,
            captured: plan.filter.captured.clone(),
            allows: Places::of(&plan.filter.allows, allows),
            denies: Places::of(&plan.filter.denies, denies),
        };
        let (rules, state) = (ruleset::rules(&plan), Mutex::new(state));
        Ok(Self { plan, rules, state, is_in_place: AtomicBool::new(false), lines: Mutex::default() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether table and routes stood at the last look.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.is_in_place.load(Ordering::Relaxed)
    }

    /// Looks whether table and routes stand as they were put up.
    pub fn look(&self) -> bool {
        let rules = batch::count_rules(&self.state().socket);
        let routes = routes::stand(&self.plan);
        let stands = matches!((&rules, &routes), (Ok(rules), Ok(true)) if *rules == self.rules);
        if self.is_in_place.swap(stands, Ordering::Relaxed) && !stands {
            tracing::error!(
                expected = self.rules,
                found = ?rules.ok(),
                routes = routes.unwrap_or(false),
                "the kernel's rules are not as egret left them: clients stay shut in; `egret netfilter apply` mends it"
            );
        }
        stands
    }

    /// A refused packet has its line.
    pub(super) fn told(&self, reason: Reason) {
        *self.lines.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    /// Of so many packets refused since the last time, those that have no line. A line that comes before its count
    /// stands for a later one.
    pub(super) fn left_out(&self, reason: Reason, refused: u64) -> u64 {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let told = lines.entry(reason).or_default();
        let left = refused.saturating_sub(*told);
        *told = told.saturating_sub(refused);
        left
    }

    /// The rule whose flows a counter counts.
    pub(super) fn rule_of_counter(&self, name: &str) -> Option<Arc<str>> {
        let number: usize = name.strip_prefix("allow")?.parse().ok()?;
        self.state().allows.taken.get(number)?.as_ref().map(|taken| Arc::clone(&taken.rule))
    }

    /// What the table's counters show.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self) -> io::Result<Vec<(String, u64)>> {
        refusals::counters(&self.state().socket)
    }

    /// Ends the flows that the rules of now would not let through; how many there were.
    ///
    /// # Errors
    /// The kernel's.
    pub fn cut(&self) -> io::Result<usize> {
        let (allows, denies) = {
            let state = self.state();
            (state.allows.clone(), state.denies.clone())
        };
        flows::cut(|flow| {
            let is_of_rule = usize::try_from(flow.mark & !STATE).is_ok_and(|number| number < allows.taken.len());
            !is_of_rule || (allows.let_through(flow) && !denies.let_through(flow))
        })
    }

    /// The rule that let a flow through, from its conntrack mark.
    #[must_use]
    pub fn rule(&self, mark: u32) -> Option<Arc<str>> {
        let number = usize::try_from(mark & !STATE).ok().filter(|_| mark & STATE == FORWARDED)?;
        let state = self.state();
        state.allows.taken.get(number)?.as_ref().map(|taken| Arc::clone(&taken.rule))
    }

    /// Lets a rule lead to addresses that were found for its names, each for its time from now.
    ///
    /// # Errors
    /// The kernel's.
    pub fn learn(&self, rule: &str, addresses: &[(IpAddr, Duration)]) -> io::Result<()> {
        let mut state = self.state();
        let Some(number) = state.allows.number(rule) else { return Ok(()) };
        let mut batch = Batch::default();
        for family in ["4", "6"] {
            let of_family = addresses.iter().filter(|(ip, _)| ip.is_ipv4() == (family == "4"));
            let elements: Vec<Element> = of_family.map(|(ip, left)| Element::learned(*ip, *left)).collect();
            batch.renew(&set_name("allow", number, &format!("learned{family}")), &elements);
        }
        batch.commit(&state.socket)?;
        if let Some(Some(taken)) = state.allows.taken.get_mut(number) {
            taken.learned.extend(addresses.iter().map(|(ip, _)| *ip));
        }
        Ok(())
    }

    /// Begins a reload: lets out what both the old and the new rules let out, and denies what either denies.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing has changed.
    pub fn narrow(&self, filter: &Filter) -> Result<Narrowed, ReloadError> {
        let mut state = self.state();
        let allows = state.allows.next(&filter.allows, "allow")?;
        let denies = state.denies.next(&filter.denies, "deny")?;
        let learned = filter.allows.iter().flat_map(|place| place.learned.iter().copied());
        let timeouts: HashMap<IpAddr, Duration> = learned.collect();
        let next = (
            state.captured.intersection(&filter.captured).copied().collect(),
            state.allows.common(&allows),
            state.denies.together(&denies),
        );
        let before = state.become_(next, &timeouts)?;
        Ok(Narrowed { captured: filter.captured.clone(), allows, denies, timeouts, before })
    }

    /// Ends a reload: lets out what the new rules let out.
    ///
    /// # Errors
    /// The kernel's; the sets are then as they were before the reload, and the old policy must be too.
    pub fn widen(&self, narrowed: Narrowed) -> Result<(), ReloadError> {
        let Narrowed { captured, allows, denies, timeouts, before } = narrowed;
        let mut state = self.state();
        if let Err(error) = state.become_((captured, allows, denies), &timeouts) {
            state.become_(before, &HashMap::new())?;
            return Err(error.into());
        }
        Ok(())
    }
}

impl State {
    /// One transaction from what the sets hold to what they shall hold; what they held is returned.
    fn become_(
        &mut self,
        next: (BTreeSet<u16>, Places, Places),
        timeouts: &HashMap<IpAddr, Duration>,
    ) -> io::Result<(BTreeSet<u16>, Places, Places)> {
        let (captured, allows, denies) = next;
        let mut batch = Batch::default();
        let only = |one: &BTreeSet<u16>, other: &BTreeSet<u16>| -> Vec<Element> {
            one.difference(other).map(|port| Element::value(&port.to_be_bytes())).collect()
        };
        batch.swap("captured", &only(&self.captured, &captured), &only(&captured, &self.captured));
        self.allows.change(&allows, "allow", timeouts, &mut batch);
        self.denies.change(&denies, "deny", timeouts, &mut batch);
        batch.commit(&self.socket)?;
        Ok((
            std::mem::replace(&mut self.captured, captured),
            std::mem::replace(&mut self.allows, allows),
            std::mem::replace(&mut self.denies, denies),
        ))
    }
}
