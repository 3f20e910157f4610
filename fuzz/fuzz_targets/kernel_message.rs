//! What the kernel copies from a client's packet is read without running past its end, however its lengths lie.
#![no_main]

use egret::netfilter::packet;
use egret::netlink::{attributes, received};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let inside = |part: &[u8]| part.len() <= bytes.len();
    for message in received(bytes) {
        assert!(inside(message.payload));
        for (_, value) in attributes(message.payload) {
            assert!(inside(value));
            assert!(attributes(value).take(bytes.len() + 1).count() <= bytes.len());
        }
    }
    if let Some(packet) = packet::read(bytes) {
        assert!(packet.from.is_ipv4() == packet.to.is_ipv4());
    }
});
