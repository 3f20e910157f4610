//! No byte of one request becomes another one: what real origins that differ have read is held against the log.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::clients::{HTTP, HTTPS, policy};
use crate::corpus::{bytes, lines};
use crate::http::{answer, ways_in};
use crate::support::dns::Dns;
use crate::support::origin::nginx;
use crate::support::{Egret, Server, connect, eventually, have, own_ip, pause, read_all, tunnel};

/// An origin that writes down every request it has read.
struct Witness {
    name: &'static str,
    ip: IpAddr,
    log: PathBuf,
    _server: Server,
}

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/origins");

impl Witness {
    fn start(name: &'static str, folder: &Path) -> Self {
        let (ip, log) = (own_ip(), folder.join(format!("{name}.log")));
        let address = SocketAddr::new(ip, HTTP);
        let script = |program: &str, file: &str| {
            let mut command = Command::new(program);
            command.arg(format!("{SCRIPTS}/{file}")).args([ip.to_string(), HTTP.to_string()]).arg(&log);
            command
        };
        let file = folder.join("served");
        std::fs::write(&file, "a file\n").unwrap();
        let server = match name {
            "lazy" => Server::start(script("/usr/bin/python3", "http_server.py").arg(file), address),
            "h11" => Server::start(&mut script("/usr/bin/python3", "h11_server.py"), address),
            "node" => Server::start(&mut script("node", "node_server.js"), address),
            _ => {
                let (dir, config) = (folder.display(), folder.join("nginx.conf"));
                let text = format!(
                    "daemon off; user root; pid {dir}/pid; error_log {dir}/error.log; worker_processes 1;\n\
                     events {{ worker_connections 512; }}\n\
                     http {{ log_format seen escape=json '{{\"method\":\"$request_method\",\"line\":\"$request\",\"host\":\"$http_host\"}}';\n\
                     access_log {} seen; client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2;\n\
                     fastcgi_temp_path {dir}/t3; uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;\n\
                     server {{ listen {address}; location / {{ return 200 ok; }} }} }}\n",
                    log.display()
                );
                std::fs::write(&config, text).unwrap();
                nginx(&config, address)
            }
        };
        Self { name, ip, log, _server: server }
    }

    /// Every request so far: its line, its method, and its host without a port.
    fn seen(&self) -> Vec<(String, String, String)> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let text_of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let read = |line: &str| {
            let seen: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            let host = text_of(&seen["host"]).to_lowercase();
            let host = host.strip_suffix(&format!(":{HTTP}")).unwrap_or(&host).to_owned();
            let (line, mut method) = (text_of(&seen["line"]), text_of(&seen["method"]));
            // nginx reads no further than a method in small letters.
            if method.is_empty() && host.is_empty() {
                method = line.split(' ').next().unwrap_or_default().to_owned();
                assert!(!METHODS.contains(&&*method) || method == "get", "{line:?} without a host");
            }
            // The log holds so much of one.
            method.truncate(32);
            (line, method, host)
        };
        text.lines().map(read).collect()
    }
}

const INSIDE: &str = "GET /inside HTTP/1.1\r\nHost: evil.test\r\n\r\n";

#[test]
fn a_body_that_its_server_does_not_read_becomes_no_request() {
    if !have(&["/usr/bin/python3"]) {
        return;
    }
    let (dns, folder) = (Dns::start(), tempfile::tempdir().unwrap());
    let origin = Witness::start("lazy", folder.path());
    dns.answer("a.web.test", &[&origin.ip.to_string()]).answer("evil.test", &[&origin.ip.to_string()]);
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "");
    let host = format!("a.web.test:{HTTP}");
    let chunked = format!("{:x}\r\n{INSIDE}\r\n0\r\n\r\n", INSIDE.len());
    let mut asked = 0;
    for method in ["GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE"] {
        for expect in ["", "Expect: 100-continue\r\n"] {
            for (framing, body) in [
                (format!("Content-Length: {}", INSIDE.len()), INSIDE.to_owned()),
                ("Transfer-Encoding: chunked".to_owned(), chunked.clone()),
            ] {
                for pipelined in [false, true] {
                    for (way, mut stream, front) in ways_in(&egret, &host) {
                        let context = format!("{way} {method} {expect:?} {framing} pipelined: {pipelined}");
                        let head = |method: &str, path: &str, more: &str| {
                            format!("{method} {front}{path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n")
                        };
                        // A connection that may be kept, if one may.
                        stream.write_all(head("GET", "/first", "").as_bytes()).unwrap();
                        assert!(answer(&mut stream).starts_with("HTTP/1.1 200"), "{context}");
                        let with_body = format!("{}{body}", head(method, "/body", &format!("{expect}{framing}\r\n")));
                        let next = head("GET", "/next", "Connection: close\r\n");
                        if pipelined {
                            stream.write_all(format!("{with_body}{next}").as_bytes()).unwrap();
                        } else {
                            stream.write_all(with_body.as_bytes()).unwrap();
                            // Time for an answer to what is inside.
                            (0..3).for_each(|_| pause());
                            let _ = stream.write_all(next.as_bytes());
                        }
                        read_all(&mut stream);
                        asked += 1;
                        let seen = origin.seen();
                        let evil =
                            seen.iter().find(|(line, _, host)| line.contains("/inside") || host.contains("evil"));
                        assert!(evil.is_none(), "{context}: {evil:?}");
                    }
                }
            }
        }
    }
    let count = |path: &str| origin.seen().iter().filter(|(line, ..)| line.contains(path)).count();
    assert_eq!((count("/first"), count("/body")), (asked, asked));
    // An early answer ends a connection whose request was still being sent; most go on.
    assert!(count("/next") > asked / 2, "{} of {asked}", count("/next"));
}

/// Small and the same everywhere: a test that fails must fail again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }

    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.roll(of.len())]
    }
}

const FIELDS: &[&str] = &[
    "Content-Length: 0",
    "Content-Length: 5",
    "Content-Length: 44",
    "Content-Length:\t44\t",
    "Content-Length: 0044",
    "Content-Length: +44",
    "Content-Length: 44, 44",
    "Content-Length : 44",
    "Content_Length: 44",
    "Content-Length: 4\x0b4",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding:chunked",
    "Transfer-Encoding:\tchunked\t",
    "Transfer-Encoding: Chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding\t: chunked",
    "Transfer_Encoding: chunked",
    " Transfer-Encoding: chunked",
    "X: y\r\n\tz",
    "X: y\rTransfer-Encoding: chunked",
    "X: y\nTransfer-Encoding: chunked",
    "Expect: 100-continue",
    "Connection: keep-alive",
    "Connection: close",
    "Connection: content-length",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c",
    "Upgrade: websocket",
    "Host: evil.test",
    "TE: trailers",
    "Trailer: Host",
];
const BODIES: &[&str] = &[
    INSIDE,
    "2a\r\nGET /inside HTTP/1.1\r\nHost: evil.test\r\n\r\n\r\n0\r\n\r\n",
    "0\r\n\r\nGET /inside HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    "0\r\nHost: evil.test\r\n\r\n",
    "5;x=\"y\"\r\nabcde\r\n0\r\n\r\n",
    "5\nabcde\n0\n\n",
    "abcde",
    "\r\n",
    "\r\n\r\n",
];
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE", "TRACE", "PATCH", "get", "CONNECT"];
const BYTES: &[&[u8]] = &[b"\0", b"\r", b"\n", b"\r\n", b" ", b"\t", b"\x0b", b":", b"\x80", b";", b"0", b"a"];

/// A stream for a host, from the corpus' streams and a few mistakes.
fn stream(dice: &mut Dice, seeds: &[Vec<u8>], host: &str, front: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..=dice.roll(3) {
        let mut head: Vec<Vec<u8>>;
        if dice.roll(3) == 0 {
            let seed = &seeds[dice.roll(seeds.len())];
            head = seed.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line).to_vec()).collect();
        } else {
            head =
                vec![b"GET / HTTP/1.1".to_vec(), b"Host: x".to_vec(), b"Accept: */*".to_vec(), Vec::new(), Vec::new()];
        }
        // Most requests are for the host, and by the method and version that let them pass.
        for line in &mut head {
            let is_host = line.get(..5).is_some_and(|name| name.eq_ignore_ascii_case(b"host:"));
            if is_host && dice.roll(12) > 0 {
                *line = format!("Host: {host}").into_bytes();
            }
        }
        if !head.iter().any(|line| line.starts_with(b"Host:")) && dice.roll(4) > 0 {
            head.insert(1, format!("Host: {host}").into_bytes());
        }
        if dice.roll(4) > 0 {
            let method = dice.pick(METHODS);
            head[0] = format!("{method} {front}/{} HTTP/1.{}", dice.roll(9), u8::from(dice.roll(9) > 0)).into_bytes();
        }
        for _ in 0..[0, 0, 1, 1, 2][dice.roll(5)] {
            let at = 1 + dice.roll(head.len().min(6));
            match dice.roll(4) {
                0 | 1 => head.insert(at.min(head.len()), dice.pick(FIELDS).as_bytes().to_vec()),
                2 => drop(head.remove(at.min(head.len() - 1))),
                _ => {
                    let line = head[at.min(head.len() - 1)].clone();
                    head.insert(at.min(head.len()), line);
                }
            }
        }
        let ends: &[&[u8]] = if dice.roll(20) == 0 { &[b"\n", b"\r\n"] } else { &[b"\r\n"] };
        let mut text: Vec<u8> = Vec::new();
        for (n, line) in head.iter().enumerate() {
            text.extend_from_slice(line);
            if n + 1 < head.len() {
                text.extend_from_slice(dice.pick(ends));
            }
        }
        if dice.roll(2) == 0 {
            let body = dice.pick(BODIES);
            // Sized to the byte, where the server is to be wrong and not the client.
            if dice.roll(2) == 0 {
                let length = format!("\r\nContent-Length: {}", body.len());
                let end = text.windows(2).position(|w| w == b"\r\n").unwrap_or(text.len());
                text.splice(end..end, length.bytes());
            }
            text.extend_from_slice(body.as_bytes());
        }
        for _ in 0..[0, 0, 0, 0, 1, 2][dice.roll(6)] {
            let at = dice.roll(text.len().max(1)).min(text.len().saturating_sub(1));
            match dice.roll(3) {
                0 => drop(text.splice(at..at, dice.pick(BYTES).iter().copied())),
                1 => text[at] = dice.pick(BYTES)[0],
                _ => drop(text.remove(at)),
            }
        }
        out.append(&mut text);
    }
    out
}

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().map_or(usual, |text| text.parse().expect(variable))
}

#[test]
fn origins_read_no_request_that_the_log_does_not_have() {
    if !have(&["/usr/bin/python3", "node", "nginx"]) {
        return;
    }
    let Some(requests) = lines("http-requests.jsonl.gz") else { return };
    let Some(captures) = lines("http-captures.jsonl.gz") else { return };
    let seeds: Vec<Vec<u8>> =
        requests.iter().chain(&captures).map(|line| bytes(line["hex"].as_str().unwrap())).collect();
    let seeds: Vec<Vec<u8>> = seeds.into_iter().filter(|seed| (10..3000).contains(&seed.len())).collect();
    let (streams, first) = (number("EGRET_SMUGGLE", 2000), number("EGRET_SMUGGLE_SEED", 1));
    let (dns, folder) = (Dns::start(), tempfile::tempdir().unwrap());
    let origins = ["lazy", "h11", "node", "nginx"].map(|name| Witness::start(name, folder.path()));
    let host_of = |n: u64| format!("s{n}.{}.test", origins[usize::try_from(n).unwrap() % origins.len()].name);
    for n in 0..streams {
        dns.answer(&host_of(n), &[&origins[usize::try_from(n).unwrap() % origins.len()].ip.to_string()]);
    }
    let listed: Vec<String> = origins.iter().map(|origin| format!("\"*.{}.test\"", origin.name)).collect();
    let policy = format!(
        "application_rules:\n  - {{ name: web, fqdns: [{}], protocols: [\"http:{HTTP}\"], addresses: [\"127.0.0.0/8\"] }}\n",
        listed.join(", ")
    );
    let mut egret =
        Egret::start(dns.address, (HTTPS, HTTP), &policy, "limits: { peek: 1s, idle: 2s, next_request: 1s }");
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed) as u64;
                    if n >= streams {
                        return;
                    }
                    let host = format!("{}:{HTTP}", host_of(n));
                    let mut dice = Dice((first << 32 | (n + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    let (mut client, front) = match n / origins.len() as u64 % 3 {
                        0 => (connect(egret.plain()), String::new()),
                        1 => (connect(egret.forward()), format!("http://{host}")),
                        _ => (tunnel(&egret, &host), String::new()),
                    };
                    let bytes = stream(&mut dice, &seeds, &host, &front);
                    let cut = dice.roll(bytes.len() + 1);
                    let _ = client.write_all(&bytes[..cut]);
                    let _ = client.write_all(&bytes[cut..]);
                    // A client that waits lets a server do what it likes with the rest.
                    if dice.roll(8) == 0 {
                        let _ = client.set_read_timeout(Some(std::time::Duration::from_millis(50)));
                        let _ = client.read(&mut [0; 4096]);
                    }
                    let _ = client.shutdown(Shutdown::Write);
                    read_all(&mut client);
                }
            });
        }
    });
    // Every line is written before it ends.
    egret.signal("TERM");
    assert_eq!(egret.wait(), 0);
    eventually("every stream has its line", || egret.records().len() as u64 >= streams);
    let mut logged: HashMap<(String, String), usize> = HashMap::new();
    for line in egret.records().iter().filter(|line| line["verdict"] == "allow" || !line["upstream"].is_null()) {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        *logged.entry((text("method"), text("name"))).or_default() += 1;
        *logged.entry((text("method"), String::new())).or_default() += 1;
    }
    let allowed = logged.values().sum::<usize>() / 2;
    for origin in &origins {
        let seen = origin.seen();
        let mut counts: HashMap<(String, String), usize> = HashMap::new();
        for (line, method, host) in &seen {
            let count = counts.entry((method.clone(), host.clone())).or_default();
            *count += 1;
            let most = logged.get(&(method.clone(), host.clone())).copied().unwrap_or(0);
            assert!(
                *count <= most,
                "{} read {line:?} for {host:?}, number {count} of {most} in the log; again: EGRET_SMUGGLE_SEED={first}",
                origin.name
            );
        }
        println!("{}: {} requests of {streams} streams, all of them in the log", origin.name, seen.len());
        assert!(seen.len() as u64 > streams / 20, "{} read only {} requests", origin.name, seen.len());
    }
    println!("{allowed} lines of requests that were let out");
}
