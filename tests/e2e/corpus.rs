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
fn lines(file: &str) -> Option<Vec<Value>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    let Ok(file) = std::fs::File::open(folder.join(file)) else {
        missing("the corpus of captured hellos");
        return None;
    };
    let text = BufReader::new(GzDecoder::new(file));
    Some(text.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect())
}

fn bytes(hex: &str) -> Vec<u8> {
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
