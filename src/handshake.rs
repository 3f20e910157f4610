//! Between the hello that was sent on and the moment the relay may run free.
//!
//! The upstream's first record is read before anything of the client's that could be a second hello goes
//! on. Owns that order; what the bytes mean is `peek::retry`'s.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::ending::{Ending, Reason, Refusal, Stage};
use crate::peek::PeekLimits;
use crate::peek::client_hello::{ClientHello, HelloReader};
use crate::peek::retry::{ClientGate, SERVER_FIRST_MAX, ServerFirst, second_hello, server_first};
use crate::relay::{Meter, Way};

/// One read while waiting; a server's first flight is a few of these.
const CHUNK: usize = 16 << 10;

/// How the wait ended, if not with a free relay.
#[derive(Debug)]
pub enum Halt {
    /// A second hello was not like the first; none of it went on.
    Refused(Refusal),
    Broken(Ending),
}

/// Both sides of one connection whose hello has been sent on.
struct Wait<'a> {
    client: &'a mut TcpStream,
    upstream: &'a mut TcpStream,
    meter: &'a Meter,
    /// Client bytes not yet sent on; `limits.hello` and a read at most.
    held: Vec<u8>,
    gate: ClientGate,
    client_ended: bool,
}

/// What moved the wait on.
enum Step {
    FromUpstream(Vec<u8>),
    FromClient,
    /// The upstream will say no more: the relay can tell the client.
    UpstreamEnded,
}

/// Waits for the upstream's first record and, after a HelloRetryRequest, for a second hello like the first.
///
/// # Errors
/// [`Halt`]: a refusal for another name or other protocols, or the connection's own end.
pub async fn settle(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    first: &ClientHello,
    limits: PeekLimits,
    idle: Duration,
    meter: &Meter,
) -> Result<(), Halt> {
    let mut wait = Wait { client, upstream, meter, held: Vec::new(), gate: ClientGate::default(), client_ended: false };
    let answered = tokio::select! {
        answered = wait.first_answer(limits.hello) => answered?,
        () = meter.idle(idle) => return Err(Halt::Broken(Ending::Idle)),
    };
    if answered == ServerFirst::Retry {
        let again = tokio::time::timeout(limits.time, wait.second_hello(first, limits.hello));
        again.await.map_err(|_| refused(Reason::PeekTimeout))??;
    }
    wait.release().await
}

impl Wait<'_> {
    async fn first_answer(&mut self, most: usize) -> Result<ServerFirst, Halt> {
        let mut seen = Vec::new();
        loop {
            match self.step(most).await? {
                Step::FromClient => {}
                Step::UpstreamEnded => return Ok(ServerFirst::Other),
                Step::FromUpstream(bytes) => {
                    let room = SERVER_FIRST_MAX.saturating_sub(seen.len());
                    seen.extend(bytes.iter().take(room));
                    if let Some(answer) = server_first(&seen) {
                        return Ok(answer);
                    }
                }
            }
        }
    }

    async fn second_hello(&mut self, first: &ClientHello, limit: usize) -> Result<(), Halt> {
        let mut reader = HelloReader::default();
        loop {
            // Only what begins at a held record can be the hello.
            if second_hello(&mut reader, &self.held, limit, first).map_err(refused)?.is_some() {
                return Ok(());
            }
            if self.client_ended {
                return Ok(());
            }
            if matches!(self.step(limit).await?, Step::UpstreamEnded) {
                return Ok(());
            }
        }
    }

    /// Reads once from whichever side has something; upstream bytes go on at once.
    async fn step(&mut self, most: usize) -> Result<Step, Halt> {
        let mut chunk = vec![0; CHUNK];
        let mut early = vec![0; CHUNK];
        let wants_client = !self.client_ended && self.held.len() < most;
        tokio::select! {
            // The server's answer decides what the client's bytes mean: it goes first.
            biased;
            n = self.upstream.read(&mut chunk) => {
                let n = n.map_err(|_| Halt::Broken(Ending::UpstreamReset))?;
                if n == 0 {
                    return Ok(Step::UpstreamEnded);
                }
                chunk.truncate(n);
                self.client.write_all(&chunk).await.map_err(|_| Halt::Broken(Ending::ClientReset))?;
                self.meter.count(Way::Down, n);
                Ok(Step::FromUpstream(chunk))
            }
            n = self.client.read(&mut early), if wants_client => {
                let n = n.map_err(|_| Halt::Broken(Ending::ClientReset))?;
                self.client_ended = n == 0;
                self.held.extend(early.iter().take(n));
                let passed = self.gate.passable(&self.held);
                self.send(passed).await?;
                Ok(Step::FromClient)
            }
        }
    }

    async fn release(&mut self) -> Result<(), Halt> {
        self.send(self.held.len()).await
    }

    async fn send(&mut self, n: usize) -> Result<(), Halt> {
        let bytes: Vec<u8> = self.held.drain(..n.min(self.held.len())).collect();
        self.upstream.write_all(&bytes).await.map_err(|_| Halt::Broken(Ending::UpstreamReset))?;
        if n > 0 {
            self.meter.count(Way::Up, n);
        }
        Ok(())
    }
}

const fn refused(reason: Reason) -> Halt {
    let stage = if matches!(reason, Reason::NameMismatch) { Stage::Name } else { Stage::Peek };
    Halt::Refused(Refusal::new(reason, stage))
}
