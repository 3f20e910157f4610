//! Fields of a head, and what they say of the message and of the connection.

use std::ops::Range;

use crate::outcome::Reason;

/// More fields than clients send.
pub const USUAL_FIELDS: usize = 128;

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
pub(super) fn with_fields<'a, T>(fields: usize, use_them: impl FnOnce(&mut [httparse::Header<'a>]) -> T) -> T {
    let mut usual = [httparse::EMPTY_HEADER; USUAL_FIELDS];
    match usual.get_mut(..fields) {
        Some(few) => use_them(few),
        None => use_them(&mut vec![httparse::EMPTY_HEADER; fields]),
    }
}

/// Fields by which some servers take a request for another one than its first line says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub method: bool,
    pub path: bool,
}

impl Overrides {
    /// What the field with this name overrides, in lower case and with `-` for `_`.
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
pub(super) fn as_gateways_spell(name: &[u8]) -> Vec<u8> {
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

impl Onward {
    /// What is said of it, and the end of the head.
    pub(super) const fn fields(self) -> &'static [u8] {
        match self {
            Self::Stay => b"\r\n",
            Self::Close => b"Connection: close\r\n\r\n",
            Self::Switch => b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        }
    }
}

/// How long the request's body is (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    Exactly(u64),
    Chunked,
}

impl BodyLength {
    /// The one field that says so.
    pub(super) fn field(self) -> String {
        match self {
            Self::Exactly(length) => format!("Content-Length: {length}\r\n"),
            Self::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
        }
    }
}

/// A field that routes a message or says where it ends. Never forwarded as it came: the next reader might read
/// something else in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Host,
    ContentLength,
    TransferEncoding,
}

impl Framing {
    pub(super) fn of(line: &[u8]) -> Option<Self> {
        let (name, _) = split_field(line)?;
        let known: [(&[u8], Self); 3] = [
            (b"host", Self::Host),
            (b"content-length", Self::ContentLength),
            (b"transfer-encoding", Self::TransferEncoding),
        ];
        known.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, framing)| framing)
    }
}

pub(super) fn named<'a>(headers: &'a [httparse::Header<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// Whether the sender's side ends with this message (RFC 9112 §9.6).
pub(super) fn closes(headers: &[httparse::Header<'_>]) -> bool {
    let mut options = named(headers, "connection").flat_map(|value| value.split(|b| *b == b','));
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// The one protocol that may be switched to.
pub(super) fn upgrade(value: &[u8]) -> Option<Upgrade> {
    value.eq_ignore_ascii_case(b"websocket").then_some(Upgrade::WebSocket)
}

/// Digits only (RFC 9110 §8.6), and few enough that the sum cannot wrap.
pub(super) fn content_length(value: &[u8]) -> Result<u64, Reason> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Reason::BadRequest);
    }
    std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()).ok_or(Reason::BadRequest)
}

/// Whether a byte may stand in a token: methods, field names, parameters (RFC 9110 §5.6.2).
#[must_use]
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The first line with its CRLF.
pub(super) fn first_line(head: &[u8]) -> Range<usize> {
    0..head.iter().position(|b| *b == b'\n').map_or(head.len(), |at| at + 1)
}

/// Field lines, each with its CRLF.
pub(super) fn field_lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split_inclusive(|b| *b == b'\n').skip(1).filter(|line| line.len() > 2)
}

/// Field lines, each with its CRLF, without those that concern one hop only.
pub(super) fn kept_fields(head: &[u8]) -> impl Iterator<Item = &[u8]> {
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

pub(super) fn split_field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = split_at_colon(line)?;
    Some((name, rest.get(1..).unwrap_or_default().trim_ascii()))
}

/// The name without blanks behind it, and the rest from its colon on.
pub(super) fn split_at_colon(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|b| *b == b':')?;
    let (name, rest) = line.split_at_checked(colon)?;
    Some((name.trim_ascii_end(), rest))
}
