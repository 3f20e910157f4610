//! Bounds hold and manners are kept: too many, too slow, too few descriptors, and the end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use crate::clients::{HTTP, HTTPS, policy};
use crate::support::dns::Dns;
use crate::support::hello::Hello;
use crate::support::origin::Recorder;
use crate::support::{Egret, allowed, connect, eventually, own_ip, read_all, refused, tunnel};

const ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 40];

fn world(more: &str) -> (Egret, (Recorder, Dns)) {
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let origin = Recorder::start(ip, HTTPS, ALERT);
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), more);
    (egret, (origin, dns))
}

/// A tunnel through which bytes have gone both ways.
fn open(egret: &Egret) -> TcpStream {
    let mut stream = tunnel(egret, &format!("a.web.test:{HTTPS}"));
    stream.write_all(&Hello::named("a.web.test").record()).unwrap();
    let mut alert = [0; 7];
    stream.read_exact(&mut alert).unwrap();
    stream
}

#[test]
fn one_client_and_all_together_have_a_limit() {
    let (egret, _origin) = world("limits: { connections: 3, connections_per_client: 2 }");
    let first = open(&egret);
    let _second = open(&egret);
    let mut third = connect(egret.forward());
    let local = third.local_addr().unwrap();
    assert_eq!(read_all(&mut third), b"");
    refused(&egret.record_of(local), "too_many_connections", "limit");
    drop(first);
    eventually("a place is free again", || {
        let mut stream = connect(egret.forward());
        let _ = write!(stream, "CONNECT a.web.test:{HTTPS} HTTP/1.1\r\nHost: a.web.test:{HTTPS}\r\n\r\n");
        let mut byte = [0; 1];
        matches!(stream.read(&mut byte), Ok(1))
    });
    assert!(egret.errors().contains("3 connections, 2 from one client"), "told at start: {}", egret.errors());
}

#[test]
fn an_idle_connection_ends() {
    let (egret, _origin) = world("limits: { idle: 400ms }");
    let mut stream = open(&egret);
    let local = stream.local_addr().unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(egret.record_of(local)["ending"], "idle");
}

#[test]
fn an_upstream_that_does_not_read_is_idle_too() {
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    socket.bind(&std::net::SocketAddr::new(ip, HTTPS).into()).unwrap();
    socket.listen(8).unwrap();
    let egret =
        Egret::start(dns.address, (HTTPS, HTTP), &policy(), "limits: { idle: 500ms, hello: 8MiB, peek_memory: 64MiB }");
    let mut hello = Hello::named("a.web.test");
    for kind in 0..60 {
        hello = hello.with(0x5000 + kind, &[0; 60]);
    }
    let mut client = tunnel(&egret, &format!("a.web.test:{HTTPS}"));
    let local = client.local_addr().unwrap();
    client.write_all(&hello.record()).unwrap();
    // More than any buffer on the way takes.
    let early = [&[23, 3, 3, 0x40, 0][..], &[0; 0x4000]].concat();
    while client.write_all(&early).is_ok() {}
    assert_eq!(egret.record_of(local)["ending"], "idle");
}

#[test]
fn one_deadline_holds_for_all_that_a_client_must_show() {
    let (egret, _origin) = world("limits: { peek: 1s }");
    let mut stream = connect(egret.forward());
    let local = stream.local_addr().unwrap();
    let slow = [&b"\x05\x01\x00\x05\x01\x00\x03\x0aa.web.test"[..], &HTTPS.to_be_bytes()].concat();
    for byte in slow {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        (0..20).for_each(|_| crate::support::pause());
    }
    read_all(&mut stream);
    let record = egret.record_of(local);
    assert_eq!(record["reason"], "peek_timeout", "{record:#}");
    assert!(record["duration_ms"].as_u64() < Some(2000), "{record:#}");
}

#[test]
fn visitors_of_the_admin_pages_take_nothing_from_connections() {
    let (egret, _origin) = world("");
    let limit = Command::new("prlimit").args([&format!("--pid={}", egret.pid()), "--nofile=128:128"]).status();
    if !limit.is_ok_and(|s| s.success()) {
        return crate::support::missing("prlimit");
    }
    let admin = std::net::SocketAddr::new(egret.ip, crate::support::ADMIN);
    let crowd: Vec<TcpStream> = (0..150).map(|_| connect(admin)).collect();
    drop(open(&egret));
    assert!(!egret.errors().contains("cannot accept"), "{}", egret.errors());
    // Each visit has an end, so that the pages answer again.
    drop(crowd);
    assert!(egret.metrics().contains("egret_connections_active"));
}

#[test]
fn a_log_that_is_not_read_holds_nothing_up() {
    let own = own_ip();
    let config = format!(
        "listeners: [{{ kind: forward, bind: \"{own}:3128\" }}]\nadmin: {{ bind: \"{own}:9901\" }}\nlog: {{ output: /dev/full }}\n"
    );
    let mut egret = Egret::run(&config, own);
    for _ in 0..20 {
        let mut stream = connect(egret.forward());
        stream.write_all(b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
        assert!(String::from_utf8_lossy(&read_all(&mut stream)).contains("403"));
    }
    eventually("the loss is counted", || egret.metrics().contains("egret_log_lines_lost_total{lane=\"refused\"} 20"));
    egret.signal("TERM");
    assert_eq!(egret.wait(), 0);
}

#[test]
fn all_peeks_together_hold_no_more_than_their_memory() {
    let (egret, _origin) = world("limits: { peek_memory: 64KiB, peek: 10s }");
    let hello = Hello::named("a.web.test").with(21, &[0; 40_000]).record();
    // One client that never ends its hello, and no room for a second one like it.
    let mut hog = connect(egret.sni());
    hog.write_all(&hello[..39_000]).unwrap();
    eventually("the first one is read", || egret.metrics().contains("egret_peek_memory_bytes 40960"));
    let mut stream = connect(egret.sni());
    let local = stream.local_addr().unwrap();
    let _ = stream.write_all(&hello[..39_000]);
    read_all(&mut stream);
    refused(&egret.record_of(local), "too_many_connections", "limit");
    assert_eq!(egret.records().len(), 1, "the other one is waited for");
    drop(hog);
    eventually("the memory is free again", || {
        let mut stream = connect(egret.sni());
        let local = stream.local_addr().unwrap();
        let _ = stream.write_all(&hello);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        read_all(&mut stream);
        egret.record_of(local)["verdict"] == "allow"
    });
}

#[test]
fn keepalives_go_towards_both_sides() {
    let (egret, (origin, _dns)) = world("limits: { keepalive: 77s }");
    let stream = open(&egret);
    let sockets = || {
        let out = Command::new("ss").args(["-tnoH", "state", "established"]).output();
        out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
    };
    if sockets().is_err() {
        return crate::support::missing("ss");
    }
    let client = stream.local_addr().unwrap().to_string();
    // A socket with something in flight shows another timer for a moment.
    for (own, peer) in [(Some(egret.forward().to_string()), client), (None, origin.address.to_string())] {
        eventually("a keepalive of a minute and 17 seconds", || {
            let all = sockets().unwrap();
            all.lines().any(|line| {
                let mut ends = line.split_whitespace().skip(2);
                let is_own = ends.next().is_some_and(|end| own.as_deref().is_none_or(|own| own == end));
                is_own && ends.next() == Some(&peer) && line.contains("keepalive,1min")
            })
        });
    }
}

#[test]
fn a_signal_stops_accepting_waits_and_ends() {
    let (mut egret, _origin) = world("limits: { drain: 20s }");
    let mut stream = open(&egret);
    egret.signal("TERM");
    eventually("no new connections", || TcpStream::connect(egret.forward()).is_err());
    stream.write_all(b"last words").unwrap();
    let local = stream.local_addr().unwrap();
    drop(stream);
    assert_eq!(egret.wait(), 0);
    let record = egret.record_of(local);
    allowed(&record, "web");
    assert_eq!(record["ending"], "closed");
}

#[test]
fn the_end_of_the_drain_cuts_what_is_left_and_writes_its_record() {
    for second_signal in [false, true] {
        let (mut egret, _origin) = world(if second_signal { "" } else { "limits: { drain: 200ms }" });
        let mut stream = open(&egret);
        egret.signal("INT");
        if second_signal {
            eventually("stopping", || egret.errors().contains("stopping"));
            egret.signal("TERM");
        }
        assert_eq!(egret.wait(), 0);
        assert_eq!(egret.record_of(stream.local_addr().unwrap())["ending"], "drained");
        let error = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "a cut is not a polite end");
    }
}

#[test]
fn running_out_of_descriptors_is_survived() {
    let (egret, _origin) = world("limits: { connections: 100000, peek: 10s }");
    let limit = Command::new("prlimit").args([&format!("--pid={}", egret.pid()), "--nofile=64:64"]).status();
    if !limit.is_ok_and(|s| s.success()) {
        return crate::support::missing("prlimit");
    }
    assert!(egret.errors().contains("need more descriptors than there are"), "{}", egret.errors());
    let crowd: Vec<TcpStream> = (0..80).map(|_| connect(egret.forward())).collect();
    eventually("accepting fails", || egret.errors().contains("cannot accept"));
    drop(crowd);
    // Whoever comes when descriptors are free again is served.
    drop(open(&egret));
    let page = egret.metrics();
    assert!(page.contains("egret_connections_total"), "{page}");
    assert!(egret.errors().matches("cannot accept").count() < 200, "backing off, not spinning");
}

#[test]
fn many_quick_clients_leave_nothing_behind() {
    let (egret, _origin) = world("");
    let gauge = || egret.metrics().lines().find(|l| l.starts_with("egret_connections_active")).map(str::to_owned);
    for _ in 0..200 {
        let _ = connect(egret.forward()).write_all(b"G");
    }
    eventually("all are gone", || gauge().as_deref() == Some("egret_connections_active 0"));
    eventually("each has its record", || egret.records().len() == 200);
}

#[test]
fn a_line_holds_so_much_and_no_more() {
    let (egret, _origin) = world("");
    let protocols: Vec<String> = (0..200).map(|n| format!("{n:0>250}")).collect();
    let offer = |count: usize| {
        let protocols: Vec<&str> = protocols.iter().take(count).map(String::as_str).collect();
        let mut stream = connect(egret.sni());
        let local = stream.local_addr().unwrap();
        let _ = stream.write_all(&Hello::named("a.web.test").alpn(&protocols).record());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        read_all(&mut stream);
        egret.record_of(local)
    };
    let record = offer(200);
    allowed(&record, "web");
    assert_eq!(record["alpn"].as_array().unwrap().len(), 64);
    let many = vec!["x"; 300];
    let mut stream = connect(egret.sni());
    let local = stream.local_addr().unwrap();
    stream.write_all(&Hello::named("a.web.test").alpn(&many).record()).unwrap();
    read_all(&mut stream);
    refused(&egret.record_of(local), "bad_tls", "peek");
    let mut stream = connect(egret.plain());
    let local = stream.local_addr().unwrap();
    write!(stream, "{} / HTTP/1.1\r\nHost: evil.test\r\n\r\n", "M".repeat(5000)).unwrap();
    read_all(&mut stream);
    assert_eq!(egret.record_of(local)["method"].as_str().unwrap().len(), 32);
}

#[test]
fn a_connection_without_a_byte_is_not_a_refusal() {
    let ip = own_ip();
    let authority = crate::support::origin::Authority::new();
    let stem = authority.sign("proxy", &["proxy.test"]);
    let tls = format!("tls: {{ certificate: {0}.crt, key: {0}.key }}", stem.display());
    let config = |empty: &str| {
        format!(
            "listeners:\n  - {{ kind: forward, bind: \"{ip}:3128\" }}\n  - {{ kind: forward, bind: \"{ip}:3129\", {tls} }}\n  \
             - {{ kind: sni, bind: \"{ip}:8443\" }}\n  - {{ kind: sni, bind: \"{ip}:8080\", protocol: http }}\n  \
             - {{ kind: sni, bind: \"{ip}:8444\", proxy_protocol: {{ v2: true, from: [127.0.0.0/8] }} }}\n\
             dns: {{ upstreams: [\"{ip}:5353\"] }}\nadmin: {{ bind: \"{ip}:9901\" }}\n{empty}\npolicy: {{}}\n"
        )
    };
    let probe = || {
        for port in [3128, 3129, 8443, 8080, 8444] {
            drop(connect((ip, port).into()));
            // A reset, as some balancers end their probes.
            let stream = connect((ip, port).into());
            socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
    };
    let egret = Egret::run(&config(""), ip);
    probe();
    eventually("all are counted", || egret.metrics().contains("egret_connections_empty_total 10"));
    assert!(!egret.metrics().contains("egret_refusals_total{"), "{}", egret.metrics());
    // One byte makes it a refusal.
    let mut stream = connect((ip, 8443).into());
    stream.write_all(&[22]).unwrap();
    let local = stream.local_addr().unwrap();
    drop(stream);
    refused(&egret.record_of(local), "bad_tls", "peek");
    assert_eq!(egret.records().len(), 1, "{:#?}", egret.records());
    drop(egret);
    let egret = Egret::run(&config("log: { empty: true }"), ip);
    probe();
    let line = egret.record_number(9);
    assert!(line["ending"] == "closed" && line["verdict"].is_null() && line["reason"].is_null(), "{line:#}");
}

#[test]
fn a_refused_head_names_its_host_on_every_listener() {
    let (egret, _origin) = world("limits: { fields: 16, head: 8KiB }");
    let many: String = (0..16).map(|n| format!("X-{n}: y\r\n")).collect();
    let long = format!("X: {}\r\n", "y".repeat(9000));
    let heads = [
        ("ambiguous_request", "GET {} HTTP/1.1\r\nHost: a.web.test\r\nHost: a.web.test\r\n\r\n".to_owned()),
        ("ambiguous_request", "GET {} HTTP/1.1\nHost: a.web.test\n\n".to_owned()),
        ("bad_request", "GET {} HTTP/1.1\r\nHost: a.web.test\r\nX : y\r\n\r\n".to_owned()),
        ("head_too_large", format!("GET {{}} HTTP/1.1\r\nHost: a.web.test\r\n{many}\r\n")),
        ("head_too_large", format!("GET {{}} HTTP/1.1\r\nHost: a.web.test\r\n{long}\r\n")),
    ];
    for (reason, head) in &heads {
        for (listener, target) in
            [(egret.forward(), "http://a.web.test/"), (egret.plain(), "/"), (egret.forward(), "/")]
        {
            // In a tunnel too.
            let mut stream = match (listener == egret.forward(), target) {
                (true, "/") => tunnel(&egret, &format!("a.web.test:{HTTP}")),
                _ => connect(listener),
            };
            let local = stream.local_addr().unwrap();
            let _ = stream.write_all(head.replace("{}", target).as_bytes());
            read_all(&mut stream);
            let record = egret.record_of(local);
            assert_eq!((&record["reason"], &record["verdict"]), (&(*reason).into(), &"deny".into()), "{record:#}");
            let named = record["name"] == "a.web.test" || record["name_raw"] == "a.web.test";
            assert!(named, "{listener} {target} {head:?}: {record:#}");
        }
    }
    // Fifteen fields and the host are sixteen.
    let fits = many.replacen("X-0: y\r\n", "", 1);
    let mut stream = connect(egret.plain());
    write!(stream, "GET / HTTP/1.1\r\nHost: b.test\r\n{fits}\r\n").unwrap();
    let local = stream.local_addr().unwrap();
    read_all(&mut stream);
    refused(&egret.record_of(local), "no_rule", "name");
}

#[test]
fn what_lasts_is_seen_while_it_does() {
    let (egret, _origin) = world("log: { open: 500ms }");
    let mut stream = open(&egret);
    let local = stream.local_addr().unwrap();
    let metrics = egret.metrics();
    let up = |metrics: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix("egret_bytes_total{direction=\"up\"} "));
        line.map_or(0, |n| n.parse::<u64>().unwrap())
    };
    assert!(metrics.contains("egret_verdicts_total{verdict=\"allow\"} 1"), "{metrics}");
    let before = up(&metrics);
    assert!(before > 100 && metrics.contains("egret_bytes_total{direction=\"down\"} 7"), "{metrics}");
    stream.write_all(&[0; 1000]).unwrap();
    eventually("its bytes are counted", || up(&egret.metrics()) == before + 1000);
    let line = egret.record_of(local);
    assert!(line["ending"] == "open" && line["verdict"] == "allow" && line["name"] == "a.web.test", "{line:#}");
    assert!(line["bytes_up"] == before + 1000 && line["duration_ms"].as_u64() >= Some(500), "{line:#}");
    stream.write_all(&[0; 10]).unwrap();
    drop(stream);
    let last = egret.record("its end", |other| other["id"] == line["id"] && other["ending"] != "open");
    assert_eq!(last["bytes_up"], before + 1010);
    assert_eq!(egret.records().len(), 2, "the next one is due in an hour");
    assert_eq!(up(&egret.metrics()), before + 1010, "not counted again at the end");
}

#[test]
fn a_long_download_is_seen_too() {
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let origin = std::net::TcpListener::bind((ip, HTTP)).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = origin.accept().unwrap();
        crate::support::read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nslow").unwrap();
        let _ = stream.read(&mut [0; 1]);
    });
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "log: { open: 300ms }");
    let mut stream = connect(egret.plain());
    write!(stream, "GET / HTTP/1.1\r\nHost: a.web.test\r\n\r\n").unwrap();
    let line = egret.record_of(stream.local_addr().unwrap());
    assert!(line["ending"] == "open" && line["event"] == "http" && line["method"] == "GET", "{line:#}");
}
