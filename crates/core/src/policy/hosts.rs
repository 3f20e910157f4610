//! The compiled host matcher: a few hash probes per name, at ten patterns and at a million.
//!
//! ```text
//! name     a.b.example.com          table    literal ending -> the first record that has it
//! probes   a.b.example.com          record   rule | next | length | where the ending begins | text
//!            b.example.com          chain    records of one ending, by `next`
//!              example.com          crowd    many globs of one ending, found by the letters they insist on
//!                      com
//! ```
//!
//! An ending begins at a label. Records lie end to end in one arena, so that a name that is listed touches two
//! or three cache lines. Bytes are always compared: names are chosen by attackers, hashes are not proof. Returns
//! every pattern that matches; which rule wins is policy's.

use std::collections::HashMap;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::name::HostName;
use crate::rule::pattern::{self, Pattern, Piece, Rich, Shape};

/// A pattern of one index; a later one is greater.
pub type PatternId = u32;

const NONE: PatternId = u32::MAX;
/// Rule, next, length and ending of a record, in this order.
const HEADER: usize = 12;
/// In a record's length: the pattern has a label for globset.
const IS_RICH: u16 = 1 << 15;
/// In a record's length: no pattern, the place of a crowd.
const IS_CROWD: u16 = 1 << 14;
const LENGTH: u16 = IS_CROWD - 1;
/// Globs of one ending that are tried one after the other; more become a crowd, which tests shall meet often.
const FEW: usize = if cfg!(test) { 2 } else { 16 };

/// Built once, then only read.
#[derive(Debug, Default)]
pub struct HostIndex {
    arena: Vec<u8>,
    /// Heads of chains, by their endings.
    table: HashTable<PatternId>,
    /// A bit for each length that an ending has: most parents of a name need no probe.
    lengths: [u64; 4],
    any: Vec<PatternId>,
    crowds: Vec<Crowd>,
    rich: HashMap<PatternId, Box<Rich>>,
    len: usize,
    hasher: RandomState,
}

/// One entry of the arena.
#[derive(Clone, Copy)]
struct Record<'a> {
    rule: u32,
    next: PatternId,
    flags: u16,
    text: &'a [u8],
    /// Where the literal ending begins in the text.
    ending: usize,
}

/// What a pattern asks of the labels before its ending.
enum Front<'a> {
    /// Nothing, there are none.
    None,
    /// One or more.
    Some,
    /// Any number.
    Any,
    Glob(&'a [u8]),
    Crowd(usize),
}

/// The globs of one ending, by a piece of a label that they insist on.
#[derive(Debug)]
struct Crowd {
    /// Where pieces stand, and which lengths (a bit each) they have there.
    places: Vec<(Place, u64)>,
    members: HashTable<Member>,
    /// The head of those that insist on nothing.
    loose: PatternId,
    /// A few of all.
    first: Vec<PatternId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    /// Labels between it and the ending.
    depth: u8,
    at_end: bool,
}

/// The head of a chain of globs that insist on the same piece at the same place.
#[derive(Clone, Copy, Debug)]
struct Member {
    head: PatternId,
    /// Where the piece is in the arena.
    start: u32,
    len: u8,
    place: Place,
}

impl HostIndex {
    /// With room for so many patterns that have so many bytes together.
    #[must_use]
    pub fn with_capacity(patterns: usize, bytes: usize) -> Self {
        Self {
            arena: Vec::with_capacity(patterns * HEADER + bytes),
            table: HashTable::with_capacity(patterns),
            ..Self::default()
        }
    }

    /// Adds a pattern for a rule.
    ///
    /// # Panics
    /// Past four billion bytes of patterns; a configuration file may have 64 MiB, and a pattern 1024 bytes.
    pub fn add(&mut self, pattern: &Pattern, rule: u32) -> PatternId {
        let (text, shape) = (pattern.as_str(), pattern.shape());
        let ending = match shape {
            Shape::Any | Shape::Exact => 0,
            Shape::Under { bare_too } => {
                if *bare_too {
                    1
                } else {
                    2
                }
            }
            Shape::Glob(glob) => glob.ending,
        };
        let rich = match shape {
            Shape::Glob(glob) => glob.rich.as_ref(),
            _ => None,
        };
        let id = self.push(rule, if rich.is_some() { IS_RICH } else { 0 }, text.as_bytes(), ending);
        self.len += 1;
        rich.into_iter().for_each(|rich| drop(self.rich.insert(id, rich.clone())));
        match shape {
            Shape::Any => self.any.push(id),
            Shape::Exact | Shape::Under { .. } | Shape::Glob(_) => self.hang(id),
        }
        id
    }

    /// Whether some pattern matches.
    #[must_use]
    pub fn lists(&self, name: &HostName) -> bool {
        let mut is_listed = false;
        self.matches(name, |_| is_listed = true);
        is_listed
    }

    /// Number of patterns.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every pattern, in the order they were added.
    pub fn ids(&self) -> impl Iterator<Item = PatternId> {
        let mut at = 0;
        std::iter::from_fn(move || {
            loop {
                let (id, record) = (at, self.record(at)?);
                at += u32::try_from(HEADER + record.text.len()).ok()?;
                if record.flags & IS_CROWD == 0 {
                    return Some(id);
                }
            }
        })
    }

    #[must_use]
    pub fn text(&self, id: PatternId) -> &str {
        self.record(id).map_or("", |record| text_of(record.text))
    }

    #[must_use]
    pub fn rule(&self, id: PatternId) -> u32 {
        self.record(id).map_or(NONE, |record| record.rule)
    }

    /// Calls `hit` with every pattern that matches the name, in no particular order.
    pub fn matches(&self, name: &HostName, mut hit: impl FnMut(PatternId)) {
        self.any.iter().for_each(|id| hit(*id));
        let whole = name.as_str();
        for suffix in name.suffixes() {
            // Without the dot before the suffix.
            let front = whole.len().checked_sub(suffix.len() + 1).and_then(|end| whole.get(..end));
            for (id, record) in self.chain(self.head(suffix)) {
                match (record.front(), front) {
                    (Front::None, None) | (Front::Some, Some(_)) | (Front::Any, _) => hit(id),
                    (Front::Glob(glob), Some(front)) if self.fits(id, record.flags, glob, front) => hit(id),
                    (Front::Crowd(at), Some(front)) => {
                        self.crowds.get(at).into_iter().for_each(|crowd| self.ask(crowd, front, &mut hit));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Calls `hit` with every pattern that, by its ending, matches whatever this one matches.
    pub fn covering(&self, pattern: &Pattern, mut hit: impl FnMut(PatternId)) {
        if let Some(name) = pattern.exact() {
            return self.matches(&name, hit);
        }
        self.any.iter().for_each(|id| hit(*id));
        let Some(ending) = pattern.ending() else { return };
        let starts = std::iter::once(0).chain(ending.match_indices('.').map(|(dot, _)| dot + 1));
        for start in starts {
            let head = ending.get(start..).map_or(NONE, |suffix| self.head(suffix));
            let has_bare = start == 0 && matches!(pattern.shape(), Shape::Under { bare_too: true });
            for (id, record) in self.chain(head) {
                match record.front() {
                    Front::Any => hit(id),
                    Front::Some if !has_bare => hit(id),
                    _ => {}
                }
            }
        }
    }

    /// Patterns that hang at or above the name without matching it: the material of `nearest`.
    pub(super) fn near(&self, name: &HostName, mut hit: impl FnMut(PatternId)) {
        for (depth, suffix) in name.suffixes().enumerate() {
            for (id, record) in self.chain(self.head(suffix)) {
                match record.front() {
                    Front::Some if depth == 0 => hit(id),
                    Front::None if depth > 0 => hit(id),
                    Front::Glob(_) => hit(id),
                    // A refusal must stay cheap: some are as near as all.
                    Front::Crowd(at) => {
                        self.crowds.get(at).into_iter().flat_map(|crowd| &crowd.first).for_each(|id| hit(*id));
                    }
                    _ => {}
                }
            }
        }
    }

    fn record(&self, id: PatternId) -> Option<Record<'_>> {
        record(&self.arena, id)
    }

    fn chain(&self, head: PatternId) -> impl Iterator<Item = (PatternId, Record<'_>)> {
        let mut at = head;
        std::iter::from_fn(move || {
            let (id, record) = (at, self.record(at)?);
            at = record.next;
            Some((id, record))
        })
    }

    fn head(&self, ending: &str) -> PatternId {
        let ending = ending.as_bytes();
        if self.lengths.get(ending.len() / 64).is_none_or(|bits| bits & (1 << (ending.len() % 64)) == 0) {
            return NONE;
        }
        let is_it = |id: &PatternId| self.record(*id).is_some_and(|record| record.ending() == ending);
        self.table.find(self.hasher.hash_one(ending), is_it).copied().unwrap_or(NONE)
    }

    fn fits(&self, id: PatternId, flags: u16, glob: &[u8], front: &str) -> bool {
        let rich = if flags & IS_RICH == 0 { None } else { self.rich.get(&id).map(|rich| &**rich) };
        pattern::fits(text_of(glob), rich, front)
    }

    /// The globs of a crowd that fit, by the pieces that the labels in front begin and end with.
    fn ask(&self, crowd: &Crowd, front: &str, hit: &mut impl FnMut(PatternId)) {
        let mut walk = |head| {
            for (id, record) in self.chain(head) {
                if let Front::Glob(glob) = record.front()
                    && self.fits(id, record.flags, glob, front)
                {
                    hit(id);
                }
            }
        };
        walk(crowd.loose);
        for (place, lengths) in &crowd.places {
            let Some(label) = front.rsplit('.').nth(usize::from(place.depth)) else { continue };
            for len in (1..=label.len()).filter(|len| lengths & (1 << len) != 0) {
                let piece = if place.at_end { label.get(label.len() - len..) } else { label.get(..len) };
                let Some(piece) = piece.map(str::as_bytes) else { continue };
                let is_it = |member: &Member| member.place == *place && member.piece(&self.arena) == piece;
                let found = crowd.members.find(self.hasher.hash_one((place, piece)), is_it);
                found.into_iter().for_each(|member| walk(member.head));
            }
        }
    }

    fn push(&mut self, rule: u32, flags: u16, text: &[u8], ending: usize) -> PatternId {
        let id = u32::try_from(self.arena.len()).ok().filter(|id| *id < NONE).expect("fewer pattern bytes than 2^32");
        let length = u16::try_from(text.len()).ok().filter(|len| *len <= LENGTH).expect("a pattern is short");
        let ending = u16::try_from(ending).expect("an ending begins inside its pattern");
        self.arena.extend_from_slice(&rule.to_le_bytes());
        self.arena.extend_from_slice(&NONE.to_le_bytes());
        self.arena.extend_from_slice(&(length | flags).to_le_bytes());
        self.arena.extend_from_slice(&ending.to_le_bytes());
        self.arena.extend_from_slice(text);
        id
    }

    fn set_next(&mut self, id: PatternId, next: PatternId) {
        let at = id as usize + 4;
        if let Some(field) = self.arena.get_mut(at..at + 4) {
            field.copy_from_slice(&next.to_le_bytes());
        }
    }

    /// The head of the chain that a record belongs to; `None` where the record has become it.
    fn anchor(&mut self, id: PatternId) -> Option<PatternId> {
        let (arena, hasher) = (&self.arena, &self.hasher);
        let ending = |id: &PatternId| record(arena, *id).map_or(&[][..], |record| record.ending());
        let wanted = ending(&id);
        match self.table.entry(hasher.hash_one(wanted), |at| ending(at) == wanted, |at| hasher.hash_one(ending(at))) {
            Entry::Occupied(slot) => Some(*slot.get()),
            Entry::Vacant(slot) => {
                slot.insert(id);
                if let Some(bits) = self.lengths.get_mut(wanted.len() / 64) {
                    *bits |= 1 << (wanted.len() % 64);
                }
                None
            }
        }
    }

    /// Hangs a record into the chain of its ending. The first one stays the head, and a crowd stands behind it.
    fn hang(&mut self, id: PatternId) {
        let Some(head) = self.anchor(id) else { return };
        let is_glob = |record: &Record<'_>| matches!(record.front(), Front::Glob(_));
        let crowd = self.chain(head).nth(1).and_then(|(place, record)| match record.front() {
            Front::Crowd(at) => Some((place, at)),
            _ => None,
        });
        if !self.record(id).is_some_and(|record| is_glob(&record)) {
            return self.link(crowd.map_or(head, |(place, _)| place), id);
        }
        if let Some((_, crowd)) = crowd {
            return self.join(crowd, id);
        }
        self.link(head, id);
        let (globs, others): (Vec<_>, Vec<_>) = self.chain(head).skip(1).partition(|(_, record)| is_glob(record));
        if globs.len() <= FEW {
            return;
        }
        let (globs, others): (Vec<_>, Vec<_>) =
            (globs.into_iter().map(|(id, _)| id).collect(), others.into_iter().map(|(id, _)| id).collect());
        let crowd = self.crowds.len();
        self.crowds.push(Crowd::default());
        let place = self.push(u32::try_from(crowd).expect("fewer crowds than patterns"), IS_CROWD, &[], 0);
        self.set_next(head, place);
        others.into_iter().for_each(|id| self.link(place, id));
        globs.into_iter().for_each(|id| self.join(crowd, id));
    }

    /// Puts a record behind another one of its chain.
    fn link(&mut self, before: PatternId, id: PatternId) {
        let next = self.record(before).map_or(NONE, |record| record.next);
        self.set_next(id, next);
        self.set_next(before, id);
    }

    fn join(&mut self, crowd: usize, id: PatternId) {
        let arena = &self.arena;
        let Some(crowd) = self.crowds.get_mut(crowd) else { return };
        if crowd.first.len() < FEW {
            crowd.first.push(id);
        }
        let piece = record(arena, id).and_then(|record| match record.front() {
            Front::Glob(glob) => pattern::piece(text_of(glob)),
            _ => None,
        });
        let next = match piece {
            None => std::mem::replace(&mut crowd.loose, id),
            Some(Piece { depth, at_end, start, len }) => {
                let place = Place { depth, at_end };
                match crowd.places.iter_mut().find(|(known, _)| *known == place) {
                    Some((_, lengths)) => *lengths |= 1 << len,
                    None => crowd.places.push((place, 1 << len)),
                }
                let start = id + u32::try_from(HEADER + start).expect("a pattern is short");
                let member = Member { head: id, start, len, place };
                let hash = |member: &Member| self.hasher.hash_one((member.place, member.piece(arena)));
                let is_it = |other: &Member| other.place == place && other.piece(arena) == member.piece(arena);
                match crowd.members.entry(hash(&member), is_it, hash) {
                    Entry::Occupied(mut slot) => std::mem::replace(&mut slot.get_mut().head, id),
                    Entry::Vacant(slot) => {
                        slot.insert(member);
                        NONE
                    }
                }
            }
        };
        self.set_next(id, next);
    }
}

impl Default for Crowd {
    fn default() -> Self {
        Self { places: Vec::new(), members: HashTable::new(), loose: NONE, first: Vec::new() }
    }
}

impl Member {
    fn piece<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        let start = self.start as usize;
        arena.get(start..start + usize::from(self.len)).unwrap_or_default()
    }
}

impl<'a> Record<'a> {
    fn ending(&self) -> &'a [u8] {
        self.text.get(self.ending..).unwrap_or_default()
    }

    fn front(&self) -> Front<'a> {
        if self.flags & IS_CROWD != 0 {
            return Front::Crowd(self.rule as usize);
        }
        match (self.ending, self.text) {
            (0, _) => Front::None,
            (1, _) => Front::Any,
            (2, [b'*', ..]) => Front::Some,
            (ending, text) => Front::Glob(text.get(..ending - 1).unwrap_or_default()),
        }
    }
}

fn record(arena: &[u8], id: PatternId) -> Option<Record<'_>> {
    let (header, rest) = arena.get(id as usize..)?.split_first_chunk::<HEADER>()?;
    let [r0, r1, r2, r3, n0, n1, n2, n3, l0, l1, e0, e1] = *header;
    let flags = u16::from_le_bytes([l0, l1]);
    Some(Record {
        rule: u32::from_le_bytes([r0, r1, r2, r3]),
        next: u32::from_le_bytes([n0, n1, n2, n3]),
        flags,
        text: rest.get(..usize::from(flags & LENGTH))?,
        ending: usize::from(u16::from_le_bytes([e0, e1])),
    })
}

/// Patterns are ASCII.
fn text_of(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::pattern::naive;
    use proptest::prelude::*;

    fn index(patterns: &[&str]) -> HostIndex {
        let mut index = HostIndex::default();
        for (rule, pattern) in (0..).zip(patterns) {
            index.add(&Pattern::parse(pattern).unwrap(), rule);
        }
        index
    }

    #[track_caller]
    fn matched(pattern: &str, name: &str) -> bool {
        let name = HostName::from_wire(name.as_bytes()).unwrap();
        let mut hits = 0;
        index(&[pattern]).matches(&name, |_| hits += 1);
        assert!(hits <= 1, "one pattern, one hit");
        assert_eq!(hits == 1, naive::matches(&Pattern::parse(pattern).unwrap(), &name), "{pattern} on {name}");
        hits == 1
    }

    #[track_caller]
    fn yes(pattern: &str, name: &str) {
        assert!(matched(pattern, name), "{pattern} should match {name}");
    }

    #[track_caller]
    fn no(pattern: &str, name: &str) {
        assert!(!matched(pattern, name), "{pattern} should not match {name}");
    }

    #[test]
    fn each_pattern_matches_its_names_and_not_their_neighbours() {
        yes("mcr.microsoft.com", "mcr.microsoft.com");
        yes("MCR.microsoft.com.", "Mcr.Microsoft.Com.");
        no("mcr.microsoft.com", "x.mcr.microsoft.com");
        no("mcr.microsoft.com", "microsoft.com");
        no("mcr.microsoft.com", "evilmcr.microsoft.com");
        no("mcr.microsoft.com", "mcr.microsoft.com.evil.example");
        no("mcr.microsoft.com", "mcr.microsoft.co");

        yes("*.data.mcr.microsoft.com", "eastus.data.mcr.microsoft.com");
        yes("*.data.mcr.microsoft.com", "a.b.data.mcr.microsoft.com");
        no("*.data.mcr.microsoft.com", "data.mcr.microsoft.com");
        no("*.data.mcr.microsoft.com", "evildata.mcr.microsoft.com");
        no("*.data.mcr.microsoft.com", "a.data.mcr.microsoft.com.evil.example");

        yes(".data.mcr.microsoft.com", "data.mcr.microsoft.com");
        yes(".data.mcr.microsoft.com", "a.b.data.mcr.microsoft.com");
        no(".data.mcr.microsoft.com", "evildata.mcr.microsoft.com");

        yes("md-*.blob.storage.azure.net", "md-a.blob.storage.azure.net");
        yes("md-*.blob.storage.azure.net", "md-.blob.storage.azure.net".replace("md-.", "md-1.").as_str());
        no("md-*.blob.storage.azure.net", "md-a.b.blob.storage.azure.net");
        no("md-*.blob.storage.azure.net", "xmd-a.blob.storage.azure.net");
        no("md-*.blob.storage.azure.net", "a.md-a.blob.storage.azure.net");
        yes("a*.example.com", "a.example.com");
        yes("*a*b*.example.com", "xaxbx.example.com");
        yes("*a*b*.example.com", "ab.example.com");
        no("*a*b*.example.com", "ba.example.com");
        no("ab*ba.example.com", "aba.example.com");
        yes("ab*ba.example.com", "abba.example.com");

        yes("*.hcp.*.azmk8s.io", "a.hcp.westeurope.azmk8s.io");
        yes("*.hcp.*.azmk8s.io", "b.a.hcp.westeurope.azmk8s.io");
        no("*.hcp.*.azmk8s.io", "a.hcp.x.y.azmk8s.io");
        no("*.hcp.*.azmk8s.io", "hcp.westeurope.azmk8s.io");
        no("*.hcp.*.azmk8s.io", "a.hcp.azmk8s.io");
        yes("a.*.example.com", "a.b.example.com");
        no("a.*.example.com", "a.b.c.example.com");
        no("a.*.example.com", "x.a.b.example.com");

        yes("arc-{east,west}?.azurecr.io", "arc-east1.azurecr.io");
        yes("arc-{east,west}?.azurecr.io", "arc-west2.azurecr.io");
        no("arc-{east,west}?.azurecr.io", "arc-north1.azurecr.io");
        no("arc-{east,west}?.azurecr.io", "arc-east.azurecr.io");
        no("arc-{east,west}?.azurecr.io", "arc-east.1.azurecr.io");
        yes("[a-c]x.example.com", "bx.example.com");
        no("[!a-c]x.example.com", "bx.example.com");
        yes("*.[ab].example.com", "x.y.a.example.com");

        yes("*", "anything.at.all");
        yes("*", "localhost");
    }

    #[test]
    fn every_rule_that_matches_is_returned() {
        let index = index(&["*", "a.b.example", "*.b.example", ".b.example", "*.example", "a.*.example", "b.example"]);
        let mut hits = Vec::new();
        index.matches(&HostName::from_wire(b"a.b.example").unwrap(), |id| hits.push(index.rule(id)));
        hits.sort_unstable();
        assert_eq!(hits, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn many_globs_of_one_ending_are_distinguished() {
        let written: Vec<String> = (0..300)
            .map(|n| match n % 4 {
                0 => format!("p{n}-*.blob.example"),
                1 => format!("*-s{n}.blob.example"),
                2 => format!("h{n}.*.blob.example"),
                _ => format!("*m{n}*.blob.example"),
            })
            .chain(
                ["{a,b}-r?.blob.example", "blob.example", "*.blob.example", "*.blob.*.blob.example"].map(str::to_owned),
            )
            .collect();
        let index = index(&written.iter().map(String::as_str).collect::<Vec<_>>());
        let patterns: Vec<Pattern> = written.iter().map(|text| Pattern::parse(text).unwrap()).collect();
        for name in [
            "p8-x", "p80-x", "p8", "x-s5", "s5", "x-s57", "h6.x", "h6", "x.h6.y", "xm7y", "m299", "a-r1", "b-r12", "",
            "x.blob.y", "p0--s1",
        ] {
            let text = format!("{name}.blob.example");
            let name = HostName::from_wire(text.trim_start_matches('.').as_bytes()).unwrap();
            let mut hits = Vec::new();
            index.matches(&name, |id| hits.push(index.rule(id) as usize));
            hits.sort_unstable();
            let naive: Vec<usize> = (0..patterns.len()).filter(|n| naive::matches(&patterns[*n], &name)).collect();
            assert_eq!(hits, naive, "{name}");
        }
    }

    fn label() -> impl Strategy<Value = String> {
        "[ab]{1,3}"
    }

    fn pattern() -> impl Strategy<Value = String> {
        let wild = prop_oneof![
            label(),
            label(),
            Just("*".to_owned()),
            "[ab]{0,1}\\*[ab]{0,2}",
            "[ab]{0,1}\\?[ab]{0,1}",
            Just("{a,bb}".to_owned()),
            Just("[a]b".to_owned()),
        ];
        let tail = proptest::collection::vec(label(), 1..3);
        let front = prop_oneof![Just(""), Just("*."), Just(".")];
        (front, proptest::collection::vec(wild, 0..3), tail)
            .prop_map(|(front, wild, tail)| format!("{front}{}", [wild, tail].concat().join(".")))
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_the_naive_matcher(
            patterns in proptest::collection::vec(pattern(), 1..40),
            names in proptest::collection::vec(proptest::collection::vec(label(), 1..6), 1..40),
        ) {
            let patterns: Vec<Pattern> = patterns.iter().filter_map(|p| Pattern::parse(p).ok()).collect();
            let mut index = HostIndex::default();
            for (rule, pattern) in (0..).zip(&patterns) {
                index.add(pattern, rule);
            }
            prop_assert_eq!(
                index.ids().map(|id| index.text(id)).collect::<Vec<_>>(),
                patterns.iter().map(Pattern::as_str).collect::<Vec<_>>()
            );
            for labels in names {
                let name = HostName::from_wire(labels.join(".").as_bytes()).unwrap();
                let mut hits = Vec::new();
                index.matches(&name, |id| hits.push(index.rule(id) as usize));
                hits.sort_unstable();
                let naive: Vec<usize> = (0..patterns.len()).filter(|i| naive::matches(&patterns[*i], &name)).collect();
                prop_assert_eq!(&hits, &naive, "{} against {:?}", name, patterns.iter().map(Pattern::as_str).collect::<Vec<_>>());
            }
        }
    }
}
