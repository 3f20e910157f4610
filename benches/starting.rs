//! How long from process start to an answer: with the whole rule set `aks`, with a hundred thousand prefixes,
//! and with Microsoft's real file of service tags where one is at hand (`EGRET_TAGS=FILE`).
//!
//! `cargo bench --bench starting`

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot build its input has nothing to measure")]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use criterion::{Criterion, criterion_group, criterion_main};
use ipnet::IpNet;

use egret_core::rule::prefixes::PrefixSet;

fn explain(config: &Path, target: &str) {
    let status = Command::new(env!("CARGO_BIN_EXE_egret"))
        .args(["explain", "--config"])
        .arg(config)
        .arg(target)
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success(), "{target} should be allowed");
}

fn config(folder: &Path, name: &str, policy: &str) -> std::path::PathBuf {
    let file = folder.join(name);
    let text = format!("listeners: [{{ kind: forward, bind: \"127.0.0.1:3128\" }}]\npolicy: {{ {policy} }}\n");
    std::fs::write(&file, text).unwrap();
    file
}

fn starting(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let features: Vec<&str> = egret::bundle::named("aks").unwrap().features.keys().map(String::as_str).collect();
    let whole = format!("bundles: [{{ bundle: aks, location: westeurope, features: {features:?} }}]");
    let mut group = c.benchmark_group("explain from process start");
    group.sample_size(20);
    let file = config(folder.path(), "whole.yaml", &whole);
    group.bench_function("whole bundle", |b| b.iter(|| explain(&file, "https://mcr.microsoft.com")));
    let nets: Vec<String> = (0..100_000u32).map(|n| format!("{}/28", Ipv4Addr::from(0x1400_0000 + (n << 5)))).collect();
    let many = format!("network_rules: [{{ name: many, destinations: {nets:?}, protocols: [\"udp:5000\"] }}]");
    let file = config(folder.path(), "many.yaml", &many);
    group.bench_function("100 000 prefixes", |b| b.iter(|| explain(&file, "udp://20.0.0.1:5000")));
    if let Some(tags) = std::env::var_os("EGRET_TAGS") {
        std::fs::copy(tags, folder.path().join("tags.json")).unwrap();
        let tagged = "service_tags: tags.json, bundles: [{ bundle: aks, location: westeurope, konnectivity: false }]";
        let file = config(folder.path(), "tags.yaml", tagged);
        group.bench_function("real service tags", |b| b.iter(|| explain(&file, "https://mcr.microsoft.com")));
    }
    group.finish();

    let mut group = c.benchmark_group("prefixes");
    let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
    group.bench_function("build 100 000", |b| b.iter(|| nets.iter().copied().collect::<PrefixSet>()));
    let set: PrefixSet = nets.iter().copied().collect();
    // Addresses far apart, so that no two look-ups in a row share a path.
    let mut at = 0u32;
    let mut next = move || {
        at = at.wrapping_add(2_654_435_769);
        IpAddr::V4(Ipv4Addr::from(0x1400_0000 + (at >> 10)))
    };
    group.bench_function("look-up in 100 000", |b| b.iter(|| set.contains(next())));
    group.finish();
}

criterion_group!(benches, starting);
criterion_main!(benches);
