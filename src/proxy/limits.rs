//! The bound of every wait, buffer and count of a connection.

use std::time::Duration;

use egret_core::wire::http::HeadLimits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub hello: usize,
    pub peek: Duration,
    pub head: HeadLimits,
    pub dns: Duration,
    pub dial: Duration,
    pub idle: Duration,
    pub keepalive: Duration,
    pub drain: Duration,
    /// `None`: from descriptors and memory.
    pub connections: Option<usize>,
    pub connections_per_client: PerClient,
    pub peek_memory: usize,
    /// Between two requests of one connection.
    pub next_request: Duration,
    /// Names that are looked up at once. `None`: from descriptors.
    pub lookups: Option<usize>,
    /// Bytes of answers that are kept.
    pub dns_cache: usize,
    /// Questions of DNS clients that are answered at once.
    pub dns_questions: usize,
    /// What one client may say in new names under a wildcard, in characters a minute.
    pub dns_new_names: u32,
    /// Addresses of a name that are tried.
    pub dial_addresses: usize,
}

/// Connections at once from one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerClient {
    /// A quarter of all, where clients have addresses of their own.
    Auto,
    Unlimited,
    Most(usize),
}
