//! What does it cost to read a name out of a client's first bytes?
//!
//! `cargo bench --bench peeking`

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot build its input has nothing to measure")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use egret::peek::client_hello::HelloReader;
use egret::peek::http_head::RequestHead;

const LIMIT: usize = 64 << 10;

/// A TLS 1.3 hello with a name, two protocols and padding to the size browsers send.
fn hello() -> Vec<u8> {
    let name = b"cluster-1a2b.hcp.westeurope.azmk8s.io";
    let list = u16::try_from(name.len() + 3).unwrap();
    let mut extensions: Vec<(u16, Vec<u8>)> = vec![
        (0, [&list.to_be_bytes()[..], &[0], &(list - 3).to_be_bytes(), name].concat()),
        (16, [&[0, 16, 12][..], b"konnectivity", &[2], b"h2"].concat()),
        (43, vec![4, 3, 4, 3, 3]),
        (13, vec![0, 8, 4, 3, 8, 4, 4, 1, 8, 5]),
        (51, [&[0, 36, 0, 29, 0, 32][..], &[9; 32]].concat()),
    ];
    extensions.push((21, vec![0; 250]));
    let block: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, data)| {
            [&kind.to_be_bytes()[..], &u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
        })
        .collect();
    let ciphers = [0, 6, 0x13, 1, 0x13, 2, 0x13, 3, 1, 0];
    let size = u16::try_from(block.len()).unwrap().to_be_bytes();
    let body = [&[3, 3][..], &[7; 32], &[32], &[5; 32], &ciphers, &size, &block].concat();
    let len = u16::try_from(body.len()).unwrap();
    [&[22, 3, 1][..], &(len + 4).to_be_bytes(), &[1, 0], &len.to_be_bytes(), &body].concat()
}

fn peeking(c: &mut Criterion) {
    let hello = hello();
    assert!(HelloReader::default().look(&hello, LIMIT).unwrap().is_some());
    c.bench_function("peek/hello", |b| b.iter(|| HelloReader::default().look(black_box(&hello), LIMIT)));
    let head =
        b"GET /ubuntu/dists/jammy/InRelease HTTP/1.1\r\nHost: azure.archive.ubuntu.com\r\nCache-Control: max-age=0\r\n\
                 Accept: text/*\r\nUser-Agent: Debian APT-HTTP/1.3 (2.4.11)\r\n\r\n";
    assert!(RequestHead::look(head, LIMIT).unwrap().is_some());
    c.bench_function("peek/head", |b| b.iter(|| RequestHead::look(black_box(head), LIMIT)));
}

criterion_group!(benches, peeking);
criterion_main!(benches);
