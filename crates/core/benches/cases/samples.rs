//! What a connection brings along.

use std::sync::Arc;
use std::time::Duration;

use egret_core::answers::Answers;
use egret_core::claim::{Claim, ClientAddr, Identity, Target, Transport, Via};
use egret_core::wire::client_hello::{ClientHello, HelloReader};

pub const LIMIT: usize = 64 << 10;
pub const NAME: &str = "cluster-1a2b.hcp.westeurope.azmk8s.io";

pub fn sight(bytes: &[u8]) -> ClientHello {
    HelloReader::default().look(bytes, LIMIT).unwrap().unwrap()
}

pub fn claim() -> Claim {
    let client = ClientAddr("10.9.0.1:40000".parse().unwrap());
    let (identity, listener) = (Identity::default(), Arc::from("bench"));
    Claim {
        client,
        identity,
        listener,
        target: Target::Unnamed,
        transport: Transport::Tcp,
        port: 443,
        via: Via::Intercepted,
    }
}

pub fn answers() -> Answers {
    Answers {
        addresses: vec!["20.1.2.3".parse().unwrap()],
        ttl: Duration::from_secs(60),
        is_stale: false,
        from_servers: true,
    }
}

/// A TLS 1.3 hello with a name, two protocols and padding to the size browsers send.
pub fn hello() -> Vec<u8> {
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
