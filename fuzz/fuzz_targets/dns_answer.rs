//! Whatever a server answers, the way from a question ends, and what stands at its end belongs to it.
#![no_main]

use egret::dns::chain;
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::from_vec(bytes) else { return };
    let Some(query) = message.queries.first() else { return };
    let Ok(found) = chain::walk(&query.name, query.query_type(), &message.answers) else { return };
    let end = found.targets.last().copied().unwrap_or(&query.name);
    assert!(found.targets.len() <= 16);
    for record in found.records {
        assert!(record.name == *end && record.record_type() == query.query_type() && record.ttl >= found.ttl);
    }
});
