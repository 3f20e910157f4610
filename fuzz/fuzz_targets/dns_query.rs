//! A question is a whole message and no other: with less or more it is none, and its reply is about it.
#![no_main]

use egret_core::wire::dns::{DnsQuery, HEADER, Unreadable, lives};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let count = usize::from(bytes.first().copied().unwrap_or_default());
    if let Some(places) = lives(bytes, count) {
        assert!(places.len() == count && places.iter().all(|place| place + 4 <= bytes.len()));
    }
    match DnsQuery::read(bytes) {
        Ok(query) => {
            assert!(query.question.start == HEADER && query.question.end <= bytes.len());
            assert!((512..=4096).contains(&query.udp_room(4096)));
            let cut = count % bytes.len();
            assert!(DnsQuery::read(&bytes[..cut]).is_err(), "{cut} bytes of it");
            assert!(DnsQuery::read(&[bytes, &[0]].concat()).is_err());
        }
        Err(unreadable) => {
            let reply = unreadable.reply();
            assert_eq!(reply.is_none(), unreadable == Unreadable::Silent);
            assert!(reply.is_none_or(|reply| DnsQuery::read(&reply) == Err(Unreadable::Silent)), "no loop");
        }
    }
});
