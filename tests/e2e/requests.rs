//! Raw requests of the smuggling families, each whole and byte by byte, through every way in: what is said to the
//! client, what stands in the record, and what the origin received.

use std::io::Write;
use std::net::Shutdown;

use crate::clients::{HTTP, HTTPS, policy};
use crate::http::ways_in;
use crate::support::dns::Dns;
use crate::support::origin::Recorder;
use crate::support::{Egret, own_ip, read_all};

/// `{F}` is what stands before the path on the way in, `{H}` the host with its port. An empty reason lets it pass;
/// several are those of different ways in. `H`: in absolute-form it passes.
const TABLE: &[(&str, &str)] = &[
    // RFC 9112 §3: the request line.
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", ""),
    ("GET {F}/a?b=c&d HTTP/1.1\r\nHost: {H}\r\n\r\n", ""),
    ("GET {F}/%41%zz HTTP/1.1\r\nHost: {H}\r\n\r\n", ""),
    ("PROPFIND {F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", ""),
    ("M-SEARCH {F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", ""),
    ("G#T {F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", ""),
    ("GET  {F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "ambiguous_request bad_request"),
    ("GET {F}/  HTTP/1.1\r\nHost: {H}\r\n\r\n", "ambiguous_request bad_request"),
    ("GET\t{F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/\tHTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    (" GET {F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1 \r\nHost: {H}\r\n\r\n", "bad_request ambiguous_request"),
    ("GET {F}/ HTTP/1.1\rX\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/ x HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.2\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/2.0\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/0.9\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.10\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/01.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/ http/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTPS/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/\r\n\r\n", "bad_request"),
    ("GET {F}/\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("{F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("G(T {F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("G\u{e9}T {F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/\u{e9} HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/\0 HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/\x7f HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/#f HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET a HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET * HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET \\{F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request bad_host"),
    ("GET https://{H}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET ftp://{H}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET http:/{H}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET http:///x HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_host"),
    ("CONNECT {H} HTTP/1.1\r\nHost: {H}\r\n\r\n", "method_not_allowed *"),
    ("CONNECT {F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request bad_host"),
    // RFC 9112 §3.2: Host.
    ("GET {F}/ HTTP/1.1\r\nhOsT: {H}\r\n\r\n", ""),
    ("GET {F}/ HTTP/1.1\r\nHost:{H}\r\n\r\n", ""),
    ("GET {F}/ HTTP/1.1\r\nHost:\t{H}\t \r\n\r\n", ""),
    ("GET {F}/ HTTP/1.1\r\nHost: A.WEB.test:{P}\r\n\r\n", ""),
    ("GET {F}/ HTTP/1.1\r\nHost: a.web.test.:{P}\r\n\r\n", ""),
    ("GET {F}/ HTTP/1.1\r\n\r\n", "no_host"),
    ("GET {F}/ HTTP/1.1\r\nHost:\r\n\r\n", "no_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: \r\n\r\n", "no_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nHost: {H}\r\n\r\n", "ambiguous_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nHost: evil.test\r\n\r\n", "ambiguous_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: evil.test\r\nHost: {H}\r\n\r\n", "ambiguous_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}, evil.test\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H} evil.test\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: evil.test@{H}\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}/x\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}?x\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}#x\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: http://{H}\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: a.web.test:0\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: a.web.test:99999\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: a.web.test:-1\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: a.web.test:x\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: a.web.test:{P}:{P}\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: a.web.test:1\r\n\r\n", "ambiguous_request H"),
    ("GET {F}/ HTTP/1.1\r\nHost: a..web.test\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: .web.test\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: [a.web.test]\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: [::1\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: [::1].\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: a%2eweb.test\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: \u{e4}.web.test\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: a.web.test\\evil.test\r\n\r\n", "bad_host H"),
    ("GET {F}/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", "no_rule name_mismatch H"),
    ("GET {F}/ HTTP/1.1\r\nHost: 127.0.0.1:{P}\r\n\r\n", "ip_literal H"),
    ("GET {F}/ HTTP/1.1\r\nHost: 2130706433:{P}\r\n\r\n", "ip_literal H"),
    ("GET http://evil.test/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "no_rule ambiguous_request"),
    ("GET http://u:p@{H}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "ambiguous_request H"),
    ("GET http://{H}@evil.test/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "no_rule ambiguous_request"),
    ("GET http://u@{H}@evil.test/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "ambiguous_request"),
    ("GET http://{H}%00.evil.test/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_host"),
    // RFC 9112 §5: fields.
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX:\r\n\r\n", ""),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX: \u{e9}\r\n\r\n", ""),
    ("GET {F}/ HTTP/1.1\r\nHost : {H}\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX : y\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX\t: y\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\n Host: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX: y\r\n z\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX: y\r\n\tz\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nX: y\r\n Host: evil.test\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX y\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\n: y\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX\0: y\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX: y\0z\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX: y\x0bz\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX: y\x1b[2J\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX: y\rHost: evil.test\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX: y\nHost: evil.test\r\n\r\n", "ambiguous_request"),
    ("GET {F}/ HTTP/1.1\nHost: {H}\n\n", "ambiguous_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\n\r\n", "ambiguous_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\n\n", "ambiguous_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nX(: y\r\n\r\n", "bad_request"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\n\u{e9}: y\r\n\r\n", "bad_request"),
    // RFC 9112 §6: where a body ends.
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length: 3\r\n\r\nabc", ""),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length: 0\r\n\r\n", ""),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length: 003\r\n\r\nabc", ""),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", ""),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=\"y\"\r\nabc\r\n0\r\nT: v\r\n\r\n", ""),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", ""),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "ambiguous_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "ambiguous_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length: 3, 3\r\n\r\nabc", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length: +3\r\n\r\nabc", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length: -1\r\n\r\n", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length: 0x3\r\n\r\nabc", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length: 3 4\r\n\r\nabc", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length:\r\n\r\n", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length: 18446744073709551619\r\n\r\nabc", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length : 3\r\n\r\nabc", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent_Length: 3\r\n\r\nabc", "ambiguous_request"),
    (
        "POST {F}/ HTTP/1.1\r\nHost: {H}\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "ambiguous_request",
    ),
    (
        "POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        "ambiguous_request",
    ),
    ("POST {F}/ HTTP/1.0\r\nHost: {H}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "ambiguous_request"),
    (
        "POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "ambiguous_request",
    ),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: identity\r\n\r\n", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", "bad_request"),
    ("POST {F}/ HTTP/1.1\r\nHost: {H}\r\nTransfer_Encoding: chunked\r\n\r\n0\r\n\r\n", "ambiguous_request"),
    (
        "POST {F}/ HTTP/1.1\r\nHost: {H}\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "ambiguous_request",
    ),
    (
        "POST {F}/ HTTP/1.1\r\nHost: {H}\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\nabc",
        "ambiguous_request",
    ),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nConnection: close, host\r\n\r\n", "ambiguous_request"),
    // RFC 9110 §7.8 and RFC 9113 §3.
    (
        "GET {F}/ HTTP/1.1\r\nHost: {H}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        "",
    ),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "upgrade_denied"),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nUpgrade: TLS/1.0\r\n\r\n", ""),
    ("GET {F}/ HTTP/1.1\r\nHost: {H}\r\nUpgrade:\r\n\r\n", ""),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "upgrade_denied"),
    ("\r\nGET {F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("\r\n\r\nGET {F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
    ("\0GET {F}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", "bad_request"),
];

/// Bodies whose framing breaks: the head is on its way by then, and the rest is not.
const BROKEN_BODIES: &[&str] = &[
    "3\nabc\r\n0\r\n\r\n",
    "3\r\nabcd\r\n0\r\n\r\n",
    "3\r\nabc0\r\n\r\n",
    "x\r\nabc\r\n0\r\n\r\n",
    "0x3\r\nabc\r\n0\r\n\r\n",
    " 3\r\nabc\r\n0\r\n\r\n",
    "3 \r\nabc\r\n0\r\n\r\n",
    "+3\r\nabc\r\n0\r\n\r\n",
    "3;\r\nabc\r\n0\r\n\r\n",
    "3;a=\"b\r\nabc\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "0\r\nContent-Length: 3\r\n\r\n",
    "0\r\nX: y\n\r\n",
    "0\r\n X: y\r\n\r\n",
];

#[test]
fn every_request_of_the_table_is_answered_as_it_says_on_every_way_in() {
    assert!(TABLE.len() + BROKEN_BODIES.len() >= 120, "{}", TABLE.len() + BROKEN_BODIES.len());
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let origin = Recorder::serving(ip, HTTP);
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "limits: { peek: 2s }");
    let host = format!("a.web.test:{HTTP}");
    let mut passed = 0;
    for (text, expected) in TABLE {
        for byte_by_byte in [false, true] {
            for (way, mut stream, front) in ways_in(&egret, &host) {
                let local = stream.local_addr().unwrap();
                let raw = text.replace("{F}", &front).replace("{H}", &host).replace("{P}", &HTTP.to_string());
                // Between ASCII, a byte beyond it; UTF-8 would be two.
                let raw: Vec<u8> = raw.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
                // On a connection that makes its own claims, CONNECT is one.
                if expected.ends_with('*') && way == "absolute" {
                    continue;
                }
                if byte_by_byte {
                    let _ = raw.iter().try_for_each(|byte| stream.write_all(&[*byte]));
                } else {
                    let _ = stream.write_all(&raw);
                }
                let _ = stream.shutdown(Shutdown::Write);
                let said = String::from_utf8_lossy(&read_all(&mut stream)).into_owned();
                let record = egret.record_of(local);
                let context = format!(
                    "{way} {:?} byte by byte: {byte_by_byte}\n{said}\n{record:#}",
                    raw.escape_ascii().to_string()
                );
                // A proxy ignores what Host says beside a target with a host (RFC 9112 §3.2.2).
                let is_let_out = expected.is_empty() || (expected.ends_with('H') && way == "absolute");
                if is_let_out {
                    assert!(said.starts_with("HTTP/1.1 200"), "{context}");
                    assert_eq!(
                        (&record["verdict"], &record["name"]),
                        (&"allow".into(), &"a.web.test".into()),
                        "{context}"
                    );
                    passed += 1;
                    continue;
                }
                assert_eq!(record["verdict"], "deny", "{context}");
                assert!(expected.split(' ').any(|reason| record["reason"] == reason), "not {expected}: {context}");
                let spoken =
                    ["HTTP/1.1 400", "HTTP/1.1 403", "HTTP/1.1 431"].iter().any(|status| said.starts_with(status));
                assert!(spoken || (said.is_empty() && !raw[0].is_ascii_graphic()), "{context}");
                assert!(record["upstream"].is_null(), "{context}");
            }
        }
    }
    // Each that passed came as it was sent, and nothing else did.
    let received: Vec<u8> = origin.streams().concat();
    let heads = received.windows(9).filter(|w| w == b"HTTP/1.1\r").count()
        + received.windows(9).filter(|w| w == b"HTTP/1.0\r").count();
    assert_eq!(heads, passed, "requests at the origin");
    assert!(!String::from_utf8_lossy(&received).contains("evil"));
}

#[test]
fn a_body_that_breaks_its_framing_takes_nothing_with_it() {
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let origin = Recorder::serving(ip, HTTP);
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "limits: { peek: 2s }");
    let host = format!("a.web.test:{HTTP}");
    for body in BROKEN_BODIES {
        for (way, mut stream, front) in ways_in(&egret, &host) {
            let local = stream.local_addr().unwrap();
            let smuggled = "GET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n";
            write!(
                stream,
                "POST {front}/ HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n{body}{smuggled}"
            )
            .unwrap();
            let said = String::from_utf8_lossy(&read_all(&mut stream)).into_owned();
            let record = egret.record_of(local);
            assert!(said.starts_with("HTTP/1.1 400"), "{way} {body:?}: {said}");
            assert_eq!(
                (&record["reason"], &record["stage"]),
                (&"bad_request".into(), &"http".into()),
                "{way} {body:?}"
            );
        }
    }
    let received = String::from_utf8_lossy(&origin.streams().concat()).into_owned();
    assert!(!received.contains("smuggled") && !received.contains("evil"), "{received}");
}
