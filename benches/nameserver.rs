//! What a question of a DNS client costs: CPU per question from what is known and from servers, and questions a second, beside
//! dnsmasq, unbound and dnsdist, under the same load in one run, and the memory that each has then. egret filters by 100,000
//! names, the others do not filter.
//!
//! `cargo bench --bench nameserver`; `EGRET_ROUNDS=9` for more than three rounds, whose medians are printed. The servers
//! take turns on one core; the load has another one.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark that cannot set up has nothing to measure"
)]
#![allow(clippy::disallowed_methods, reason = "real time: real processes are measured")]
#![allow(unreachable_pub, reason = "modules of one benchmark")]

mod cost;
#[path = "../tests/missing/mod.rs"]
mod missing;
#[path = "../tests/e2e/support/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "the end-to-end tests use the rest")]
mod support;

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use cost::cpu_of;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use support::{ADMIN, Egret, Server, have, own_ip};

/// Names that are asked for, of those that are listed.
const ASKED: usize = 10_000;
const LISTED: usize = 100_000;
/// Questions of one round, and how many of them wait for their answers at once.
const QUESTIONS: usize = 300_000;
const AT_ONCE: usize = 200;

fn name(n: usize) -> String {
    format!("n{n}.host{}.example", n % 1000)
}

/// A question for a name's address, without its number.
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// Asks so many questions and waits for every answer; how long it took. A lost one is asked again.
fn ask(server: SocketAddr, questions: &[Vec<u8>], count: usize) -> Duration {
    let socket = UdpSocket::bind((own_ip(), 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let (begun, mut buffer) = (Instant::now(), [0; 1500]);
    let (mut sent, mut answered, mut packet) = (0, 0, Vec::new());
    while answered < count {
        while sent < count && sent - answered < AT_ONCE {
            packet.clone_from(&questions[sent % questions.len()]);
            packet[..2].copy_from_slice(&u16::try_from(sent % 65_536).unwrap().to_be_bytes());
            socket.send(&packet).unwrap();
            sent += 1;
        }
        match socket.recv(&mut buffer) {
            Ok(len) => {
                assert!(len > 12 && buffer[3] & 15 == 0 && buffer[7] == 1, "not an answer: {:02x?}", &buffer[..len]);
                answered += 1;
            }
            Err(_) => sent = answered,
        }
    }
    begun.elapsed()
}

/// Resident memory, in MiB.
fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    if !have(&["dnsmasq", "taskset"]) {
        std::process::exit(1);
    }
    let rounds = std::env::var("EGRET_ROUNDS").map_or(3, |n| n.parse().expect("EGRET_ROUNDS is a number"));
    let mut first = CpuSet::new();
    first.set(0).unwrap();
    sched_setaffinity(Pid::this(), &first).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |file: &str| folder.path().join(file).display().to_string();
    let mut hosts = String::new();
    (0..LISTED).for_each(|n| writeln!(hosts, "20.0.{}.{} {}", n / 250 % 250, n % 250 + 1, name(n)).unwrap());
    std::fs::write(path("hosts"), hosts).unwrap();
    let dnsmasq = |ip: std::net::IpAddr, more: &[&str]| {
        let mut command = Command::new("taskset");
        command.args(["-c", "1", "dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--bind-interfaces"]);
        command.args(["--pid-file=", "--port=5353"]).arg(format!("--listen-address={ip}")).args(more);
        Server::start(&mut command, SocketAddr::new(ip, 5353))
    };
    let (origin, peer, unbound_ip, own) = (own_ip(), own_ip(), own_ip(), own_ip());
    let _origin = dnsmasq(origin, &[&format!("--addn-hosts={}", path("hosts")), "--local-ttl=3000", "--cache-size=0"]);
    let peer_server =
        dnsmasq(peer, &[&format!("--server={origin}#5353"), "--cache-size=20000", "--dns-forward-max=5000"]);
    let names: String = (0..LISTED).map(|n| name(n) + "\n").collect();
    let config = format!(
        "listeners: [{{ kind: dns, bind: \"{own}:5353\" }}]\ndns: {{ upstreams: [\"{origin}:5353\"] }}\n\
         admin: {{ bind: \"{own}:{ADMIN}\" }}\npolicy:\n  application_rules:\n    \
         - {{ name: all, fqdns_file: names, protocols: [\"https:443\"] }}\n"
    );
    let egret = Egret::run_by(&["taskset", "-c", "1"], &config, own, &[("names", &names)], &[]);
    let mut servers = vec![("egret", own, egret.pid()), ("dnsmasq", peer, peer_server.0.id())];
    let unbound = have(&["unbound"]).then(|| {
        let text = format!(
            "server:\n port: 5353\n interface: {unbound_ip}\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n pidfile: \"\"\n \
             use-syslog: no\n num-threads: 1\n do-not-query-localhost: no\n module-config: \"iterator\"\n msg-cache-size: 64m\n \
             rrset-cache-size: 64m\n access-control: 127.0.0.0/8 allow\nforward-zone:\n name: \".\"\n forward-addr: {origin}@5353\n"
        );
        std::fs::write(path("unbound.conf"), text).unwrap();
        let mut command = Command::new("taskset");
        command.args(["-c", "1", "unbound", "-d", "-c", &path("unbound.conf")]);
        Server::start(&mut command, SocketAddr::new(unbound_ip, 5353))
    });
    servers.extend(unbound.as_ref().map(|unbound| ("unbound", unbound_ip, unbound.0.id())));
    let dnsdist_ip = own_ip();
    let dnsdist = have(&["dnsdist"]).then(|| {
        let text = format!(
            "setLocal('{dnsdist_ip}:5353')\nsetACL('127.0.0.0/8')\nnewServer({{address='{origin}:5353', healthCheckMode='up'}})\n\
             setMaxUDPOutstanding(65535)\ngetPool(''):setCache(newPacketCache(200000))\n"
        );
        std::fs::write(path("dnsdist.conf"), text).unwrap();
        let mut command = Command::new("taskset");
        command.args(["-c", "1", "dnsdist", "--supervised", "--disable-syslog", "-C", &path("dnsdist.conf")]);
        Server::start(&mut command, SocketAddr::new(dnsdist_ip, 5353))
    });
    servers.extend(dnsdist.as_ref().map(|dnsdist| ("dnsdist", dnsdist_ip, dnsdist.0.id())));
    let at_start: Vec<f64> = servers.iter().map(|(.., pid)| resident(*pid)).collect();
    let questions: Vec<Vec<u8>> = (0..ASKED).map(|n| question(&name(n))).collect();
    println!("{:8} {:>20} {:>20} {:>12}", "", "forwarded µs CPU", "from cache µs CPU", "a second");
    let mut cached: Vec<Vec<(f64, f64)>> = vec![Vec::new(); servers.len()];
    let mut forwarded = Vec::new();
    for (_, ip, pid) in &servers {
        let at = SocketAddr::new(*ip, 5353);
        let cpu = cpu_of(*pid, || {
            ask(at, &questions, ASKED);
        });
        forwarded.push(cpu * 1e6 / ASKED as f64);
    }
    for _ in 0..rounds {
        for ((_, ip, pid), cached) in servers.iter().zip(&mut cached) {
            let mut took = Duration::ZERO;
            let cpu = cpu_of(*pid, || took = ask(SocketAddr::new(*ip, 5353), &questions, QUESTIONS));
            cached.push((cpu * 1e6 / QUESTIONS as f64, QUESTIONS as f64 / took.as_secs_f64()));
        }
    }
    // Every name that is listed, and more than some of them keep.
    let all: Vec<Vec<u8>> = (0..LISTED).map(|n| question(&name(n))).collect();
    for (_, ip, _) in &servers {
        ask(SocketAddr::new(*ip, 5353), &all, LISTED);
    }
    let mut base = None;
    for (((server, ..), cached), forwarded) in servers.iter().zip(cached).zip(forwarded) {
        let cpu = median(cached.iter().map(|(cpu, _)| *cpu).collect());
        let rate = median(cached.iter().map(|(_, rate)| *rate).collect());
        let share = *base.get_or_insert(cpu) / cpu;
        println!("{server:8} {forwarded:20.1} {cpu:20.2} {rate:12.0}   egret's CPU is {share:.2} of it");
    }
    println!("\n{:8} {:>20} {:>20}", "", "MiB at the start", "after 100,000 names");
    for ((server, _, pid), before) in servers.iter().zip(at_start) {
        println!("{server:8} {before:20.1} {:20.1}", resident(*pid));
    }
}
