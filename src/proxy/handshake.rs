//! Between the hello that was sent on and the moment the relay may run free.
//!
//! The upstream's first record is read before anything of the client's that could be a second hello goes
//! on. Owns that order; what the bytes mean is `peek::retry`'s.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::proxy::relay::IdleWatch;
use crate::proxy::stream::{ClientStream, read_with, send};
use crate::record::{Meter, Way};
use egret_core::outcome::{Ending, Halt, Reason, Refusal, Stage};
use egret_core::wire::client_hello::{ClientHello, HelloReader};
use egret_core::wire::retry::{ClientGate, SERVER_FIRST_MAX, ServerFirst, second_hello, server_first};

/// One read while waiting; a server's first flight is a few of these.
const CHUNK: usize = 16 << 10;

/// Both sides of one connection whose hello has been sent on.
struct Wait<'a> {
    client: &'a mut ClientStream,
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
    /// The upstream will say no more: the relay passes its end on to the client.
    UpstreamEnded,
}

/// What the wait may take.
#[derive(Clone, Copy, Debug)]
pub struct SettleLimits {
    pub hello: usize,
    /// The time for a second hello.
    pub again: Duration,
}

/// Sends the hello on, waits for the upstream's first record and, after a HelloRetryRequest, for a second hello
/// like the first.
///
/// # Errors
/// [`Halt`]: a refusal for another name or other protocols, none of which went on, or the connection's own end.
pub async fn settle(
    client: &mut ClientStream,
    upstream: &mut TcpStream,
    first: &ClientHello,
    peeked: Vec<u8>,
    limits: SettleLimits,
    watch: IdleWatch<'_>,
) -> Result<(), Halt> {
    let meter = watch.meter();
    let mut wait = Wait { client, upstream, meter, held: peeked, gate: ClientGate::default(), client_ended: false };
    tokio::select! {
        settled = wait.settle(first, limits) => settled,
        () = watch.idle() => Err(Halt::Broken(Ending::Idle)),
    }
}

impl Wait<'_> {
    async fn settle(&mut self, first: &ClientHello, limits: SettleLimits) -> Result<(), Halt> {
        self.send(first.raw_len).await?;
        // What came in the same breath as the hello is held to the same rule as what comes after it.
        self.send_passable().await?;
        match self.first_answer(limits).await? {
            ServerFirst::Retry => {
                let again = tokio::time::timeout(limits.again, self.second_hello(first, limits.hello));
                again.await.map_err(|_| refused(Reason::PeekTimeout))??;
            }
            // No version lets a client speak a handshake between its hello and the answer.
            ServerFirst::Other if self.gate.is_closed() => return Err(refused(Reason::BadTls)),
            ServerFirst::Other => {}
        }
        self.send(self.held.len()).await
    }

    async fn first_answer(&mut self, limits: SettleLimits) -> Result<ServerFirst, Halt> {
        let mut seen = Vec::new();
        loop {
            // While a handshake record is held the client is not read to its end, so it is not waited for long.
            let step = if self.gate.is_closed() {
                let held = tokio::time::timeout(limits.again, self.step(limits.hello));
                held.await.map_err(|_| refused(Reason::PeekTimeout))?
            } else {
                self.step(limits.hello).await
            };
            match step? {
                // The client will send no second hello: the relay passes its end on to the upstream.
                Step::FromClient if self.client_ended && !self.gate.is_closed() => return Ok(ServerFirst::Other),
                Step::FromClient => {}
                Step::UpstreamEnded => return Ok(ServerFirst::Other),
                Step::FromUpstream(bytes) => {
                    let room = SERVER_FIRST_MAX.saturating_sub(seen.len());
                    seen.extend(bytes.iter().take(room));
                    match server_first(&seen) {
                        Some(answer) => return Ok(answer),
                        // Nothing but warnings: whatever handshake follows must be the same hello.
                        None if seen.len() >= SERVER_FIRST_MAX => return Ok(ServerFirst::Retry),
                        None => {}
                    }
                }
            }
        }
    }

    async fn second_hello(&mut self, first: &ClientHello, limit: usize) -> Result<(), Halt> {
        let mut reader = HelloReader::default();
        loop {
            // Only what begins at a held record can be the hello.
            let looked = self.gate.is_closed().then(|| second_hello(&mut reader, &self.held, limit, first));
            if let Some(Some(())) = looked.transpose().map_err(refused)? {
                return Ok(());
            }
            if self.client_ended {
                // What is held is not a whole hello, and goes nowhere.
                return if self.gate.is_closed() { Err(refused(Reason::BadTls)) } else { Ok(()) };
            }
            if matches!(self.step(limit).await?, Step::UpstreamEnded) {
                return Err(Halt::Broken(Ending::UpstreamReset));
            }
        }
    }

    /// Reads once from whichever side has something; upstream bytes go on at once.
    async fn step(&mut self, most: usize) -> Result<Step, Halt> {
        let wants_client = !self.client_ended && self.held.len() < most;
        tokio::select! {
            // The server's answer decides what the client's bytes mean: it goes first.
            biased;
            bytes = read_with(self.upstream, CHUNK, <[u8]>::to_vec) => {
                let bytes = bytes.map_err(|_| Halt::Broken(Ending::UpstreamReset))?;
                if bytes.is_empty() {
                    return Ok(Step::UpstreamEnded);
                }
                send(self.client, &bytes).await.map_err(|_| Halt::Broken(Ending::ClientReset))?;
                self.meter.count(Way::Down, bytes.len());
                Ok(Step::FromUpstream(bytes))
            }
            n = read_with(self.client, CHUNK, |bytes| { self.held.extend_from_slice(bytes); bytes.len() }), if wants_client => {
                self.client_ended = n.map_err(|_| Halt::Broken(Ending::ClientReset))? == 0;
                self.send_passable().await?;
                Ok(Step::FromClient)
            }
        }
    }

    async fn send_passable(&mut self) -> Result<(), Halt> {
        let passed = self.gate.passable(&self.held);
        self.send(passed).await
    }

    async fn send(&mut self, n: usize) -> Result<(), Halt> {
        let bytes = self.held.get(..n).unwrap_or(&self.held);
        if !bytes.is_empty() {
            self.upstream.write_all(bytes).await.map_err(|_| Halt::Broken(Ending::UpstreamReset))?;
            self.meter.count(Way::Up, bytes.len());
            self.held.drain(..n.min(self.held.len()));
        }
        Ok(())
    }
}

const fn refused(reason: Reason) -> Halt {
    let stage = if matches!(reason, Reason::NameMismatch) { Stage::Name } else { Stage::Peek };
    Halt::Refused(Refusal::new(reason, stage))
}
