//! What does each step of a connection cost: peek, match, judge?
//!
//! `cargo bench --bench hot`; `scale` has the matcher beside others and at a million patterns.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot build its input has nothing to measure")]
#![allow(unreachable_pub, reason = "modules of one benchmark")]

mod cases;

use criterion::{Criterion, criterion_group, criterion_main};

fn hot(c: &mut Criterion) {
    for mut case in cases::deciding() {
        c.bench_function(case.name, |b| b.iter(&mut case.run));
    }
}

criterion_group!(benches, hot);
criterion_main!(benches);
