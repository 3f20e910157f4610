//! Plain HTTP: every request of a connection judged by its own host, and nothing ambiguous passed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::clients::{HTTP, HTTPS, policy};
use crate::support::dns::Dns;
use crate::support::hello::Hello;
use crate::support::origin::Recorder;
use crate::support::{Egret, allowed, connect, eventually, own_ip, read_all, read_head, refused, tunnel};

struct World {
    dns: Dns,
    egret: Egret,
    origin: Recorder,
}

fn world(answer: &'static [u8]) -> World {
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]).answer("b.web.test", &[&ip.to_string()]);
    let origin = Recorder::closing(ip, HTTP, answer);
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "limits: { peek: 1s }");
    World { dns, egret, origin }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi";

/// The answer's text, after which the connection must have ended.
fn say(to: SocketAddr, bytes: &[u8]) -> (String, SocketAddr) {
    let mut stream = connect(to);
    let local = stream.local_addr().unwrap();
    stream.write_all(bytes).unwrap();
    let _ = stream.shutdown(std::net::Shutdown::Write);
    (String::from_utf8(read_all(&mut stream)).unwrap(), local)
}

#[test]
fn a_request_goes_on_in_origin_form_with_its_fields_as_sent() {
    let w = world(OK);
    let host = format!("a.web.test:{HTTP}");
    let request = format!(
        "GET http://{host}/p?q HTTP/1.1\r\nHost: {host}\r\nX-oDD:  v\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic c2VjcmV0\r\n\r\n"
    );
    let (answer, _) = say(w.egret.forward(), request.as_bytes());
    w.origin.received(format!("GET /p?q HTTP/1.1\r\nHost: {host}\r\nX-oDD:  v\r\n\r\n").as_bytes());
    assert!(answer.ends_with("Content-Length: 2\r\n\r\nhi"), "{answer}");
    for (to, request) in [
        (w.egret.plain(), format!("POST /form HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\n\r\nabc")),
        (
            w.egret.forward(),
            format!(
                "POST http://{host}/chunks HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            ),
        ),
    ] {
        // Who asks for an end is told of it; the origin is too.
        let (answer, _) = say(to, request.replacen("\r\nHost", "\r\nConnection: close\r\nHost", 1).as_bytes());
        assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
        let (answer, local) = say(to, request.as_bytes());
        assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        let record = w.egret.record_of(local);
        allowed(&record, "web");
        let told = (&record["event"], &record["method"], &record["status"]);
        assert_eq!(told, (&"http".into(), &"POST".into(), &200.into()));
    }
    let (answer, _) = say(w.egret.plain(), format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes());
    assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
}

#[test]
fn what_http_1_0_does_not_know_is_not_sent_to_its_clients() {
    let request = |host: &str| format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n");
    let host = format!("a.web.test:{HTTP}");
    {
        let w = world(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        let (answer, _) = say(w.egret.plain(), request(&host).as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nhi"), "{answer}");
    }
    let w = world(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n");
    let (answer, local) = say(w.egret.plain(), request(&host).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    refused(&w.egret.record_of(local), "bad_answer", "relay");
}

/// A tunnel by SOCKS5 (RFC 1928).
fn socks(egret: &Egret, host: &str) -> TcpStream {
    let mut stream = connect(egret.forward());
    let (name, port) = host.split_once(':').unwrap();
    let port = port.parse::<u16>().unwrap().to_be_bytes();
    let request = [&[5, 1, 0, 5, 1, 0, 3, u8::try_from(name.len()).unwrap()], name.as_bytes(), &port].concat();
    stream.write_all(&request).unwrap();
    let mut said = [0; 12];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(said, [5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    stream
}

/// Bytes in which any loss, repetition or exchange shows.
fn long(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

/// A body in chunks of this size (RFC 9112 §7.1).
fn in_chunks(body: &[u8], size: usize) -> Vec<u8> {
    let chunk = |chunk: &[u8]| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
    body.chunks(size).chain([&b""[..]]).flat_map(chunk).collect()
}

#[test]
fn large_bodies_pass_both_ways_and_the_next_request_follows() {
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let body = long(3 << 20);
    let sent = body.clone();
    // Reads a request to its end, answers with a body of each framing in turn.
    let origin = Recorder::answering(ip, HTTP, move |path| match path {
        "/length" => [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sent.len()).as_bytes(), &sent].concat(),
        "/chunks" => {
            [&b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"[..], &in_chunks(&sent, 1_000_000)].concat()
        }
        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_vec(),
    });
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "limits: { peek: 20s }");
    let host = format!("a.web.test:{HTTP}");
    for (way, mut stream, front) in ways_in(&egret, &host) {
        let chunked = in_chunks(&body, 700_000);
        for (path, framing, content) in [
            ("/length", format!("Content-Length: {}", body.len()), &body),
            ("/chunks", "Transfer-Encoding: chunked".to_owned(), &chunked),
        ] {
            let head = format!("POST {front}{path} HTTP/1.1\r\nHost: {host}\r\n{framing}\r\n\r\n");
            // A second request right behind the first one's body.
            let next = format!("GET {front}/next HTTP/1.1\r\nHost: {host}\r\n\r\n");
            stream.write_all(&[head.as_bytes(), content, next.as_bytes()].concat()).unwrap();
            let said = read_head(&mut stream);
            assert!(said.starts_with("HTTP/1.1 200"), "{way} {path}: {said}");
            let mut got = Vec::new();
            if path == "/length" {
                got.resize(body.len(), 0);
                stream.read_exact(&mut got).unwrap();
            } else {
                loop {
                    let mut size = Vec::new();
                    while !size.ends_with(b"\r\n") {
                        let mut byte = [0];
                        stream.read_exact(&mut byte).unwrap();
                        size.push(byte[0]);
                    }
                    let size = usize::from_str_radix(String::from_utf8(size).unwrap().trim(), 16).unwrap();
                    let mut chunk = vec![0; size + 2];
                    stream.read_exact(&mut chunk).unwrap();
                    got.extend_from_slice(&chunk[..size]);
                    if size == 0 {
                        break;
                    }
                }
            }
            assert!(got == body, "{way} {path}: the answer's body");
            assert!(answer(&mut stream).ends_with("hi"), "{way} {path}: the next request");
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(read_all(&mut stream).is_empty());
        let received = origin.streams().concat();
        let count = |needle: &[u8]| received.windows(needle.len()).filter(|window| *window == needle).count();
        assert!(count(&body) >= 1 && count(&chunked) >= 1, "{way}: the request's bodies");
        let totals =
            egret.record(way, |r| r["bytes_up"].as_u64() > Some(3 << 20) && r["bytes_down"].as_u64() > Some(3 << 20));
        allowed(&totals, "web");
    }
}

#[test]
fn a_tunnel_may_follow_a_request_and_carry_tls() {
    let k = kept();
    let host = format!("a.web.test:{HTTP}");
    let tls = Recorder::start(k.origins[0].address.ip(), HTTPS, b"");
    let mut stream = connect(k.egret.forward());
    write!(stream, "GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    assert!(answer(&mut stream).ends_with("/x"));
    let target = format!("a.web.test:{HTTPS}");
    write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 200"));
    let hello = Hello::named("a.web.test").record();
    stream.write_all(&hello).unwrap();
    tls.received(&hello);
}

#[test]
fn only_refusals_are_logged_where_the_configuration_says_so() {
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let _origin = Recorder::serving(ip, HTTP);
    for (access, told) in [("refused", 1), ("none", 0)] {
        let mut egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), &format!("log: {{ access: {access} }}"));
        for (host, status) in [("a.web.test", "200"), ("evil.test", "403"), ("a.web.test", "200")] {
            let host = format!("{host}:{HTTP}");
            let request = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let (said, _) = say(egret.forward(), request.as_bytes());
            assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{said}");
        }
        let page = egret.metrics();
        assert!(page.contains("egret_refusals_total{reason=\"no_rule\",stage=\"name\"} 1"), "{page}");
        // The last lines are written before it ends.
        egret.signal("TERM");
        assert_eq!(egret.wait(), 0);
        eventually("all lines have come", || egret.records().len() >= told);
        let records = egret.records();
        assert!(records.len() == told && records.iter().all(|record| record["verdict"] == "deny"), "{records:#?}");
    }
}

/// Every way in, as a connection on which requests for a host may be sent, and what stands before their path.
pub fn ways_in(egret: &Egret, host: &str) -> Vec<(&'static str, TcpStream, String)> {
    vec![
        ("sni", connect(egret.plain()), String::new()),
        ("absolute", connect(egret.forward()), format!("http://{host}")),
        ("connect", tunnel(egret, host), String::new()),
        ("socks", socks(egret, host), String::new()),
    ]
}

/// Reads one answer with a length.
pub fn answer(stream: &mut TcpStream) -> String {
    let head = read_head(stream);
    let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).unwrap();
    format!("{head}{}", String::from_utf8(body).unwrap())
}

struct Kept {
    egret: Egret,
    origins: [Recorder; 2],
}

/// Two hosts with servers that keep their connections.
fn kept() -> Kept {
    let (dns, a, b) = (Dns::start(), own_ip(), own_ip());
    dns.answer("a.web.test", &[&a.to_string()]).answer("b.web.test", &[&b.to_string()]);
    let origins = [Recorder::serving(a, HTTP), Recorder::serving(b, HTTP)];
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "limits: { peek: 1s }");
    std::mem::forget(dns);
    Kept { egret, origins }
}

#[test]
fn requests_follow_each_other_and_each_has_its_record() {
    let k = kept();
    let host = format!("a.web.test:{HTTP}");
    for (n, (way, mut stream, front)) in ways_in(&k.egret, &host).into_iter().enumerate() {
        let local = stream.local_addr().unwrap();
        for path in ["/one", "/two", "/three"] {
            let body = if path == "/two" { "Content-Length: 3\r\n\r\nabc" } else { "\r\n" };
            let method = if path == "/two" { "POST" } else { "GET" };
            write!(stream, "{method} {front}{path} HTTP/1.1\r\nHost: {host}\r\n{body}").unwrap();
            let said = answer(&mut stream);
            assert!(said.starts_with("HTTP/1.1 200 OK") && said.ends_with(path), "{way}: {said}");
            let record = k.egret.record_of(local);
            allowed(&record, "web");
            assert_eq!(
                (&record["method"], &record["status"], &record["event"]),
                (&method.into(), &200.into(), &"http".into()),
                "{way}"
            );
        }
        assert_eq!(k.origins[0].count(), 3 * (n + 1), "a request with a body has a connection of its own");
    }
    assert_eq!(k.origins[1].count(), 0);
}

#[test]
fn pipelined_requests_are_answered_in_their_order_each_by_its_own_host() {
    let k = kept();
    let (a, b) = (format!("a.web.test:{HTTP}"), format!("b.web.test:{HTTP}"));
    let mut stream = connect(k.egret.plain());
    let request = |path: &str, host: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let all = [("/1", &a), ("/2", &b), ("/3", &a), ("/4", &a)];
    let text: String = all.iter().map(|(path, host)| request(path, host)).collect();
    stream.write_all(text.as_bytes()).unwrap();
    for (path, _) in all {
        assert!(answer(&mut stream).ends_with(path));
    }
    k.origins[1].received(request("/2", &b).as_bytes());
    assert_eq!((k.origins[0].count(), k.origins[1].count()), (2, 1));
    // In a tunnel to one name, another is never meant.
    let mut stream = tunnel(&k.egret, &a);
    let local = stream.local_addr().unwrap();
    stream.write_all(format!("{}{}", request("/1", &a), request("/2", &b)).as_bytes()).unwrap();
    assert!(answer(&mut stream).ends_with("/1"));
    assert!(answer(&mut stream).starts_with("HTTP/1.1 403"));
    allowed(&k.egret.record_of(local), "web");
    refused(&k.egret.record_of(local), "name_mismatch", "name");
    assert_eq!(k.origins[1].count(), 1);
}

#[test]
fn the_second_request_is_judged_as_the_first_was() {
    let k = kept();
    let host = format!("a.web.test:{HTTP}");
    let evil = "GET {front}/second HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    let firsts = [
        format!("GET {{front}}/n0 HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!("POST {{front}}/n1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\n\r\nabc"),
        format!(
            "POST {{front}}/n2 HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        ),
        // Its length lies: what follows is the second request, whoever sees it as a body.
        format!("POST {{front}}/n3 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"),
        format!("GET {{front}}/n4 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"),
    ];
    let seconds = [
        (evil, "no_rule"),
        ("GET {front}/second HTTP/1.1\r\nHost: a.web.test:{HTTP}\r\nHost: evil.test\r\n\r\n", "ambiguous_request"),
        ("GET {front}/second HTTP/1.1\r\n\r\n", "no_host"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "upgrade_denied"),
        ("\x16\x03\x01\x00\x05hello", "bad_request"),
    ];
    for (n, first) in firsts.iter().enumerate() {
        for (second, reason) in seconds {
            for pipelined in [true, false] {
                for (way, mut stream, front) in ways_in(&k.egret, &host) {
                    // Every request of a proxy's client names its host twice; the target's is the one that counts.
                    let evil_front =
                        if second == evil && way == "absolute" { "http://evil.test".to_owned() } else { front.clone() };
                    let fill =
                        |text: &str, front: &str| text.replace("{front}", front).replace("{HTTP}", &HTTP.to_string());
                    let (first, second) = (fill(first, &front), fill(second, &evil_front));
                    let local = stream.local_addr().unwrap();
                    let context = format!("n{n} {reason} {way} pipelined: {pipelined}");
                    if pipelined {
                        stream.write_all(format!("{first}{second}").as_bytes()).unwrap();
                    } else {
                        for byte in first.bytes() {
                            stream.write_all(&[byte]).unwrap();
                        }
                    }
                    let said = answer(&mut stream);
                    assert!(said.starts_with("HTTP/1.1 200") && said.ends_with(&format!("/n{n}")), "{context}: {said}");
                    if !pipelined {
                        stream.write_all(second.as_bytes()).unwrap();
                    }
                    let said = String::from_utf8(read_all(&mut stream)).unwrap();
                    assert!(said.starts_with("HTTP/1.1 40"), "{context}: {said}");
                    allowed(&k.egret.record_of(local), "web");
                    let record = k.egret.record_of(local);
                    let expected = if ["connect", "socks"].contains(&way) && reason == "no_rule" {
                        "name_mismatch"
                    } else {
                        reason
                    };
                    assert_eq!(
                        (&record["verdict"], &record["reason"]),
                        (&"deny".into(), &expected.into()),
                        "{context}: {record:#}"
                    );
                }
            }
        }
    }
    for stream in k.origins[0].streams() {
        let text = String::from_utf8(stream).unwrap();
        assert!(!text.contains("second") && !text.contains("evil.test") && !text.contains("PRI"), "{text}");
    }
}

#[test]
fn an_upstream_that_left_is_dialled_anew() {
    // It answers once a connection and closes, without having said that it would.
    let w = world(OK);
    let host = format!("a.web.test:{HTTP}");
    let mut stream = connect(w.egret.plain());
    for n in 1..=4 {
        let method = if n == 3 { "DELETE" } else { "GET" };
        write!(stream, "{method} /{n} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        assert!(answer(&mut stream).ends_with("hi"));
        eventually("the origin is asked on a connection of its own", || w.origin.count() == n);
        // Time for its close to arrive: what may not be repeated is not sent into it.
        crate::support::pause();
    }
}

#[test]
fn a_connection_that_waits_for_a_request_does_not_hold_up_an_end() {
    let mut k = kept();
    let mut stream = connect(k.egret.plain());
    write!(stream, "GET /1 HTTP/1.1\r\nHost: a.web.test:{HTTP}\r\n\r\n").unwrap();
    assert!(answer(&mut stream).ends_with("/1"));
    let begun = std::time::Instant::now();
    k.egret.signal("TERM");
    assert_eq!(read_all(&mut stream), b"", "a polite end");
    drop(stream);
    assert_eq!(k.egret.wait(), 0);
    assert!(begun.elapsed().as_secs() < 10, "long before limits.drain");
    assert_eq!(k.egret.records().len(), 1, "a connection that asks for nothing more has no line more");
}

#[test]
fn a_websocket_passes_where_a_rule_says_so() {
    let (dns, ip) = (Dns::start(), own_ip());
    for name in ["ws.web.test", "plain.web.test"] {
        dns.answer(name, &[&ip.to_string()]);
    }
    let policy = "application_rules:\n  - { name: ws, fqdns: [ws.web.test], protocols: [\"http:10080\"], addresses: [\"127.0.0.0/8\"], upgrade: [websocket] }\n  - { name: plain, fqdns: [plain.web.test], protocols: [\"http:10080\"], addresses: [\"127.0.0.0/8\"] }\n";
    let egret = Egret::start(dns.address, (HTTPS, HTTP), policy, "");
    // It switches, says something of its own at once, and sends back what it hears.
    let origin = Recorder::echoing(ip, HTTP, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n\x81\x02hi");
    let ask = |name: &str| {
        format!(
            "GET /chat HTTP/1.1\r\nHost: {name}:{HTTP}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: k\r\n\r\n"
        )
    };
    for (way, mut stream, front) in ways_in(&egret, &format!("ws.web.test:{HTTP}")) {
        let local = stream.local_addr().unwrap();
        // A first frame right behind the request.
        stream
            .write_all(
                format!("{}\u{1}early", ask("ws.web.test").replace("GET /chat", &format!("GET {front}/chat")))
                    .as_bytes(),
            )
            .unwrap();
        let head = read_head(&mut stream);
        assert!(
            head.starts_with("HTTP/1.1 101")
                && head.contains("Sec-WebSocket-Accept: x")
                && head.contains("Upgrade: websocket"),
            "{way}: {head}"
        );
        let mut seen = [0; 10];
        stream.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"\x81\x02hi\x01early", "{way}");
        stream.write_all(b"more").unwrap();
        stream.read_exact(&mut seen[..4]).unwrap();
        assert_eq!(&seen[..4], b"more");
        drop(stream);
        let record = egret.record_of(local);
        allowed(&record, "ws");
        assert_eq!(record["status"], 101);
    }
    let sent = format!(
        "GET /chat HTTP/1.1\r\nHost: ws.web.test:{HTTP}\r\nSec-WebSocket-Key: k\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\u{1}early"
    );
    assert!(origin.streams().iter().all(|stream| stream.starts_with(sent.as_bytes())));
    let before = origin.count();
    let (said, local) = say(egret.plain(), ask("plain.web.test").as_bytes());
    assert!(said.starts_with("HTTP/1.1 403"), "{said}");
    refused(&egret.record_of(local), "upgrade_denied", "http");
    assert_eq!(origin.count(), before);
    // Any other offer is dropped, and a server that takes it up all the same answers nobody.
    for request in [
        ask("ws.web.test").replace(": WebSocket", ": h2c"),
        ask("ws.web.test").replace(": WebSocket", ": websocket, h2c"),
        ask("ws.web.test").replace("GET", "POST"),
    ] {
        let (said, local) = say(egret.plain(), request.as_bytes());
        assert!(said.starts_with("HTTP/1.1 502"), "{request}: {said}");
        refused(&egret.record_of(local), "upgrade_denied", "relay");
    }
    let offered = |stream: &Vec<u8>| String::from_utf8_lossy(stream).to_lowercase().contains("upgrade");
    assert!(!origin.streams()[before..].iter().any(offered));
}

#[test]
fn a_websocket_client_and_its_server_talk_through_it() {
    let (dns, ip) = (Dns::start(), own_ip());
    let name = "ws.web.test";
    dns.answer(name, &[&ip.to_string()]);
    let policy = "application_rules:\n  - { name: ws, fqdns: [ws.web.test], protocols: [\"http:10080\"], addresses: [\"127.0.0.0/8\"], upgrade: [websocket] }\n";
    let egret = Egret::start(dns.address, (HTTPS, HTTP), policy, "");
    let listener = std::net::TcpListener::bind((ip, HTTP)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut server = tungstenite::accept(stream).unwrap();
            while let Ok(message) = server.read() {
                if (message.is_text() || message.is_binary()) && server.send(message).is_err() {
                    break;
                }
            }
        }
    });
    for through_connect in [false, true] {
        let target = format!("{name}:{HTTP}");
        let stream = if through_connect { tunnel(&egret, &target) } else { connect(egret.plain()) };
        let local = stream.local_addr().unwrap();
        let (mut client, answer) = tungstenite::client(format!("ws://{target}/chat"), stream).unwrap();
        assert_eq!(answer.status(), 101);
        let (short, long) = ("hello".into(), vec![0xA5; 3 << 20].into());
        for message in [tungstenite::Message::Text(short), tungstenite::Message::Binary(long)] {
            client.send(message.clone()).unwrap();
            assert!(client.read().unwrap() == message, "a message came back changed");
        }
        client.close(None).unwrap();
        while client.read().is_ok() {}
        drop(client);
        let record = egret.record_of(local);
        allowed(&record, "ws");
        assert!(
            record["bytes_up"].as_u64() > Some(3 << 20) && record["bytes_down"].as_u64() > Some(3 << 20),
            "{record}"
        );
    }
}

#[test]
fn an_upstream_that_switches_unasked_answers_no_client() {
    let w = world(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    let (said, local) = say(w.egret.plain(), format!("GET / HTTP/1.1\r\nHost: a.web.test:{HTTP}\r\n\r\n").as_bytes());
    assert!(said.starts_with("HTTP/1.1 502"), "{said}");
    assert_eq!(w.egret.record_of(local)["reason"], "upgrade_denied");
}

#[test]
fn methods_and_paths_are_judged_on_every_request() {
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("repo.web.test", &[&ip.to_string()]);
    let origin = Recorder::serving(ip, HTTP);
    let policy = "application_rules:\n  - { name: repo, fqdns: [repo.web.test], protocols: [\"http:10080\"], addresses: [\"127.0.0.0/8\"], methods: [GET, HEAD], paths: [/dists, \"/pool/**/*.deb\"] }\n";
    let egret = Egret::start(dns.address, (HTTPS, HTTP), policy, "");
    let request = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: repo.web.test:{HTTP}\r\n\r\n");
    for (method, path, reason) in [
        ("GET", "/dists/stable/Release?x=/../y", ""),
        ("HEAD", "/dists", ""),
        ("GET", "/pool/main/a/a_1.deb", ""),
        ("GET", "//dists/./x", ""),
        ("POST", "/dists/x", "method_not_allowed"),
        ("get", "/dists/x", "method_not_allowed"),
        ("GET", "/", "path_not_allowed"),
        ("GET", "/distsx", "path_not_allowed"),
        ("GET", "/dists/../secret", "path_not_allowed"),
        ("GET", "/dists/%2e%2e/secret", "path_not_allowed"),
        ("GET", "/dists/%2e%2e%2fsecret", "path_not_allowed"),
        ("GET", "/dists/%252e%252e/secret", "path_not_allowed"),
        ("GET", "/dists/..;/secret", "path_not_allowed"),
        ("GET", "/dists/%c0%ae%c0%ae/secret", "path_not_allowed"),
        ("GET", "/dists/%ef%bc%8e%ef%bc%8e/secret", "path_not_allowed"),
        ("GET", "/dists/x%0d%0a", "path_not_allowed"),
        ("GET", "/pool/main/a/a_1.deb/x", "path_not_allowed"),
        ("OPTIONS", "*", "method_not_allowed"),
    ] {
        let (said, local) = say(egret.plain(), request(method, path).as_bytes());
        let record = egret.record_of(local);
        if reason.is_empty() {
            assert!(said.starts_with("HTTP/1.1 200"), "{method} {path}: {said}");
            allowed(&record, "repo");
            // It goes on as it came.
            origin.received(request(method, path).as_bytes());
        } else {
            assert!(said.starts_with("HTTP/1.1 403"), "{method} {path}: {said}");
            refused(&record, reason, "http");
        }
    }
    // Nor does a field name another request.
    for (field, reason) in [
        ("X-HTTP-Method-Override: DELETE", "method_not_allowed"),
        ("x_method_override: DELETE", "method_not_allowed"),
        ("X-HTTP-Method: GET", "method_not_allowed"),
        ("X-Original-URL: /secret", "path_not_allowed"),
        ("x-rewrite-url: /secret", "path_not_allowed"),
    ] {
        let raw = request("GET", "/dists/x").replace("\r\n\r\n", &format!("\r\n{field}\r\n\r\n"));
        let (_, local) = say(egret.plain(), raw.as_bytes());
        let record = egret.record_of(local);
        refused(&record, reason, "http");
        assert!(record["nearest"].as_str().unwrap().contains("does not allow headers that override"), "{record:#}");
    }
    assert_eq!(origin.count(), 4);
    // The second request of a connection, too.
    let mut stream = connect(egret.plain());
    stream.write_all(format!("{}{}", request("GET", "/dists/1"), request("GET", "/secret")).as_bytes()).unwrap();
    assert!(answer(&mut stream).ends_with("/dists/1"));
    assert!(answer(&mut stream).starts_with("HTTP/1.1 403"));
}

#[test]
fn requests_with_two_readings_never_leave() {
    let w = world(OK);
    let host = format!("a.web.test:{HTTP}");
    let cases = [
        (format!("GET / HTTP/1.1\r\nHost: {host}\r\nHost: evil.test\r\n\r\n"), "ambiguous_request", "peek"),
        ("GET / HTTP/1.1\r\nHost: a.web.test:1\r\n\r\n".to_owned(), "ambiguous_request", "http"),
        (format!("GET http://b.web.test:{HTTP}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"), "ambiguous_request", "http"),
        (
            format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"),
            "ambiguous_request",
            "peek",
        ),
        (format!("GET / HTTP/1.1\nHost: {host}\n\n"), "ambiguous_request", "peek"),
        (format!("GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\r\n"), "upgrade_denied", "http"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "upgrade_denied", "peek"),
        ("GET / HTTP/1.1\r\nX: y\r\n\r\n".to_owned(), "no_host", "peek"),
        ("GET / HTTP/1.1\r\nHost: a web\r\n\r\n".to_owned(), "bad_host", "http"),
        (format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n"), "method_not_allowed", "http"),
        ("\x16\x03\x01\0\x01\0".to_owned(), "bad_request", "peek"),
        ("GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n".to_owned(), "no_rule", "name"),
    ];
    for (request, reason, stage) in cases {
        let (said, local) = say(w.egret.plain(), request.as_bytes());
        let record = w.egret.record_of(local);
        assert_eq!(record["reason"], reason, "{request:?}: {record:#}");
        refused(&record, reason, stage);
        assert!(!said.starts_with("HTTP") || said.contains(&format!("reason: {reason}\n")), "{said}");
    }
    assert_eq!(w.origin.count(), 0);
}

#[test]
fn an_upstream_that_speaks_no_http_is_unreachable() {
    let w = world(b"SSH-2.0-x\r\n\r\n");
    let mut stream = connect(w.egret.plain());
    write!(stream, "GET / HTTP/1.1\r\nHost: a.web.test:{HTTP}\r\n\r\n").unwrap();
    let said = String::from_utf8(read_all(&mut stream)).unwrap();
    assert!(said.starts_with("HTTP/1.1 502"), "{said}");
}

#[test]
fn an_answer_ends_where_its_framing_says_even_if_the_upstream_does_not() {
    let w = world(OK);
    for (n, (answer, body)) in [
        (OK, "hi"),
        (&b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"[..], "0\r\n\r\n"),
        (b"HTTP/1.1 204 No Content\r\n\r\njunk", "HTTP/1.1 204 No Content\r\n\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let (name, ip) = (format!("n{n}.web.test"), own_ip());
        w.dns.answer(&name, &[&ip.to_string()]);
        // It keeps the connection, whatever it was told.
        let _origin = Recorder::start(ip, HTTP, answer);
        let (said, local) =
            say(w.egret.plain(), format!("GET / HTTP/1.1\r\nHost: {name}:{HTTP}\r\n\r\n").as_bytes());
        assert!(said.ends_with(body), "{said}");
        assert_eq!(w.egret.record_of(local)["ending"], "closed");
    }
}

#[test]
fn no_word_of_ours_stands_inside_an_upstreams_answer() {
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let _origin = Recorder::start(ip, HTTP, b"HTTP/1.1 200 OK\r\n\r\npart of an answer");
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "");
    let mut stream = connect(egret.plain());
    let local = stream.local_addr().unwrap();
    write!(stream, "POST / HTTP/1.1\r\nHost: a.web.test:{HTTP}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        .unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"part of an answer") {
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    stream.write_all(b"bad chunk\r\n").unwrap();
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(egret.record_of(local)["ending"], "client_reset");
}

#[test]
fn an_answer_that_comes_early_arrives() {
    if !crate::support::have(&["curl"]) {
        return;
    }
    let w = world(OK);
    let (name, ip) = ("early.web.test", own_ip());
    w.dns.answer(name, &[&ip.to_string()]);
    let _origin = Recorder::start(ip, HTTP, b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    std::fs::write(&file, vec![b'x'; 8 << 20]).unwrap();
    let data = format!("@{}", file.display());
    let url = format!("http://{name}:{HTTP}/");
    let proxy = format!("http://{}", w.egret.forward());
    for _ in 0..5 {
        let out =
            crate::support::curl(&["-w", "%{http_code}", "-H", "Expect:", "--data-binary", &data, "-x", &proxy, &url]);
        assert_eq!(crate::support::text(&out), "413");
    }
}
