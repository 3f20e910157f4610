//! Synthetic addresses that stand for one name each: an answer with such an address leads to egret, and the connection to
//! it is a claim of the name.
//!
//! An address never passes to another name before `remember` has passed since the name was last answered or used, nor at
//! all where a rule for `tcp:` ports has made use of it: bytes that are not looked at cannot show another name.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::name::HostName;

/// The most names, whatever the pool: some 20 MB.
pub const MOST_NAMES: u32 = 131_072;
/// What one wildcard may take of the pool, and what one client may of it with names under wildcards.
const SHARE_OF_A_WILDCARD: u32 = 8;
const SHARE_OF_A_CLIENT: u32 = 64;

/// Where synthetic addresses are taken from. A name has the same place in both ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub v4: Option<Ipv4Net>,
    pub v6: Option<Ipv6Net>,
}

impl Pool {
    /// How many names it has addresses for: all but the first and the last address of the smaller range.
    #[must_use]
    pub fn size(self) -> u32 {
        let hosts = |bits: u8| 1_u32.checked_shl(bits.into()).unwrap_or(u32::MAX).saturating_sub(2);
        let v4 = self.v4.map(|net| hosts(32 - net.prefix_len()));
        let v6 = self.v6.map(|net| hosts(128 - net.prefix_len()));
        v4.into_iter().chain(v6).min().unwrap_or(0).min(MOST_NAMES)
    }

    #[must_use]
    pub fn contains(self, ip: IpAddr) -> bool {
        self.nets().any(|net| net.contains(&ip.to_canonical()))
    }

    /// Its ranges.
    pub fn nets(self) -> impl Iterator<Item = IpNet> {
        self.v4.map(IpNet::V4).into_iter().chain(self.v6.map(IpNet::V6))
    }

    /// The address at a place, of one family.
    #[must_use]
    pub fn address(self, place: u32, is_v6: bool) -> Option<IpAddr> {
        if is_v6 {
            self.v6.map(|net| Ipv6Addr::from_bits(net.network().to_bits() + 1 + u128::from(place)).into())
        } else {
            self.v4.map(|net| Ipv4Addr::from_bits(net.network().to_bits() + 1 + place).into())
        }
    }

    fn place(self, ip: IpAddr) -> Option<u32> {
        let place = match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let net = self.v4.filter(|net| net.contains(&ip))?;
                (ip.to_bits() - net.network().to_bits()).checked_sub(1)?
            }
            IpAddr::V6(ip) => {
                let net = self.v6.filter(|net| net.contains(&ip))?;
                u32::try_from((ip.to_bits() - net.network().to_bits()).checked_sub(1)?).ok()?
            }
        };
        (place < self.size()).then_some(place)
    }
}

/// What a name takes its address for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub name: HostName,
    /// The wildcard that lists it, where no rule lists the name itself.
    pub wildcard: Option<Box<str>>,
    /// The client that asks for itself.
    pub asker: Option<IpAddr>,
    /// Whether some rule judges it by the claim alone.
    pub is_claimed: bool,
}

/// Why a name gets no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("every synthetic address stands for a name; give dns.steer a larger pool")]
    Pool,
    #[error("names under {0} have an eighth of dns.steer's pool, which is all that one wildcard may take")]
    Wildcard(Box<str>),
    #[error("the client has asked for as many new names under wildcards as one client may have in dns.steer's pool")]
    Client,
}

/// The place of a name, and whether it must be written down before the name may be answered with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    pub place: u32,
    pub is_new: bool,
    /// Whether some rule judges the name by the claim alone, or has: that is written down, too.
    pub is_claimed: bool,
}

#[derive(Debug)]
struct Entry {
    name: HostName,
    wildcard: Option<Box<str>>,
    asker: Option<IpAddr>,
    is_claimed: bool,
    /// What is on disk of it: whether it is claimed.
    written: Option<bool>,
    last: Instant,
    /// Its open connections hold it.
    in_use: Arc<()>,
    /// Whether there was one when it was last looked at.
    was_in_use: bool,
}

/// The names that synthetic addresses stand for.
#[derive(Debug)]
pub struct Steered {
    pool: Pool,
    remember: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    places: HashMap<HostName, u32>,
    entries: Vec<Option<Entry>>,
    /// Places that stand for no name any more.
    freed: VecDeque<u32>,
    wildcards: HashMap<Box<str>, Share>,
    askers: HashMap<IpAddr, Share>,
    all: Share,
}

/// What is taken of the pool.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    taken: u32,
    /// None of it is free before.
    none_before: Option<Instant>,
}

/// Keeps an address for its name.
#[derive(Clone, Debug)]
pub struct InUse(#[allow(dead_code, reason = "it is counted")] Arc<()>);

impl Steered {
    #[must_use]
    pub fn new(pool: Pool, remember: Duration) -> Self {
        Self { pool, remember, inner: Mutex::default() }
    }

    #[must_use]
    pub const fn pool(&self) -> Pool {
        self.pool
    }

    /// The place of a name, or one for it.
    ///
    /// # Errors
    /// [`Full`]: never an address that may still stand for another name.
    pub fn assign(&self, wanted: &Wanted, now: Instant) -> Result<Assigned, Full> {
        let inner = &mut *self.lock();
        if let Some(place) = inner.places.get(&wanted.name).copied()
            && let Some(Some(entry)) = inner.entries.get_mut(place as usize)
        {
            entry.last = now;
            entry.is_claimed |= wanted.is_claimed;
            let is_claimed = entry.is_claimed;
            let is_new = entry.written.is_none_or(|written| is_claimed && !written);
            return Ok(Assigned { place, is_new, is_claimed });
        }
        let (size, time) = (self.pool.size(), Time { remember: self.remember, now });
        if let Some(wildcard) = &wanted.wildcard
            && !inner.has_room(Whose::Wildcard(wildcard), size / SHARE_OF_A_WILDCARD, time)
        {
            return Err(Full::Wildcard(wildcard.clone()));
        }
        if let Some(asker) = wanted.asker.filter(|_| wanted.wildcard.is_some())
            && !inner.has_room(Whose::Asker(asker), size / SHARE_OF_A_CLIENT, time)
        {
            return Err(Full::Client);
        }
        let place = inner.free(size, time).ok_or(Full::Pool)?;
        inner.put(place, wanted, None, now);
        Ok(Assigned { place, is_new: true, is_claimed: wanted.is_claimed })
    }

    /// A name's place is on disk, and whether it is claimed.
    pub fn written(&self, name: &HostName, is_claimed: bool) {
        let inner = &mut *self.lock();
        if let Some(place) = inner.places.get(name).copied()
            && let Some(Some(entry)) = inner.entries.get_mut(place as usize)
        {
            entry.written = Some(is_claimed || entry.written == Some(true));
        }
    }

    /// Puts a name back where it was, as if it had just been answered. A later name takes an earlier one's place.
    pub fn restore(&self, place: u32, wanted: &Wanted, now: Instant) {
        let inner = &mut *self.lock();
        if place >= self.pool.size() {
            return;
        }
        let former = inner.places.get(&wanted.name).copied().filter(|former| *former != place);
        former.into_iter().chain([place]).for_each(|place| inner.remove(place));
        inner.put(place, wanted, Some(wanted.is_claimed), now);
    }

    /// The name that an address stands for, as a connection to it claims it.
    #[must_use]
    pub fn claimed(&self, ip: IpAddr, now: Instant) -> Option<(HostName, InUse)> {
        let place = self.pool.place(ip)?;
        let inner = &mut *self.lock();
        let entry = inner.entries.get_mut(place as usize)?.as_mut().filter(|entry| entry.written.is_some())?;
        (entry.last, entry.was_in_use) = (now, true);
        Some((entry.name.clone(), InUse(Arc::clone(&entry.in_use))))
    }

    /// The place of a name that was answered with it, which is now used again.
    pub fn touch(&self, name: &HostName, now: Instant) -> Option<u32> {
        let inner = &mut *self.lock();
        let place = inner.places.get(name).copied()?;
        let entry = inner.entries.get_mut(place as usize)?.as_mut().filter(|entry| entry.written.is_some())?;
        entry.last = now;
        Some(place)
    }

    /// The name that an address stands for.
    #[must_use]
    pub fn name(&self, ip: IpAddr) -> Option<HostName> {
        let place = self.pool.place(ip)?;
        Some(self.lock().entries.get(place as usize)?.as_ref()?.name.clone())
    }

    /// Every name with its place, as it is written down.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(u32, Wanted)> {
        let inner = self.lock();
        let entries = (0..).zip(&inner.entries).filter_map(|(place, entry)| Some((place, entry.as_ref()?)));
        let wanted = |entry: &Entry| Wanted {
            name: entry.name.clone(),
            wildcard: entry.wildcard.clone(),
            asker: entry.asker,
            is_claimed: entry.is_claimed,
        };
        entries.map(|(place, entry)| (place, wanted(entry))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// This moment, and how long a name keeps its address after its last use.
#[derive(Clone, Copy)]
struct Time {
    remember: Duration,
    now: Instant,
}

/// What a share is of.
#[derive(Clone, Copy)]
enum Whose<'a> {
    Wildcard(&'a str),
    Asker(IpAddr),
    All,
}

impl Whose<'_> {
    fn is_of(self, entry: &Entry) -> bool {
        match self {
            Self::Wildcard(wildcard) => entry.wildcard.as_deref() == Some(wildcard),
            Self::Asker(asker) => entry.asker == Some(asker),
            Self::All => true,
        }
    }
}

impl Inner {
    fn share(&mut self, whose: Whose<'_>) -> Option<&mut Share> {
        match whose {
            Whose::Wildcard(wildcard) => self.wildcards.get_mut(wildcard),
            Whose::Asker(asker) => self.askers.get_mut(&asker),
            Whose::All => Some(&mut self.all),
        }
    }

    /// Whether there is room in a share, once the names in it that nothing uses any more are gone.
    fn has_room(&mut self, whose: Whose<'_>, most: u32, time: Time) -> bool {
        let is_full = |share: Option<&mut Share>| share.filter(|share| share.taken >= most.max(1)).map(|share| *share);
        let Some(full) = is_full(self.share(whose)) else { return true };
        if full.none_before.is_some_and(|until| time.now < until) {
            return false;
        }
        let soonest = self.reclaim(time, whose);
        if let Some(share) = self.share(whose) {
            share.none_before = Some(soonest);
        }
        is_full(self.share(whose)).is_none()
    }

    /// A place that stands for no name: one that was never used first.
    fn free(&mut self, size: u32, time: Time) -> Option<u32> {
        if !self.has_room(Whose::All, size, time) {
            return None;
        }
        match u32::try_from(self.entries.len()).ok().filter(|fresh| *fresh < size) {
            Some(fresh) => {
                self.entries.push(None);
                Some(fresh)
            }
            // A place may have been taken since by what is written down.
            None => std::iter::from_fn(|| self.freed.pop_front())
                .find(|place| self.entries.get(*place as usize).is_some_and(Option::is_none)),
        }
    }

    /// Frees the places of names that nothing uses any more; when the next one may be free.
    fn reclaim(&mut self, Time { remember, now }: Time, whose: Whose<'_>) -> Instant {
        let (mut freed, mut soonest): (Vec<u32>, Instant) = (Vec::new(), now + remember);
        for (place, entry) in (0..).zip(&mut self.entries) {
            let Some(entry) = entry.as_mut().filter(|entry| !entry.is_claimed && whose.is_of(entry)) else { continue };
            // Its time runs from the end of its last connection, or from when that was seen.
            if Arc::strong_count(&entry.in_use) > 1 || std::mem::take(&mut entry.was_in_use) {
                (entry.last, entry.was_in_use) = (now, Arc::strong_count(&entry.in_use) > 1);
            }
            match entry.last + remember {
                over if over <= now => freed.push(place),
                over => soonest = soonest.min(over),
            }
        }
        freed.into_iter().for_each(|place| self.remove(place));
        soonest
    }

    fn put(&mut self, place: u32, wanted: &Wanted, written: Option<bool>, now: Instant) {
        while self.entries.len() <= place as usize {
            // What is written down may leave places out.
            let hole = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
            self.freed.extend((hole < place).then_some(hole));
            self.entries.push(None);
        }
        let Some(slot) = self.entries.get_mut(place as usize) else { return };
        let Wanted { name, wildcard, asker, is_claimed } = wanted.clone();
        // Only names that a client may choose count against it.
        let asker = asker.filter(|_| wildcard.is_some());
        wildcard.iter().for_each(|wildcard| self.wildcards.entry(wildcard.clone()).or_default().taken += 1);
        asker.iter().for_each(|asker| self.askers.entry(*asker).or_default().taken += 1);
        self.all.taken += 1;
        self.places.insert(name.clone(), place);
        let (in_use, was_in_use) = (Arc::default(), false);
        *slot = Some(Entry { name, wildcard, asker, is_claimed, written, last: now, in_use, was_in_use });
    }

    fn remove(&mut self, place: u32) {
        let Some(entry) = self.entries.get_mut(place as usize).and_then(Option::take) else { return };
        self.places.remove(&entry.name);
        self.freed.push_back(place);
        let wildcard = entry.wildcard.as_deref().map(Whose::Wildcard);
        for whose in wildcard.into_iter().chain(entry.asker.map(Whose::Asker)).chain([Whose::All]) {
            if let Some(share) = self.share(whose) {
                share.taken = share.taken.saturating_sub(1);
            }
        }
        let is_empty = |share: &Share| share.taken == 0;
        if let Some(wildcard) = entry.wildcard.filter(|wildcard| self.wildcards.get(wildcard).is_some_and(is_empty)) {
            self.wildcards.remove(&wildcard);
        }
        if let Some(asker) = entry.asker.filter(|asker| self.askers.get(asker).is_some_and(is_empty)) {
            self.askers.remove(&asker);
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "this crate has no other clock")]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn steered(v4: &str) -> Steered {
        Steered::new(Pool { v4: Some(v4.parse().unwrap()), v6: Some("fd00:1::/112".parse().unwrap()) }, DAY)
    }

    fn wanted(name: &str) -> Wanted {
        let name = HostName::from_wire(name.as_bytes()).unwrap();
        Wanted { name, wildcard: None, asker: None, is_claimed: false }
    }

    fn place(steered: &Steered, wanted: &Wanted, now: Instant) -> Result<u32, Full> {
        let assigned = steered.assign(wanted, now)?;
        steered.written(&wanted.name, assigned.is_claimed);
        Ok(assigned.place)
    }

    #[test]
    fn a_name_has_one_address_of_each_family_and_they_stand_for_it() {
        let (steered, now) = (steered("198.18.0.0/24"), Instant::now());
        let first = steered.assign(&wanted("a.example"), now).unwrap();
        assert_eq!(first, Assigned { place: 0, is_new: true, is_claimed: false });
        let v4: IpAddr = "198.18.0.1".parse().unwrap();
        assert!(steered.claimed(v4, now).is_none(), "it is not written down yet");
        steered.written(&wanted("a.example").name, false);
        assert!(!steered.assign(&wanted("a.example"), now).unwrap().is_new);
        assert_eq!(place(&steered, &wanted("b.example"), now), Ok(1));
        let v6 = steered.pool().address(0, true).unwrap();
        assert_eq!((steered.pool().address(0, false), v6.to_string()), (Some(v4), "fd00:1::1".into()));
        for ip in [v4, v6, "::ffff:198.18.0.1".parse().unwrap()] {
            assert_eq!(steered.claimed(ip, now).unwrap().0.as_str(), "a.example", "{ip}");
        }
        for unknown in ["198.18.0.0", "198.18.0.3", "198.18.0.255", "fd00:1::", "fd00:1::ffff", "198.19.0.1"] {
            assert!(steered.claimed(unknown.parse().unwrap(), now).is_none(), "{unknown}");
        }
        let again = steered.assign(&Wanted { is_claimed: true, ..wanted("a.example") }, now).unwrap();
        assert_eq!(again, Assigned { place: 0, is_new: true, is_claimed: true }, "that it is claimed is written down");
        let other = steered.assign(&wanted("a.example"), now).unwrap();
        assert_eq!(other, again, "for every client, while it is not");
        steered.written(&wanted("a.example").name, true);
        assert!(!steered.assign(&wanted("a.example"), now).unwrap().is_new);
    }

    #[test]
    fn an_address_passes_on_only_when_its_name_is_forgotten() {
        let (steered, now) = (steered("198.18.0.0/29"), Instant::now());
        for n in 0..6 {
            let claimed = n == 0;
            let name = Wanted { is_claimed: claimed, ..wanted(&format!("n{n}.example")) };
            assert_eq!(place(&steered, &name, now), Ok(n));
        }
        assert_eq!(place(&steered, &wanted("x.example"), now), Err(Full::Pool));
        let half = now + DAY / 2;
        // Asked for again, and connected to: both are used.
        assert_eq!(place(&steered, &wanted("n1.example"), half), Ok(1));
        let (_, open) = steered.claimed(steered.pool().address(2, false).unwrap(), half).unwrap();
        assert_eq!(place(&steered, &wanted("x.example"), half), Err(Full::Pool));
        assert_eq!(place(&steered, &wanted("x.example"), now + DAY), Ok(3), "the first that is free");
        assert_eq!(place(&steered, &wanted("y.example"), now + DAY), Ok(4));
        assert_eq!(place(&steered, &wanted("z.example"), now + DAY), Ok(5));
        assert_eq!(place(&steered, &wanted("w.example"), half + DAY), Ok(1));
        assert_eq!(place(&steered, &wanted("v.example"), half + DAY), Err(Full::Pool), "a connection is open");
        drop(open);
        let much_later = now + 5 * DAY;
        assert_eq!(place(&steered, &wanted("v.example"), much_later), Ok(1));
        let taken: Vec<u32> =
            (0..3).filter_map(|n| place(&steered, &wanted(&format!("u{n}.example")), much_later).ok()).collect();
        assert_eq!(taken, [3, 4, 5], "the end of the connection was only seen now");
        assert_eq!(place(&steered, &wanted("t.example"), much_later + DAY), Ok(1));
        let names: Vec<String> = steered.snapshot().iter().map(|(_, wanted)| wanted.name.to_string()).collect();
        assert!(names.contains(&"n0.example".to_owned()), "a claimed one stays: {names:?}");
    }

    #[test]
    fn wildcards_and_clients_have_their_shares() {
        let (steered, now) = (steered("198.18.0.0/22"), Instant::now());
        let under = |wildcard: &str, n: u32, asker: u8| Wanted {
            wildcard: Some(wildcard.into()),
            asker: Some(IpAddr::from([10, 0, 0, asker])),
            ..wanted(&format!("n{n}.{}", wildcard.trim_start_matches("*.")))
        };
        let of_one = (0..1000).filter(|n| steered.assign(&under("*.a.example", *n, 1), now).is_ok()).count();
        assert_eq!(of_one, 15, "a client");
        assert_eq!(steered.assign(&under("*.b.example", 0, 1), now), Err(Full::Client));
        let of_all = (2..100).map(|asker| {
            (0..1000)
                .filter(|n| steered.assign(&under("*.a.example", 1000 * u32::from(asker) + n, asker), now).is_ok())
                .count()
        });
        assert_eq!(of_all.sum::<usize>() + of_one, 127, "a wildcard");
        assert!(steered.assign(&under("*.b.example", 1, 2), now).is_err(), "this client has its share");
        assert!(steered.assign(&under("*.b.example", 1, 200), now).is_ok());
        assert!(steered.assign(&wanted("exact.example"), now).is_ok());
        // A day later the names of the wildcard, and of the client, make room for others of theirs.
        assert!(steered.assign(&under("*.b.example", 2, 1), now + DAY).is_ok());
        assert!(steered.assign(&under("*.a.example", 999_999, 201), now + DAY).is_ok());
    }

    #[test]
    fn what_was_written_is_where_it_was() {
        let (one, now) = (steered("198.18.0.0/24"), Instant::now());
        let names = ["a.example", "b.example", "c.example"];
        names.iter().for_each(|name| drop(place(&one, &wanted(name), now)));
        let other = steered("198.18.0.0/24");
        one.snapshot().iter().for_each(|(place, wanted)| other.restore(*place, wanted, now));
        other.restore(0, &wanted("d.example"), now);
        other.restore(9, &wanted("b.example"), now);
        other.restore(4000, &wanted("e.example"), now);
        let known: Vec<(u32, String)> =
            other.snapshot().into_iter().map(|(place, wanted)| (place, wanted.name.to_string())).collect();
        assert_eq!(known, [(0, "d.example".into()), (2, "c.example".into()), (9, "b.example".into())]);
        assert_eq!(place(&other, &wanted("a.example"), now), Ok(10));
    }
}
