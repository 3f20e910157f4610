//! What is written down at once, without a connection: a packet that the kernel judged, a question that was refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use egret_core::name::HostName;
use egret_core::outcome::{Ending, Refusal, Totals};

/// What a question was about.
#[derive(Debug)]
pub enum QuestionName<'a> {
    Name(&'a HostName),
    /// A name that is none, as it came.
    Raw(&'a [u8]),
}

/// What the kernel decided.
#[derive(Debug)]
pub enum NetVerdict {
    Refused(Refusal),
    /// A flow was let through by a rule, and has ended.
    Ended {
        rule: Arc<str>,
        upstream: SocketAddr,
        totals: Totals,
        duration: Duration,
        ending: Ending,
    },
}
