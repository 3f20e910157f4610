//! Questions over TCP (RFC 7766): many on one connection, each answered as soon as it can be.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::{LARGEST, Nameserver, Prompt};
use crate::drain::DrainGuard;
use crate::proxy::listen::ConnectionSlot;
use egret_core::outcome::{Reason, Refusal, Stage};
use egret_core::wire::dns::DnsQuery;

/// Questions of one connection that are answered at once; the next ones wait in the kernel.
const AT_ONCE: usize = 64;
/// How long a client may take to read an answer, or to end a message that it has begun.
const SLOW: Duration = Duration::from_secs(10);

/// Answers one client until it leaves, is idle for too long, or a drain begins.
pub async fn serve(
    stream: TcpStream,
    client: SocketAddr,
    slot: Option<ConnectionSlot>,
    nameserver: Arc<Nameserver>,
    guard: DrainGuard,
) {
    // The client asks again.
    let Some(slot) = slot else {
        return nameserver.refuse(client, &Refusal::new(Reason::TooManyConnections, Stage::Limit));
    };
    let (read, mut write) = stream.into_split();
    let mut messages = Messages { read, buffer: Vec::new() };
    let mut answers: JoinSet<Vec<u8>> = JoinSet::new();
    let idle = nameserver.services.limits.next_request;
    let mut until = Instant::now() + idle;
    let mut is_open = true;
    while is_open || !answers.is_empty() {
        let waiting = (is_open && answers.is_empty()).then(|| slot.between_requests());
        let evicted = async {
            match &waiting {
                Some(waiting) => waiting.evicted().await,
                None => std::future::pending().await,
            }
        };
        let asked = tokio::select! {
            Some(answer) = answers.join_next() => {
                let Ok(answer) = answer else { return };
                let Ok(Ok(())) = timeout(SLOW, write.write_all(&answer)).await else { return };
                until = Instant::now() + idle;
                continue;
            }
            asked = timeout_at(until, messages.next()), if is_open && answers.len() < AT_ONCE => asked,
            () = guard.stopping(), if is_open => {
                is_open = false;
                continue;
            }
            () = evicted => return,
        };
        match asked {
            Ok(Ok(Some(message))) => {
                let nameserver = Arc::clone(&nameserver);
                answers.spawn(async move { answer(&nameserver, &message, client).await });
            }
            // What was asked before is still answered.
            Ok(Ok(None)) => is_open = false,
            Ok(Err(error)) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    nameserver.too_large(client);
                }
                return;
            }
            // A message that has begun takes too long, or nothing was asked for a while.
            Err(_) => is_open = false,
        }
    }
}

/// The reply to one message, behind its length (RFC 1035 §4.2.2); empty where none is due.
async fn answer(nameserver: &Arc<Nameserver>, message: &[u8], client: SocketAddr) -> Vec<u8> {
    let reply = match DnsQuery::read(message) {
        Err(unreadable) => nameserver.unreadable(unreadable, client),
        Ok(query) => Some(reply_to(nameserver, &query, message, client).await),
    };
    let Some(reply) = reply else { return Vec::new() };
    let Ok(len) = u16::try_from(reply.len()) else { return Vec::new() };
    [&len.to_be_bytes()[..], &reply].concat()
}

async fn reply_to(nameserver: &Nameserver, query: &DnsQuery, message: &[u8], client: SocketAddr) -> Vec<u8> {
    let judged = match nameserver.at_once(query, message, client) {
        Prompt::Answer(answer) => return answer.write(query, message, u16::MAX.into()),
        Prompt::Ask(judged) => judged,
    };
    match nameserver.room_for(&judged) {
        Some(share) => nameserver.reply((&judged, share), query, message, client, u16::MAX.into()).await,
        None => nameserver.busy(query, message, client),
    }
}

/// Messages as they come in. Safe to cancel: what was read stays.
struct Messages {
    read: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Messages {
    /// The next message; `None` where the client has finished.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some((len, rest)) = self.buffer.split_first_chunk::<2>() {
                let len = usize::from(u16::from_be_bytes(*len));
                if len > LARGEST {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                if let Some(message) = rest.get(..len).map(<[u8]>::to_vec) {
                    self.buffer.drain(..len + 2);
                    return Ok(Some(message));
                }
            }
            if self.read.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}
