//! Any bytes are the header of one client, or of none: the address is the one at its place, and never a guess.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use egret_core::wire::proxy_header::{Origin, START, read, rest_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((start, rest)) = bytes.split_first_chunk::<START>() else { return };
    let Ok(length) = rest_of(start) else { return };
    let Some(rest) = rest.get(..length) else { return };
    let Ok(Origin::Client(client)) = read(start, rest) else { return };
    let (ip, ports): (IpAddr, _) = match start[13] {
        0x11 => (<[u8; 4]>::try_from(&rest[..4]).unwrap().into(), &rest[8..10]),
        0x21 => (<[u8; 16]>::try_from(&rest[..16]).unwrap().into(), &rest[32..34]),
        other => panic!("family {other:#x} has no address"),
    };
    assert_eq!(client, SocketAddr::new(ip, u16::from_be_bytes(ports.try_into().unwrap())));
});
