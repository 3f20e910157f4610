//! SOCKS5 (RFC 1928) as far as a proxy for TCP needs it: CONNECT with a name or an address, and passwords (RFC 1929).
//!
//! Pure: bytes in, value out.

use std::net::IpAddr;

use crate::credentials::Credentials;
use crate::name::{Host, NameFault};
use crate::outcome::Reason;

pub const VERSION: u8 = 5;
pub const VERSION_4: u8 = 4;
const CONNECT: u8 = 1;

/// RFC 1928 §3: how a client identifies itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    None = 0,
    /// RFC 1929.
    Password = 2,
}

impl Method {
    /// What a client lacks that does not offer it.
    pub const fn missing(self) -> &'static str {
        match self {
            Self::None => "the client insists on a password, and the listener has no users",
            Self::Password => "the client offers no user and password",
        }
    }

    pub const fn chosen(self) -> [u8; 2] {
        [VERSION, self as u8]
    }
}

/// RFC 1929 §2.
const PASSWORD_VERSION: u8 = 1;
pub const PASSWORD_FITS: &[u8] = &[PASSWORD_VERSION, 0];
pub const PASSWORD_FAILS: &[u8] = &[PASSWORD_VERSION, 1];
/// RFC 1928 §3: "no acceptable methods".
pub const NO_METHOD: &[u8] = &[VERSION, 0xff];
/// RFC 1928 §6, with the unspecified address: clients do not need egret's.
pub const SUCCEEDED: &[u8] = &reply(0);

/// RFC 1928 §6.
pub const GENERAL_FAILURE: u8 = 1;
pub const NOT_ALLOWED: u8 = 2;
pub const HOST_UNREACHABLE: u8 = 4;
pub const COMMAND_NOT_SUPPORTED: u8 = 7;

pub const fn reply(code: u8) -> [u8; 10] {
    [VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// A request's destination.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub len: usize,
    pub host: Result<Host, NameFault>,
    pub port: u16,
}

/// The client's methods: how many bytes, and whether the wanted one is among them.
pub fn greeting(bytes: &[u8], wanted: Method) -> Result<Option<(usize, bool)>, Reason> {
    let [version, count, rest @ ..] = bytes else { return Ok(None) };
    if *version != VERSION || *count == 0 {
        return Err(Reason::BadRequest);
    }
    let count = usize::from(*count);
    Ok(rest.get(..count).map(|methods| (2 + count, methods.contains(&(wanted as u8)))))
}

/// The client's name and password: how many bytes, and what no file could hold as `None`.
pub fn password(bytes: &[u8]) -> Result<Option<(usize, Option<Credentials>)>, Reason> {
    let Some((version, rest)) = bytes.split_first() else { return Ok(None) };
    if *version != PASSWORD_VERSION {
        return Err(Reason::BadRequest);
    }
    let Some((name, rest)) = counted(rest) else { return Ok(None) };
    let Some((password, rest)) = counted(rest) else { return Ok(None) };
    Ok(Some((bytes.len() - rest.len(), Credentials::new(name, password))))
}

/// Bytes behind their number, and what follows them.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    bytes.split_first().and_then(|(len, rest)| rest.split_at_checked((*len).into()))
}

/// The client's request.
pub fn request(bytes: &[u8]) -> Result<Option<Request>, Reason> {
    let [version, command, reserved, kind, rest @ ..] = bytes else { return Ok(None) };
    if *version != VERSION || *reserved != 0 {
        return Err(Reason::BadRequest);
    }
    if *command != CONNECT {
        return Err(Reason::ProtocolDenied);
    }
    let (host, rest) = match *kind {
        1 => match rest.split_first_chunk::<4>() {
            Some((ip, rest)) => (Ok(Host::Address(IpAddr::from(*ip))), rest),
            None => return Ok(None),
        },
        4 => match rest.split_first_chunk::<16>() {
            Some((ip, rest)) => (Ok(Host::Address(IpAddr::from(*ip).to_canonical())), rest),
            None => return Ok(None),
        },
        3 => match counted(rest) {
            Some((name, rest)) => (Host::from_wire(name), rest),
            None => return Ok(None),
        },
        _ => return Err(Reason::BadRequest),
    };
    let Some((port, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
    match u16::from_be_bytes(*port) {
        0 => Err(Reason::BadRequest),
        port => Ok(Some(Request { len: bytes.len() - rest.len(), host, port })),
    }
}

/// The name in a request that could not be used.
pub fn raw_host(bytes: &[u8]) -> Option<&[u8]> {
    match bytes {
        [VERSION, _, 0, 3, len, rest @ ..] => rest.get(..usize::from(*len)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &[u8], port: u16) -> Vec<u8> {
        [&[5, 1, 0, 3, name.len() as u8][..], name, &port.to_be_bytes()].concat()
    }

    #[test]
    fn every_prefix_needs_more() {
        for whole in [
            named(b"a.example", 443),
            [&[5, 1, 0, 4][..], &[0; 16], &[1, 187]].concat(),
            vec![5, 1, 0, 1, 192, 0, 2, 1, 1, 187],
        ] {
            for end in 0..whole.len() {
                assert_eq!(request(&whole[..end]), Ok(None));
            }
            let more = [&whole[..], b"next"].concat();
            assert_eq!(request(&more).unwrap().unwrap().len, whole.len());
        }
        assert_eq!(greeting(&[5, 2, 2], Method::None), Ok(None));
        assert_eq!(greeting(&[5, 2, 2, 0, 9], Method::None), Ok(Some((4, true))));
        assert_eq!(greeting(&[5, 2, 2, 0, 9], Method::Password), Ok(Some((4, true))));
        assert_eq!(greeting(&[5, 1, 2], Method::None), Ok(Some((3, false))));
        assert_eq!(greeting(&[5, 1, 0], Method::Password), Ok(Some((3, false))));
        let whole = b"\x01\x05alice\x03abc";
        for end in 0..whole.len() {
            assert!(password(&whole[..end]).unwrap().is_none());
        }
        let (len, shown) = password(b"\x01\x05alice\x03abc next").unwrap().unwrap();
        assert_eq!((len, shown.unwrap().user()), (whole.len(), "alice"));
        assert!(password(b"\x01\x01\xff\0").unwrap().unwrap().1.is_none());
        assert_eq!(password(b"\x05").unwrap_err(), Reason::BadRequest);
    }

    #[test]
    fn a_literal_in_any_spelling_is_an_address() {
        let host = |bytes: &[u8]| request(bytes).unwrap().unwrap().host.map(|h| h.to_string());
        assert_eq!(host(&named(b"A.example.", 443)), Ok("a.example".into()));
        assert_eq!(host(&named(b"0x7f.1", 443)), Ok("127.0.0.1".into()));
        assert_eq!(host(&named(b"::1", 443)), Ok("::1".into()));
        assert_eq!(host(&named(b"a b", 443)), Err(NameFault::BadByte(b' ')));
        assert_eq!(host(&named(b"", 443)), Err(NameFault::Empty));
        let mapped = [&[5, 1, 0, 4][..], &[0; 10], &[0xff, 0xff, 10, 0, 0, 1, 1, 187]].concat();
        assert_eq!(host(&mapped), Ok("10.0.0.1".into()));
    }

    #[test]
    fn what_is_not_connect_is_refused() {
        assert_eq!(request(&[5, 2, 0, 1]), Err(Reason::ProtocolDenied));
        assert_eq!(request(&[5, 3, 0, 1]), Err(Reason::ProtocolDenied));
        assert_eq!(request(&[5, 1, 1, 1]), Err(Reason::BadRequest));
        assert_eq!(request(&[5, 1, 0, 9]), Err(Reason::BadRequest));
        assert_eq!(request(&named(b"a.example", 0)), Err(Reason::BadRequest));
        assert_eq!(greeting(&[5, 0], Method::None), Err(Reason::BadRequest));
    }
}
