//! A next hop among routers: egret in network namespaces, with the kernel's rules in place, clients that know of no
//! proxy, and a capture of every packet that reaches the internet. Needs root, nft, iproute2 and tcpdump.

#![allow(unreachable_pub, dead_code, reason = "modules of one test binary, some of them shared with another")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that is wrong about its world should fail there"
)]
#![allow(clippy::disallowed_methods, reason = "real time: these tests talk to real processes")]

mod attacked;
mod hop;
mod leak;
#[path = "../missing/mod.rs"]
mod missing;
mod nameserver;
mod netlog;
mod pod;
mod resolvers;
mod rights;
mod steer;
#[path = "../e2e/support/mod.rs"]
mod support;
mod ways;
mod world;
