//! A hello read in pieces is the hello read whole, whatever the bytes.
#![no_main]

use egret_core::wire::client_hello::HelloReader;
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 64 << 10;

fuzz_target!(|bytes: &[u8]| {
    let step = bytes.last().copied().unwrap_or_default() % 64;
    let whole = HelloReader::default().look(bytes, LIMIT);
    let mut reader = HelloReader::default();
    let mut seen = Ok(None);
    let mut end = 0;
    while matches!(seen, Ok(None)) && end < bytes.len() {
        end = (end + usize::from(step) + 1).min(bytes.len());
        seen = reader.look(&bytes[..end], LIMIT);
    }
    assert_eq!(seen, whole);
});
