//! The server's answer is judged alike in any cut, and the gate lets the same bytes through however they arrive.
#![no_main]

use egret_core::wire::retry::{ClientGate, server_first};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut decided = None;
    for end in 0..=bytes.len() {
        let seen = server_first(&bytes[..end]);
        assert!(decided.is_none() || seen == decided, "{end} bytes: {seen:?} after {decided:?}");
        decided = seen;
    }
    let mut whole = ClientGate::default();
    let passed = whole.passable(bytes);
    assert!(passed <= bytes.len());
    let step = usize::from(bytes.last().copied().unwrap_or_default() % 64) + 1;
    let mut gate = ClientGate::default();
    let (mut sent, mut end) = (0, 0);
    while end < bytes.len() {
        end = (end + step).min(bytes.len());
        sent += gate.passable(&bytes[sent..end]);
    }
    assert_eq!((sent, gate.is_closed()), (passed, whole.is_closed()));
});
