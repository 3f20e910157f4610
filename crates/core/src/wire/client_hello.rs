//! The TLS ClientHello, read as strictly as a filter must: two readings are a refusal.
//!
//! The body is taken apart by `tls-parser`; the extension list, where the name lives, by a walker of our
//! own that leaves no byte unexplained. Pure: bytes in, value out.

use std::net::IpAddr;

use super::ja4;
use super::reader::{Reader, Short};
use super::record_layer::Deframer;
use crate::name::{Host, HostName, NameFault};
use crate::outcome::Reason;

const CLIENT_HELLO: u8 = 1;
const EXT_SERVER_NAME: u16 = 0;
const EXT_SIGNATURE_ALGORITHMS: u16 = 13;
const EXT_ALPN: u16 = 16;
const EXT_SUPPORTED_VERSIONS: u16 = 43;

/// RFC 9849.
const EXT_ECH: u16 = 0xfe0d;

/// draft-ietf-tls-esni-02, withdrawn: the real name cannot be seen and no outer name stands in for it.
const EXT_ESNI: u16 = 0xffce;

/// Protocols in one offer. Real clients send two or three; each costs memory as long as the hello is kept.
const MAX_PROTOCOLS: usize = 256;

/// What a hello says about where it wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    pub sni: Sni,
    /// In the client's order; bytes, for ALPN is not text (RFC 7301 §3.1).
    pub alpn: Vec<Box<[u8]>>,
    /// The highest version offered, as on the wire.
    pub version: u16,
    pub ech: bool,
    pub esni: bool,
    pub ja4: ja4::Parts,
    /// Received bytes that its records took; whatever follows is not part of it.
    pub raw_len: usize,
}

/// The server name indication (RFC 6066 §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sni {
    Absent,
    Name(HostName),
    /// RFC 6066 §3 forbids literals here.
    Address(IpAddr),
    Malformed {
        raw: Box<[u8]>,
        fault: NameFault,
    },
}

impl ClientHello {
    /// The JA4 fingerprint: computed on demand, for it costs more than all the rest of a hello.
    #[must_use]
    pub fn ja4(&self) -> String {
        let first = self.alpn.first().map(|first| &**first);
        ja4::fingerprint(&self.ja4, self.version, self.sni != Sni::Absent, first)
    }

    /// The version as people write it.
    #[must_use]
    pub const fn version_name(&self) -> &'static str {
        match self.version {
            0x0304 => "1.3",
            0x0303 => "1.2",
            0x0302 => "1.1",
            0x0301 => "1.0",
            0x0300 => "ssl3",
            _ => "unknown",
        }
    }
}

/// Reads one hello out of a growing buffer.
#[derive(Debug, Default)]
pub struct HelloReader(Deframer);

impl HelloReader {
    /// Looks at all bytes received so far: the hello, or `None` for "need more".
    ///
    /// # Errors
    /// The reason why these bytes can never become a hello; at most `limit` bytes are held.
    pub fn look(&mut self, raw: &[u8], limit: usize) -> Result<Option<ClientHello>, Reason> {
        match self.0.message(raw, limit)? {
            Some(message) if message.kind == CLIENT_HELLO => parse(message.body, message.raw_len).map(Some),
            Some(_) => Err(Reason::BadTls),
            None if raw.len() >= limit => Err(Reason::HelloTooLarge),
            None => Ok(None),
        }
    }
}

fn parse(body: &[u8], raw_len: usize) -> Result<ClientHello, Reason> {
    let (rest, hello) = tls_parser::parse_tls_handshake_client_hello(body).map_err(|_| Reason::BadTls)?;
    // The parser leaves an extension block whose length lies in `rest`, and says "no extensions".
    if !rest.is_empty() {
        return Err(Reason::BadTls);
    }
    let seen = Extensions::read(hello.ext.unwrap_or_default())?;
    let version = seen.versions.iter().copied().filter(|v| !ja4::is_grease(*v)).max().unwrap_or(hello.version.0);
    Ok(ClientHello {
        sni: seen.sni,
        alpn: seen.alpn,
        version,
        ech: seen.kinds.contains(&EXT_ECH),
        esni: seen.kinds.contains(&EXT_ESNI),
        ja4: ja4::Parts {
            ciphers: hello.ciphers.into_iter().map(|cipher| cipher.0).collect(),
            extensions: seen.kinds,
            signature_algorithms: seen.signature_algorithms,
        },
        raw_len,
    })
}

struct Extensions {
    sni: Sni,
    alpn: Vec<Box<[u8]>>,
    versions: Vec<u16>,
    signature_algorithms: Vec<u16>,
    /// Every type in the order sent.
    kinds: Vec<u16>,
}

impl From<Short> for Reason {
    fn from(_: Short) -> Self {
        Self::BadTls
    }
}

impl Extensions {
    fn read(block: &[u8]) -> Result<Self, Reason> {
        let mut seen = Self {
            sni: Sni::Absent,
            alpn: Vec::new(),
            versions: Vec::new(),
            signature_algorithms: Vec::new(),
            kinds: Vec::new(),
        };
        let mut names = 0;
        let mut list = Reader::new(block);
        while !list.is_empty() {
            let kind = list.u16()?;
            let data = list.vec16()?;
            seen.kinds.push(kind);
            match kind {
                EXT_SERVER_NAME => {
                    names += 1;
                    seen.sni = server_name(data)?;
                }
                EXT_ALPN => seen.alpn = protocols(data)?,
                // These two only describe; a reading that fails leaves the description poorer.
                EXT_SUPPORTED_VERSIONS => {
                    seen.versions = Reader::new(data).vec8().ok().and_then(Reader::numbers).unwrap_or_default();
                }
                EXT_SIGNATURE_ALGORITHMS => {
                    seen.signature_algorithms =
                        Reader::new(data).vec16().ok().and_then(Reader::numbers).unwrap_or_default();
                }
                _ => {}
            }
        }
        if names > 1 {
            return Err(Reason::BadSni);
        }
        // RFC 8446 §4.2: no type twice. Sorted, so that many extensions cost no square.
        let mut sorted = seen.kinds.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
            return Err(Reason::BadTls);
        }
        Ok(seen)
    }
}

/// Exactly one name of type host_name that fills the extension (RFC 6066 §3).
fn server_name(data: &[u8]) -> Result<Sni, Reason> {
    let mut outer = Reader::new(data);
    let list = outer.vec16().map_err(|_| Reason::BadSni)?;
    let mut list = Reader::new(list);
    let (Ok(0), Ok(name)) = (list.u8(), list.vec16()) else { return Err(Reason::BadSni) };
    if !outer.is_empty() || !list.is_empty() || name.is_empty() {
        return Err(Reason::BadSni);
    }
    Ok(match Host::from_wire(name) {
        Ok(Host::Name(name)) => Sni::Name(name),
        Ok(Host::Address(ip)) => Sni::Address(ip),
        Err(fault) => Sni::Malformed { raw: name.into(), fault },
    })
}

/// None of the protocols may be empty (RFC 7301 §3.1). An empty list may not either, but real stacks send
/// it, and it can only be read as no offer.
fn protocols(data: &[u8]) -> Result<Vec<Box<[u8]>>, Reason> {
    let mut outer = Reader::new(data);
    let mut list = Reader::new(outer.vec16()?);
    let mut out = Vec::new();
    while !list.is_empty() {
        let name = list.vec8()?;
        if name.is_empty() || out.len() == MAX_PROTOCOLS {
            return Err(Reason::BadTls);
        }
        out.push(name.into());
    }
    if outer.is_empty() { Ok(out) } else { Err(Reason::BadTls) }
}

#[cfg(test)]
mod tests;
