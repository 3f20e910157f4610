//! The world around two next hops, as a list of roles.
//!
//! ```text
//!  client ── fabric ══ hop1, hop2 ══ internet ── outside
//!               └───────── DNS ─────────┘
//! ```
//!
//! The fabric's default route leads to both hops, by five-tuple; DNS goes around them, through a caching forwarder, as it
//! does on Azure. On the internet are origins, a decoy that nobody may reach, and a partner.

use std::fs::File;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

use crate::support::dns::Dns;
use crate::support::origin::{Authority, Nginx};
use crate::support::{Server, eventually, have, missing, pause, run};

pub const CLIENT: &str = "10.224.0.10";
pub const CLIENT6: &str = "fd00:224::10";
pub const FORWARDER: &str = "10.224.0.1";
pub const HOP1: &str = "10.225.1.4";
pub const HOP1_WAN: &str = "20.50.1.4";
pub const ORIGIN: &str = "20.60.1.1";
pub const OTHER: &str = "20.60.1.2";
pub const ORIGIN6: &str = "2a01:60::1";
pub const DECOY: &str = "20.60.6.6";
pub const DECOY6: &str = "2a01:60::6";
pub const PARTNER: &str = "20.60.3.3";
pub const PARTNER6: &str = "2a01:60::3";
pub const API_SERVER: &str = "20.60.9.9";
pub const DNS: &str = "10.226.0.53";
pub const OUTSIDER: &str = "20.70.0.9";

const SETUP: &[(&str, &[&str])] = &[
    (
        "client",
        &[
            "link add eth0 type veth peer name cl0 netns FABRIC",
            "addr add 10.224.0.10/24 dev eth0",
            "addr add fd00:224::10/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 10.224.0.1",
            "route add default via fd00:224::1",
        ],
    ),
    (
        "fabric",
        &[
            "link add h1 type veth peer name lan netns HOP1",
            "link add h2 type veth peer name lan netns HOP2",
            "link add dns0 type veth peer name dns0 netns INTERNET",
            "addr add 10.224.0.1/24 dev cl0",
            "addr add fd00:224::1/64 dev cl0 nodad",
            "addr add 10.225.1.1/24 dev h1",
            "addr add fd00:2251::1/64 dev h1 nodad",
            "addr add 10.225.2.1/24 dev h2",
            "addr add fd00:2252::1/64 dev h2 nodad",
            "addr add 10.226.0.1/24 dev dns0",
            "link set cl0 up",
            "link set h1 up",
            "link set h2 up",
            "link set dns0 up",
            "route add default via fd00:2251::4",
        ],
    ),
    (
        "hop1",
        &[
            "link add wan type veth peer name w1 netns INTERNET",
            "addr add 10.225.1.4/24 dev lan",
            "addr add fd00:2251::4/64 dev lan nodad",
            "addr add 20.50.1.4/24 dev wan",
            "addr add 2a01:50:1::4/64 dev wan nodad",
            "link set lan up",
            "link set wan up",
            "route add 10.224.0.0/16 via 10.225.1.1",
            "route add fd00:224::/64 via fd00:2251::1",
            "route add default via 20.50.1.1",
            "route add default via 2a01:50:1::1",
        ],
    ),
    (
        "hop2",
        &[
            "link add wan type veth peer name w2 netns INTERNET",
            "addr add 10.225.2.4/24 dev lan",
            "addr add 20.50.2.4/24 dev wan",
            "link set lan up",
            "link set wan up",
            "route add 10.224.0.0/16 via 10.225.2.1",
            "route add default via 20.50.2.1",
        ],
    ),
    (
        "internet",
        &[
            "link add o0 type veth peer name eth0 netns OUTSIDE",
            "addr add 20.50.1.1/24 dev w1",
            "addr add 2a01:50:1::1/64 dev w1 nodad",
            "addr add 20.50.2.1/24 dev w2",
            "addr add 10.226.0.53/24 dev dns0",
            "addr add 20.70.0.1/24 dev o0",
            "addr add 20.60.1.1/32 dev lo",
            "addr add 20.60.1.2/32 dev lo",
            "addr add 20.60.6.6/32 dev lo",
            "addr add 20.60.3.3/32 dev lo",
            "addr add 20.60.9.9/32 dev lo",
            "addr add 2a01:60::1/128 dev lo",
            "addr add 2a01:60::3/128 dev lo",
            "addr add 2a01:60::6/128 dev lo",
            "link set w1 up",
            "link set w2 up",
            "link set dns0 up",
            "link set o0 up",
        ],
    ),
    ("outside", &["addr add 20.70.0.9/24 dev eth0", "link set eth0 up", "route add default via 20.70.0.1"]),
];

/// The namespaces, and what runs in them for every test.
pub struct World {
    prefix: String,
    pub dns: Dns,
    pub authority: Authority,
    _servers: Vec<Server>,
    _nginx: Vec<Nginx>,
}

/// Which of the hops the fabric's route leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Through {
    One,
    Both,
}

impl World {
    /// Builds it, or says what it lacks.
    pub fn build(through: Through) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            missing("root");
            return None;
        }
        if !have(&["nft", "ip", "tcpdump", "curl", "openssl", "nginx", "dnsmasq", "conntrack"]) {
            return None;
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("egret{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // From here on a panic leaves no namespace behind.
        let spaces = Spaces(prefix.clone());
        for (role, _) in SETUP {
            ip(&["netns", "add", &format!("{prefix}-{role}")]);
            ip(&["-n", &format!("{prefix}-{role}"), "link", "set", "lo", "up"]);
        }
        for (role, lines) in SETUP {
            let roles = ["CLIENT", "FABRIC", "HOP1", "HOP2", "INTERNET", "OUTSIDE"];
            let named = |line: &str| {
                roles.iter().fold(line.to_owned(), |line, role| {
                    line.replace(&format!("netns {role}"), &format!("netns {prefix}-{}", role.to_lowercase()))
                })
            };
            let batch: String = lines.iter().map(|line| format!("{}\n", named(line))).collect();
            batched(&format!("{prefix}-{role}"), &batch);
        }
        std::mem::forget(spaces);
        let authority = Authority::new();
        let at = |role: &str| format!("{prefix}-{role}");
        inside(&at("fabric"), || {
            for (path, value) in [
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/ipv4/fib_multipath_hash_policy", "1"),
            ] {
                set(path, value);
            }
            let ways: &[&str] = match through {
                Through::One => &["route", "add", "default", "via", HOP1],
                Through::Both => &["route", "add", "default", "nexthop", "via", HOP1, "nexthop", "via", "10.225.2.4"],
            };
            ip(ways);
        });
        inside(&at("internet"), || set("net/ipv4/ip_forward", "1"));
        let dns = inside(&at("internet"), || Dns::at("0.0.0.0:53".parse().unwrap()));
        let forwarder = inside(&at("fabric"), || {
            let mut command = Command::new("dnsmasq");
            command.args([
                "--no-daemon",
                "--no-resolv",
                "--no-hosts",
                "--cache-size=1000",
                "--log-facility=-",
                "--pid-file=",
            ]);
            command.arg(format!("--server={DNS}")).args(["--listen-address", FORWARDER, "--bind-interfaces"]);
            Server::start(&mut command, format!("{FORWARDER}:53").parse().unwrap())
        });
        let names = ["a.example", "b.example", "api.example"];
        let nginx = inside(&at("internet"), || {
            let web = |ip: &str| Nginx::start(&authority, ip.parse().unwrap(), 443, 80, &names, "");
            vec![web(ORIGIN), web(ORIGIN6), web(DECOY), web(API_SERVER)]
        });
        inside(&at("internet"), || {
            for ip in [PARTNER, PARTNER6, DECOY, DECOY6, ORIGIN6] {
                let ip: IpAddr = ip.parse().unwrap();
                [22, 8443, 9000, 9001].into_iter().for_each(|port| echo_tcp(ip, port));
                [123, 443, 1194].into_iter().for_each(|port| echo_udp(ip, port));
            }
        });
        dns.answer("a.example", &[ORIGIN, ORIGIN6]).answer("b.example", &[OTHER]).answer("api.example", &[API_SERVER]);
        Some(Self { prefix, dns, authority, _servers: vec![forwarder], _nginx: nginx })
    }

    /// curl as a client whose DNS is the network's, which knows nothing of egret.
    pub fn curl(&self, args: &[&str]) -> std::process::Output {
        let mut all = vec!["curl", "-sS", "--max-time", "20", "--noproxy", ""];
        all.extend(args);
        self.with_resolver(&format!("nameserver {FORWARDER}\n"), &all)
    }

    /// Runs a program as a client with this resolv.conf(5).
    pub fn with_resolver(&self, conf: &str, command: &[&str]) -> std::process::Output {
        let resolver = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(resolver.path(), conf).unwrap();
        let path = resolver.path().display();
        let script = format!("mount --bind {path} $(readlink -f /etc/resolv.conf) && exec \"$@\"");
        let mut all = vec!["-m", "sh", "-c", &script, "sh"];
        all.extend(command);
        self.at("client", || run("unshare", &all))
    }

    /// Does something as one of the roles: its sockets and the programs it starts live there.
    pub fn at<T: Send>(&self, role: &str, work: impl FnOnce() -> T + Send) -> T {
        inside(&format!("{}-{role}", self.prefix), work)
    }

    /// Puts a file where the web server at an address finds it.
    pub fn nginx(&self, at: &str, name: &str, bytes: &[u8]) {
        let web = [ORIGIN, ORIGIN6, DECOY, API_SERVER].iter().position(|ip| *ip == at).unwrap();
        std::fs::write(self._nginx[web].root.path().join(name), bytes).unwrap();
    }

    /// Everything that reaches the internet from the hops, from now on.
    pub fn capture(&self) -> Capture {
        let file = tempfile::NamedTempFile::new().unwrap();
        let child = self.at("internet", || {
            let mut command = Command::new("tcpdump");
            command
                .args(["-i", "any", "-n", "-U", "--immediate-mode", "-s", "256", "-Z", "root", "-w"])
                .arg(file.path());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        });
        // A file with its header is a capture that has begun.
        eventually("tcpdump captures", || file.path().metadata().is_ok_and(|m| m.len() >= 24));
        Capture { child, file }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self._servers.clear();
        self._nginx.clear();
        drop(Spaces(self.prefix.clone()));
    }
}

struct Spaces(String);

impl Drop for Spaces {
    fn drop(&mut self) {
        for (role, _) in SETUP {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}-{role}", self.0)]).status();
        }
    }
}

/// A running capture.
pub struct Capture {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Capture {
    /// Ends it, and tells how many packets fit a filter of tcpdump's.
    pub fn packets(&mut self, filter: &str) -> Vec<String> {
        if matches!(self.child.try_wait(), Ok(None)) {
            // What has just passed is in the file once tcpdump has had a moment for it.
            (0..30).for_each(|_| pause());
            let _ = Command::new("kill").arg(self.child.id().to_string()).status();
            let _ = self.child.wait();
        }
        let mut command = Command::new("tcpdump");
        let output = command.args(["-n", "-r"]).arg(self.file.path()).arg(filter).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    /// Whether some bytes passed.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        std::fs::read(self.file.path()).unwrap().windows(bytes.len()).any(|window| window == bytes)
    }

    #[track_caller]
    pub fn saw_nothing(&mut self, filter: &str) {
        let packets = self.packets(filter);
        assert!(packets.is_empty(), "{filter}: {packets:#?}");
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let name = std::thread::current().name().unwrap_or("lab").to_owned();
    std::thread::scope(|scope| {
        let there = std::thread::Builder::new().name(name).spawn_scoped(scope, || {
            let file = File::open(format!("/run/netns/{namespace}")).unwrap();
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        there.unwrap().join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub fn set(path: &str, value: &str) {
    std::fs::write(format!("/proc/sys/{path}"), value).unwrap();
}

#[track_caller]
pub fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn batched(namespace: &str, lines: &str) {
    use std::io::Write as _;
    let mut command = Command::new("ip");
    let mut child =
        command.args(["-n", namespace, "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{namespace}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn echo_tcp(ip: IpAddr, port: u16) {
    let listener = std::net::TcpListener::bind((ip, port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                let _ = std::io::copy(&mut from, &mut to);
            });
        }
    });
}

pub fn echo_udp(ip: IpAddr, port: u16) {
    let socket = std::net::UdpSocket::bind((ip, port)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
}
