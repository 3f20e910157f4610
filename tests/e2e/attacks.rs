//! One client at full strength, and what the others notice of it: nothing. Each test prints what it measured.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rcgen::CertificateParams;

use crate::clients::{HTTP, HTTPS};
use crate::support::crowd::{crowd, crowd_that, from, serving};
use crate::support::dns::{Dns, Does};
use crate::support::origin::{Authority, Recorder};
use crate::support::{ADMIN, Egret, PATIENCE, eventually, have, missing, own_ip, pause, read_all, read_head};

/// Of every egret here; it listens everywhere, so that clients have addresses of their own.
const DESCRIPTORS: u64 = 8_000;
const HONEST: Ipv4Addr = Ipv4Addr::new(127, 88, 0, 1);

fn attacker(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 66, 6, n).into()
}

/// One attack at a time: each takes the machine's cores, and what it measures would be another one's.
static ALONE: Mutex<()> = Mutex::new(());

struct World {
    _alone: MutexGuard<'static, ()>,
    egret: Egret,
    dns: Dns,
    plain: SocketAddr,
    health: SocketAddr,
    _origin: tokio::runtime::Runtime,
}

/// An egret on ports of its own, each bound to every address.
fn world(port: u16, limits: &str) -> Option<World> {
    if !have(&["prlimit"]) {
        return None;
    }
    // Clients and origins of a test are in one process, each with as many sockets as egret has.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = hard.max(2 * DESCRIPTORS);
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_err() {
        missing("16,000 descriptors");
        return None;
    }
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (dns, ip, own) = (Dns::start(), own_ip(), own_ip());
    dns.set("*", Does::Answer(vec![ip]));
    let origin = serving(SocketAddr::new(ip, HTTP));
    let config = format!(
        "listeners:\n  - {{ kind: sni, bind: \"0.0.0.0:{port}\", port: {HTTP}, protocol: http }}\n\
         dns: {{ upstreams: [\"{}\"], min_ttl: 0s }}\nlimits: {{ {limits} }}\n\
         admin: {{ bind: \"{own}:{ADMIN}\" }}\nhealth: {{ bind: \"0.0.0.0:{}\" }}\npolicy:\n  application_rules:\n    \
         - {{ name: web, fqdns: [\".web.test\"], protocols: [\"http:{HTTP}\"], addresses: [\"127.0.0.0/8\"] }}\n",
        dns.address,
        port + 1
    );
    let nofile = format!("--nofile={DESCRIPTORS}");
    let egret = Egret::run_by(&["prlimit", &nofile], &config, own, &[], &[]);
    let at = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    Some(World { _alone: alone, egret, dns, plain: at(port), health: at(port + 1), _origin: origin })
}

fn get(name: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: {name}:{HTTP}\r\n\r\n")
}

/// What an honest client and a probe saw.
#[derive(Debug, Default)]
struct Seen {
    asked: usize,
    slowest: Duration,
    slowest_probe: Duration,
    descriptors: usize,
    kibibytes: usize,
}

impl World {
    /// Asks again and again, each time a name that is new, and asks for readiness, until it is told to stop.
    fn honest(&self, stop: &AtomicBool) -> Seen {
        let mut seen = Seen::default();
        while !stop.load(Ordering::Relaxed) || seen.asked < 5 {
            let begun = Instant::now();
            let mut stream = from(HONEST.into(), self.plain).expect("an honest client connects");
            stream.write_all(get(&format!("honest{}.web.test", seen.asked)).as_bytes()).unwrap();
            let head = read_head(&mut stream);
            assert!(head.starts_with("HTTP/1.1 200"), "after {:?} {} requests: {head:?}", begun.elapsed(), seen.asked);
            seen.slowest = seen.slowest.max(begun.elapsed());
            let begun = Instant::now();
            let mut probe = from(HONEST.into(), self.health).expect("a probe connects");
            probe.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let page = String::from_utf8(read_all(&mut probe)).unwrap();
            assert!(page.starts_with("HTTP/1.1 200"), "{page:?}");
            seen.slowest_probe = seen.slowest_probe.max(begun.elapsed());
            seen.asked += 1;
            let process = format!("/proc/{}", self.egret.pid());
            seen.descriptors = seen.descriptors.max(std::fs::read_dir(format!("{process}/fd")).unwrap().count());
            let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            seen.kibibytes = seen.kibibytes.max(resident.split_whitespace().next().unwrap().parse().unwrap());
            (0..3).for_each(|_| pause());
        }
        seen
    }

    /// Has an honest client ask while `attack` goes on.
    #[track_caller]
    fn holds(&self, attack: impl FnOnce() + Send) -> Seen {
        let stop = AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            let honest = scope.spawn(|| self.honest(&stop));
            attack();
            stop.store(true, Ordering::Relaxed);
            honest.join().unwrap()
        });
        println!("{seen:?}");
        // Held up is held up for good; how long a moment is, `benches/attacked.rs` measures.
        let moment = Duration::from_secs(5);
        assert!(seen.slowest < moment && seen.slowest_probe < moment, "{seen:?}");
        assert!(seen.descriptors < usize::try_from(DESCRIPTORS).unwrap(), "{seen:?}");
        assert!(!self.egret.errors().contains("cannot accept"), "{}", self.egret.errors());
        let of_honest = format!("{HONEST}:");
        let refused = self.egret.records().into_iter().find(|line| {
            line["verdict"] == "deny" && line["client"].as_str().is_some_and(|client| client.starts_with(&of_honest))
        });
        assert!(refused.is_none(), "{refused:#?}");
        seen
    }
}

#[test]
fn connections_that_wait_for_a_request_keep_no_client_out() {
    let Some(w) = world(23_000, "") else { return };
    let request = get("idle.web.test");
    let seen = w.holds(|| {
        // More than there are places for, from five addresses.
        let mut all = Vec::new();
        for n in 1..=5 {
            all.extend(crowd_that(attacker(n), w.plain, 900, |stream, _| {
                stream.write_all(request.as_bytes()).is_ok() && read_head(stream).starts_with("HTTP/1.1 200")
            }));
        }
        assert!(all.len() > 4_000, "{}", all.len());
        (0..100).for_each(|_| pause());
    });
    assert!(seen.descriptors > 4_000, "the attack took places: {seen:?}");
}

#[test]
fn names_that_no_server_answers_for_hold_up_no_others() {
    let Some(w) = world(23_010, "dns: 5s") else { return };
    for n in 0..3_500 {
        w.dns.set(&format!("slow{n}.web.test"), Does::Silence);
    }
    let seen = w.holds(|| {
        let mut all = Vec::new();
        for n in 1..=4 {
            let first = usize::from(n - 1) * 860;
            all.extend(crowd(attacker(n), w.plain, 860, |n| get(&format!("slow{}.web.test", first + n)).into_bytes()));
        }
        assert!(all.len() > 3_400, "{}", all.len());
        (0..300).for_each(|_| pause());
    });
    assert!(seen.descriptors > 3_400, "the attack was there: {seen:?}");
    eventually("those that waited too long are refused", || {
        w.egret.records().iter().any(|line| line["reason"] == "rate_limited" && line["stage"] == "limit")
    });
}

#[test]
fn heads_that_never_end_take_no_memory_from_others() {
    let Some(w) = world(23_020, "peek_memory: 8MiB, peek: 5s") else { return };
    let head = format!("GET / HTTP/1.1\r\nHost: a.web.test\r\nX: {}", "x".repeat(60_000)).into_bytes();
    let seen = w.holds(|| {
        let all = crowd(attacker(1), w.plain, 850, |_| head.clone());
        (0..100).for_each(|_| pause());
        drop(all);
    });
    let refused = w.egret.records().iter().filter(|line| line["reason"] == "too_many_connections").count();
    assert!(refused > 500, "the pot was full: {refused}");
    assert!(seen.kibibytes < 200 << 10, "{seen:?}");
}

#[test]
fn visitors_that_say_nothing_keep_no_probe_from_its_answer() {
    let Some(w) = world(23_030, "") else { return };
    w.holds(|| {
        let one = crowd(attacker(1), w.health, 1_000, |_| b"GET /re".to_vec());
        let mut many = Vec::new();
        for n in 1..=250 {
            many.extend(crowd(attacker(n), w.health, 8, |_| Vec::new()));
        }
        (0..50).for_each(|_| pause());
        drop((one, many));
    });
    // One that shows its request byte by byte is not waited for.
    let mut slow = from(attacker(1), w.health).unwrap();
    let begun = Instant::now();
    while slow.write_all(b"G").is_ok() && begun.elapsed() < PATIENCE {
        (0..10).for_each(|_| pause());
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn wrong_passwords_from_everywhere_do_not_delay_a_first_login() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (own, port) = (own_ip(), 23_050);
    let users = "alice:$2y$05$DXv7v4to5HpPR0uKRPDUMOdxNeQAecGHCYLUWjtLLxmTFy3JWhExq\n";
    let config = format!(
        "listeners: [{{ kind: forward, bind: \"0.0.0.0:{port}\", auth: {{ users_file: users }} }}]\n\
         admin: {{ bind: \"{own}:{ADMIN}\" }}\n"
    );
    let egret = Egret::run_with(&config, own, &[("users", users)]);
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let ask = |password: &str| {
        let shown = data_encoding::BASE64.encode(format!("alice:{password}").as_bytes());
        format!("GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nProxy-Authorization: Basic {shown}\r\n\r\n")
    };
    let (wrong, right) = (ask("wrong"), ask("correct horse"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, wrong) = (&stop, &wrong);
        for n in 0..300_u16 {
            scope.spawn(move || {
                let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 67, 0, 1)) + u32::from(n));
                while !stop.load(Ordering::Relaxed) {
                    let Ok(mut stream) = from(ip.into(), to) else { continue };
                    let _ = stream.write_all(wrong.as_bytes());
                    read_head(&mut stream);
                }
            });
        }
        eventually("a queue", || {
            let page = egret.metrics();
            let open = page.lines().find_map(|line| line.strip_prefix("egret_connections_active "));
            open.is_some_and(|open| open.parse::<u32>().unwrap() > 200)
        });
        // Each from an address that has not been seen before.
        let mut slowest = Duration::ZERO;
        for n in 0..20 {
            let mut stream = from(Ipv4Addr::new(127, 89, 0, n).into(), to).unwrap();
            let begun = Instant::now();
            stream.write_all(if n == 0 { right.as_bytes() } else { wrong.as_bytes() }).unwrap();
            let head = read_head(&mut stream);
            slowest = slowest.max(begun.elapsed());
            // Let in, and then refused for want of a rule.
            assert!(head.starts_with(if n == 0 { "HTTP/1.1 403" } else { "HTTP/1.1 407" }), "{head}");
        }
        stop.store(true, Ordering::Relaxed);
        println!("the slowest of 20 first checks among 300 clients with wrong passwords: {slowest:?}");
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    });
}

#[test]
fn handshakes_of_one_client_wait_for_each_other_alone() {
    let (own, port, authority) = (own_ip(), 23_060, Authority::new());
    let stem = authority.sign_as("proxy", CertificateParams::new(vec!["proxy.test".to_owned()]).unwrap());
    let config = format!(
        "listeners: [{{ kind: forward, bind: \"0.0.0.0:{port}\", tls: {{ certificate: \"{0}.crt\", key: \"{0}.key\" }} }}]\n\
         limits: {{ peek: 3s }}\nadmin: {{ bind: \"{own}:{ADMIN}\" }}\n",
        stem.display()
    );
    let egret = Egret::run(&config, own);
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let handshake = |ip: IpAddr| {
        let mut stream = from(ip, to).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.write_all(&crate::support::hello::Hello::named("proxy.test").record()).unwrap();
        // A server hello, or silence.
        let mut first = [0; 1];
        stream.read_exact(&mut first).map(|()| first[0]).map_err(|error| error.kind())
    };
    // Who has not said a byte does not handshake yet.
    let begins = |_| {
        let mut stream = from(attacker(1), to).unwrap();
        stream.write_all(&[22]).unwrap();
        stream
    };
    let silent: Vec<TcpStream> = (0..64).map(begins).collect();
    eventually("all are there", || egret.metrics().contains("egret_connections_active 64"));
    assert_eq!(handshake(attacker(1)), Err(ErrorKind::WouldBlock), "behind its own");
    assert_eq!(handshake(attacker(2)), Ok(22));
    drop(silent);
    eventually("its turn", || handshake(attacker(1)) == Ok(22));
}

#[test]
fn a_log_that_takes_no_lines_is_reported_and_stops_service_where_none_may_be_lost() {
    let own = own_ip();
    let run = |overflow: &str| {
        let config = format!(
            "listeners: [{{ kind: forward, bind: \"{own}:3128\" }}]\nadmin: {{ bind: \"{own}:{ADMIN}\" }}\n\
             log: {{ output: /dev/full, overflow: {overflow} }}\n"
        );
        Egret::run(&config, own)
    };
    let page = || {
        let mut stream = crate::support::connect(SocketAddr::new(own, ADMIN));
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        String::from_utf8(read_all(&mut stream)).unwrap()
    };
    for overflow in ["drop", "block"] {
        let egret = run(overflow);
        assert!(page().ends_with("ready\n"), "{}", page());
        let mut stream = crate::support::connect(egret.forward());
        stream.write_all(b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
        read_all(&mut stream);
        eventually("the fault", || page().contains("fault: log"));
        assert!(egret.metrics().contains("egret_fault{fault=\"log\"} 1"));
        assert!(page().starts_with("HTTP/1.1 200"), "for a while");
        if overflow == "block" {
            eventually("not ready", || page().starts_with("HTTP/1.1 503"));
            assert!(page().contains("the access log cannot be written"), "{}", page());
        }
    }
}

#[test]
fn an_answer_with_hundreds_of_addresses_is_refused_whole() {
    let (dns, ip) = (Dns::start(), own_ip());
    let many = |n: u32| (0..n).map(|n| IpAddr::V4(Ipv4Addr::from(0x7f01_0000 + n))).collect::<Vec<_>>();
    dns.set("many.web.test", Does::TooLong(many(257)))
        .set("some.web.test", Does::TooLong([vec![ip], many(255)].concat()));
    let _origin = Recorder::start(ip, HTTPS, &[21, 3, 3, 0, 2, 2, 40]);
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &crate::clients::policy(), "");
    crate::support::refused(&crate::dns::ask(&egret, "many.web.test"), "bad_dns", "dns");
    crate::support::allowed(&crate::dns::ask(&egret, "some.web.test"), "web");
}
