//! Ways around the list, each to its exact reason in the log.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use serde_json::Value;

use crate::clients::{HTTP, HTTPS, policy};
use crate::support::dns::Dns;
use crate::support::hello::{Hello, server_names};
use crate::support::origin::{Authority, Recorder, openssl_server};
use crate::support::{Egret, allowed, connect, have, own_ip, read_all, read_head, refused, tunnel};

struct World {
    dns: Dns,
    egret: Egret,
    origin: Recorder,
    ip: IpAddr,
}

/// An origin that answers every hello with an alert, so that the relay is free at once.
const ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 40];

fn world(limits: &str) -> World {
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let origin = Recorder::start(ip, HTTPS, ALERT);
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), limits);
    World { dns, egret, origin, ip }
}

/// Sends bytes on a stream and returns the connection's record and what the client got.
fn send(egret: &Egret, mut stream: TcpStream, bytes: &[u8]) -> (Value, Vec<u8>) {
    let local = stream.local_addr().unwrap();
    stream.write_all(bytes).unwrap();
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let got = read_all(&mut stream);
    (egret.record_of(local), got)
}

fn steered(w: &World, bytes: &[u8]) -> (Value, Vec<u8>) {
    send(&w.egret, connect(w.egret.sni()), bytes)
}

const ACCESS_DENIED: &[u8] = &[21, 3, 3, 0, 2, 2, 49];

#[test]
fn a_listed_name_leads_to_its_own_address_whatever_address_was_dialled() {
    let w = world("");
    let decoy_ip = own_ip();
    let decoy = Recorder::start(decoy_ip, HTTPS, b"");
    let hello = Hello::named("a.web.test").record();
    let (record, _) = send(&w.egret, tunnel(&w.egret, &format!("{decoy_ip}:10443")), &hello);
    allowed(&record, "web");
    assert_eq!(record["original_dst"], format!("{decoy_ip}:10443"));
    assert_eq!(record["upstream"], format!("{}:10443", w.ip));
    w.origin.received(&hello);
    assert_eq!(decoy.count(), 0, "the address the client chose is never dialled");
}

#[test]
fn the_name_inside_must_be_the_name_asked_for() {
    let w = world("");
    w.dns.answer("b.web.test", &[&w.ip.to_string()]);
    let (record, got) = send(&w.egret, tunnel(&w.egret, "a.web.test:10443"), &Hello::named("b.web.test").record());
    refused(&record, "name_mismatch", "name");
    assert_eq!((&record["name"], &record["sni"]), (&"a.web.test".into(), &"b.web.test".into()));
    assert_eq!(got, ACCESS_DENIED);
    assert_eq!(w.origin.count(), 0);
    assert_eq!(w.dns.asked("a.web.test") + w.dns.asked("b.web.test"), 0);
}

#[test]
fn hellos_without_one_good_name_are_refused() {
    let w = world("");
    let raw_sni = |names: &[(u8, &[u8])]| Hello::nameless().with(0, &server_names(names)).record();
    let cases: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        ("no name", Hello::nameless().record(), "no_sni", "name"),
        ("an address", Hello::named("10.0.0.1").record(), "ip_literal", "name"),
        ("an address in octal", Hello::named("0177.0.0.1").record(), "ip_literal", "name"),
        ("an IPv6 address", Hello::named("::1").record(), "ip_literal", "name"),
        ("two names", raw_sni(&[(0, b"a.web.test"), (0, b"evil.test")]), "bad_sni", "peek"),
        (
            "two extensions",
            Hello::named("a.web.test").with(0, &server_names(&[(0, b"evil.test")])).record(),
            "bad_sni",
            "peek",
        ),
        ("another type of name", raw_sni(&[(7, b"a.web.test")]), "bad_sni", "peek"),
        ("an empty name", raw_sni(&[(0, b"")]), "bad_sni", "peek"),
        ("an empty label", Hello::named("a..web.test").record(), "bad_sni", "name"),
        ("a NUL", Hello::named("a.web.test\0.evil.test").record(), "bad_sni", "name"),
        ("UTF-8", Hello::named("ä.web.test").record(), "bad_sni", "name"),
        ("a 64-byte label", Hello::named(&format!("{}.web.test", "a".repeat(64))).record(), "bad_sni", "name"),
        ("254 bytes", Hello::named(&format!("{}web.test", "aaaa.".repeat(50))).record(), "bad_sni", "name"),
        ("a look-alike", Hello::named("evilweb.test").record(), "no_rule", "name"),
        ("a look-alike suffix", Hello::named("a.web.test.evil.test").record(), "no_rule", "name"),
        ("ESNI", Hello::named("a.web.test").with(0xffce, &[0]).record(), "esni_denied", "name"),
        ("plain HTTP", b"GET / HTTP/1.1\r\nHost: a.web.test\r\n\r\n".to_vec(), "not_tls", "peek"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "not_tls", "peek"),
        ("SSLv2", vec![0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10], "bad_tls", "peek"),
        ("half a hello", Hello::named("a.web.test").record()[..60].to_vec(), "bad_tls", "peek"),
        (
            "an alert inside",
            [&Hello::named("a.web.test").records(20)[..25], &[21, 3, 3, 0, 2, 1, 0]].concat(),
            "bad_tls",
            "peek",
        ),
    ];
    for (what, bytes, reason, stage) in cases {
        let (record, _) = steered(&w, &bytes);
        assert_eq!(record["reason"], reason, "{what}: {record:#}");
        refused(&record, reason, stage);
    }
    assert_eq!(w.origin.count(), 0, "nothing of it reached the origin");
    assert_eq!(w.dns.asked("a.web.test"), 0);
}

#[test]
fn however_a_good_hello_is_cut_it_is_the_same_hello() {
    let w = world("");
    let decoy = [&[0, 0][..], &(14u16).to_be_bytes(), &server_names(&[(0, b"evil.test")])].concat();
    let hello = Hello::named("a.web.test").first(0xfafa, &decoy);
    // One byte a segment.
    let whole = hello.record();
    let mut stream = connect(w.egret.sni());
    for byte in &whole {
        stream.write_all(&[*byte]).unwrap();
    }
    let (record, got) = send(&w.egret, stream, b"");
    allowed(&record, "web");
    assert_eq!(got, ALERT);
    w.origin.received(&whole);
    // The name itself split over two records, behind a decoy; and one byte a record.
    let message = hello.message();
    let at = message.windows(10).position(|w| w == b"a.web.test").unwrap() + 4;
    let split: Vec<u8> = [&message[..at], &message[at..]]
        .iter()
        .flat_map(|part| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat())
        .collect();
    for bytes in [split, hello.records(1)] {
        let (record, _) = steered(&w, &bytes);
        allowed(&record, "web");
        assert_eq!(record["name"], "a.web.test");
        w.origin.received(&bytes);
    }
}

#[test]
fn a_hello_over_the_limit_is_refused() {
    let w = world("limits: { hello: 4KiB }");
    let (record, _) = steered(&w, &Hello::named("a.web.test").with(21, &[0; 5000]).record());
    refused(&record, "hello_too_large", "peek");
    let (record, _) = steered(&w, &Hello::named("a.web.test").with(21, &[0; 3000]).record());
    allowed(&record, "web");
}

#[test]
fn silence_ends_at_the_deadline() {
    let w = world("limits: { peek: 300ms }");
    for (mut stream, stage) in [
        (connect(w.egret.sni()), "peek"),
        (tunnel(&w.egret, "a.web.test:10443"), "peek"),
        (connect(w.egret.forward()), "claim"),
    ] {
        let local = stream.local_addr().unwrap();
        read_all(&mut stream);
        refused(&w.egret.record_of(local), "peek_timeout", stage);
    }
}

#[test]
fn a_name_that_leads_inside_is_refused_and_the_client_learns_nothing() {
    let w = world("");
    let policy = "application_rules:\n  - { name: any, fqdns: [\".inside.test\"], protocols: [\"https:10443\", \"http:10080\", \"https:3128\"] }\n";
    let egret = Egret::start(w.dns.address, (HTTPS, HTTP), policy, "");
    let own = egret.ip.to_string();
    let cases: Vec<(&[&str], u16, &str)> = vec![
        (&["127.0.0.1"], HTTPS, "address_denied"),
        (&["10.1.2.3"], HTTPS, "address_denied"),
        (&["169.254.169.254"], HTTPS, "address_denied"),
        (&["168.63.129.16"], HTTPS, "address_denied"),
        (&["::ffff:10.0.0.1"], HTTPS, "address_denied"),
        (&["64:ff9b::a00:1"], HTTPS, "address_denied"),
        (&["0.0.0.0"], HTTPS, "address_denied"),
        (&["::1"], HTTPS, "address_denied"),
        (&["fd00::1"], HTTPS, "address_denied"),
        (&["8.8.8.8", "10.0.0.1"], HTTPS, "address_mixed"),
        (&["8.8.8.8", "::1"], HTTPS, "address_mixed"),
    ];
    let hello = |n: usize| Hello::named(&format!("n{n}.inside.test")).record();
    for (n, (ips, port, reason)) in cases.iter().enumerate() {
        let name = format!("n{n}.inside.test");
        w.dns.answer(&name, ips);
        let (record, got) = send(&egret, tunnel(&egret, &format!("{name}:{port}")), &hello(n));
        refused(&record, reason, "address");
        assert_eq!(record["answers"].as_array().unwrap().len(), ips.len(), "{record:#}");
        assert_eq!(got, b"", "a reset, and no word");
        let mut plain = connect(egret.forward());
        write!(plain, "GET http://{name}:10080/ HTTP/1.1\r\nHost: {name}:10080\r\n\r\n").unwrap();
        let said = String::from_utf8(read_all(&mut plain)).unwrap();
        assert!(said.starts_with("HTTP/1.1 502") && said.ends_with("reason: unreachable\n"), "{said}");
        assert!(!said.contains("rule:"), "{said}");
    }
    // egret's own listener, by its own port.
    w.dns.answer("self.inside.test", &[&own]);
    let (record, _) = send(&egret, tunnel(&egret, "self.inside.test:3128"), &Hello::named("self.inside.test").record());
    refused(&record, "own_address", "address");
}

#[test]
fn another_name_in_the_second_hello_goes_nowhere() {
    if !have(&["openssl"]) {
        return;
    }
    let (dns, authority, ip) = (Dns::start(), Authority::new(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    // A server that knows P-384 only asks a client with an X25519 share for another hello.
    let server = SocketAddr::new(ip, 8444);
    let _server = openssl_server(&authority, server, &["a.web.test", "b.web.test"], &["-groups", "P-384"]);
    let origin = Recorder::in_front_of(ip, HTTPS, server);
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "");
    let first = Hello::named("a.web.test");
    let retried = |second: &[u8]| {
        let mut client = tunnel(&egret, "a.web.test:10443");
        let local = client.local_addr().unwrap();
        client.write_all(&first.record()).unwrap();
        let mut header = [0; 6];
        client.read_exact(&mut header).unwrap();
        assert_eq!((header[0], header[5]), (22, 2), "a HelloRetryRequest came");
        client.write_all(second).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        read_all(&mut client);
        egret.record_of(local)
    };
    let record = retried(&Hello::named("b.web.test").record());
    refused(&record, "name_mismatch", "name");
    let record = retried(&Hello::named("a.web.test").alpn(&["h2"]).record());
    refused(&record, "name_mismatch", "name");
    // Split over records, behind a change of cipher spec, it is still seen.
    let hidden = [&[20, 3, 3, 0, 1, 1][..], &Hello::named("b.web.test").records(7)].concat();
    refused(&retried(&hidden), "name_mismatch", "name");
    for stream in origin.streams() {
        assert!(!stream.windows(10).any(|w| w == b"b.web.test"), "none of it went on");
        assert!(stream.len() <= first.record().len() + 6);
    }
    // The same name again goes on, and a real client gets through.
    let record = retried(&first.record());
    assert_eq!(record["verdict"], "allow", "{record:#}");
    let ca = authority.ca();
    let proxy = egret.forward().to_string();
    let args = [
        "s_client",
        "-CAfile",
        &ca,
        "-servername",
        "a.web.test",
        "-groups",
        "X25519:P-384",
        "-connect",
        "a.web.test:10443",
        "-proxy",
        &proxy,
    ];
    let out = crate::support::text(&crate::support::run("openssl", &args));
    assert!(out.contains("Verify return code: 0"), "{out}");
}

#[test]
fn a_second_hello_sent_before_the_answer_waits_for_it() {
    if !have(&["openssl"]) {
        return;
    }
    let (dns, authority, ip) = (Dns::start(), Authority::new(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let server = SocketAddr::new(ip, 8444);
    let _server = openssl_server(&authority, server, &["a.web.test"], &["-groups", "P-384"]);
    let origin = Recorder::in_front_of(ip, HTTPS, server);
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "");
    let both = [Hello::named("a.web.test").record(), Hello::named("evil.test").record()].concat();
    let (record, _) = send(&egret, tunnel(&egret, "a.web.test:10443"), &both);
    refused(&record, "name_mismatch", "name");
    // And where the answer asks for none, it was no handshake of any version.
    let w = world("");
    let (record, _) = send(&w.egret, tunnel(&w.egret, "a.web.test:10443"), &both);
    refused(&record, "bad_tls", "peek");
    w.origin.received(&Hello::named("a.web.test").record());
    assert!(origin.streams().iter().all(|s| !s.windows(9).any(|w| w == b"evil.test")));
}

#[test]
fn claims_that_cannot_be_read_are_refused() {
    let w = world("");
    let cases: &[(&[u8], &str, &str)] = &[
        (b"GET / HTTP/1.1\r\nHost: a.web.test\r\n\r\n", "bad_request", "claim"),
        (b"CONNECT a..test:443 HTTP/1.1\r\nHost: a.web.test\r\n\r\n", "bad_host", "claim"),
        (b"CONNECT a.web.test HTTP/1.1\r\nHost: a.web.test\r\n\r\n", "bad_request", "claim"),
        (b"GET https://a.web.test/ HTTP/1.1\r\nHost: a.web.test\r\n\r\n", "bad_request", "claim"),
        (b"\x16\x03\x01\x00\x05hello", "bad_request", "claim"),
        (b"\x04\x01\x01\xbb\x7f\x00\x00\x01\x00", "protocol_denied", "claim"),
        (b"\x05\x01\x02", "auth_failed", "claim"),
        (b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x01\xbb", "protocol_denied", "claim"),
        (b"\x05\x01\x00\x05\x01\x00\x03\x03a b\x01\xbb", "bad_host", "claim"),
        (b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n", "no_rule", "network"),
        (b"CONNECT 0x7f.1:22 HTTP/1.1\r\nHost: 0x7f.1:22\r\n\r\n", "no_rule", "network"),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "ip_literal", "name"),
        (b"CONNECT a.web.test:8443 HTTP/1.1\r\nHost: a.web.test:8443\r\n\r\n", "port_not_allowed", "name"),
    ];
    for (bytes, reason, stage) in cases {
        let (record, _) = send(&w.egret, connect(w.egret.forward()), bytes);
        assert_eq!(record["reason"], *reason, "{}: {record:#}", bytes.escape_ascii());
        refused(&record, reason, stage);
    }
    for raw in ["a b", "a..test:443"] {
        w.egret.record("a name that is none", |r| r["reason"] == "bad_host" && r["name_raw"] == raw);
    }
    assert_eq!(w.origin.count(), 0);
}

#[test]
fn a_tunnel_to_an_address_must_show_a_listed_name() {
    let w = world("");
    for (bytes, reason) in [
        (Hello::named("evil.test").record(), "no_rule"),
        (Hello::nameless().record(), "no_sni"),
        (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "not_tls"),
    ] {
        let (record, _) = send(&w.egret, tunnel(&w.egret, &format!("{}:10443", w.ip)), &bytes);
        assert_eq!(record["reason"], reason, "{record:#}");
    }
    assert_eq!(w.origin.count(), 0);
    let mut stream = connect(w.egret.forward());
    stream.write_all(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, 0, 22]).unwrap();
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], [5, 0, 5, 2], "not allowed by the ruleset");
    // Our own addresses are nobody's business: the reply carries none.
    assert_eq!(reply[4..], [0, 1, 0, 0, 0, 0, 0, 0]);
    let _ = read_head(&mut stream);
}

/// An upstream that says just what it is told to, and keeps what it hears.
fn scripted(ip: IpAddr, says: Vec<u8>, then_ends: bool) -> std::sync::mpsc::Receiver<Vec<u8>> {
    let listener = std::net::TcpListener::bind((ip, HTTPS)).unwrap();
    let (heard, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut hello = vec![0; 4096];
            let n = stream.read(&mut hello).unwrap();
            stream.write_all(&says).unwrap();
            if then_ends {
                stream.shutdown(std::net::Shutdown::Write).ok();
            }
            hello.truncate(n);
            hello.extend(read_all(&mut stream));
            heard.send(hello).unwrap();
        }
    });
    receiver
}

/// RFC 8446 §4.1.3.
const RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11,
    0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

fn retry() -> Vec<u8> {
    let message = [&[2, 0, 0, 44, 3, 3][..], &RETRY_RANDOM, &[0, 0x13, 1, 0, 0, 4, 0, 51, 0, 0]].concat();
    [&[22, 3, 3, 0, message.len() as u8][..], &message].concat()
}

#[test]
fn no_trick_around_a_retry_lets_another_hello_out() {
    let first = Hello::named("a.web.test");
    let evil = Hello::named("evil.test").record();
    let warned = [&[21, 3, 3, 0, 2, 1, 112][..], &[20, 3, 3, 0, 1, 1], &[22, 3, 3, 0, 0], &retry()].concat();
    let cases: Vec<(&str, Vec<u8>, bool, Vec<u8>)> = vec![
        ("another name, behind a warning", warned, false, evil.clone()),
        ("another name, after the upstream ended", retry(), true, evil.clone()),
        ("another name, cut short", retry(), false, evil[..evil.len() - 3].to_vec()),
        ("the name hidden (ESNI)", retry(), false, first.clone().with(0xffce, &[0]).record()),
        ("the name hidden (ECH)", retry(), false, first.clone().with(0xfe0d, &[0]).record()),
    ];
    for (what, says, then_ends, second) in cases {
        let (dns, ip) = (Dns::start(), own_ip());
        dns.answer("a.web.test", &[&ip.to_string()]);
        let heard = scripted(ip, says, then_ends);
        let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "limits: { peek: 2s }");
        let mut client = tunnel(&egret, "a.web.test:10443");
        client.write_all(&first.record()).unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        let _ = client.write_all(&second);
        let _ = client.shutdown(std::net::Shutdown::Write);
        read_all(&mut client);
        let heard = heard.recv_timeout(crate::support::PATIENCE).unwrap();
        assert_eq!(heard, first.record(), "{what}: none of it went on");
    }
}

#[test]
fn a_retry_is_followed_by_the_same_hello_however_it_is_cut() {
    let first = Hello::named("a.web.test");
    let second = [&[20, 3, 3, 0, 1, 1][..], &first.record()].concat();
    for cut in [1, 2, 4, 6, 8, 40] {
        let (dns, ip) = (Dns::start(), own_ip());
        dns.answer("a.web.test", &[&ip.to_string()]);
        let heard = scripted(ip, retry(), false);
        let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "");
        let mut client = tunnel(&egret, "a.web.test:10443");
        let local = client.local_addr().unwrap();
        client.write_all(&first.record()).unwrap();
        client.read_exact(&mut vec![0; retry().len()]).unwrap();
        client.write_all(&second[..cut]).unwrap();
        crate::support::pause();
        client.write_all(&second[cut..]).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let heard = heard.recv_timeout(crate::support::PATIENCE).unwrap();
        assert_eq!(heard, [first.record(), second.clone()].concat(), "cut at {cut}");
        assert_eq!(egret.record_of(local)["verdict"], "allow");
    }
}
