//! The whole proxy, as its users meet it: the real binary, real clients, real servers, and a DNS server
//! whose answers each test controls. Everything stays on loopback.

#![allow(unreachable_pub, reason = "modules of one test binary")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that is wrong about its world should fail there"
)]
#![allow(clippy::disallowed_methods, reason = "real time: these tests talk to real processes")]

mod aks;
mod attacks;
mod bypass;
mod clients;
mod commands;
mod corpus;
mod dns;
mod http;
mod limits;
mod listener;
#[path = "../missing/mod.rs"]
mod missing;
mod nameserver;
mod reload;
mod requests;
mod smuggling;
mod support;
mod updates;
