//! What does an access line cost a connection's thread, from accept to close?
//!
//! `cargo bench --bench record`.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot build its input has nothing to measure")]

#[path = "../crates/core/benches/cases/samples.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with other benchmarks")]
mod samples;

use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};

use egret::metrics::Metrics;
use egret::record::settings::{LogAccess, LogFormat, LogOutput, LogOverflow, LogSettings};
use egret::record::{AccessLog, LogSender};
use egret_core::outcome::Ending;
use egret_core::wire::Sighting;
use samples::{answers, claim, hello, sight};

/// An access line, from accept to close, without the thread that writes it.
fn recording(c: &mut Criterion) {
    let output = LogOutput::File("/dev/null".into());
    let settings = LogSettings {
        format: LogFormat::Json,
        output,
        access: LogAccess::All,
        overflow: LogOverflow::Drop,
        net_all: false,
        open: None,
        empty: false,
    };
    let metrics = Arc::new(Metrics::default());
    let (sender, _writer) = LogSender::start(&settings, Arc::clone(&metrics)).unwrap();
    let access_log = Arc::new(AccessLog::new(sender, metrics));
    let (listener, claim, sighting) = (Arc::from("sni:[::]:8443"), claim(), Sighting::Tls(Box::new(sight(&hello()))));
    let answers = answers();
    c.bench_function("an access line", |b| {
        b.iter(|| {
            let mut record = access_log.open(&listener, claim.client);
            record.claim(&claim);
            record.sighting(&sighting);
            record.answers(&answers);
            record.upstream("192.0.2.7:443".parse().unwrap());
            record.close(Ending::Closed);
        });
    });
}

criterion_group!(benches, recording);
criterion_main!(benches);
