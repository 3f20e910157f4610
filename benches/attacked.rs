//! How long an honest client waits while another one attacks: the median and the 99th of a hundred requests, beside the
//! same without the attacker, in one run. egret has a core of its own; everybody else shares another one.
//!
//! `cargo bench --bench attacked`; `EGRET_SECONDS=10` for longer than three seconds each.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark that cannot set up has nothing to measure"
)]
#![allow(clippy::disallowed_methods, reason = "real time: real processes are measured")]
#![allow(unreachable_pub, reason = "modules of one benchmark")]

#[path = "../tests/missing/mod.rs"]
mod missing;
#[path = "../tests/e2e/support/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "the end-to-end tests use the rest")]
mod support;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use support::crowd::{crowd, from, serving};
use support::dns::{Dns, Does};
use support::{ADMIN, Egret, have, own_ip, read_head};

const PORT: u16 = 23_900;
const ORIGIN: u16 = 10_080;
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 66, 6, 6);
const HONEST: Ipv4Addr = Ipv4Addr::new(127, 88, 0, 1);

/// What the attacker does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    Nothing,
    /// Allowed requests, whose connections stay.
    Idle,
    /// Names that no server answers for.
    SlowNames,
    /// Heads without an end.
    Heads,
    /// Connections to the pages.
    Visits,
}

fn get(name: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: {name}:{ORIGIN}\r\n\r\n")
}

fn main() {
    if !have(&["taskset", "prlimit"]) {
        std::process::exit(1);
    }
    let seconds = std::env::var("EGRET_SECONDS").map_or(3, |n| n.parse().expect("EGRET_SECONDS is a number"));
    let mut first = CpuSet::new();
    first.set(0).unwrap();
    sched_setaffinity(Pid::this(), &first).unwrap();
    let (dns, ip, own) = (Dns::start(), own_ip(), own_ip());
    dns.set("*", Does::Answer(vec![ip]));
    (0..9_000).for_each(|n| {
        dns.set(&format!("slow{n}.web.test"), Does::Silence);
    });
    let _origin = serving(SocketAddr::new(ip, ORIGIN));
    let config = format!(
        "listeners: [{{ kind: sni, bind: \"0.0.0.0:{PORT}\", port: {ORIGIN}, protocol: http }}]\n\
         dns: {{ upstreams: [\"{}\"], min_ttl: 0s }}\nlimits: {{ peek_memory: 16MiB }}\nlog: {{ access: refused }}\n\
         admin: {{ bind: \"{own}:{ADMIN}\" }}\nhealth: {{ bind: \"0.0.0.0:{}\" }}\npolicy:\n  application_rules:\n    \
         - {{ name: web, fqdns: [\".web.test\"], protocols: [\"http:{ORIGIN}\"], addresses: [\"127.0.0.0/8\"] }}\n",
        dns.address,
        PORT + 1
    );
    let mut base = None;
    for attack in [Attack::Nothing, Attack::Idle, Attack::SlowNames, Attack::Heads, Attack::Visits] {
        let egret = Egret::run_by(&["prlimit", "--nofile=8000", "taskset", "-c", "1"], &config, own, &[], &[]);
        let stop = AtomicBool::new(false);
        let mut times = std::thread::scope(|scope| {
            scope.spawn(|| attacks(attack, &stop));
            // Until what it takes is taken.
            std::thread::sleep(Duration::from_secs(u64::from(attack != Attack::Nothing)));
            let times = honest(Duration::from_secs(seconds));
            stop.store(true, Ordering::Relaxed);
            times
        });
        drop(egret);
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
        let (half, most) = (at(50), at(99));
        let (base_half, base_most) = *base.get_or_insert((half, most));
        println!(
            "{:<10} {:>6} requests, none refused: median {half:.2} ms ({:.1} times), p99 {most:.2} ms ({:.1} times), most {:.2} ms",
            format!("{attack:?}"),
            times.len(),
            half / base_half,
            most / base_most,
            times.last().unwrap().as_secs_f64() * 1e3
        );
    }
}

fn attacks(attack: Attack, stop: &AtomicBool) {
    let at = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let head = format!("GET / HTTP/1.1\r\nHost: a.web.test\r\nX: {}", "x".repeat(60_000)).into_bytes();
    let mut round = 0;
    let mut kept: Vec<Vec<TcpStream>> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let ip = IpAddr::V4(ATTACKER);
        kept.push(match attack {
            Attack::Nothing => return,
            Attack::Idle => crowd(ip, at(PORT), 100, |_| get("idle.web.test").into_bytes()),
            Attack::SlowNames => {
                crowd(ip, at(PORT), 100, |n| get(&format!("slow{}.web.test", round * 100 + n)).into_bytes())
            }
            Attack::Heads => crowd(ip, at(PORT), 20, |_| head.clone()),
            Attack::Visits => crowd(ip, at(PORT + 1), 100, |_| b"GET /re".to_vec()),
        });
        round = (round + 1) % 90;
        // As many as one client may have, and the oldest make room for new ones.
        if kept.len() > 30 {
            kept.remove(0);
        }
    }
}

/// How long each request took, one after the other, each on a connection of its own.
fn honest(time: Duration) -> Vec<Duration> {
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let asked = Instant::now();
        let mut stream = from(HONEST.into(), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT)).unwrap();
        stream.write_all(get(&format!("honest{}.web.test", times.len())).as_bytes()).unwrap();
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200"), "after {:?}: {head:?}", asked.elapsed());
        times.push(asked.elapsed());
    }
    times
}
