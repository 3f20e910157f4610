//! What the kernel's rules cost: a whole table, one address more, and a reload that changes little; beside `nft`
//! doing the same. In a network namespace of its own; needs root and nft.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use egret::app::plan;
use egret::config::Settings;
use egret::netfilter::plan::RuleSets;
use egret::netfilter::{self, LiveTable, names};
use egret_core::learned::{Known, Learned};
use egret_core::policy::SteeredNames;

const STATIC: u32 = 50_000;
const LEARNED: u32 = 20_000;
const DAY: Duration = Duration::from_secs(86_400);

/// A policy with so many prefixes, apart from each other, and names with so many addresses.
fn settings(skip: u32) -> Settings {
    let mut text = "listeners: [{ kind: transparent, bind: \"[::]:3129\", capture: tproxy }]\n\
                    netfilter: { clients: [10.224.0.0/16] }\npolicy:\n  network_rules:\n    - name: static\n      protocols: [\"tcp:9000\"]\n      destinations:\n"
        .to_owned();
    for n in (0..STATIC).filter(|n| *n >= skip) {
        let _ = writeln!(text, "        - {}/32", Ipv4Addr::from(0x1400_0000 + n * 2));
    }
    for n in 0..LEARNED / 1000 {
        let _ = writeln!(text, "    - {{ name: learned{n}, fqdns: [n{n}.example], protocols: [\"udp:123\"] }}");
    }
    Settings::parse(&text, "bench", Path::new(".")).expect("a policy")
}

/// A thousand addresses for each name.
fn learned(settings: &Settings) -> Learned {
    let learned = Learned::new(DAY);
    let names = settings.rules.nets.iter().flat_map(|rule| &rule.kept);
    learned.keep(names.clone().cloned(), |_, _| true, now());
    for (n, name) in (0..).zip(names) {
        let ip = |k: u32| IpAddr::from(Ipv4Addr::from(0x3000_0000 + n * 1000 + k));
        learned.learn(name, &(0..1000).map(ip).collect::<Vec<_>>(), now());
    }
    learned
}

fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begun = tokio::time::Instant::now();
    let out = work();
    (out, begun.elapsed())
}

fn nft(text: &str) {
    use std::io::Write as _;
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("nft reads");
    assert!(child.wait().expect("nft").success());
}

fn main() {
    if !nix::unistd::Uid::effective().is_root() || Command::new("nft").arg("--version").output().is_err() {
        let all = std::env::var_os("EGRET_TEST_ALL").is_some_and(|v| v == "1");
        assert!(!all, "EGRET_TEST_ALL=1 and root or nft is missing");
        eprintln!("*** DID NOT RUN: root or nft is missing ***");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|status| status.success()), "loopback");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let settings_of_start = settings(0);
    let learned = Arc::new(learned(&settings_of_start));
    let plan = plan::next_hop(&settings_of_start, Known::at(&learned, now())).expect("a plan");
    let ((), apply) = timed(|| drop(netfilter::apply(&plan).expect("applied")));
    println!("apply {STATIC} static and {LEARNED} learned elements: {apply:.2?} (of 2 s)");

    let kernel = LiveTable::new(plan, Arc::clone(&learned)).expect("the table");
    println!("the first look, which fills the sets: {:.2?}", timed(|| kernel.look().expect("in place")).1);
    let rounds = 20;
    let name =
        settings_of_start.rules.nets.iter().find(|rule| &*rule.name == "learned7").and_then(|rule| rule.kept.first());
    let name = name.expect("a name");
    let ((), learn) = timed(|| {
        for n in 0..rounds {
            let ip = IpAddr::from(Ipv4Addr::from(0x5000_0000 + n));
            learned.learn(name, &[ip], now());
            runtime.block_on(kernel.follow(name)).expect("learned");
        }
    });
    let learn = learn / rounds;
    let set = names::set_name("allow", 8, "learned4");
    let ((), spawned) = timed(|| {
        for n in 0..20 {
            let ip = Ipv4Addr::from(0x5100_0000 + n);
            nft(&format!("add element inet egret {set} {{ {ip} timeout 1d }}"));
        }
    });
    let spawned = spawned / 20;
    println!(
        "one learned address: {learn:.2?} (of 500 µs); by nft {spawned:.2?}, {:.0} times as much",
        spawned.as_secs_f64() / learn.as_secs_f64()
    );

    // Ten prefixes go, and come back.
    let filters = [10, 0].map(|skip| {
        let rules = settings(skip).rules;
        RuleSets::of(&rules.apps, &rules.nets, rules.nat64, &SteeredNames::default(), Known::at(&learned, now()))
    });
    let mut worst = Duration::ZERO;
    for filter in filters.iter().cycle().take(10) {
        let ((), reload) = timed(|| {
            let narrowed = runtime.block_on(kernel.narrow(filter.clone())).expect("narrowed");
            runtime.block_on(kernel.widen(narrowed)).expect("widened");
        });
        worst = worst.max(reload);
    }
    println!("a reload that changes 10 elements, the longest of ten: {worst:.2?} (of 50 ms)");
    println!("look whether the rules stand: {:.2?}", timed(|| kernel.look().expect("in place")).1);
}
