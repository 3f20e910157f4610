//! The compiled host matcher: a few hash probes per name, at ten patterns and at a million.
//!
//! ```text
//! name     a.b.example.com
//! probes   a.b.example.com   exact here; `.a.b.example.com` too
//!            b.example.com   under here, and globs whose literal ending is this
//!              example.com   ...
//!                      com
//! ```
//!
//! A key is a literal ending that begins at a label. Bytes are always compared: names are chosen by
//! attackers, hashes are not proof. Returns every pattern that matches; which rule wins is policy's.

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

use super::pattern::{Labels, Pattern, Shape};
use crate::name::HostName;

/// Index of a pattern, in the order they were added.
pub type PatternId = u32;

const NONE: u32 = u32::MAX;

/// Built once, then only read.
#[derive(Debug, Default)]
pub struct HostIndex {
    /// Every pattern's text, end to end; keys are pieces of it.
    text: String,
    patterns: Vec<Entry>,
    table: HashTable<Key>,
    globs: Vec<Vec<(PatternId, Labels)>>,
    any: Vec<PatternId>,
    hasher: RandomState,
}

/// Where a pattern's text is, and the rule it belongs to.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    len: u16,
    rule: u32,
    /// The next pattern of the same list, or [`NONE`].
    next: PatternId,
}

/// The lists behind one literal ending; each is [`NONE`] or the head of a chain.
#[derive(Clone, Copy, Debug)]
struct Key {
    start: u32,
    len: u16,
    exact: PatternId,
    under: PatternId,
    bare_and_under: PatternId,
    globs: u32,
}

/// Which list of a key a pattern hangs in.
#[derive(Clone, Copy)]
enum List {
    Exact,
    Under,
    BareAndUnder,
}

impl HostIndex {
    /// Adds a pattern for a rule.
    ///
    /// # Panics
    /// Past four billion bytes of patterns; a configuration file may have 64 MiB, and a pattern 1024 bytes.
    pub fn add(&mut self, pattern: &Pattern, rule: u32) -> PatternId {
        let id = u32::try_from(self.patterns.len()).expect("fewer patterns than 2^32");
        let start = u32::try_from(self.text.len()).expect("fewer pattern bytes than 2^32");
        let text = pattern.as_str();
        let len = u16::try_from(text.len()).expect("a pattern is shorter than 2^16");
        self.text.push_str(text);
        self.patterns.push(Entry { start, len, rule, next: NONE });
        match pattern.shape() {
            Shape::Any => self.any.push(id),
            Shape::Exact => self.hang(id, start, len, List::Exact),
            Shape::Under { bare_too: true } => self.hang(id, start + 1, len - 1, List::BareAndUnder),
            Shape::Under { bare_too: false } => self.hang(id, start + 2, len - 2, List::Under),
            Shape::Glob(labels) => {
                let suffix = u16::try_from(labels.suffix.len()).expect("shorter than its pattern");
                let bucket = self.glob_bucket(start + u32::from(len - suffix), suffix);
                if let Some(bucket) = self.globs.get_mut(bucket) {
                    bucket.push((id, labels.clone()));
                }
            }
        }
        id
    }

    /// Number of patterns.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.patterns.len()
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    #[must_use]
    pub fn text(&self, id: PatternId) -> &str {
        self.entry(id).map_or("", |e| self.slice(e.start, e.len))
    }

    #[must_use]
    pub fn rule(&self, id: PatternId) -> u32 {
        self.entry(id).map_or(NONE, |e| e.rule)
    }

    /// Calls `hit` with every pattern that matches the name, in no particular order.
    pub fn matches(&self, name: &HostName, mut hit: impl FnMut(PatternId)) {
        self.any.iter().for_each(|id| hit(*id));
        let whole = name.as_str();
        for (depth, suffix) in name.suffixes().enumerate() {
            let Some(key) = self.key(suffix) else { continue };
            self.walk(key.bare_and_under, &mut hit);
            if depth == 0 {
                self.walk(key.exact, &mut hit);
                continue;
            }
            self.walk(key.under, &mut hit);
            // Without the dot before the suffix.
            let front = whole.get(..whole.len() - suffix.len() - 1).unwrap_or_default();
            let bucket = self.globs.get(key.globs as usize).map_or(&[][..], Vec::as_slice);
            bucket.iter().filter(|(_, labels)| labels.fit(front)).for_each(|(id, _)| hit(*id));
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
            let Some(key) = ending.get(start..).and_then(|suffix| self.key(suffix)) else { continue };
            self.walk(key.bare_and_under, &mut hit);
            if start > 0 || !matches!(pattern.shape(), Shape::Under { bare_too: true }) {
                self.walk(key.under, &mut hit);
            }
        }
    }

    /// Patterns that hang at or above the name without matching it: the material of `nearest`.
    pub(super) fn near(&self, name: &HostName, mut hit: impl FnMut(PatternId)) {
        for (depth, suffix) in name.suffixes().enumerate() {
            let Some(key) = self.key(suffix) else { continue };
            self.walk(if depth == 0 { key.under } else { key.exact }, &mut hit);
            self.globs.get(key.globs as usize).into_iter().flatten().for_each(|(id, _)| hit(*id));
        }
    }

    fn walk(&self, head: PatternId, hit: &mut impl FnMut(PatternId)) {
        let mut at = head;
        while let Some(entry) = self.entry(at) {
            hit(at);
            at = entry.next;
        }
    }

    fn entry(&self, id: PatternId) -> Option<&Entry> {
        self.patterns.get(id as usize)
    }

    fn slice(&self, start: u32, len: u16) -> &str {
        slice(&self.text, start, len)
    }

    fn key(&self, suffix: &str) -> Option<&Key> {
        let hash = self.hasher.hash_one(suffix);
        self.table.find(hash, |key| self.slice(key.start, key.len) == suffix)
    }

    fn hang(&mut self, id: PatternId, start: u32, len: u16, list: List) {
        let key = Self::slot(&mut self.table, &self.text, &self.hasher, start, len);
        let head = match list {
            List::Exact => &mut key.exact,
            List::Under => &mut key.under,
            List::BareAndUnder => &mut key.bare_and_under,
        };
        let next = std::mem::replace(head, id);
        if let Some(entry) = self.patterns.get_mut(id as usize) {
            entry.next = next;
        }
    }

    fn glob_bucket(&mut self, start: u32, len: u16) -> usize {
        let fresh = u32::try_from(self.globs.len()).expect("fewer buckets than patterns");
        let key = Self::slot(&mut self.table, &self.text, &self.hasher, start, len);
        if key.globs == NONE {
            key.globs = fresh;
            self.globs.push(Vec::new());
        }
        key.globs as usize
    }

    fn slot<'a>(table: &'a mut HashTable<Key>, text: &str, hasher: &RandomState, start: u32, len: u16) -> &'a mut Key {
        let wanted = slice(text, start, len);
        let fresh = Key { start, len, exact: NONE, under: NONE, bare_and_under: NONE, globs: NONE };
        table
            .entry(
                hasher.hash_one(wanted),
                |key| slice(text, key.start, key.len) == wanted,
                |key| hasher.hash_one(slice(text, key.start, key.len)),
            )
            .or_insert(fresh)
            .into_mut()
    }
}

fn slice(text: &str, start: u32, len: u16) -> &str {
    let start = start as usize;
    text.get(start..start + usize::from(len)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::pattern::naive;
    use super::*;
    use proptest::prelude::*;

    fn index(patterns: &[&str]) -> HostIndex {
        let mut index = HostIndex::default();
        for pattern in patterns {
            index.add(&Pattern::parse(pattern).unwrap(), 0);
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
        index.matches(&HostName::from_wire(b"a.b.example").unwrap(), |id| hits.push(id));
        hits.sort_unstable();
        assert_eq!(hits, [0, 1, 2, 3, 4, 5]);
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
            for pattern in &patterns {
                index.add(pattern, 0);
            }
            for labels in names {
                let name = HostName::from_wire(labels.join(".").as_bytes()).unwrap();
                let mut hits = Vec::new();
                index.matches(&name, |id| hits.push(id as usize));
                hits.sort_unstable();
                let naive: Vec<usize> = (0..patterns.len()).filter(|i| naive::matches(&patterns[*i], &name)).collect();
                prop_assert_eq!(&hits, &naive, "{} against {:?}", name, patterns.iter().map(Pattern::as_str).collect::<Vec<_>>());
            }
        }
    }
}
