//! Before a client says what it wants: whose connection it is, and TLS to the proxy.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::listener::Listener;
use crate::identity::{self, ClientQueues, ProxyTls};
use crate::proxy::stream::{ClientStream, Wire};
use crate::proxy::stream::{Link, linger};
use egret_core::claim::{ClientAddr, Identity, OriginalDst};
use egret_core::outcome::{Reason, Refusal, Stage};
use egret_core::wire::proxy_header::{self, Origin};

/// TLS handshakes of one client at once: at some hundred microseconds of a core each, what one client has under way
/// delays another by some tens of milliseconds.
const HANDSHAKES_OF_ONE: usize = 64;

static HANDSHAKES: LazyLock<Arc<ClientQueues>> = LazyLock::new(|| ClientQueues::new(HANDSHAKES_OF_ONE));

/// A client that may speak.
#[derive(Debug)]
pub struct Accepted {
    pub link: Link<ClientStream>,
    pub address: ClientAddr,
    pub identity: Identity,
    /// The certificates that the client showed, and what let it in.
    pub shown: Option<ClientCertificates>,
    /// Where the client wanted to go, on a listener that the kernel hands connections to.
    pub original_dst: Option<OriginalDst>,
}

/// What a client with a certificate was let in by.
#[derive(Debug)]
pub struct ClientCertificates {
    certificates: Vec<CertificateDer<'static>>,
    tls: Arc<ProxyTls>,
    checked: Instant,
}

impl ClientCertificates {
    /// Whether it would be let in now, by the files as they are. Its answer holds for a second.
    #[must_use]
    pub fn stands(&mut self, now: &Arc<ProxyTls>) -> bool {
        /// A check is a signature or two, and requests may follow each other fast.
        const HOLDS: Duration = Duration::from_secs(1);
        if Arc::ptr_eq(&self.tls, now) && self.checked.elapsed() < HOLDS {
            return true;
        }
        (self.tls, self.checked) = (Arc::clone(now), Instant::now());
        now.admits(&self.certificates)
    }
}

/// Why a client does not come to speak.
#[derive(Debug)]
pub enum NotAccepted {
    Refused(Refusal),
    /// It has closed without a byte.
    Empty,
}

impl From<Refusal> for NotAccepted {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Whose connection it is, from the header that the listed peers send; the peer's own where none is asked for.
///
/// # Errors
/// A refusal at stage `claim`.
pub async fn client_address(
    stream: &mut TcpStream,
    peer: ClientAddr,
    listener: &Listener,
    until: Instant,
) -> Result<ClientAddr, NotAccepted> {
    if listener.proxies.is_none() {
        return Ok(peer);
    }
    let bad = |why| Refusal::at_claim(Reason::BadProxyHeader, why);
    if !listener.is_proxy(peer.ip()) {
        return Err(bad("the peer is not in proxy_protocol.from").into());
    }
    if is_empty(stream, until).await? {
        return Err(NotAccepted::Empty);
    }
    let reading = async {
        let mut start = [0; proxy_header::START];
        stream.read_exact(&mut start).await.map_err(|_| "the peer closed amid its header")?;
        // Nothing behind the header is read: it may be TLS.
        let mut rest = vec![0; proxy_header::rest_of(&start).map_err(|_| proxy_header::what_else(&start))?];
        stream.read_exact(&mut rest).await.map_err(|_| "the peer closed amid its header")?;
        proxy_header::read(&start, &rest).map_err(|_| "the header is broken, or names no TCP client")
    };
    match in_time(until, reading).await?.map_err(bad)? {
        Origin::Local => Ok(peer),
        Origin::Client(address) => Ok(ClientAddr(address)),
    }
}

/// Speaks TLS where the listener does, and identifies the client.
///
/// # Errors
/// A refusal at stage `claim`.
pub async fn accept_tls(
    stream: TcpStream,
    address: ClientAddr,
    listener: &Listener,
    until: Instant,
) -> Result<Accepted, NotAccepted> {
    let Some(tls) = &listener.tls else {
        let original_dst = listener.original_dst(&stream)?;
        let link = Link::new(ClientStream::Bare(stream));
        return Ok(Accepted { link, address, identity: Identity::default(), shown: None, original_dst });
    };
    if is_empty(&stream, until).await? {
        return Err(NotAccepted::Empty);
    }
    let wire = Wire::new(stream);
    let tls = tls.get();
    let accepting = TlsAcceptor::from(Arc::clone(&tls.config)).accept(wire);
    let handshake = async {
        // A handshake is dear: those of one client wait for each other.
        let _place = match listener.has_shared_address() {
            true => None,
            false => Some(HANDSHAKES.enter(address.ip()).await),
        };
        accepting.into_fallible().await
    };
    match in_time(until, handshake).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
            let certificate = certificates.as_deref().and_then(<[_]>::first);
            let identity = Identity::new(certificate.map(identity::names).unwrap_or_default());
            let shown =
                certificates.map(|certificates| ClientCertificates { certificates, tls, checked: Instant::now() });
            let link = Link::new(ClientStream::Tls(Box::new(stream)));
            Ok(Accepted { link, address, identity, shown, original_dst: None })
        }
        Ok(Err((error, mut wire))) => {
            // The alert has been written: it must arrive.
            let _ = wire.shutdown().await;
            linger(&mut wire).await;
            Err(Refusal::at_claim(Reason::AuthFailed, &format!("TLS to the proxy: {}", why(&error))).into())
        }
        Err(refusal) => Err(refusal.into()),
    }
}

/// What went wrong with TLS, for the log.
fn why(error: &std::io::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Certificate, Error, InvalidMessage};
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match of_tls {
        None => "the client left amid the handshake".to_owned(),
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "the client speaks none; its proxy URL should begin with https://".to_owned()
        }
        Some(Error::NoCertificatesPresented) => "the client shows no certificate".to_owned(),
        Some(Error::InvalidCertificate(Certificate::UnknownIssuer)) => {
            "the client's certificate is not signed by client_ca".to_owned()
        }
        Some(Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. })) => {
            "the client's certificate has expired".to_owned()
        }
        Some(Error::InvalidCertificate(Certificate::Revoked)) => "the client's certificate is revoked".to_owned(),
        Some(Error::InvalidCertificate(Certificate::UnknownRevocationStatus)) => {
            "tls.crl has no CRL for the issuer of the client's certificate".to_owned()
        }
        Some(Error::InvalidCertificate(
            Certificate::ExpiredRevocationList | Certificate::ExpiredRevocationListContext { .. },
        )) => "a CRL in tls.crl has expired (nextUpdate)".to_owned(),
        Some(Error::AlertReceived(Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown)) => {
            "the client does not trust the proxy's certificate".to_owned()
        }
        Some(other) => match other.to_string() {
            text if text.contains("UnsupportedCertVersion") => "the client's certificate is of version 1".to_owned(),
            text => text.escape_debug().to_string(),
        },
    }
}

/// Whether a connection ends before its first byte.
async fn is_empty(stream: &TcpStream, until: Instant) -> Result<bool, Refusal> {
    Ok(!matches!(in_time(until, stream.peek(&mut [0])).await?, Ok(1..)))
}

async fn in_time<T>(until: Instant, work: impl Future<Output = T>) -> Result<T, Refusal> {
    tokio::time::timeout_at(until, work).await.map_err(|_| Refusal::new(Reason::PeekTimeout, Stage::Claim))
}
