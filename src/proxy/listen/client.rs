//! One client from accept until its bytes can be relayed: what it claims, and how it is answered.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::accept::{self, Accepted};
use super::listener::Listener;
use super::refusal::{About, Speech};
use super::settings::{Adds, ListenerKind};
use crate::identity::Pass;
use crate::proxy::peek::{self, Fill, PeekLimits, Window};
use crate::proxy::stream::{ClientStream, send};
use crate::proxy::stream::{LINGER, Link, linger};
use egret_core::claim::{Claim, ClientAddr, Identity, OriginalDst, Target, Transport, Via};
use egret_core::credentials::Credentials;
use egret_core::outcome::{Reason, Refusal, Stage};
use egret_core::wire::http::{HeadReader, RequestTarget};
use egret_core::wire::socks5;
use egret_core::wire::{Expected, Sighting};

/// Said before the bytes of a CONNECT are read.
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// How a TLS record begins that may hold a hello (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 22;

/// A connected client.
#[derive(Debug)]
pub struct Client {
    pub link: Link<ClientStream>,
    pub window: Window,
    pub address: ClientAddr,
    identity: Identity,
    certificates: Option<accept::ClientCertificates>,
    original_dst: Option<OriginalDst>,
    listener: Arc<Listener>,
    shown: Shown,
    /// What a user was let in by.
    pass: Option<Pass>,
    speech: Speech,
    /// What must be said before the client sends its own bytes.
    go_ahead: Option<&'static [u8]>,
}

/// The credentials that came with the last claim.
#[derive(Debug)]
enum Shown {
    Nothing,
    /// Not what is understood here.
    Strange,
    Password(Credentials),
}

/// A claim, and the sighting where it came with it.
#[derive(Debug)]
pub struct Claimed {
    pub claim: Claim,
    /// Absolute-form HTTP shows itself while claiming.
    pub sighting: Option<Sighting>,
}

impl Client {
    #[must_use]
    pub fn new(arrived: Accepted, listener: Arc<Listener>, window: Window) -> Self {
        let Accepted { link, address, identity, shown: certificates, original_dst } = arrived;
        Self {
            link,
            window,
            address,
            identity,
            certificates,
            original_dst,
            listener,
            shown: Shown::Nothing,
            pass: None,
            speech: Speech::ByBytes,
            go_ahead: None,
        }
    }

    /// Finds out what the client asks for; `before` is what it asked for earlier on this connection.
    ///
    /// # Errors
    /// A refusal at stage `claim`.
    pub async fn claim(&mut self, limits: PeekLimits, before: Option<&Claim>) -> Result<Claimed, Refusal> {
        match (before, self.listener.kind) {
            // A request in absolute form makes its own claim; in a tunnel it is that of the tunnel.
            (Some(before), _) if before.via == Via::Absolute => self.claim_http(limits).await,
            (Some(before), _) => Ok(Claimed { claim: before.clone(), sighting: None }),
            (None, ListenerKind::Sni { port, .. }) => Ok(self.claimed(Target::Unnamed, port, Via::Intercepted, None)),
            (None, ListenerKind::Transparent { .. }) => {
                let dst = self.original_dst.ok_or_else(|| Refusal::new(Reason::NoOriginalDst, Stage::Claim))?;
                Ok(self.claimed(Target::Address(dst), dst.0.port(), Via::Intercepted, None))
            }
            // A question is not a connection: it does not come here.
            (None, ListenerKind::Dns) => Err(Refusal::new(Reason::Internal, Stage::Claim)),
            (None, ListenerKind::Forward) => match self.first_byte(limits.until).await? {
                socks5::VERSION => self.claim_socks(limits).await,
                socks5::VERSION_4 => {
                    self.speech = Speech::Socks4;
                    Err(Refusal::instead(
                        Reason::ProtocolDenied,
                        "the client speaks SOCKS4; set it to SOCKS5 (socks5h://)",
                    ))
                }
                first if first.is_ascii_graphic() => self.claim_http(limits).await,
                TLS_HANDSHAKE => {
                    Err(Refusal::at_claim(Reason::BadRequest, "the client speaks TLS; this listener has no `tls`"))
                }
                // Noise: no method begins like this.
                _ => Err(Refusal::new(Reason::BadRequest, Stage::Claim)),
            },
        }
    }

    /// The name of the listener that it came to.
    #[must_use]
    pub fn listener(&self) -> &Arc<str> {
        &self.listener.name
    }

    /// Whether upstreams are to see its own address.
    #[must_use]
    pub fn preserves_source(&self) -> bool {
        matches!(self.listener.kind, ListenerKind::Transparent { preserve_source: true, .. })
    }

    /// The fields that its requests and their answers get.
    #[must_use]
    pub fn adds(&self) -> Adds {
        self.listener.adds
    }

    /// Waits for the first byte of another request. A client that closes, resets or stays silent sends none.
    pub async fn waits_for_more(&mut self, idle: Duration) -> bool {
        let until = Instant::now() + idle;
        let mut skipped = false;
        loop {
            match self.window.unread() {
                // RFC 9112 §2.2: one empty line is ignored. Old clients send it behind a body.
                [b'\r', b'\n', ..] if !skipped => {
                    self.window.consume(2);
                    skipped = true;
                }
                [] | [b'\r'] => {
                    // Memory is charged when there is something to read.
                    let ready = self.link.stream.ready_to_read();
                    if tokio::time::timeout_at(until, ready).await.is_err() {
                        return false;
                    }
                    let fill = self.window.fill(&mut self.link.stream);
                    if !matches!(tokio::time::timeout_at(until, fill).await, Ok(Ok(Fill::More))) {
                        return false;
                    }
                }
                _ => return true,
            }
        }
    }

    async fn first_byte(&mut self, until: Instant) -> Result<u8, Refusal> {
        let look = |bytes: &[u8]| Ok(bytes.first().copied());
        peek::read_until(&mut self.link.stream, &mut self.window, until, look, |_| Reason::BadRequest)
            .await
            .map_err(at_claim)
    }

    async fn claim_http(&mut self, limits: PeekLimits) -> Result<Claimed, Refusal> {
        let mut reader = HeadReader::default();
        let look = |bytes: &[u8]| reader.look(bytes, limits.head);
        let cut = |_: &[u8]| Reason::BadRequest;
        let head = peek::read_until(&mut self.link.stream, &mut self.window, limits.until, look, cut).await;
        let head = head.map_err(|refusal| match (refusal.reason, other_scheme(self.window.unread())) {
            (Reason::BadRequest, Some(cure)) => Refusal::instead(Reason::BadRequest, cure),
            _ => at_claim(refusal),
        })?;
        self.speech = Speech::Http;
        let refuse = |reason| Refusal::new(reason, Stage::Claim);
        let shown = head.proxy_authorization(self.window.unread()).map_err(refuse)?;
        self.shown = match shown {
            None => Shown::Nothing,
            Some(value) => Credentials::basic(value).map_or(Shown::Strange, Shown::Password),
        };
        let authority = head.authority().map_err(refuse)?.clone();
        match &head.target {
            // Only a proxy is sent absolute-form; this one does not serve pages.
            RequestTarget::Origin(_) => Err(refuse(Reason::BadRequest)),
            RequestTarget::Absolute { .. } => {
                let port = authority.port.unwrap_or(80);
                let target = Claim::target(authority.host, port);
                Ok(self.claimed(target, port, Via::Absolute, Some(Sighting::Http(Box::new(head)))))
            }
            RequestTarget::Authority(_) => {
                // `authority` has one: CONNECT without a port is not a request.
                let port = authority.port.ok_or_else(|| refuse(Reason::BadRequest))?;
                self.window.consume(head.len);
                self.go_ahead = Some(ESTABLISHED);
                Ok(self.claimed(Claim::target(authority.host, port), port, Via::Connect, None))
            }
        }
    }

    async fn claim_socks(&mut self, limits: PeekLimits) -> Result<Claimed, Refusal> {
        self.speech = Speech::Socks5Methods;
        let cut = |_: &[u8]| Reason::BadRequest;
        let method = if self.listener.users.is_some() { socks5::Method::Password } else { socks5::Method::None };
        let greeting = |bytes: &[u8]| socks5::greeting(bytes, method);
        let (len, is_offered) = peek::read_until(&mut self.link.stream, &mut self.window, limits.until, greeting, cut)
            .await
            .map_err(at_claim)?;
        self.window.consume(len);
        if !is_offered {
            return Err(Refusal::at_claim(Reason::AuthFailed, method.missing()));
        }
        self.say(&method.chosen()).await;
        if method == socks5::Method::Password {
            self.speech = Speech::Socks5Password;
            let read = socks5::password;
            let (len, shown) = peek::read_until(&mut self.link.stream, &mut self.window, limits.until, read, cut)
                .await
                .map_err(at_claim)?;
            self.window.consume(len);
            self.shown = shown.map_or(Shown::Strange, Shown::Password);
            self.identity = self.user(limits.until).await?;
            self.say(socks5::PASSWORD_FITS).await;
        }
        self.speech = Speech::Socks5;
        let request = peek::read_until(&mut self.link.stream, &mut self.window, limits.until, socks5::request, cut)
            .await
            .map_err(at_claim)?;
        let host = request.host.map_err(|_| Refusal::new(Reason::BadHost, Stage::Claim))?;
        self.window.consume(request.len);
        self.go_ahead = Some(socks5::SUCCEEDED);
        Ok(self.claimed(Claim::target(host, request.port), request.port, Via::Socks, None))
    }

    fn claimed(&self, target: Target, port: u16, via: Via, sighting: Option<Sighting>) -> Claimed {
        let (listener, identity) = (Arc::clone(&self.listener.name), self.identity.clone());
        Claimed {
            claim: Claim { client: self.address, identity, listener, target, transport: Transport::Tcp, port, via },
            sighting,
        }
    }

    /// Makes sure that a claim is still that of a certificate and a user that are let in, where the listener asks for
    /// either.
    ///
    /// # Errors
    /// A refusal at stage `claim`.
    pub async fn authenticate(&mut self, claim: &mut Claim, limits: PeekLimits) -> Result<(), Refusal> {
        if let (Some(shown), Some(tls)) = (&mut self.certificates, &self.listener.tls)
            && !shown.stands(&tls.get())
        {
            return Err(Refusal::at_claim(
                Reason::AuthFailed,
                "the client's certificate has expired, is revoked or is not trusted any more",
            ));
        }
        let Some(users) = &self.listener.users else { return Ok(()) };
        if !claim.identity.is_user() {
            claim.identity = self.user(limits.until).await?;
        } else if !self.pass.as_ref().is_some_and(|pass| users.get().stand(pass)) {
            return Err(Refusal::at_claim(
                Reason::AuthFailed,
                "the user does not exist any more, or has another password now",
            ));
        }
        Ok(())
    }

    /// The client as the user it has shown itself to be.
    async fn user(&mut self, until: Instant) -> Result<Identity, Refusal> {
        let failed = |why| Err(Refusal::at_claim(Reason::AuthFailed, why));
        let Some(users) = &self.listener.users else { return failed("the listener has no users") };
        let shown = match std::mem::replace(&mut self.shown, Shown::Nothing) {
            // Many clients wait to be asked.
            Shown::Nothing => return failed("the client shows no user and password"),
            Shown::Strange => return failed("the client shows something else than a user and password (HTTP: Basic)"),
            Shown::Password(credentials) => credentials,
        };
        let identity = self.identity.with_user(shown.user());
        match tokio::time::timeout_at(until, users.get().admit(shown, self.address.ip())).await {
            // The file may have changed while it was checked.
            Ok(Some(pass)) if !users.get().stand(&pass) => failed("there is no such user any more"),
            Ok(Some(pass)) => {
                self.pass = Some(pass);
                Ok(identity)
            }
            Ok(None) => failed("there is no such user, or not with this password"),
            Err(_) => Err(Refusal::at_claim(Reason::PeekTimeout, "too many passwords wait to be checked")),
        }
    }

    /// Tells the client that it may send its own bytes. From here on a refusal is spoken in their protocol.
    pub async fn go_ahead(&mut self) {
        if let Some(words) = self.go_ahead.take() {
            self.say(words).await;
            self.speech = Speech::ByBytes;
        }
    }

    /// Looks at the client's own first bytes.
    ///
    /// # Errors
    /// A refusal at stage `peek` or `limit`.
    pub async fn sight(&mut self, expected: Expected, limits: PeekLimits) -> Result<Sighting, Refusal> {
        let expected = match self.listener.kind {
            ListenerKind::Sni { speaks, .. } => {
                Expected { tls: expected.tls && speaks.tls, http: expected.http && speaks.http }
            }
            ListenerKind::Forward | ListenerKind::Transparent { .. } | ListenerKind::Dns => expected,
        };
        let sighting = peek::sight(&mut self.link.stream, &mut self.window, expected, limits).await?;
        self.speech = match &sighting {
            Sighting::Tls(_) => Speech::Tls,
            Sighting::Http(_) => Speech::Http,
        };
        Ok(sighting)
    }

    /// What stands where a host belongs in a claim or head that could not be read, for the record.
    #[must_use]
    pub fn raw_host(&self) -> Option<&[u8]> {
        match self.speech {
            Speech::Socks5 => socks5::raw_host(self.window.unread()),
            Speech::Http | Speech::ByBytes => raw_host(self.window.unread()),
            Speech::Socks4 | Speech::Socks5Methods | Speech::Socks5Password | Speech::Tls => None,
        }
    }

    /// Tells the client that it was refused, and for which name, and waits a bounded time until it has heard. Where nothing may
    /// be said, dropping the link resets it.
    pub async fn refuse(mut self, refusal: &Refusal, name: Option<&str>) {
        let about =
            About { name, contact: self.listener.contact.as_deref(), asks_for_user: self.listener.users.is_some() };
        let words = self.speech.words(refusal, about, self.window.unread());
        if words.is_empty() {
            return;
        }
        // A client that does not listen loses its refusal, nothing else.
        let telling = async {
            self.link.stream.write_all(&words).await?;
            self.link.stream.shutdown().await
        };
        if matches!(tokio::time::timeout(LINGER, telling).await, Ok(Ok(()))) {
            self.linger().await;
        }
    }

    /// Ends a conversation that is over on our side. Unread bytes would turn the close into a reset and eat the
    /// last words: a bounded many are read and go nowhere.
    pub async fn linger(&mut self) {
        linger(&mut self.link.stream).await;
        self.link.end();
    }

    /// Ends a connection on which nothing is under way.
    pub async fn leave(mut self) {
        // A client that is gone, or reads nothing, is left all the same.
        let _ = tokio::time::timeout(LINGER, self.link.stream.shutdown()).await;
        self.linger().await;
    }

    /// A few bytes. A client that is gone, or takes none, is found out by the next read.
    async fn say(&mut self, words: &[u8]) {
        let _ = tokio::time::timeout(LINGER, send(&mut self.link.stream, words)).await;
    }
}

/// What went wrong while claiming belongs to the claim, not to the peek whose reader was lent.
fn at_claim(refusal: Refusal) -> Refusal {
    match refusal.stage {
        Stage::Peek => Refusal { stage: Stage::Claim, ..refusal },
        _ => refusal,
    }
}

/// What to do about a request for a URL of another scheme than `http`.
fn other_scheme(bytes: &[u8]) -> Option<&'static str> {
    let target = bytes.split(|b| matches!(b, b' ' | b'\r' | b'\n')).nth(1)?;
    let has =
        |scheme: &str| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()));
    if has("https://") {
        return Some(
            "the client asks for an https:// URL without CONNECT; set it to tunnel (CONNECT HOST:443), or use http://",
        );
    }
    (has("ws://") || has("wss://"))
        .then_some("the client asks for a WebSocket URL; set it to tunnel (CONNECT HOST:PORT)")
}

/// The host of something like a request head: of its target, else of the first Host field.
fn raw_host(bytes: &[u8]) -> Option<&[u8]> {
    raw_authority(bytes).or_else(|| {
        let mut lines = bytes.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
        let is_request = lines.next()?.split(|b| *b == b' ').any(|part| part.starts_with(b"HTTP/"));
        let mut fields = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
            let colon = line.iter().position(|b| *b == b':')?;
            let (name, value) = line.split_at_checked(colon)?;
            name.trim_ascii().eq_ignore_ascii_case(b"host").then(|| value.get(1..).unwrap_or_default().trim_ascii())
        });
        let value = fields.next().filter(|_| is_request)?;
        // A URL instead of a host may hold a secret.
        let start = value.windows(3).position(|w| w == b"://").map_or(0, |at| at + 3);
        let host = value.get(start..)?.split(|b| matches!(b, b'/' | b'?' | b'#')).next()?;
        (!host.is_empty()).then_some(host)
    })
}

/// The authority of a request line, where it has one that cannot be a secret: what stands before an `@`
/// may be a password, and behind a slash a token.
fn raw_authority(bytes: &[u8]) -> Option<&[u8]> {
    let line = bytes.split(|b| matches!(b, b'\r' | b'\n')).next()?;
    let mut parts = line.split(|b| *b == b' ');
    let (_, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    if !version.starts_with(b"HTTP/") || parts.next().is_some() || target.contains(&b'@') {
        return None;
    }
    let start = target.windows(3).position(|w| w == b"://").map_or(0, |at| at + 3);
    let authority = target.get(start..)?.split(|b| matches!(b, b'/' | b'?' | b'#')).next()?;
    // What is not a port may be a password.
    let mut parts = authority.rsplitn(2, |b| *b == b':');
    let is_port = parts.next()?.iter().all(u8::is_ascii_digit) || parts.next().is_none() || authority.ends_with(b"]");
    (!target.starts_with(b"/") && !authority.is_empty() && is_port).then_some(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_head_that_cannot_be_read_is_found() {
        let raw = |head: &[u8]| raw_host(head).map(|raw| raw.escape_ascii().to_string());
        assert_eq!(raw(b"GET / HTTP/1.1\r\nA: b\r\nHost : a.test:80\r\nHost: b.test\r\n"), Some("a.test:80".into()));
        assert_eq!(raw(b"GET http://a.test/ HTTP/1.1\r\nHost: b.test\r\n"), Some("a.test".into()));
        assert_eq!(raw(b"GET /  HTTP/1.1\nhost:\ta.test\n"), Some("a.test".into()));
        assert_eq!(raw(b"GET / HTTP/1.1\r\n\r\nHost: behind.test\r\n"), None);
        assert_eq!(raw(b"GET / HTTP/1.1\r\nHost:\r\n"), None);
        assert_eq!(raw(b"GET  / HTTP/1.1\r\nHost: https://a.test/v1?key=secret\r\n"), Some("a.test".into()));
        assert_eq!(raw(b"\x16\x03\x01\nHost: a.test\n"), None);
    }

    #[test]
    fn no_secret_of_a_request_line_is_logged() {
        let raw = |line: &str| raw_authority(line.as_bytes()).map(|raw| raw.escape_ascii().to_string());
        assert_eq!(raw("GET http://a_b..test:80/x?token=abc HTTP/1.1\r\n"), Some("a_b..test:80".into()));
        assert_eq!(raw("CONNECT a..test:443 HTTP/1.1\r\n"), Some("a..test:443".into()));
        for line in [
            "GET http://bob:hunter2@a.test:80/x HTTP/1.1\r\n",
            "GET http://bob:hun/ter2@a.test/ HTTP/1.1\r\n",
            "GET http://bob:hunter2 x@a.test/ HTTP/1.1\r\n",
            "CONNECT bob:hun/ter2@a.test:443 HTTP/1.1\r\n",
            "CONNECT bob:hunter2 HTTP/1.1\r\n",
            "GET Basic:aHVudGVyMg== HTTP/1.1\r\n",
            "GET /cb?u=http://token/ HTTP/1.1\r\n",
            "password: hunter2\r\n\r\n",
            "password: hunter2 HTTP\r\n\r\n",
            "GET hunter2",
        ] {
            assert_eq!(raw(line), None, "{line}");
        }
    }
}
