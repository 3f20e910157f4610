//! A bounded, timed first look at a client's bytes, and putting them back untouched.
//!
//! Owns the buffer of what was read and not yet sent on, and the budget all such buffers share. Prefers
//! refusing to guessing: bytes that are neither TLS nor HTTP are never a pass. Judges nothing.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use crate::budget::{Eviction, Full, Share};
use egret_core::outcome::{Reason, Refusal, Stage};
use egret_core::wire::client_hello::HelloReader;
use egret_core::wire::http::{HeadLimits, HeadReader};
use egret_core::wire::{Expected, Sighting};

/// The bounds of one peek.
#[derive(Clone, Copy, Debug)]
pub struct PeekLimits {
    pub hello: usize,
    pub head: HeadLimits,
    /// One for all that a client must show before it is let out or refused.
    pub until: Instant,
}

/// Bytes read from a client and not yet sent on. `unread` is what the next reader gets first.
#[derive(Debug)]
pub struct Window {
    bytes: Vec<u8>,
    /// Of the memory that all peeks may hold together (`limits.peek_memory`).
    share: Share,
    /// A byte has come.
    has_read: bool,
    has_ended: bool,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    More,
    /// The client will send nothing more.
    End,
}

impl Window {
    #[must_use]
    pub const fn new(share: Share) -> Self {
        Self { bytes: Vec::new(), share, has_read: false, has_ended: false }
    }

    /// Tells when its memory must go to another client: whatever it is held for must end then.
    #[must_use]
    pub fn eviction(&self) -> Arc<Eviction> {
        self.share.eviction()
    }

    #[must_use]
    pub fn unread(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the client has closed or reset its connection without a byte, as probes of load balancers do.
    #[must_use]
    pub const fn stayed_empty(&self) -> bool {
        self.has_ended && !self.has_read
    }

    /// Forgets the first `n` bytes: their reader has taken them.
    pub fn consume(&mut self, n: usize) {
        self.bytes.drain(..n.min(self.bytes.len()));
    }

    /// Hands the bytes out. Their memory counts as held until [`Window::release`].
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Puts bytes back that were read too far: the next reader gets them first. They are few, and counted when
    /// more is read.
    pub fn put_back(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }

    /// What the bytes ask for has been allowed.
    pub fn settle(&mut self) {
        self.share.settle();
    }

    /// Gives the memory back to the budget: the bytes handed out are gone.
    pub fn release(&mut self) {
        self.share.shrink();
    }

    /// Reads once. The buffer grows by what the budget grants.
    ///
    /// # Errors
    /// The stream's own; [`io::ErrorKind::OutOfMemory`] where all peeks together hold `limits.peek_memory`, and no
    /// client more than this one.
    pub async fn fill(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Fill> {
        /// A hello of today with room to spare; post-quantum ones take a second step.
        const STEP: usize = 4096;
        if self.bytes.capacity() == self.bytes.len() {
            self.share.grow(STEP).map_err(|Full| io::ErrorKind::OutOfMemory)?;
            self.bytes.reserve_exact(STEP);
        }
        let read = stream.read_buf(&mut self.bytes).await;
        match read {
            Ok(1..) => self.has_read = true,
            Ok(0) | Err(_) => self.has_ended = true,
        }
        read.map(|n| if n == 0 { Fill::End } else { Fill::More })
    }
}

/// Reads until the first bytes show what they are. They stay in the window.
///
/// # Errors
/// A refusal at stage `peek` (or `limit` where memory ran out) for everything but one whole hello or head
/// of an expected protocol.
pub async fn sight(
    stream: &mut (impl AsyncRead + Unpin),
    window: &mut Window,
    expected: Expected,
    limits: PeekLimits,
) -> Result<Sighting, Refusal> {
    let (mut hello, mut head) = (HelloReader::default(), HeadReader::default());
    let look = |bytes: &[u8]| match expects_tls(bytes, expected) {
        Some(true) => Ok(hello.look(bytes, limits.hello)?.map(|hello| Sighting::Tls(Box::new(hello)))),
        Some(false) => Ok(head.look(bytes, limits.head)?.map(|head| Sighting::Http(Box::new(head)))),
        None => Ok(None),
    };
    let nothing_came = if expected.tls { Reason::NotTls } else { Reason::BadRequest };
    read_until(stream, window, limits.until, look, |bytes| match expects_tls(bytes, expected) {
        _ if bytes.is_empty() => nothing_came,
        Some(true) => Reason::BadTls,
        Some(false) => Reason::BadRequest,
        None => nothing_came,
    })
    .await
}

/// Fills the window until `look` finds something, under one deadline.
///
/// # Errors
/// `look`'s own reason; [`Reason::PeekTimeout`]; `cut(bytes)` where the client ends first.
pub async fn read_until<T>(
    stream: &mut (impl AsyncRead + Unpin),
    window: &mut Window,
    until: Instant,
    mut look: impl FnMut(&[u8]) -> Result<Option<T>, Reason>,
    cut: impl Fn(&[u8]) -> Reason,
) -> Result<T, Refusal> {
    let reading = async {
        loop {
            if let Some(found) = look(window.unread()).map_err(|reason| Refusal::new(reason, Stage::Peek))? {
                return Ok(found);
            }
            match window.fill(stream).await {
                Ok(Fill::More) => {}
                Err(e) if e.kind() == io::ErrorKind::OutOfMemory => {
                    return Err(Refusal::new(Reason::TooManyConnections, Stage::Limit));
                }
                Ok(Fill::End) | Err(_) => return Err(Refusal::new(cut(window.unread()), Stage::Peek)),
            }
        }
    };
    match tokio::time::timeout_at(until, reading).await {
        Ok(found) => found,
        Err(_) => Err(Refusal::new(Reason::PeekTimeout, Stage::Peek)),
    }
}

/// Which reader the bytes go to; `None` while there are none and both are possible.
fn expects_tls(bytes: &[u8], expected: Expected) -> Option<bool> {
    match (expected.tls, expected.http, bytes.first()) {
        (true, false, _) => Some(true),
        (false, _, _) => Some(false),
        (true, true, None) => None,
        // No HTTP method begins with a control byte or beyond ASCII.
        (true, true, Some(first)) => Some(!first.is_ascii_graphic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use tokio::io::AsyncWriteExt;

    fn window(budget: &Arc<Budget>) -> Window {
        Window::new(budget.share([192, 0, 2, 1].into()))
    }

    fn limits() -> PeekLimits {
        PeekLimits {
            hello: 1 << 16,
            head: HeadLimits::from(1 << 16),
            until: Instant::now() + std::time::Duration::from_secs(5),
        }
    }

    const TLS: Expected = Expected { tls: true, http: false };
    const HTTP: Expected = Expected { tls: false, http: true };
    const BOTH: Expected = Expected { tls: true, http: true };

    async fn sighted(sent: &[u8], expected: Expected) -> Result<Sighting, Reason> {
        let (mut near, mut far) = tokio::io::duplex(1 << 17);
        near.write_all(sent).await.unwrap();
        drop(near);
        let mut window = window(&Budget::new(1 << 20));
        let got = sight(&mut far, &mut window, expected, limits()).await.map_err(|refusal| refusal.reason);
        if got.is_ok() {
            assert_eq!(window.unread(), sent, "what was peeked is still there, byte for byte");
        }
        got
    }

    #[tokio::test]
    async fn bytes_of_neither_protocol_never_pass() {
        let get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(matches!(sighted(get, HTTP).await, Ok(Sighting::Http(_))));
        assert!(matches!(sighted(get, BOTH).await, Ok(Sighting::Http(_))));
        assert_eq!(sighted(get, TLS).await.unwrap_err(), Reason::NotTls);
        assert_eq!(sighted(b"SSH-2.0-OpenSSH_9.2\r\n", TLS).await.unwrap_err(), Reason::NotTls);
        assert_eq!(sighted(b"SSH-2.0-OpenSSH_9.2\r\n", BOTH).await.unwrap_err(), Reason::BadRequest);
        assert_eq!(sighted(&[22, 3, 1, 0, 5], HTTP).await.unwrap_err(), Reason::BadRequest);
        assert_eq!(sighted(&[0, 1, 2], BOTH).await.unwrap_err(), Reason::NotTls);
    }

    #[tokio::test]
    async fn a_client_that_ends_early_is_refused() {
        assert_eq!(sighted(b"", TLS).await.unwrap_err(), Reason::NotTls);
        assert_eq!(sighted(b"", HTTP).await.unwrap_err(), Reason::BadRequest);
        assert_eq!(sighted(&[22, 3, 1, 0], TLS).await.unwrap_err(), Reason::BadTls);
        assert_eq!(sighted(b"GET / HT", BOTH).await.unwrap_err(), Reason::BadRequest);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_deadline() {
        let (_near, mut far) = tokio::io::duplex(64);
        let mut window = window(&Budget::new(1 << 20));
        let begun = Instant::now();
        let refusal = sight(&mut far, &mut window, BOTH, limits()).await.unwrap_err();
        assert_eq!((refusal.reason, begun.elapsed()), (Reason::PeekTimeout, std::time::Duration::from_secs(5)));
    }

    #[tokio::test]
    async fn all_peeks_together_hold_no_more_than_the_budget() {
        let budget = Budget::new(6000);
        let mut first = window(&budget);
        let mut second = window(&budget);
        let mut bytes: &[u8] = &[1; 16];
        assert_eq!(first.fill(&mut bytes).await.unwrap(), Fill::More);
        let mut bytes: &[u8] = &[1; 16];
        assert_eq!(second.fill(&mut bytes).await.unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        drop(first);
        assert_eq!(second.fill(&mut bytes).await.unwrap(), Fill::More);
        drop(second);
        assert_eq!(budget.held(), 0);
    }
}
