//! Plain HTTP: one request a connection, judged by its host, and nothing behind it.

use std::io::Write;
use std::net::SocketAddr;

use crate::clients::{HTTP, HTTPS, policy};
use crate::support::dns::Dns;
use crate::support::origin::Recorder;
use crate::support::{Egret, allowed, connect, own_ip, read_all, refused, tunnel};

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
fn a_request_goes_on_in_origin_form_and_closes_both_sides() {
    let w = world(OK);
    let host = format!("a.web.test:{HTTP}");
    let request = format!(
        "GET http://{host}/p?q HTTP/1.1\r\nHost: {host}\r\nX-oDD:  v\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic c2VjcmV0\r\n\r\n"
    );
    let mut stream = connect(w.egret.forward());
    stream.write_all(request.as_bytes()).unwrap();
    let sent = format!("GET /p?q HTTP/1.1\r\nHost: {host}\r\nX-oDD:  v\r\nConnection: close\r\n\r\n");
    w.origin.received(sent.as_bytes());
    assert!(String::from_utf8(read_all(&mut stream)).unwrap().ends_with("Connection: close\r\n\r\nhi"));
    for (to, request) in [
        (w.egret.plain(), format!("POST /form HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\n\r\nabc")),
        (
            w.egret.forward(),
            format!(
                "POST http://{host}/chunks HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            ),
        ),
    ] {
        let mut stream = connect(to);
        let local = stream.local_addr().unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let answer = String::from_utf8(read_all(&mut stream)).unwrap();
        assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
        let record = w.egret.record_of(local);
        allowed(&record, "web");
        assert_eq!((&record["event"], &record["method"]), (&"http".into(), &"POST".into()));
    }
}

#[test]
fn nothing_behind_the_first_request_reaches_the_origin() {
    let w = world(OK);
    let host = format!("a.web.test:{HTTP}");
    let smuggled = "GET /second HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    for (n, first) in [
        format!("GET /n0 HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!("POST /n1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\n\r\nabc"),
        format!("POST /n2 HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    ]
    .iter()
    .enumerate()
    {
        for mut stream in [connect(w.egret.plain()), tunnel(&w.egret, &host)] {
            stream.write_all(format!("{first}{smuggled}").as_bytes()).unwrap();
            let mut byte = [0; 12];
            std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
            assert_eq!(&byte, b"HTTP/1.1 200", "n{n}");
        }
    }
    for stream in w.origin.streams() {
        let text = String::from_utf8(stream).unwrap();
        assert!(!text.contains("second") && !text.contains("evil.test"), "{text}");
        assert!(text.contains("Connection: close\r\n"), "{text}");
    }
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
        (format!("GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: h2c\r\n\r\n"), "upgrade_denied", "peek"),
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
        assert!(!said.starts_with("HTTP") || said.ends_with(&format!("reason: {reason}\n")), "{said}");
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
        (b"HTTP/1.1 204 No Content\r\n\r\njunk", "Connection: close\r\n\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let (name, ip) = (format!("n{n}.web.test"), own_ip());
        w.dns.answer(&name, &[&ip.to_string()]);
        // It keeps the connection, whatever it was told.
        let _origin = Recorder::start(ip, HTTP, answer);
        let mut stream = connect(w.egret.plain());
        let local = stream.local_addr().unwrap();
        write!(stream, "GET / HTTP/1.1\r\nHost: {name}:{HTTP}\r\n\r\n").unwrap();
        let said = String::from_utf8(read_all(&mut stream)).unwrap();
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
        std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
        seen.push(byte[0]);
    }
    stream.write_all(b"bad chunk\r\n").unwrap();
    let error = std::io::Read::read(&mut stream, &mut [0; 1]).unwrap_err();
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
