//! What a large body over plain HTTP costs: CPU time and memory of egret beside nginx's `proxy_pass`, the same
//! origins behind both, the same client before both, in turn.
//!
//! `cargo bench --bench plain_http`; `EGRET_MIB=256` for smaller bodies than 2 GiB.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark that cannot set up has nothing to measure"
)]
#![allow(clippy::disallowed_methods, reason = "real time: real processes are measured")]
#![allow(unreachable_pub, reason = "modules of one benchmark")]

mod cost;
#[path = "../tests/missing/mod.rs"]
mod missing;
#[path = "../tests/e2e/support/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "the end-to-end tests use the rest")]
mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use cost::cpu_of;
use support::dns::Dns;
use support::{Egret, Server, connect, have, origin, own_ip, read_head};

const NAME: &str = "body.test";
const ORIGIN: u16 = 10080;
const SINK: u16 = 10081;
const PROXY: u16 = 10082;
const ROUNDS: usize = 3;

/// Which way the body goes.
#[derive(Clone, Copy)]
enum Way {
    Down,
    Up,
}

fn main() {
    if !have(&["nginx"]) {
        std::process::exit(1);
    }
    let mib: u64 = std::env::var("EGRET_MIB").map_or(2048, |n| n.parse().expect("EGRET_MIB is a number of MiB"));
    let bytes = mib << 20;
    let (dns, ip, folder) = (Dns::start(), own_ip(), tempfile::tempdir().unwrap());
    dns.answer(NAME, &[&ip.to_string()]);
    File::create(folder.path().join("body")).unwrap().set_len(bytes).unwrap();
    let _origin = single(folder.path(), "origin", SocketAddr::new(ip, ORIGIN), "");
    sink(SocketAddr::new(ip, SINK), bytes);
    let pass = format!(
        "proxy_http_version 1.1; proxy_max_temp_file_size 0; proxy_request_buffering off;\n\
         location / {{ proxy_pass http://{ip}:{ORIGIN}; }} location /up {{ proxy_pass http://{ip}:{SINK}; }}"
    );
    let rival = single(folder.path(), "proxy", SocketAddr::new(ip, PROXY), &pass);
    let rules = format!(
        "application_rules:\n  - {{ name: body, fqdns: [{NAME}], protocols: [\"http:{ORIGIN}\", \"http:{SINK}\"], addresses: [\"127.0.0.0/8\"] }}\n"
    );
    let egret = Egret::start(dns.address, (10443, ORIGIN), &rules, "");
    for (way, what) in [(Way::Down, "download"), (Way::Up, "upload")] {
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            theirs.push(cpu_of(rival.0.id(), || transfer(SocketAddr::new(ip, PROXY), way, bytes)));
            ours.push(cpu_of(egret.pid(), || transfer(egret.forward(), way, bytes)));
        }
        let per_gib = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2] * 1024.0 / mib as f64
        };
        let (theirs, ours) = (per_gib(&mut theirs), per_gib(&mut ours));
        println!("{what} of {mib} MiB: egret {ours:.3} s/GiB, nginx {theirs:.3} s/GiB, ratio {:.2}", ours / theirs);
    }
    println!("most memory at once: egret {}, nginx {}", most_memory(egret.pid()), most_memory(rival.0.id()));
}

/// nginx in one process, so that its pid is the one that works.
fn single(folder: &Path, name: &str, listen: SocketAddr, server: &str) -> Server {
    let dir = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/{name}-{kind}; "))
        .concat();
    let config = format!(
        "daemon off; master_process off; user root; pid {dir}/{name}.pid; error_log {dir}/{name}.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; sendfile on; client_max_body_size 0; {temporary}\n\
         server {{ listen {listen}; root {dir}; {server} }} }}\n"
    );
    let file = folder.join(format!("{name}.conf"));
    fs::write(&file, config).unwrap();
    origin::nginx(&file, listen)
}

/// An origin that takes a body of so many bytes per connection to its last byte before it answers.
fn sink(listen: SocketAddr, bytes: u64) {
    let listener = TcpListener::bind(listen).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            read_head(&mut stream);
            let took = std::io::copy(&mut (&stream).take(bytes), &mut std::io::sink()).unwrap();
            assert_eq!(took, bytes, "the body came whole");
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        }
    });
}

/// One body from or to an origin.
fn transfer(to: SocketAddr, way: Way, bytes: u64) {
    let mut stream = connect(to);
    let mut buffer = vec![0; 256 << 10];
    match way {
        Way::Down => {
            write!(stream, "GET http://{NAME}:{ORIGIN}/body HTTP/1.1\r\nHost: {NAME}:{ORIGIN}\r\n\r\n").unwrap();
            let head = read_head(&mut stream);
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            let mut left = bytes;
            while left > 0 {
                let n = stream.read(&mut buffer).unwrap();
                assert!(n > 0, "the body ended {left} bytes early");
                left -= n as u64;
            }
        }
        Way::Up => {
            let target = format!("{NAME}:{SINK}");
            write!(stream, "POST http://{target}/up HTTP/1.1\r\nHost: {target}\r\nContent-Length: {bytes}\r\n\r\n")
                .unwrap();
            let mut left = bytes;
            while left > 0 {
                let n = buffer.len().min(usize::try_from(left).unwrap());
                stream.write_all(&buffer[..n]).unwrap();
                left -= n as u64;
            }
            let head = read_head(&mut stream);
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        }
    }
}

fn most_memory(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().to_owned()
}
