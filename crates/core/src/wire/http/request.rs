//! The head of a request.

use super::fields::{
    BodyLength, Framing, HeadLimits, Onward, Overrides, Upgrade, as_gateways_spell, closes, content_length,
    field_lines, first_line, kept_fields, split_field, upgrade, with_fields,
};
use super::head_end::HeadEnd;
use crate::name::{Host, NameFault};
use crate::outcome::Reason;

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

impl RequestHead {
    /// Looks at all bytes received so far: the head, or `None` for "need more".
    ///
    /// # Errors
    /// [`Reason::BadRequest`] for what is not an HTTP/1 request, [`Reason::AmbiguousRequest`] for what two
    /// recipients may read differently, [`Reason::HeadTooLarge`], [`Reason::BadHost`],
    /// [`Reason::NoHost`], [`Reason::UpgradeDenied`].
    pub fn look(raw: &[u8], limits: impl Into<HeadLimits>) -> Result<Option<Self>, Reason> {
        let limits = limits.into();
        let Some(head) = HeadEnd::default().find(raw, limits.bytes)? else { return Ok(None) };
        Self::read(head, limits.fields).map(Some)
    }

    pub(super) fn read(head: &[u8], fields: usize) -> Result<Self, Reason> {
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

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Address(std::net::IpAddr::V6(ip)) => write!(f, "[{ip}]")?,
            host => host.fmt(f)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
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

/// Whether a Connection field names a field that frames or routes the message.
fn names_framing(value: &[u8]) -> bool {
    let mut options = value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
    options.any(|option| {
        [&b"host"[..], b"content-length", b"transfer-encoding"].iter().any(|name| option.eq_ignore_ascii_case(name))
    })
}
