//! The bounds of waits, buffers and counts.

use std::time::Duration;

use super::file;
use super::findings::Findings;
use super::read::{Bounds, count, duration, size};
use crate::proxy::limits::{Limits, PerClient};
use egret_core::wire::http::{HeadLimits, USUAL_FIELDS};

/// Names looked up at once: more would leave no descriptors for what the names are for.
const MAX_LOOKUPS: usize = 4096;

pub(super) fn limits(out: &mut Findings<'_>, written: &file::Limits) -> Option<Limits> {
    let time = |out: &mut Findings<'_>, key: &str, text: &Option<String>, default: u64| {
        duration(out, &format!("limits.{key}"), text.as_deref(), default, Bounds::Positive)
    };
    let peek = time(out, "peek", &written.peek, 5);
    let dns = time(out, "dns", &written.dns, 5);
    let dial = time(out, "dial", &written.dial, 10);
    let idle = time(out, "idle", &written.idle, 4 * 3600);
    let keepalive = time(out, "keepalive", &written.keepalive, 60);
    let next_request = time(out, "next_request", &written.next_request, 65);
    let drain = duration(out, "limits.drain", written.drain.as_deref(), 30, Bounds::Zero);
    // tcp(7): seconds, in fifteen bits.
    if !(Duration::from_secs(1)..=Duration::from_secs(32_767)).contains(&keepalive) {
        out.fault("limits.keepalive", "the kernel takes 1s to 32767s; write a time between");
    }
    // A hello's record header alone is five bytes, and no head is shorter than a request line.
    let hello = size(out, "limits.hello", written.hello.as_deref(), 64 << 10, 512);
    let head = size(out, "limits.head", written.head.as_deref(), 64 << 10, 512);
    let peek_memory = size(out, "limits.peek_memory", written.peek_memory.as_deref(), 256 << 20, 64 << 10);
    for (key, size) in [("hello", hello), ("head", head)] {
        if size.zip(peek_memory).is_some_and(|(size, memory)| size > memory) {
            out.fault(
                &format!("limits.{key}"),
                "is larger than `limits.peek_memory`, so it could never be read; write less",
            );
        }
    }
    let connections = count(out, "limits.connections", written.connections.as_ref(), "auto");
    let per_client = match written.connections_per_client.as_ref() {
        Some(file::Count::Word(word)) if word == "unlimited" => Some(PerClient::Unlimited),
        count_or_auto => count(out, "limits.connections_per_client", count_or_auto, "auto or unlimited")
            .map(|most| most.map_or(PerClient::Auto, PerClient::Most)),
    };
    if let (Some(Some(most)), Some(PerClient::Most(of_one))) = (connections, per_client)
        && of_one > most
    {
        let message = format!("is larger than `limits.connections`, which is {most}; write less, or unlimited");
        out.fault("limits.connections_per_client", message);
    }
    let lookups = count(out, "limits.lookups", written.lookups.as_ref(), "auto");
    if lookups.flatten().is_some_and(|lookups| lookups > MAX_LOOKUPS) {
        let message = format!("each takes descriptors from connections; write {MAX_LOOKUPS} or less, or auto");
        out.fault("limits.lookups", message);
    }
    let dns_cache = size(out, "limits.dns_cache", written.dns_cache.as_deref(), 32 << 20, 64 << 10);
    let dns_questions = usize::from(written.dns_questions.unwrap_or(4096));
    let dial_addresses = usize::from(written.dial_addresses.unwrap_or(16));
    Some(Limits {
        hello: hello?,
        peek,
        head: HeadLimits { bytes: head?, fields: written.fields.map_or(USUAL_FIELDS, usize::from) },
        dns,
        dial,
        idle,
        keepalive,
        drain,
        connections: connections?,
        connections_per_client: per_client?,
        peek_memory: peek_memory?,
        next_request,
        lookups: lookups?,
        dns_cache: dns_cache?,
        dns_questions,
        dns_new_names: written.dns_new_names.unwrap_or(1200),
        dial_addresses,
    })
}
