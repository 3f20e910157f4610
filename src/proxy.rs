//! One connection, from accept to close.

pub mod exchange;
pub mod handshake;
pub mod limits;
pub mod listen;
pub mod nameserver;
pub mod peek;
pub mod relay;
pub mod services;
pub mod session;
pub mod stream;
pub mod upstream;
