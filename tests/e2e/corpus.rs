//! Real hellos from captures and fuzz corpora, each through a running `sni` listener in its own segments.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::path::PathBuf;

use crate::clients::{HTTP, HTTPS};
use flate2::read::GzDecoder;
use serde_json::Value;

use crate::support::dns::{Dns, Does};
use crate::support::origin::Recorder;
use crate::support::{Egret, connect, missing, own_ip, read_all};

/// The lines of one file of the corpus, or a loud word that it is not there.
pub fn lines(file: &str) -> Option<Vec<Value>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    let Ok(file) = std::fs::File::open(folder.join(file)) else {
        missing("the corpus of captured hellos");
        return None;
    };
    let text = BufReader::new(GzDecoder::new(file));
    Some(text.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect())
}

pub fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Replays one file; the number of hellos that were let out.
fn replay(file: &str) -> Option<usize> {
    let lines = lines(file)?;
    let (dns, ip) = (Dns::start(), own_ip());
    dns.set("*", Does::Answer(vec![ip]));
    let policy = "application_rules:\n  - { name: all, fqdns: [\"*\"], protocols: [\"https:10443\"], addresses: [\"127.0.0.0/8\"] }\n";
    let egret = Egret::start(dns.address, (HTTPS, HTTP), policy, "");
    let origin = Recorder::start(ip, HTTPS, &[21, 3, 3, 0, 2, 2, 40]);
    let mut let_out = 0;
    for (n, line) in lines.iter().enumerate() {
        let id = line["id"].as_str().unwrap();
        let raw = bytes(line["hex"].as_str().unwrap());
        let mut stream = connect(egret.sni());
        let mut rest = &raw[..];
        for length in line["segments"].as_array().unwrap() {
            let (segment, after) = rest.split_at(usize::try_from(length.as_u64().unwrap()).unwrap().min(rest.len()));
            rest = after;
            // A refusal may come before the last segment.
            if stream.write_all(segment).is_err() {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Write);
        read_all(&mut stream);
        // One after the other: a client's port may come again, the number of its record does not.
        let record = egret.record_number(n);
        let allowed = record["verdict"] == "allow";
        let_out += usize::from(allowed);
        let sni = line["sni"].as_str().map(|sni| sni.strip_suffix('.').unwrap_or(sni).to_lowercase());
        let context = || format!("{id} {}: {record:#}", line["notes"]);
        match line["verdict"].as_str().unwrap() {
            // A withdrawn draft that hides the real name: never let out, whatever its outer name.
            "ok" if line["ech_kind"] == "esni" => assert_eq!(record["reason"], "esni_denied", "{}", context()),
            "ok" => assert!(allowed, "{}", context()),
            "lenient" => {}
            _ => assert!(!allowed, "{}", context()),
        }
        if allowed {
            assert_eq!(record["name"].as_str(), sni.as_deref(), "exactly the name: {}", context());
            assert_eq!(record["ech"].as_bool(), line["ech"].as_bool(), "{}", context());
            let spelled = |protocol: &str| match protocol.strip_prefix("hex:") {
                Some(hex) => bytes(hex).escape_ascii().to_string(),
                None => protocol.to_owned(),
            };
            let alpn: Vec<String> =
                line["alpn"].as_array().unwrap().iter().map(|p| spelled(p.as_str().unwrap())).collect();
            let logged: Vec<&str> =
                record["alpn"].as_array().into_iter().flatten().map(|p| p.as_str().unwrap()).collect();
            assert_eq!(logged, alpn, "{}", context());
            origin.received(&raw);
        } else {
            assert!(record["reason"].is_string(), "{}", context());
        }
    }
    assert_eq!(origin.count(), let_out, "what was refused never reached the origin");
    Some(let_out)
}

#[test]
fn captured_hellos_are_read_as_their_stacks_meant_them() {
    if let Some(let_out) = replay("tls-captures.jsonl.gz") {
        assert!(let_out > 1100, "{let_out}");
    }
}

#[test]
fn hellos_from_fuzz_corpora_never_pass_for_another_name() {
    if let Some(let_out) = replay("tls-fuzz.jsonl.gz") {
        assert!(let_out > 100, "{let_out}");
    }
}

#[test]
fn hellos_that_never_end_never_pass() {
    if let Some(let_out) = replay("tls-incomplete.jsonl.gz") {
        assert_eq!(let_out, 0);
    }
}

/// A server name as requests are judged by; `None` for addresses, which no name rule covers.
fn judged(host: &str) -> Option<String> {
    let bare =
        host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(h, _)| h);
    let name = egret_core::name::Host::from_wire(bare.as_bytes()).ok()?;
    match name {
        egret_core::name::Host::Name(name) => Some(name.to_string()),
        egret_core::name::Host::Address(_) => None,
    }
}

/// The ports behind names in Host fields.
fn ports(raw: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(raw).to_lowercase();
    let hosts = text.lines().filter_map(|line| line.trim().strip_prefix("host:").map(|host| host.trim().to_owned()));
    hosts.filter_map(|host| host.rsplit_once(':').map(|(_, port)| port.to_owned())).collect()
}

/// Replays one file of request streams; how many requests were let out.
fn replay_http(file: &str) -> Option<usize> {
    let lines = lines(file)?;
    let (dns, ip) = (Dns::start(), own_ip());
    if std::net::TcpListener::bind((own_ip(), 80)).is_err() {
        missing("the right to listen on port 80");
        return None;
    }
    dns.set("*", Does::Answer(vec![ip]));
    let policy = "application_rules:\n  - { name: all, fqdns: [\"*\"], protocols: [\"http:80\"], addresses: [\"127.0.0.0/8\"], upgrade: [websocket] }\n";
    let egret = Egret::start(dns.address, (HTTPS, 80), policy, "limits: { peek: 1s }");
    let origin = Recorder::serving(ip, 80);
    let mut let_out = 0;
    for line in &lines {
        let id = line["id"].as_str().unwrap();
        let raw = bytes(line["hex"].as_str().unwrap());
        let expect = &line["expect"];
        let before = origin.count();
        // A client's port may come again, and with it a late record of the connection that had it before.
        let begun = humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string();
        let mut stream = connect(egret.plain());
        let client = stream.local_addr().unwrap().to_string();
        let is_own = |record: &Value| record["client"] == client && record["ts"].as_str() >= Some(&begun);
        let segments: Vec<usize> = match line["segments"].as_array() {
            Some(all) => all.iter().map(|n| usize::try_from(n.as_u64().unwrap()).unwrap()).collect(),
            None => vec![raw.len()],
        };
        let mut rest = &raw[..];
        for length in segments {
            let (segment, after) = rest.split_at(length.min(rest.len()));
            rest = after;
            if stream.write_all(segment).is_err() {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Write);
        let said = read_all(&mut stream);
        drop(stream);
        // Records of this connection: the first always comes, the others follow as long as requests did.
        let mut own = vec![egret.record(id, is_own)];
        while own.last().unwrap()["ending"] == "closed" && own.last().unwrap()["verdict"] == "allow" {
            crate::support::pause();
            let all: Vec<Value> = egret.records().into_iter().filter(is_own).collect();
            if all.len() == own.len() {
                break;
            }
            own = all;
        }
        // What was dialled arrives, sooner or later.
        if own.iter().any(|record| record["upstream"].is_string()) {
            crate::support::eventually("the origin is reached", || origin.count() > before);
        }
        let received: Vec<u8> = origin.streams()[before..].concat();
        let context = || {
            format!(
                "{id} {expect}: {own:#?}\nsent {:?}\nsaid {:?}\norigin {:?}",
                raw.escape_ascii().to_string(),
                String::from_utf8_lossy(&said),
                received.escape_ascii().to_string()
            )
        };
        let pipeline = expect["pipeline"].as_array().cloned().unwrap_or_else(|| vec![expect.clone()]);
        for (n, expected) in pipeline.iter().enumerate() {
            let Some(record) = own.get(n) else {
                // An earlier one may have asked for an end, or been refused where it may be.
                break;
            };
            let allowed = record["verdict"] == "allow" && record["ending"] == "closed";
            let_out += usize::from(allowed);
            let host = expected["host"].as_str().and_then(judged);
            // The connection goes to port 80; a Host of another one is refused, whatever else is right with it.
            let other_port = record["reason"] == "ambiguous_request" && record["stage"] == "http";
            let other_port = other_port && ports(&raw).iter().any(|port| port != "80");
            let may_reject = [expect, expected].iter().any(|e| e["may_reject"] == true || e["no_name"] == true)
                || host.is_none()
                || other_port;
            match expected["verdict"].as_str().unwrap() {
                // A sample may be shorter than the body it promises.
                "ok" if record["verdict"] == "allow" => {
                    assert_eq!(record["name"].as_str(), host.as_deref(), "{}", context());
                }
                "ok" => assert!(may_reject, "request {n} {}", context()),
                _ => assert!(!allowed, "request {n} {}", context()),
            }
            if !allowed {
                break;
            }
        }
        // Whatever reached the origin is one request for one host, as egret has judged it.
        if own.iter().all(|record| record["verdict"] != "allow") && expect["where"] != "body" && !received.is_empty() {
            let head = String::from_utf8_lossy(&received).into_owned();
            assert!(own.iter().any(|r| r["stage"] == "http" && r["reason"] == "bad_request"), "{head} {}", context());
        }
    }
    Some(let_out)
}

#[test]
fn captured_requests_go_out_under_their_own_host() {
    if let Some(let_out) = replay_http("http-captures.jsonl.gz") {
        assert!(let_out > 300, "{let_out}");
    }
}

#[test]
fn requests_that_made_servers_disagree_never_pass() {
    if let Some(let_out) = replay_http("http-requests.jsonl.gz") {
        assert!(let_out > 100, "{let_out}");
    }
}
