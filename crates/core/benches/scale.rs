//! What do a look-up, a build and a pattern cost at ten thousand patterns, a hundred thousand and a million? And
//! with globset alone, `RegexSet`, `fst` and aho-corasick on the same list?
//!
//! `cargo bench --bench scale`, with `EGRET_MATCH_LISTS` naming files of real names (one a line) to measure too.
//!
//! Names are asked for in random order, so that nothing but the queries themselves is in a cache. Each line is a
//! process of its own, so that memory is its growth.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark's input is its own"
)]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};
use egret_core::name::HostName;
use egret_core::policy::hosts::HostIndex;
use egret_core::rule::pattern::Pattern;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use regex::RegexSet;

/// Look-ups of one measurement.
const ASKED: usize = 1 << 18;

struct List {
    what: String,
    patterns: Vec<String>,
    listed: Vec<HostName>,
    unlisted: Vec<HostName>,
}

impl List {
    /// `exact 1000`, or a file and what to make of its names.
    fn of(kind: &str, count: usize) -> Self {
        let exact = |n| format!("{}.{}.example", word(n), word(n % 977));
        let suffix = |n| format!("*.{}.test", word(n));
        let all = |pattern: &dyn Fn(usize) -> String| (0..count).map(pattern).collect::<Vec<_>>();
        let read = |file: &str| {
            let text = fs::read_to_string(file).unwrap();
            text.lines().map(str::trim).filter(|line| Pattern::parse(line).is_ok()).map(str::to_owned).collect()
        };
        let patterns: Vec<String> = match kind.split_once(':') {
            Some(("exact", file)) => read(file),
            Some((_, file)) => read(file).iter().map(|name: &String| format!("*.{name}")).collect(),
            None if kind == "exact" => all(&exact),
            None if kind == "suffix" => all(&suffix),
            None if kind == "mixed" => all(&|n| if n % 9 < 5 { exact(n) } else { suffix(n) }),
            None if kind == "star" => all(&|n| format!("md-*.{}.example", word(n))),
            None => all(&|n| format!("{}-*.blob.example", word(n))),
        };
        let mut order: Vec<usize> = (0..ASKED).map(|n| n % patterns.len()).collect();
        shuffle(&mut order);
        let names = |make: &dyn Fn(&str) -> String| -> Vec<HostName> {
            order.iter().map(|n| HostName::from_wire(make(&patterns[*n]).as_bytes()).unwrap()).collect()
        };
        let listed = names(&filled);
        // One letter is another one.
        let other = |text: &str| format!("{}{}", if text.starts_with('x') { 'y' } else { 'x' }, &text[1..]);
        let unlisted = names(&|pattern| match pattern.split_once("*.") {
            Some((front @ ("" | "md-"), rest)) => filled(&format!("{front}*.{}", other(rest))),
            _ => other(&filled(pattern)),
        });
        // Real lists have neighbours that differ by one letter.
        let known: HashSet<&str> = patterns.iter().map(String::as_str).collect();
        let is_known = |name: &HostName| {
            let above = name.suffixes().skip(1).any(|suffix| known.contains(format!("*.{suffix}").as_str()));
            above || known.contains(name.as_str())
        };
        let unlisted = unlisted.into_iter().filter(|name| !is_known(name)).collect();
        let kind = kind.split_once(':').map_or_else(
            || kind.to_owned(),
            |(kind, file)| format!("{kind} {}", file.rsplit('/').next().unwrap_or(file)),
        );
        Self { what: format!("{kind} ({})", patterns.len()), patterns, listed, unlisted }
    }
}

/// xorshift64*, with a fixed seed: every run asks in the same order.
fn shuffle<T>(items: &mut [T]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..items.len()).rev() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let draw = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        items.swap(at, usize::try_from(draw % (at as u64 + 1)).unwrap());
    }
}

/// Letters that look like a name and are not in order.
fn word(n: usize) -> String {
    let mut state = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut letter = || {
        state = state.rotate_left(23).wrapping_mul(0xd134_2543_de82_ef95);
        char::from(b'a' + u8::try_from(state >> 40 & 0xff).unwrap() % 26)
    };
    let front: String = (0..6).map(|_| letter()).collect();
    format!("{front}{n}")
}

fn filled(pattern: &str) -> String {
    match pattern.strip_prefix("*.") {
        Some(rest) => format!("www.{rest}"),
        None => pattern.replace('*', "q7"),
    }
}

fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
}

struct Cost {
    build: Duration,
    bytes: usize,
    hit: f64,
    miss: f64,
}

/// Builds once, then asks for every name: nanoseconds each, the best of three passes.
fn cost<T>(list: &List, build: impl FnOnce() -> T, matches: impl Fn(&T, &HostName) -> bool) -> Cost {
    let before = resident();
    let begun = Instant::now();
    let built = build();
    let took = begun.elapsed();
    let bytes = resident().saturating_sub(before);
    let of = |names: &[HostName], wanted: bool| {
        // What is slow is asked less often.
        let begun = Instant::now();
        let few = &names[..names.len().min(256)];
        few.iter().for_each(|name| assert_eq!(matches(&built, name), wanted, "{name} in {}", list.what));
        let names = if begun.elapsed() > Duration::from_millis(20) { few } else { names };
        let pass = |_| {
            let begun = Instant::now();
            let found = names.iter().filter(|name| matches(&built, black_box(name))).count();
            assert_eq!(found, if wanted { names.len() } else { 0 }, "{}", list.what);
            begun.elapsed().as_secs_f64() * 1e9 / names.len() as f64
        };
        (0..3).map(pass).fold(f64::INFINITY, f64::min)
    };
    let (hit, miss) = (of(&list.listed, true), of(&list.unlisted, false));
    Cost { build: took, bytes, hit, miss }
}

fn report(list: &List, matcher: &str, cost: &Cost) {
    println!(
        "{:<28} {matcher:<14} build {:>7.3} s {:>7.1} B/pattern   listed {:>9.1} ns   unlisted {:>9.1} ns",
        list.what,
        cost.build.as_secs_f64(),
        cost.bytes as f64 / list.patterns.len() as f64,
        cost.hit,
        cost.miss
    );
}

fn egret(list: &List) {
    let parsed: Vec<Pattern> = list.patterns.iter().map(|text| Pattern::parse(text).unwrap()).collect();
    let bytes = list.patterns.iter().map(String::len).sum();
    let build = || {
        let mut index = HostIndex::with_capacity(parsed.len(), bytes);
        for (rule, pattern) in (0..).zip(&parsed) {
            index.add(pattern, rule);
        }
        index
    };
    let matches = |index: &HostIndex, name: &HostName| {
        let mut found = false;
        index.matches(name, |_| found = true);
        found
    };
    report(list, "egret", &cost(list, build, matches));
}

/// The same probes into a map of the standard library, with the same hash.
fn with_hash_map(list: &List) {
    let build = || {
        let key =
            |(rule, pattern): (u32, &String)| (Box::<str>::from(pattern.strip_prefix('*').unwrap_or(pattern)), rule);
        (0..).zip(&list.patterns).map(key).collect::<HashMap<_, _, foldhash::fast::RandomState>>()
    };
    let matches = |map: &HashMap<Box<str>, u32, _>, name: &HostName| {
        let name = name.as_str();
        // All of them: a rule that denies may hang above one that allows.
        let above = name.match_indices('.').filter(|(dot, _)| map.contains_key(&name[*dot..])).count();
        map.contains_key(name) || above > 0
    };
    report(list, "HashMap", &cost(list, build, matches));
}

/// A `*` inside labels for the others, which know no labels: as good as they can say it.
fn with_globset(list: &List) {
    let build = || {
        let mut set = GlobSetBuilder::new();
        for pattern in &list.patterns {
            set.add(GlobBuilder::new(pattern).build().unwrap());
        }
        set.build().unwrap()
    };
    let cost = cost(list, build, |set: &GlobSet, name| set.is_match(name.as_str()));
    report(list, "globset", &cost);
}

fn with_regex(list: &List) {
    let expression = |pattern: &String| match pattern.strip_prefix("*.") {
        Some(rest) => format!(r"\.{}$", regex::escape(rest)),
        None => format!("^{}$", regex::escape(pattern).replace(r"\*", "[a-z0-9_-]*")),
    };
    let build = || {
        let all = list.patterns.iter().map(expression);
        regex::RegexSetBuilder::new(all).size_limit(4 << 30).dfa_size_limit(64 << 20).unicode(false).build().unwrap()
    };
    let cost = cost(list, build, |set: &RegexSet, name| set.is_match(name.as_str()));
    report(list, "RegexSet", &cost);
}

/// Keys are read from the right; a key of an exact name ends in `\0`.
fn reversed(pattern: &str) -> Vec<u8> {
    match pattern.strip_prefix('*') {
        Some(rest) => rest.bytes().rev().collect(),
        None => pattern.bytes().rev().chain([0]).collect(),
    }
}

fn with_fst(list: &List) {
    let build = || {
        let mut keys: Vec<Vec<u8>> = list.patterns.iter().map(|pattern| reversed(pattern)).collect();
        keys.sort_unstable();
        keys.dedup();
        fst::Set::from_iter(keys).unwrap()
    };
    let matches = |set: &fst::Set<Vec<u8>>, name: &HostName| {
        let raw = set.as_fst();
        let mut node = raw.root();
        for byte in name.as_str().bytes().rev().chain([0]) {
            let Some(at) = node.find_input(byte) else { return false };
            node = raw.node(node.transition(at).addr);
            if node.is_final() && (byte == b'.' || byte == 0) {
                return true;
            }
        }
        false
    };
    report(list, "fst", &cost(list, build, matches));
}

fn with_aho_corasick(list: &List) {
    let build = || {
        let keys = list.patterns.iter().map(|pattern| reversed(pattern));
        let mut builder = AhoCorasick::builder();
        builder.start_kind(StartKind::Anchored).match_kind(MatchKind::LeftmostFirst).build(keys).unwrap()
    };
    let matches = |set: &AhoCorasick, name: &HostName| {
        let mut text = [0; 254];
        let len = name.as_str().len() + 1;
        text.iter_mut().zip(name.as_str().bytes().rev()).for_each(|(to, from)| *to = from);
        set.find(Input::new(&text[..len]).anchored(Anchored::Yes)).is_some()
    };
    report(list, "aho-corasick", &cost(list, build, matches));
}

fn one(kind: &str, count: &str, who: &str) {
    let list = List::of(kind, count.parse().unwrap());
    match who {
        "egret" => egret(&list),
        "HashMap" => with_hash_map(&list),
        "fst" => with_fst(&list),
        "aho-corasick" => with_aho_corasick(&list),
        "globset" => with_globset(&list),
        _ => with_regex(&list),
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [kind, count, who] = arguments.as_slice() {
        return one(kind, count, who);
    }
    // Where the others take minutes, or more memory than there is, they are left out.
    let endings: &[&str] = &["egret", "HashMap", "fst", "aho-corasick", "globset"];
    let everybody: &[&str] = &["egret", "HashMap", "fst", "aho-corasick", "globset", "RegexSet"];
    let globs: &[&str] = &["egret", "globset", "RegexSet"];
    let alone: &[&str] = &["egret"];
    let maps: &[&str] = &["egret", "HashMap"];
    let mut cases: Vec<(String, usize, &[&str])> = vec![
        ("mixed".into(), 10_000, everybody),
        ("mixed".into(), 100_000, everybody),
        ("mixed".into(), 1_000_000, endings),
        ("exact".into(), 1_000_000, maps),
        ("suffix".into(), 1_000_000, maps),
        ("star".into(), 1_000, globs),
        ("star".into(), 10_000, globs),
        ("star".into(), 1_000_000, alone),
        ("crowd".into(), 1_000, globs),
        ("crowd".into(), 1_000_000, alone),
    ];
    for file in std::env::var("EGRET_MATCH_LISTS").unwrap_or_default().split_whitespace() {
        cases.push((format!("exact:{file}"), 0, endings));
        cases.push((format!("suffix:{file}"), 0, alone));
    }
    for (kind, count, peers) in cases {
        for who in peers {
            let exe = std::env::current_exe().unwrap();
            assert!(Command::new(exe).args([&kind, &count.to_string(), *who]).status().unwrap().success());
        }
    }
}
