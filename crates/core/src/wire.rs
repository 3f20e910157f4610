//! Bytes from the wire in, values out: everything here reads what a peer chose, and bounds it.
//!
//! Pure. A reader says "need more" with `None`, and refuses with a [`Reason`](crate::outcome::Reason).

pub mod client_hello;
pub mod dns;
pub mod http;
pub mod ja4;
pub mod proxy_header;
mod reader;
mod record_layer;
pub mod retry;
pub mod socks5;

use client_hello::ClientHello;
use http::RequestHead;

/// What a client's first bytes show.
#[derive(Clone, Debug)]
pub enum Sighting {
    Tls(Box<ClientHello>),
    Http(Box<RequestHead>),
}

/// Which protocols some rule could still allow here; anything else need not be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    pub tls: bool,
    pub http: bool,
}
