//! Before a client says what it wants: whose connection it is, and TLS to the proxy.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;

use super::client::linger;
use super::entrance::Entrance;
use crate::claim::{ClientAddr, Identity};
use crate::ending::{Hint, Reason, Refusal, Stage};
use crate::identity;
use crate::peek::proxy_header::{self, Origin};
use crate::relay::Link;
use crate::stream::{ClientStream, Wire};

/// A client that may speak.
#[derive(Debug)]
pub struct Arrived {
    pub link: Link<ClientStream>,
    pub address: ClientAddr,
    pub identity: Identity,
}

/// Whose connection it is, from the header that the listed peers send; the peer's own where none is asked for.
///
/// # Errors
/// A refusal at stage `claim`.
pub async fn whose(
    stream: &mut TcpStream,
    peer: ClientAddr,
    entrance: &Entrance,
    until: Instant,
) -> Result<ClientAddr, Refusal> {
    if entrance.proxies.is_none() {
        return Ok(peer);
    }
    let bad = Refusal::new(Reason::BadProxyHeader, Stage::Claim);
    if !entrance.is_proxy(peer.ip()) {
        return Err(bad);
    }
    let reading = async {
        let mut start = [0; proxy_header::START];
        stream.read_exact(&mut start).await.map_err(|_| Reason::BadProxyHeader)?;
        // Nothing behind the header is read: it may be TLS.
        let mut rest = vec![0; proxy_header::rest_of(&start)?];
        stream.read_exact(&mut rest).await.map_err(|_| Reason::BadProxyHeader)?;
        proxy_header::read(&start, &rest)
    };
    match in_time(until, reading).await?.map_err(|_| bad)? {
        Origin::Local => Ok(peer),
        Origin::Client(address) => Ok(ClientAddr(address)),
    }
}

/// Speaks TLS where the listener does, and learns who the client is.
///
/// # Errors
/// A refusal at stage `claim`.
pub async fn welcome(
    stream: TcpStream,
    address: ClientAddr,
    entrance: &Entrance,
    until: Instant,
) -> Result<Arrived, Refusal> {
    let Some(tls) = &entrance.tls else {
        return Ok(Arrived { link: Link::new(Either::Left(stream)), address, identity: Identity::default() });
    };
    let wire = Wire::new(stream);
    let accepting = TlsAcceptor::from(tls.get()).accept(wire);
    match in_time(until, accepting.into_fallible()).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let identity = Identity::new(certificate.map(identity::names).unwrap_or_default());
            Ok(Arrived { link: Link::new(Either::Right(Box::new(stream))), address, identity })
        }
        Ok(Err((error, mut wire))) => {
            // The alert has been written: it must arrive.
            let _ = wire.shutdown().await;
            linger(&mut wire).await;
            let nearest = Some(format!("TLS to the proxy: {}", error.to_string().escape_debug()));
            Err(Refusal::new(Reason::AuthFailed, Stage::Claim).with(Hint { nearest, ..Hint::default() }))
        }
        Err(refusal) => Err(refusal),
    }
}

async fn in_time<T>(until: Instant, work: impl Future<Output = T>) -> Result<T, Refusal> {
    tokio::time::timeout_at(until, work).await.map_err(|_| Refusal::new(Reason::PeekTimeout, Stage::Claim))
}
