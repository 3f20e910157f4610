//! egret beside the proxies that people use for this today: the same hellos, rules, resolver and origins, in
//! turn, in one run, each proxy alone on one core and the load on another.
//!
//! `just bench-peers` installs the peers and runs all of it; `cargo bench --bench peers -- --quick` is a look.
//! What is charged is the CPU time of the proxy's process, from `/proc`; a table, JSON and an SVG chart say the
//! medians.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark that cannot set up has nothing to measure"
)]
#![allow(clippy::disallowed_methods, reason = "real time: real processes are measured")]
#![allow(unreachable_pub, reason = "modules of one benchmark")]

#[path = "../cost/mod.rs"]
mod cost;
mod load;
#[path = "../../tests/missing/mod.rs"]
mod missing;
mod peer;
mod report;
#[path = "../../tests/e2e/support/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "the end-to-end tests use the rest")]
mod support;

use std::collections::BTreeMap;

use load::{Mode, Origins};
use peer::{Kind, Peer, World};
use report::Results;

/// How much of everything.
#[derive(Clone, Copy)]
struct Size {
    rounds: usize,
    connections: usize,
    round_trips: usize,
    bulk_mib: u64,
    idle: usize,
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let only: Option<String> = std::env::args().skip_while(|argument| argument != "--only").nth(1);
    let size = if quick {
        Size { rounds: 3, connections: 2000, round_trips: 10_000, bulk_mib: 512, idle: 1000 }
    } else {
        Size { rounds: 5, connections: 5000, round_trips: 20_000, bulk_mib: 1024, idle: 7000 }
    };
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.is_here()).collect();
    for kind in Kind::ALL.into_iter().filter(|kind| !kinds.contains(kind)) {
        println!("{} is not on this machine, and not measured; `just bench-peers` installs it", kind.name());
    }
    // The load stays on the first core, the proxies are started on the second.
    peer::pin(std::process::id(), 0);
    let world = World::new();
    let origins = Origins::start(world.ip);
    let mut results = Results::default();
    let wants = |what: &str| only.as_deref().is_none_or(|only| what.contains(only));
    for (rules, lines) in [(10, false), (10, true), (100_000, false)] {
        let case = format!("{rules} rules, access lines {}", if lines { "on" } else { "off" });
        let peers: Vec<Peer> = kinds.iter().map(|kind| Peer::start(*kind, &world, rules, lines)).collect();
        let mut figures: BTreeMap<(&str, Kind), Vec<f64>> = BTreeMap::new();
        // Every measure once for warmth, uncounted; then each round takes every peer in turn.
        for round in 0..=size.rounds {
            for peer in &peers {
                let mut note = |what: &'static str, figure: f64| {
                    if round > 0 {
                        figures.entry((what, peer.kind)).or_default().push(figure);
                    }
                };
                let connections = if round == 0 { size.connections / 10 } else { size.connections };
                if wants("connection") {
                    let cpu = peer.cpu(|| load::connections(peer.at(Mode::Echo), connections, 16));
                    note("CPU per connection, µs", cpu * 1e6 / connections as f64);
                }
                if rules != 10 || lines {
                    continue;
                }
                if wants("latency") {
                    note("p99 of a new connection, µs", load::latency(peer.at(Mode::Echo), connections / 4));
                }
                if wants("trip") {
                    let cpu = load::open(peer.at(Mode::Echo), 100, |tunnels| {
                        peer.cpu(|| tunnels.round_trips(size.round_trips))
                    });
                    note("CPU per round trip, µs", cpu * 1e6 / size.round_trips as f64);
                }
                for (mode, what) in [(Mode::Down, "CPU per GiB down, ms"), (Mode::Up, "CPU per GiB up, ms")]
                    .into_iter()
                    .filter(|(_, what)| wants(what))
                {
                    let mib = if round == 0 { size.bulk_mib / 8 } else { size.bulk_mib };
                    let cpu = peer.cpu(|| load::bulk(peer.at(mode), mode, mib << 20));
                    note(what, cpu * 1e3 * 1024.0 / mib as f64);
                }
            }
        }
        if rules == 10 && !lines && wants("idle") {
            for peer in &peers {
                let before = peer.resident();
                let after = load::open(peer.at(Mode::Echo), size.idle, |_| peer.resident());
                let per_tunnel = (after - before) * 1024.0 / size.idle as f64;
                figures.entry(("memory per idle tunnel, bytes", peer.kind)).or_default().push(per_tunnel);
                figures.entry(("resident after that, KiB", peer.kind)).or_default().push(after);
            }
        }
        if !lines && wants("calls") {
            // At leisure, one after the other: what a busy moment lets a proxy do together differs from run to run.
            for peer in &peers {
                let count = 500;
                let calls = peer.system_calls(|| load::connections(peer.at(Mode::Echo), count, 1));
                figures.entry(("system calls per connection", peer.kind)).or_default().push(calls / count as f64);
            }
        }
        if !lines && wants("instructions") {
            let (few, many) = (200, 1200);
            let [few_take, many_take] = [few, many].map(|count| peer::instructions(&world, rules, count));
            let each = (many_take - few_take) / (many - few) as f64;
            figures.entry(("instructions of egret per connection", Kind::Egret)).or_default().push(each);
        }
        if rules == 10 && !lines && wants("latency") {
            let direct =
                (0..size.rounds).map(|_| load::latency(origins.address(Mode::Echo).into(), size.connections / 4));
            figures.insert(("p99 of a new connection, µs", Kind::Direct), direct.collect());
        }
        results.add(&case, figures);
    }
    print!("{}\n{}", Results::machine(), results.table());
    if !quick && only.is_none() {
        results.write();
    }
}
