//! What a SOCKS5 message says is settled by its own bytes: fewer ask for more, and bytes behind it change nothing.
#![no_main]

use std::fmt::Debug;

use egret_core::outcome::Reason;
use egret_core::wire::socks5::{self, Method};
use libfuzzer_sys::fuzz_target;

/// Reads every prefix, and holds a decision against what longer prefixes say.
fn settled<T: PartialEq + Debug>(
    bytes: &[u8],
    read: impl Fn(&[u8]) -> Result<Option<T>, Reason>,
    len: fn(&T) -> usize,
) {
    let mut decided = None;
    for end in 0..=bytes.len() {
        let seen = read(&bytes[..end]);
        if let Some(decided) = &decided {
            assert_eq!(&seen, decided, "{end} bytes");
        } else if let Ok(Some(message)) = &seen {
            assert_eq!(len(message), end, "a message is whole with its last byte");
        }
        if decided.is_none() && !matches!(seen, Ok(None)) {
            decided = Some(seen);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    for wanted in [Method::None, Method::Password] {
        settled(bytes, |bytes| socks5::greeting(bytes, wanted), |(len, _)| *len);
    }
    settled(
        bytes,
        |bytes| socks5::password(bytes).map(|read| read.map(|(len, sent)| (len, sent.is_some()))),
        |read| read.0,
    );
    settled(bytes, socks5::request, |request| request.len);
    let _ = socks5::raw_host(bytes);
});
