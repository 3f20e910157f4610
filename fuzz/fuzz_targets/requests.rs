//! Whatever a client sends is refused, or goes on as requests whose hosts and ends a second reader sees alike.
//!
//! The second reader shares nothing with egret's own: it splits at line ends and looks for nothing else.
#![no_main]

use egret_core::wire::http::Body;
use egret_core::wire::http::{Onward, RequestHead};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 64 << 10;

fuzz_target!(|bytes: &[u8]| {
    let (mut sent, mut judged) = (Vec::new(), Vec::new());
    let mut rest = bytes;
    while let Ok(Some(head)) = RequestHead::look(rest, LIMIT) {
        let Ok(authority) = head.authority() else { break };
        if head.path().is_none() {
            break;
        }
        let mut body = Body::new(head.body);
        let tail = &rest[head.len..];
        let Ok(n) = body.take(tail) else { break };
        if !body.is_done() {
            break;
        }
        judged.push(authority.host.to_string());
        let onward = if head.stays() { Onward::Stay } else { Onward::Close };
        sent.extend(head.for_origin(rest, b"", onward));
        sent.extend(&tail[..n]);
        rest = &tail[n..];
    }
    let seen = hosts(&sent);
    assert!(
        seen.len() == judged.len() && seen.iter().zip(&judged).all(|(s, j)| same_host(s, j)),
        "{seen:?} {judged:?}"
    );
});

/// The hosts of a stream of requests, to its last byte.
fn hosts(mut rest: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    while !rest.is_empty() {
        let end = find(rest, b"\r\n\r\n").expect("a head ends");
        let head = std::str::from_utf8(&rest[..end]).map(str::to_owned);
        let head = head.unwrap_or_else(|_| rest[..end].iter().map(|b| char::from(*b)).collect());
        rest = &rest[end + 4..];
        assert!(!head.replace("\r\n", "").contains(['\r', '\n', '\0']), "{head:?}");
        let mut lines = head.split("\r\n");
        let first: Vec<&str> = lines.next().unwrap().split(' ').collect();
        assert!(
            first.len() == 3 && (first[1].starts_with('/') || first[1] == "*") && first[2].starts_with("HTTP/1."),
            "{first:?}"
        );
        let fields: Vec<(String, &str)> = lines
            .map(|line| line.split_once(':').expect("a field has a colon"))
            .map(|(name, value)| (name.to_lowercase(), value.trim_matches([' ', '\t'])))
            .collect();
        assert!(fields.iter().all(|(name, _)| !name.contains([' ', '\t'])), "{fields:?}");
        let all =
            |wanted: &str| -> Vec<&str> { fields.iter().filter(|(name, _)| name == wanted).map(|(_, v)| *v).collect() };
        let host = all("host");
        assert_eq!(host.len(), 1, "{fields:?}");
        let host = host[0].to_lowercase();
        let bare = match host.rsplit_once(':') {
            Some((front, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !front.ends_with(':') => front,
            _ => &host,
        };
        let bare = bare.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        out.push(bare.to_owned());
        let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
        assert!(lengths.len() + codings.len() <= 1, "{fields:?}");
        if codings.is_empty() {
            let length: usize = lengths.first().map_or(0, |n| n.parse().expect("a length is a number"));
            rest = &rest[length..];
            continue;
        }
        loop {
            let line = find(rest, b"\r\n").expect("a chunk's size has a line");
            let digits = rest[..line].split(|b| *b == b';').next().unwrap();
            let digits = std::str::from_utf8(digits).expect("a chunk's size is ASCII");
            let size = usize::from_str_radix(digits, 16).expect("a chunk's size is a number");
            rest = &rest[line + 2..];
            if size == 0 {
                break;
            }
            assert_eq!(&rest[size..size + 2], b"\r\n");
            rest = &rest[size + 2..];
        }
        while !rest.starts_with(b"\r\n") {
            rest = &rest[find(rest, b"\r\n").expect("a trailer ends") + 2..];
        }
        rest = &rest[2..];
    }
    out
}

/// The same name; an address may be spelled in any way `inet_aton` takes, each of which begins with a digit.
fn same_host(sent: &str, judged: &str) -> bool {
    let Ok(judged_ip) = judged.parse::<std::net::IpAddr>() else { return sent == judged };
    match sent.parse::<std::net::IpAddr>() {
        Ok(ip) => ip.to_canonical() == judged_ip,
        Err(_) => judged_ip.is_ipv4() && sent.starts_with(|c: char| c.is_ascii_digit()),
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}
