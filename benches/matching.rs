//! What does one look-up cost at ten, ten thousand and a hundred thousand patterns? And beside globset?
//!
//! `cargo bench --bench matching`

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot build its input has nothing to measure")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use egret::name::HostName;
use egret::policy::hosts::HostIndex;
use egret::policy::pattern::Pattern;
use globset::{Glob, GlobSetBuilder};

/// Half exact, half suffix, one in a hundred with a star inside a label.
fn patterns(count: usize) -> Vec<String> {
    let one = |n: usize| match n % 100 {
        0 => format!("md-*.zone{n}.example"),
        odd if odd % 2 == 1 => format!("host{n}.zone{}.example", n % 97),
        _ => format!("*.site{n}.test"),
    };
    (0..count).map(one).collect()
}

fn name(text: &str) -> HostName {
    HostName::from_wire(text.as_bytes()).unwrap()
}

fn hits(index: &HostIndex, name: &HostName) -> usize {
    let mut hits = 0;
    index.matches(name, |_| hits += 1);
    hits
}

fn matching(c: &mut Criterion) {
    let mut group = c.benchmark_group("match");
    for count in [10, 10_000, 100_000] {
        let patterns = patterns(count);
        let mut index = HostIndex::default();
        for pattern in &patterns {
            index.add(&Pattern::parse(pattern).unwrap(), 0);
        }
        let (listed, unlisted) = (name("a.b.site2.test"), name("www.nowhere.invalid"));
        assert_eq!((hits(&index, &listed), hits(&index, &unlisted)), (1, 0));
        group.bench_function(BenchmarkId::new("listed", count), |b| b.iter(|| hits(&index, black_box(&listed))));
        group.bench_function(BenchmarkId::new("unlisted", count), |b| b.iter(|| hits(&index, black_box(&unlisted))));
        if count > 10_000 {
            continue;
        }
        let mut set = GlobSetBuilder::new();
        for pattern in &patterns {
            set.add(Glob::new(pattern).unwrap());
        }
        let set = set.build().unwrap();
        group.bench_function(BenchmarkId::new("globset listed", count), |b| {
            b.iter(|| set.is_match(black_box(listed.as_str())));
        });
        group.bench_function(BenchmarkId::new("globset unlisted", count), |b| {
            b.iter(|| set.is_match(black_box(unlisted.as_str())));
        });
    }
}

criterion_group!(benches, matching);
criterion_main!(benches);
