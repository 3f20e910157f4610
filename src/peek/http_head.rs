//! The head of one HTTP/1 request, read so that no second reader can read it differently.
//!
//! `httparse` finds the fields; every leniency it has is closed here before anything is believed. Pure:
//! bytes in, value out. RFC 9112 is the grammar, RFC 9110 the meaning.

use std::ops::Range;

use crate::ending::Reason;
use crate::name::{Host, NameFault};

/// More fields than clients send.
pub const USUAL_FIELDS: usize = 128;

/// One request head, and where its parts lie in the bytes it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    pub method: Box<str>,
    pub target: RequestTarget,
    pub host: HostField,
    pub body: BodyLength,
    /// The protocol that the client wants to go on in.
    pub upgrade: Option<Upgrade>,
    /// Bytes up to and including the empty line.
    pub len: usize,
    pub overrides: Overrides,
    is_http_10: bool,
    /// The client asks for an end after this one.
    closes: bool,
    /// The client waits for 100 (Continue) before its body (RFC 9110 §10.1.1).
    expects: bool,
}

/// Fields by which some servers take a request for another one than its first line says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub method: bool,
    pub path: bool,
}

impl Overrides {
    /// What the field with this name overrides, in the spelling of [`as_gateways_spell`].
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        Self {
            method: matches!(name, b"x-http-method-override" | b"x-method-override" | b"x-http-method"),
            path: matches!(name, b"x-original-url" | b"x-rewrite-url"),
        }
    }
}

/// A field's name in lower case and with `-` for `_`, which many gateways do not tell apart.
#[must_use]
pub fn as_gateways_spell(name: &[u8]) -> Vec<u8> {
    name.iter().map(|b| if *b == b'_' { b'-' } else { b.to_ascii_lowercase() }).collect()
}

/// A protocol that a connection may switch to (RFC 9110 §7.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// RFC 6455.
    WebSocket,
}

/// What is said of the connection on one side of egret (RFC 9112 §9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onward {
    /// Another message may follow: the default of HTTP/1.1, for which nothing is said.
    Stay,
    Close,
    /// The protocol changes with this message.
    Switch,
}

/// RFC 9112 §3.2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestTarget {
    /// `/path?query`, or `*`.
    Origin(Box<str>),
    /// `http://host:port/path`; the path as origin-form. Userinfo is dropped.
    Absolute { authority: Authority, path: Box<str>, has_userinfo: bool },
    /// CONNECT only.
    Authority(Authority),
}

/// A host and its port, where one was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    pub host: Host,
    pub port: Option<u16>,
}

/// What the Host field said (RFC 9112 §3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostField {
    Absent,
    Given(Authority),
    Malformed { raw: Box<[u8]>, fault: NameFault },
}

/// How long the request's body is (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    Exactly(u64),
    Chunked,
}

/// How large a head may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    pub bytes: usize,
    pub fields: usize,
}

impl From<usize> for HeadLimits {
    /// So many bytes, and the usual number of fields.
    fn from(bytes: usize) -> Self {
        Self { bytes, fields: USUAL_FIELDS }
    }
}

/// Lends room for so many fields.
fn with_fields<'a, T>(fields: usize, use_them: impl FnOnce(&mut [httparse::Header<'a>]) -> T) -> T {
    let mut usual = [httparse::EMPTY_HEADER; USUAL_FIELDS];
    match usual.get_mut(..fields) {
        Some(few) => use_them(few),
        None => use_them(&mut vec![httparse::EMPTY_HEADER; fields]),
    }
}

/// Finds the end of a growing head, reading each byte once however they arrive.
#[derive(Debug, Default)]
pub struct HeadReader {
    /// Bytes read so far.
    at: usize,
    /// Bytes of the current line, its CR included.
    line: usize,
    previous: Option<u8>,
}

impl HeadReader {
    /// As [`RequestHead::look`], for bytes that begin with those of earlier calls.
    ///
    /// # Errors
    /// As [`RequestHead::look`].
    pub fn look(&mut self, raw: &[u8], limits: HeadLimits) -> Result<Option<RequestHead>, Reason> {
        let Some(head) = self.head(raw, limits.bytes)? else { return Ok(None) };
        RequestHead::read(head, limits.fields).map(Some)
    }

    /// The head of a response. `None` for "need more".
    ///
    /// # Errors
    /// [`Reason::BadAnswer`] for bytes that begin no HTTP/1 response, or past `limits`.
    pub fn response(&mut self, raw: &[u8], limits: HeadLimits) -> Result<Option<ResponseHead>, Reason> {
        let Some(head) = self.head(raw, limits.bytes).map_err(|_| Reason::BadAnswer)? else { return Ok(None) };
        ResponseHead::read(head, limits.fields).map(Some)
    }

    /// Bytes up to and including the empty line, if it is there; a bare CR or LF is a refusal as soon as it
    /// is seen.
    fn head<'a>(&mut self, raw: &'a [u8], limit: usize) -> Result<Option<&'a [u8]>, Reason> {
        for byte in raw.iter().skip(self.at) {
            self.at += 1;
            if self.at > limit {
                return Err(Reason::HeadTooLarge);
            }
            // No method begins like this, and no more of it need be waited for.
            if self.at == 1 && !byte.is_ascii_graphic() && *byte != b'\r' && *byte != b'\n' {
                return Err(Reason::BadRequest);
            }
            match (self.previous.replace(*byte), byte) {
                (Some(b'\r'), b'\n') if self.line == 1 => {
                    // RFC 9112 §2.2 lets a server skip an empty line in front; two servers would not agree.
                    return if self.at == 2 { Err(Reason::BadRequest) } else { Ok(raw.get(..self.at)) };
                }
                (Some(b'\r'), b'\n') => self.line = 0,
                (_, b'\n') => return Err(Reason::AmbiguousRequest),
                (Some(b'\r'), _) => return Err(Reason::BadRequest),
                _ => self.line += 1,
            }
        }
        if raw.len() >= limit { Err(Reason::HeadTooLarge) } else { Ok(None) }
    }
}

impl RequestHead {
    /// Looks at all bytes received so far: the head, or `None` for "need more".
    ///
    /// # Errors
    /// [`Reason::BadRequest`] for what is not an HTTP/1 request, [`Reason::AmbiguousRequest`] for what two
    /// recipients may read differently, [`Reason::HeadTooLarge`], [`Reason::BadHost`],
    /// [`Reason::NoHost`], [`Reason::UpgradeDenied`].
    pub fn look(raw: &[u8], limits: impl Into<HeadLimits>) -> Result<Option<Self>, Reason> {
        HeadReader::default().look(raw, limits.into())
    }

    fn read(head: &[u8], fields: usize) -> Result<Self, Reason> {
        // RFC 9113 §3.4: the preface of HTTP/2, which has no request that could be judged here.
        if head.starts_with(b"PRI * HTTP/2.0\r\n") {
            return Err(Reason::UpgradeDenied);
        }
        check_bytes(head)?;
        with_fields(fields, |fields| {
            let mut request = httparse::Request::new(fields);
            match request.parse(head) {
                Ok(httparse::Status::Complete(n)) if n == head.len() => {}
                Err(httparse::Error::TooManyHeaders) => return Err(Reason::HeadTooLarge),
                _ => return Err(Reason::BadRequest),
            }
            Self::check(&request, head)
        })
    }

    fn check(request: &httparse::Request<'_, '_>, head: &[u8]) -> Result<Self, Reason> {
        let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
            return Err(Reason::BadRequest);
        };
        // httparse folds runs of spaces; the line must be these three and nothing else.
        let line = format!("{method} {target} HTTP/1.{minor}\r\n");
        if !head.starts_with(line.as_bytes()) {
            return Err(Reason::AmbiguousRequest);
        }
        let target = read_target(method, target)?;
        let seen = Fields::read(request.headers)?;
        let is_http_10 = minor == 0;
        let body = seen.body(is_http_10)?;
        if matches!(target, RequestTarget::Authority(_)) && body != BodyLength::Exactly(0) {
            return Err(Reason::AmbiguousRequest);
        }
        // RFC 9112 §3.2 asks for a Host here too. CONNECT's decides nothing, and several clients send none.
        let is_connect = matches!(target, RequestTarget::Authority(_));
        if seen.host == HostField::Absent && !is_http_10 && !is_connect {
            return Err(Reason::NoHost);
        }
        // HTTP/1.0 stays only where both sides know a word that proxies were never good with.
        let closes = is_http_10 || seen.closes;
        // RFC 6455 §4.1: a GET of HTTP/1.1 without a body. Elsewhere, and for any other protocol, it is an offer that a
        // server may ignore (RFC 9110 §7.8), and so may a proxy.
        let may_upgrade = method == "GET" && !is_http_10 && body == BodyLength::Exactly(0);
        let upgrade = seen.one_upgrade().filter(|_| may_upgrade);
        let Fields { host, overrides, expects, .. } = seen;
        let (method, len) = (method.into(), head.len());
        Ok(Self { method, target, host, body, upgrade, len, overrides, is_http_10, closes, expects })
    }

    /// The one authority this request is for: the target's where it has one, whatever Host says (RFC 9112 §3.2.2);
    /// Host's otherwise.
    ///
    /// # Errors
    /// [`Reason::NoHost`], [`Reason::BadHost`].
    pub fn authority(&self) -> Result<&Authority, Reason> {
        match (&self.target, &self.host) {
            (RequestTarget::Absolute { authority, .. } | RequestTarget::Authority(authority), _) => Ok(authority),
            (RequestTarget::Origin(_), HostField::Given(authority)) => Ok(authority),
            (RequestTarget::Origin(_), HostField::Absent | HostField::Malformed { fault: NameFault::Empty, .. }) => {
                Err(Reason::NoHost)
            }
            (RequestTarget::Origin(_), HostField::Malformed { .. }) => Err(Reason::BadHost),
        }
    }

    /// Whether Host says what a target with a host does, or nothing, and the target no more than that.
    #[must_use]
    pub fn host_agrees(&self) -> bool {
        let RequestTarget::Absolute { authority, has_userinfo, .. } = &self.target else { return true };
        let port = |of: &Authority| of.port.unwrap_or(80);
        match &self.host {
            _ if *has_userinfo => false,
            HostField::Given(given) => given.host == authority.host && port(given) == port(authority),
            HostField::Absent => true,
            HostField::Malformed { .. } => false,
        }
    }

    /// What the client shows of itself to a proxy (RFC 9110 §11.7.2), out of the head's own bytes.
    ///
    /// # Errors
    /// [`Reason::AmbiguousRequest`] where it does so twice.
    pub fn proxy_authorization<'a>(&self, raw: &'a [u8]) -> Result<Option<&'a [u8]>, Reason> {
        let fields = field_lines(raw.get(..self.len).unwrap_or_default()).filter_map(split_field);
        let mut shown = fields.filter(|(name, _)| name.eq_ignore_ascii_case(b"proxy-authorization"));
        match (shown.next(), shown.next()) {
            (Some(_), Some(_)) => Err(Reason::AmbiguousRequest),
            (one, _) => Ok(one.map(|(_, value)| value)),
        }
    }

    /// The path with its query; CONNECT has none.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match &self.target {
            RequestTarget::Origin(path) | RequestTarget::Absolute { path, .. } => Some(path),
            RequestTarget::Authority(_) => None,
        }
    }

    /// Whether another request may follow this one.
    #[must_use]
    pub const fn stays(&self) -> bool {
        !self.closes
    }

    #[must_use]
    pub const fn is_http_10(&self) -> bool {
        self.is_http_10
    }

    /// Whether nothing changes if it is sent twice (RFC 9110 §9.2.1), and all of it is at hand.
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        matches!(&*self.method, "GET" | "HEAD" | "OPTIONS") && self.body == BodyLength::Exactly(0)
    }

    /// Whether an upstream connection must carry this request and no other. A server that ignores a body parses it as
    /// the next request; one that expects a body consumes the next request as it.
    #[must_use]
    pub fn needs_own_connection(&self) -> bool {
        let may_have_body = !matches!(&*self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE");
        may_have_body || self.expects || self.body != BodyLength::Exactly(0)
    }

    /// The head as it goes to the origin: origin-form, and without what concerns this hop only
    /// (RFC 9110 §7.6.1). What routes or frames the request is written from what was read of it, the target's host
    /// where there is one (RFC 9112 §3.2.2). Every other field keeps its bytes, its order and its case; `adds` follow.
    #[must_use]
    pub fn for_origin(&self, raw: &[u8], adds: &[u8], onward: Onward) -> Vec<u8> {
        let head = raw.get(..self.len).unwrap_or_default();
        let path = match &self.target {
            RequestTarget::Origin(path) | RequestTarget::Absolute { path, .. } => path,
            RequestTarget::Authority(_) => "*",
        };
        let mut out = format!("{} {path} HTTP/1.{}\r\n", self.method, u8::from(!self.is_http_10)).into_bytes();
        let host = match (&self.target, &self.host) {
            (RequestTarget::Absolute { authority, .. }, _) | (_, HostField::Given(authority)) => Some(authority),
            (_, HostField::Absent | HostField::Malformed { .. }) => None,
        };
        let host = host.map(|authority| format!("Host: {authority}\r\n")).unwrap_or_default();
        if self.host == HostField::Absent {
            out.extend_from_slice(host.as_bytes());
        }
        for line in kept_fields(head) {
            match Framing::of(line) {
                None => out.extend_from_slice(line),
                Some(Framing::Host) => out.extend_from_slice(host.as_bytes()),
                Some(Framing::ContentLength | Framing::TransferEncoding) => {
                    out.extend_from_slice(self.body.field().as_bytes());
                }
            }
        }
        out.extend_from_slice(adds);
        out.extend_from_slice(onward.fields());
        out
    }
}

impl BodyLength {
    /// The one field that says so.
    fn field(self) -> String {
        match self {
            Self::Exactly(length) => format!("Content-Length: {length}\r\n"),
            Self::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
        }
    }
}

/// A field that routes a message or says where it ends. Never forwarded as it came: the next reader might read
/// something else in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Host,
    ContentLength,
    TransferEncoding,
}

impl Framing {
    fn of(line: &[u8]) -> Option<Self> {
        let (name, _) = split_field(line)?;
        let known: [(&[u8], Self); 3] = [
            (b"host", Self::Host),
            (b"content-length", Self::ContentLength),
            (b"transfer-encoding", Self::TransferEncoding),
        ];
        known.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, framing)| framing)
    }
}

impl Onward {
    /// What is said of it, and the end of the head.
    const fn fields(self) -> &'static [u8] {
        match self {
            Self::Stay => b"\r\n",
            Self::Close => b"Connection: close\r\n\r\n",
            Self::Switch => b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        }
    }
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Address(std::net::IpAddr::V6(ip)) => write!(f, "[{ip}]")?,
            host => host.fmt(f)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// One response head.
#[derive(Debug, PartialEq, Eq)]
pub struct ResponseHead {
    pub status: u16,
    /// Bytes up to and including the empty line.
    pub len: usize,
    /// What the fields say of the body, whether the answer has one or not.
    says: Result<AnswerLength, Reason>,
    /// The protocol that the server goes on in.
    pub upgrade: Option<Upgrade>,
    stays: bool,
    pub is_http_10: bool,
}

/// How long an answer's body is (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerLength {
    Framed(BodyLength),
    /// Until the upstream closes.
    ToTheEnd,
}

impl ResponseHead {
    fn read(head: &[u8], fields: usize) -> Result<Self, Reason> {
        with_fields(fields, |fields| Self::read_into(head, fields))
    }

    fn read_into<'a>(head: &'a [u8], fields: &mut [httparse::Header<'a>]) -> Result<Self, Reason> {
        let mut response = httparse::Response::new(fields);
        // RFC 9112 §5.1: a proxy removes them from an answer; in a request they are refused.
        let parsed = httparse::ParserConfig::default()
            .allow_spaces_after_header_name_in_responses(true)
            .parse_response(&mut response, head);
        // RFC 9110 §15: clients take 600 to 999 for a server's error, and nothing below 100 for an answer.
        let (Ok(httparse::Status::Complete(_)), Some(status @ 100..)) = (parsed, response.code) else {
            return Err(Reason::BadAnswer);
        };
        let is_http_10 = response.version == Some(0);
        let says = answer_length(response.headers, is_http_10);
        let stays = !is_http_10 && !closes(response.headers);
        let mut upgrades = named(response.headers, "upgrade");
        let upgrade = upgrades.next().and_then(upgrade).filter(|_| upgrades.next().is_none());
        Ok(Self { status, len: head.len(), says, upgrade, stays, is_http_10 })
    }

    /// 1xx but for a switch: another head follows.
    #[must_use]
    pub const fn is_interim(&self) -> bool {
        self.status >= 100 && self.status < 200 && self.status != 101
    }

    /// Whether the server may be asked again.
    #[must_use]
    pub const fn stays(&self) -> bool {
        self.stays
    }

    /// How long the body of the answer to a request with this method is (RFC 9112 §6.3).
    ///
    /// # Errors
    /// [`Reason::BadAnswer`] where its fields contradict each other.
    pub fn body(&self, method: &str) -> Result<AnswerLength, Reason> {
        if self.has_body(method) { self.says } else { Ok(AnswerLength::Framed(BodyLength::Exactly(0))) }
    }

    /// Whether a body is announced that must not come. Some servers send it all the same, and what would come of it
    /// after the head cannot be known.
    #[must_use]
    pub fn announces_forbidden_body(&self, method: &str) -> bool {
        let is_silent = matches!(self.says, Ok(AnswerLength::ToTheEnd | AnswerLength::Framed(BodyLength::Exactly(0))));
        !self.has_body(method) && !is_silent
    }

    fn has_body(&self, method: &str) -> bool {
        method != "HEAD" && !matches!(self.status, 100..200 | 204 | 304)
    }

    /// The head as it goes to the client, without what concerned the other hop only. What frames the answer is written
    /// from what was read of it, and left out of answers that never have a body (RFC 9112 §6.1, RFC 9110 §8.6).
    #[must_use]
    pub fn for_client(&self, raw: &[u8], adds: &[u8], onward: Onward) -> Vec<u8> {
        let head = raw.get(..self.len).unwrap_or_default();
        let mut out = head.get(first_line(head)).unwrap_or_default().to_vec();
        let framing = match self.says {
            Ok(AnswerLength::Framed(length)) if !matches!(self.status, 100..200 | 204) => length.field(),
            _ => String::new(),
        };
        for line in kept_fields(head) {
            let is_framing = matches!(Framing::of(line), Some(Framing::ContentLength | Framing::TransferEncoding));
            if is_framing {
                out.extend_from_slice(framing.as_bytes());
            } else if let Some((name, rest)) = split_at_colon(line) {
                out.extend_from_slice(name);
                out.extend_from_slice(rest);
            }
        }
        out.extend_from_slice(adds);
        out.extend_from_slice(onward.fields());
        out
    }
}

fn named<'a>(headers: &'a [httparse::Header<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// Whether the sender's side ends with this message (RFC 9112 §9.6).
fn closes(headers: &[httparse::Header<'_>]) -> bool {
    let mut options = named(headers, "connection").flat_map(|value| value.split(|b| *b == b','));
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// Whether a Connection field names a field that frames or routes the message.
fn names_framing(value: &[u8]) -> bool {
    let mut options = value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
    options.any(|option| {
        [&b"host"[..], b"content-length", b"transfer-encoding"].iter().any(|name| option.eq_ignore_ascii_case(name))
    })
}

/// The one protocol that may be switched to.
fn upgrade(value: &[u8]) -> Option<Upgrade> {
    value.eq_ignore_ascii_case(b"websocket").then_some(Upgrade::WebSocket)
}

/// What an answer's fields say of its body. Two lengths are not a length: a client behind could be made to read one
/// answer as two. HTTP/1.0 knows no codings (RFC 9112 §6.1).
fn answer_length(headers: &[httparse::Header<'_>], is_http_10: bool) -> Result<AnswerLength, Reason> {
    let codings: Vec<&[u8]> = named(headers, "transfer-encoding").collect();
    let lengths: Vec<Option<u64>> = named(headers, "content-length").map(|value| content_length(value).ok()).collect();
    match (codings.as_slice(), lengths.as_slice()) {
        ([], []) => Ok(AnswerLength::ToTheEnd),
        ([], [Some(n)]) => Ok(AnswerLength::Framed(BodyLength::Exactly(*n))),
        ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") && !is_http_10 => {
            Ok(AnswerLength::Framed(BodyLength::Chunked))
        }
        _ => Err(Reason::BadAnswer),
    }
}

/// No control bytes but CRLF and the tab; nothing beyond ASCII in the request line.
fn check_bytes(head: &[u8]) -> Result<(), Reason> {
    let line = first_line(head);
    let text_of_line = head.get(line.start..line.end.saturating_sub(2)).unwrap_or_default();
    if text_of_line.iter().any(|b| !(0x20..0x7f).contains(b)) {
        return Err(Reason::BadRequest);
    }
    let control = |b: &u8| (*b < 0x20 && !matches!(*b, b'\t' | b'\r' | b'\n')) || *b == 0x7f;
    if head.iter().any(control) { Err(Reason::BadRequest) } else { Ok(()) }
}

/// Whether a byte may stand in a token: methods, field names, parameters (RFC 9110 §5.6.2).
#[must_use]
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The first line with its CRLF.
fn first_line(head: &[u8]) -> Range<usize> {
    0..head.iter().position(|b| *b == b'\n').map_or(head.len(), |at| at + 1)
}

/// Field lines, each with its CRLF.
fn field_lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split_inclusive(|b| *b == b'\n').skip(1).filter(|line| line.len() > 2)
}

/// Field lines, each with its CRLF, without those that concern one hop only.
fn kept_fields(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    const HOP: [&str; 7] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "proxy-authenticate",
        "upgrade",
        "http2-settings",
    ];
    let lines = || field_lines(head);
    let listed: Vec<Vec<u8>> = lines()
        .filter_map(|line| split_field(line).filter(|(name, _)| name.eq_ignore_ascii_case(b"connection")))
        .flat_map(|(_, value)| value.split(|b| *b == b','))
        .map(|token| token.trim_ascii().to_ascii_lowercase())
        // These two frame the message; no option may take them away.
        .filter(|token| token != b"transfer-encoding" && token != b"content-length" && token != b"host")
        .collect();
    lines().filter(move |line| {
        split_field(line).is_none_or(|(name, _)| {
            let name = name.to_ascii_lowercase();
            !HOP.iter().any(|hop| hop.as_bytes() == name) && !listed.contains(&name)
        })
    })
}

fn split_field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = split_at_colon(line)?;
    Some((name, rest.get(1..).unwrap_or_default().trim_ascii()))
}

/// The name without blanks behind it, and the rest from its colon on.
fn split_at_colon(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|b| *b == b':')?;
    let (name, rest) = line.split_at_checked(colon)?;
    Some((name.trim_ascii_end(), rest))
}

fn read_target(method: &str, target: &str) -> Result<RequestTarget, Reason> {
    if target.contains('#') {
        return Err(Reason::BadRequest);
    }
    if method == "CONNECT" {
        let authority = read_authority(target.as_bytes()).map_err(|_| Reason::BadHost)?;
        return match authority.port {
            Some(_) => Ok(RequestTarget::Authority(authority)),
            None => Err(Reason::BadRequest),
        };
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(RequestTarget::Origin(target.into()));
    }
    let (scheme, rest) = target.split_once("://").ok_or(Reason::BadRequest)?;
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(Reason::BadRequest);
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let has_userinfo = authority.contains('@');
    let authority = match authority.split_once('@') {
        // RFC 9110 §4.2.4: it is dropped. What two readers could end elsewhere is refused.
        Some((userinfo, host)) if is_userinfo(userinfo) && !host.contains('@') => host,
        Some(_) => return Err(Reason::AmbiguousRequest),
        None => authority,
    };
    let authority = read_authority(authority.as_bytes()).map_err(|_| Reason::BadHost)?;
    let path = match path {
        // RFC 9112 §3.2.4.
        "" if method == "OPTIONS" => "*".into(),
        path if path.starts_with('/') => path.into(),
        query => format!("/{query}").into(),
    };
    Ok(RequestTarget::Absolute { authority, path, has_userinfo })
}

/// RFC 3986 §3.2.1.
fn is_userinfo(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:".contains(&byte))
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn read_authority(bytes: &[u8]) -> Result<Authority, NameFault> {
    let after_bracket = bytes.iter().rposition(|b| *b == b']').map_or(0, |at| at + 1);
    let colon = bytes.iter().skip(after_bracket).position(|b| *b == b':').map(|at| at + after_bracket);
    let (host, port) = match colon.and_then(|at| bytes.split_at_checked(at)) {
        // RFC 3986 §3.2.3: a port may be empty, which is none.
        Some((host, b":")) => (host, None),
        Some((host, port)) => (host, Some(read_port(port.get(1..).unwrap_or_default())?)),
        None => (bytes, None),
    };
    let host = Host::from_wire(host)?;
    Ok(Authority { host, port })
}

fn read_port(digits: &[u8]) -> Result<u16, NameFault> {
    let fault = NameFault::BadByte(b':');
    if digits.is_empty() || digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(fault);
    }
    let port: u16 = std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).ok_or(fault)?;
    if port == 0 { Err(fault) } else { Ok(port) }
}

/// The fields that decide where a request goes and where it ends.
struct Fields {
    host: HostField,
    lengths: Vec<u64>,
    codings: usize,
    /// What each Upgrade field offers.
    upgrades: Vec<Option<Upgrade>>,
    overrides: Overrides,
    closes: bool,
    expects: bool,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>]) -> Result<Self, Reason> {
        let mut seen = Self {
            host: HostField::Absent,
            lengths: Vec::new(),
            codings: 0,
            upgrades: Vec::new(),
            overrides: Overrides::default(),
            closes: closes(headers),
            expects: false,
        };
        for field in headers {
            let value = field.value;
            match field.name.to_ascii_lowercase().as_str() {
                "host" if seen.host != HostField::Absent => return Err(Reason::AmbiguousRequest),
                "host" => {
                    seen.host = match read_authority(value) {
                        Ok(authority) => HostField::Given(authority),
                        Err(fault) => HostField::Malformed { raw: value.into(), fault },
                    };
                }
                "content-length" => seen.lengths.push(content_length(value)?),
                "transfer-encoding" if value.eq_ignore_ascii_case(b"chunked") => seen.codings += 1,
                "transfer-encoding" => return Err(Reason::BadRequest),
                // Gateways turn `_` into `-`: what frames a message there must not hide here.
                "content_length" | "transfer_encoding" => return Err(Reason::AmbiguousRequest),
                // What is taken away at this hop must not be what the request is judged or framed by.
                "connection" if names_framing(value) => return Err(Reason::AmbiguousRequest),
                "upgrade" => seen.upgrades.push(upgrade(value)),
                "expect" => seen.expects = true,
                name => {
                    let overrides = Overrides::of(&as_gateways_spell(name.as_bytes()));
                    seen.overrides.method |= overrides.method;
                    seen.overrides.path |= overrides.path;
                }
            }
        }
        Ok(seen)
    }

    /// The one protocol that the client would change to, where it names no other.
    fn one_upgrade(&self) -> Option<Upgrade> {
        match self.upgrades.as_slice() {
            [one] => *one,
            _ => None,
        }
    }

    /// RFC 9112 §6.1 and §6.3, without its allowances for the undecided.
    fn body(&self, is_http_10: bool) -> Result<BodyLength, Reason> {
        match (self.codings, self.lengths.as_slice()) {
            (0, []) => Ok(BodyLength::Exactly(0)),
            (0, [n]) => Ok(BodyLength::Exactly(*n)),
            (1, []) if !is_http_10 => Ok(BodyLength::Chunked),
            _ => Err(Reason::AmbiguousRequest),
        }
    }
}

/// Digits only (RFC 9110 §8.6), and few enough that the sum cannot wrap.
fn content_length(value: &[u8]) -> Result<u64, Reason> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Reason::BadRequest);
    }
    std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()).ok_or(Reason::BadRequest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(raw: &str) -> Result<Option<RequestHead>, Reason> {
        RequestHead::look(raw.as_bytes(), 1 << 16)
    }

    #[track_caller]
    fn allowed(raw: &str, authority: &str) -> RequestHead {
        let head = look(raw).unwrap().expect("the head is whole");
        assert_eq!(head.authority().map(ToString::to_string), Ok(authority.to_owned()), "{raw:?}");
        for end in 0..raw.len() {
            assert_eq!(look(&raw[..end]), Ok(None), "prefix {:?}", &raw[..end]);
        }
        head
    }

    #[track_caller]
    fn refused(raw: &str, reason: Reason) {
        let got = look(raw).and_then(|head| head.expect("the head is whole").authority().cloned());
        assert_eq!(got, Err(reason), "{raw:?}");
    }

    #[test]
    fn one_host_is_read() {
        allowed("GET / HTTP/1.1\r\nHost: A.Example\r\n\r\n", "a.example");
        allowed("GET / HTTP/1.1\r\nHOST:\ta.example:8080 \r\n\r\n", "a.example:8080");
        allowed("GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example");
        allowed("GET http://a.example:80?q HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example:80");
        allowed("GET http://a.example/ HTTP/1.0\r\n\r\n", "a.example");
        allowed("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", "a.example:443");
        allowed("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example:443");
        allowed("CONNECT a.example:443 HTTP/1.0\r\n\r\n", "a.example:443");
        allowed("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n", "[::1]:443");
        allowed("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example");
    }

    #[test]
    fn a_target_with_a_host_needs_no_other() {
        for host in ["", "Host:\r\n", "Host: b\r\n", "Host: a:444\r\n", "Host: a b\r\n"] {
            allowed(&format!("CONNECT a:443 HTTP/1.1\r\n{host}\r\n"), "a:443");
        }
        for host in ["Host:\r\n", "Host: b\r\n", "Host: a:81\r\n", "Host: u:p@a\r\n"] {
            for userinfo in ["", "u@", "u:p%40@", ":@"] {
                let raw = format!("GET http://{userinfo}a/x HTTP/1.1\r\n{host}Authorization: y\r\n\r\n");
                let head = allowed(&raw, "a");
                let sent = head.for_origin(raw.as_bytes(), b"", Onward::Stay);
                assert_eq!(sent, b"GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: y\r\n\r\n", "{raw}");
            }
        }
    }

    #[test]
    fn an_upgrade_is_an_offer() {
        let with = |method: &str, fields: &str| {
            let raw = format!("{method} / HTTP/1.1\r\nHost: a\r\n{fields}A: b\r\n\r\n");
            let head = look(&raw).unwrap().unwrap();
            (head.upgrade, String::from_utf8(head.for_origin(raw.as_bytes(), b"", Onward::Stay)).unwrap())
        };
        let plain = |method: &str| format!("{method} / HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\n");
        for fields in [
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
            "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
            "Upgrade: websocket, h2c\r\n",
            "Upgrade: websocket\r\nUpgrade: websocket\r\n",
            "Upgrade:\r\n",
        ] {
            assert_eq!(with("GET", fields), (None, plain("GET")), "{fields}");
        }
        let websocket = "Connection: Upgrade\r\nUpgrade: WebSocket\r\n";
        assert_eq!(with("GET", websocket), (Some(Upgrade::WebSocket), plain("GET")));
        assert_eq!(with("POST", websocket), (None, plain("POST")));
    }

    #[test]
    fn two_readings_are_a_refusal() {
        use Reason::AmbiguousRequest;
        refused("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", AmbiguousRequest);
        refused("GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", AmbiguousRequest);
        refused("GET http://u@b@a/ HTTP/1.1\r\nHost: a\r\n\r\n", AmbiguousRequest);
        refused("GET http://b\\@a/ HTTP/1.1\r\nHost: a\r\n\r\n", AmbiguousRequest);
        refused("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nHost: a:443\r\n\r\n", AmbiguousRequest);
        refused("GET / HTTP/1.1\r\nHost: a\r\nConnection: close, Host\r\n\r\n", AmbiguousRequest);

        refused("GET / HTTP/1.1\nHost: a\r\n\r\n", AmbiguousRequest);
        refused("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", AmbiguousRequest);
        refused(
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            AmbiguousRequest,
        );
        refused("GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", AmbiguousRequest);
        refused("POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n", AmbiguousRequest);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        use Reason::{BadHost, BadRequest, NoHost, UpgradeDenied};
        refused("\x16\x03\x01\r\n\r\n", BadRequest);
        refused("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest);
        refused("PRI * HTTP/2.0\r\n\r\n", UpgradeDenied);
        refused("GET /\r\n\r\n", BadRequest);
        refused("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest);
        refused("GET / HTTP/1.1\r\nHost : a\r\n\r\n", BadRequest);
        refused("GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n", BadRequest);
        refused("GET / HTTP/1.1\r\nHost: a\r\nX: b\0\r\n\r\n", BadRequest);
        refused("GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", BadRequest);
        refused("GET a HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest);
        refused("GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest);
        refused("GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest);
        refused("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest);
        refused("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", BadRequest);
        refused("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n", BadRequest);
        refused("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", BadRequest);
        refused("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", BadHost);
        refused("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", BadHost);
        refused("GET / HTTP/1.1\r\nHost: a:0\r\n\r\n", BadHost);
        refused("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", BadHost);
        refused("GET / HTTP/1.1\r\nHost: [a]\r\n\r\n", BadHost);
        refused("GET / HTTP/1.1\r\nX: a\r\n\r\n", NoHost);
        refused("GET / HTTP/1.1\r\nHost:\r\n\r\n", NoHost);
        refused("GET / HTTP/1.0\r\n\r\n", NoHost);
        let long = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(1 << 16));
        assert_eq!(look(&long), Err(Reason::HeadTooLarge));
    }

    #[test]
    fn a_head_in_pieces_is_read_once_and_the_same() {
        let raw = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut reader = HeadReader::default();
        for end in 0..raw.len() {
            assert_eq!(reader.look(&raw[..end], 99.into()), Ok(None));
        }
        assert_eq!(reader.look(raw, 99.into()).unwrap(), RequestHead::look(raw, 99).unwrap());
        let head = look("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().unwrap();
        assert!(
            head.for_origin(b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", b"", Onward::Stay)
                .starts_with(b"OPTIONS * HTTP/1.1\r\n")
        );
    }

    #[test]
    fn the_origin_gets_the_fields_as_sent_and_nothing_of_this_hop() {
        let raw = "GET http://a.example/p?q HTTP/1.1\r\nHost: a.example\r\nX-oDD:  v \r\nConnection: X-Drop, keep-alive\r\n\
                   X-Drop: 1\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic c2VjcmV0\r\n\r\n";
        let head = allowed(raw, "a.example");
        let sent = |onward| String::from_utf8(head.for_origin(raw.as_bytes(), b"", onward)).unwrap();
        let kept = "GET /p?q HTTP/1.1\r\nHost: a.example\r\nX-oDD:  v \r\n";
        assert_eq!(sent(Onward::Stay), format!("{kept}\r\n"));
        assert_eq!(sent(Onward::Close), format!("{kept}Connection: close\r\n\r\n"));
        assert_eq!(sent(Onward::Switch), format!("{kept}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"));
    }

    #[test]
    fn who_stays_is_said_by_both() {
        let stays =
            |first: &str, fields: &str| look(&format!("{first}\r\nHost: a\r\n{fields}\r\n")).unwrap().unwrap().stays();
        assert!(stays("GET / HTTP/1.1", "") && stays("GET / HTTP/1.1", "Connection: keep-alive\r\n"));
        assert!(
            !stays("GET / HTTP/1.1", "Connection: x, CLOSE\r\n")
                && !stays("GET / HTTP/1.0", "Connection: keep-alive\r\n")
        );
        let answer = |first: &str, fields: &str| {
            HeadReader::default()
                .response(format!("{first}\r\n{fields}\r\n").as_bytes(), (1 << 16).into())
                .unwrap()
                .unwrap()
        };
        assert!(answer("HTTP/1.1 200 OK", "").stays() && !answer("HTTP/1.0 200 OK", "").stays());
        assert!(!answer("HTTP/1.1 200 OK", "Connection: close\r\n").stays());
        assert_eq!(answer("HTTP/1.1 101 S", "Upgrade: WebSocket\r\n").upgrade, Some(Upgrade::WebSocket));
        assert_eq!(answer("HTTP/1.1 101 S", "Upgrade: h2c\r\n").upgrade, None);
        assert_eq!(answer("HTTP/1.1 101 S", "Upgrade: websocket\r\nUpgrade: h2c\r\n").upgrade, None);
    }

    #[test]
    fn the_client_is_told_that_the_connection_ends() {
        let raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi";
        let response = |raw: &[u8]| HeadReader::default().response(raw, (1 << 16).into());
        let head = response(raw).unwrap().unwrap();
        let kept = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n";
        assert_eq!(head.for_client(raw, b"", Onward::Close), format!("{kept}Connection: close\r\n\r\n").as_bytes());
        assert_eq!(head.for_client(raw, b"", Onward::Stay), format!("{kept}\r\n").as_bytes());
        assert_eq!((head.len, head.is_interim()), (raw.len() - 2, false));
        assert_eq!(response(b"SSH-2.0-x\r\n\r\n"), Err(Reason::BadAnswer));
        assert!(response(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap().unwrap().is_interim());
        let length = |fields: &str| {
            response(format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_bytes()).and_then(|h| h.unwrap().body("GET"))
        };
        assert_eq!(length("Content-Length: 7\r\n"), Ok(AnswerLength::Framed(BodyLength::Exactly(7))));
        assert_eq!(length("Transfer-Encoding: chunked\r\n"), Ok(AnswerLength::Framed(BodyLength::Chunked)));
        assert_eq!(length(""), Ok(AnswerLength::ToTheEnd));
        assert_eq!(length("Content-Length: 7\r\nTransfer-Encoding: chunked\r\n"), Err(Reason::BadAnswer));
        assert_eq!(length("Content-Length: 7\r\nContent-Length: 8\r\n"), Err(Reason::BadAnswer));
    }

    #[test]
    fn what_routes_or_frames_a_request_is_written_from_what_was_read() {
        let sent = |raw: &str| {
            let head = look(raw).unwrap().unwrap();
            String::from_utf8(head.for_origin(raw.as_bytes(), b"", Onward::Stay)).unwrap()
        };
        let raw = "POST / HTTP/1.1\r\nA: b\r\nhOST:\tX.Example.:080\t\r\ncontent-length:  0058\t\r\nC: d\r\n\r\n";
        assert_eq!(sent(raw), "POST / HTTP/1.1\r\nA: b\r\nHost: x.example:80\r\nContent-Length: 58\r\nC: d\r\n\r\n");
        let raw = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\tChunked\t\r\n\r\n";
        assert_eq!(sent(raw), "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        let raw = "GET http://x:80/y HTTP/1.1\r\nHost: X\r\n\r\n";
        assert_eq!(sent(raw), "GET /y HTTP/1.1\r\nHost: x:80\r\n\r\n");
        assert_eq!(sent("GET http://x/ HTTP/1.0\r\nA: b\r\n\r\n"), "GET / HTTP/1.0\r\nHost: x\r\nA: b\r\n\r\n");
    }

    #[test]
    fn what_frames_an_answer_is_written_from_what_was_read() {
        let read = |raw: &str| HeadReader::default().response(raw.as_bytes(), (1 << 16).into()).map(Option::unwrap);
        let sent =
            |raw: &str| String::from_utf8(read(raw).unwrap().for_client(raw.as_bytes(), b"", Onward::Stay)).unwrap();
        for (status, written, kept) in [
            ("200 OK", "content-length: 007\t\r\n", "Content-Length: 7\r\n"),
            ("200 OK", "Transfer-Encoding:chunked\t\r\n", "Transfer-Encoding: chunked\r\n"),
            ("304 N", "Content-Length: 7\r\n", "Content-Length: 7\r\n"),
            ("304 N", "Content-Length: 7\r\nContent-Length: 8\r\n", ""),
            ("204 N", "Content-Length: 7\r\n", ""),
            ("103 E", "Content-Length: 7\r\nLink: x\r\n", "Link: x\r\n"),
            ("100 C", "Transfer-Encoding: chunked\r\n", ""),
            ("101 S", "Content-Length: 0\r\n", ""),
            ("999 X", "A: b\r\n", "A: b\r\n"),
            ("200 OK", "Content-Length : 7\r\nA \t: b : c\r\n", "Content-Length: 7\r\nA: b : c\r\n"),
            ("200 OK", "Keep-Alive : 7\r\nConnection : close, A\r\nA : b\r\n", ""),
        ] {
            let raw = |fields: &str| format!("HTTP/1.1 {status}\r\n{fields}\r\n");
            assert_eq!(sent(&raw(written)), raw(kept), "{status} {written}");
        }
        for status in ["000 X", "099 X", "99 X", "1000 X"] {
            assert_eq!(read(&format!("HTTP/1.1 {status}\r\n\r\n")), Err(Reason::BadAnswer), "{status}");
        }
        let head = |raw: &str| read(raw).unwrap();
        assert_eq!(head("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").body("GET"), Err(Reason::BadAnswer));
        // A body that is announced where none may come is not waited for, and the connection is not used again.
        for (method, raw, announces_forbidden_body) in [
            ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", true),
            ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true),
            ("HEAD", "HTTP/1.1 200 OK\r\n\r\n", false),
            ("GET", "HTTP/1.1 304 N\r\nContent-Length: 7\r\n\r\n", true),
            ("GET", "HTTP/1.1 204 N\r\nContent-Length: 0\r\n\r\n", false),
        ] {
            let head = head(raw);
            assert_eq!(head.body(method), Ok(AnswerLength::Framed(BodyLength::Exactly(0))), "{method} {raw}");
            assert_eq!(head.announces_forbidden_body(method), announces_forbidden_body, "{method} {raw}");
        }
        assert!(!head("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n").announces_forbidden_body("GET"));
    }

    #[test]
    fn only_requests_without_a_body_share_a_connection() {
        let needs_own_connection = |raw: &str| look(raw).unwrap().unwrap().needs_own_connection();
        for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
            assert!(!needs_own_connection(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")), "{method}");
            assert!(
                !needs_own_connection(&format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")),
                "{method}"
            );
            for fields in ["Content-Length: 1\r\n", "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n"] {
                assert!(
                    needs_own_connection(&format!("{method} / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")),
                    "{method} {fields}"
                );
            }
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "get", "PROPFIND", "X"] {
            assert!(needs_own_connection(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")), "{method}");
        }
    }

    #[test]
    fn fields_that_name_another_request_are_seen() {
        let overrides =
            |field: &str| look(&format!("GET / HTTP/1.1\r\nHost: a\r\n{field}: x\r\n\r\n")).unwrap().unwrap().overrides;
        for field in ["X-HTTP-Method-Override", "x-method-override", "X-HTTP-METHOD", "X_HTTP_Method_Override"] {
            assert_eq!(overrides(field), Overrides { method: true, path: false }, "{field}");
        }
        for field in ["X-Original-URL", "x-rewrite-url", "X_Original_URL"] {
            assert_eq!(overrides(field), Overrides { method: false, path: true }, "{field}");
        }
        assert_eq!(overrides("X-Original-Host"), Overrides::default());
    }
}
