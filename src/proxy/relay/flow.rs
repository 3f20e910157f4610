//! One direction, and what it shares with the other.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::record::{Meter, Way};
use egret_core::outcome::Ending;

/// What is seldom there, and then takes room of its own.
pub(super) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whose socket failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Upstream,
}

impl Side {
    pub(super) const fn reset(self) -> Ending {
        match self {
            Self::Client => Ending::ClientReset,
            Self::Upstream => Ending::UpstreamReset,
        }
    }
}

/// What one direction must know of the other.
#[derive(Debug, Default)]
pub struct Shared {
    /// A write to the upstream failed: the kernel reports a reset once, and the reader must then not take the end of
    /// the stream for a polite one.
    broken: AtomicBool,
    /// One direction has ended.
    ended: AtomicBool,
}

impl Shared {
    /// Whether the other direction has ended before this one, which ends now.
    pub(super) fn is_last(&self) -> bool {
        self.ended.swap(true, Ordering::Relaxed)
    }
}

/// One direction, and what it shares with the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow<'a> {
    pub(super) way: Way,
    pub(super) meter: &'a Meter,
    pub(super) shared: &'a Shared,
}

impl Flow<'_> {
    pub(super) fn moved(self, bytes: usize) {
        self.meter.count(self.way, bytes);
    }

    pub(super) fn cannot_read(self, _: io::Error) -> Side {
        self.failed(match self.way {
            Way::Up => Side::Client,
            Way::Down => Side::Upstream,
        })
    }

    pub(super) fn cannot_write(self, _: io::Error) -> Side {
        self.failed(match self.way {
            Way::Up => Side::Upstream,
            Way::Down => Side::Client,
        })
    }

    pub(super) fn failed(self, side: Side) -> Side {
        if side == Side::Upstream {
            self.shared.broken.store(true, Ordering::Relaxed);
        }
        side
    }

    /// The reader has come to an end: whether it was a polite one.
    pub(super) fn ended(self) -> Result<(), Side> {
        let cut = self.way == Way::Down && self.shared.broken.load(Ordering::Relaxed);
        if cut { Err(Side::Upstream) } else { Ok(()) }
    }

    /// The end has been passed on to the writer.
    pub(super) fn passed_on(self, result: io::Result<()>) -> Result<(), Side> {
        match result {
            // The other side is gone already: it will say so itself, or has.
            Err(e) if e.kind() != io::ErrorKind::NotConnected => Err(self.cannot_write(e)),
            _ => Ok(()),
        }
    }
}
