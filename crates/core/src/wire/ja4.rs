//! The JA4 fingerprint of a client hello, for the log: which software is this?
//!
//! Follows the published description of JA4 (FoxIO, BSD-3-Clause part). Decides nothing.

/// What the fingerprint is made of, in the hello's order; GREASE values may still be in the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    pub(super) ciphers: Vec<u16>,
    pub(super) extensions: Vec<u16>,
    pub(super) signature_algorithms: Vec<u16>,
}

const EXT_SERVER_NAME: u16 = 0;
const EXT_ALPN: u16 = 16;

/// The fingerprint of a hello of this version, with or without a server name, and with this protocol first.
pub(super) fn fingerprint(parts: &Parts, version: u16, has_name: bool, first_protocol: Option<&[u8]>) -> String {
    let Parts { ciphers, extensions, signature_algorithms } = parts;
    let ciphers = sorted(ciphers, |_| true);
    let hashed = sorted(extensions, |e| e != EXT_SERVER_NAME && e != EXT_ALPN);
    let extensions = extensions.iter().filter(|e| !is_grease(**e)).count();
    let version = match version {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        _ => "00",
    };
    let mut tail = hex_list(&hashed);
    if !signature_algorithms.is_empty() {
        let algorithms: Vec<u16> = signature_algorithms.iter().copied().filter(|a| !is_grease(*a)).collect();
        tail.push('_');
        tail.push_str(&hex_list(&algorithms));
    }
    format!(
        "t{version}{}{:02}{:02}{}_{}_{}",
        if has_name { 'd' } else { 'i' },
        ciphers.len().min(99),
        extensions.min(99),
        alpn_mark(first_protocol),
        short_hash(&hex_list(&ciphers)),
        short_hash(if extensions == 0 { "" } else { &tail }),
    )
}

/// RFC 8701.
pub(super) const fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

fn sorted(values: &[u16], keep: impl Fn(u16) -> bool) -> Vec<u16> {
    let mut out: Vec<u16> = values.iter().copied().filter(|v| !is_grease(*v) && keep(*v)).collect();
    out.sort_unstable();
    out
}

fn hex_list(values: &[u16]) -> String {
    let mut out = String::with_capacity(values.len() * 5);
    for value in values {
        if !out.is_empty() {
            out.push(',');
        }
        // Every hello pays for this: the formatter's paddings would cost more than the digest.
        out.extend([12, 8, 4, 0].into_iter().filter_map(|shift| char::from_digit(u32::from(value >> shift & 0xf), 16)));
    }
    out
}

/// First and last character of the first protocol; in hexadecimal where either is not a letter or digit.
fn alpn_mark(first: Option<&[u8]>) -> String {
    let Some((&a, &z)) = first.and_then(|p| p.first().zip(p.last())) else { return "00".into() };
    if a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric() {
        [char::from(a), char::from(z)].iter().collect()
    } else {
        format!("{:x}{:x}", a >> 4, z & 0xf)
    }
}

/// The first twelve hexadecimal digits of SHA-256; zeros for nothing.
fn short_hash(text: &str) -> String {
    if text.is_empty() {
        return "000000000000".into();
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    data_encoding::HEXLOWER.encode(digest.as_ref().get(..6).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of the JA4 description: a Chrome hello.
    #[test]
    fn the_published_example_holds() {
        let ja4 = Parts {
            ciphers: vec![
                0x1a1a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c,
                0x009d, 0x002f, 0x0035,
            ],
            extensions: vec![
                0x2a2a, 0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023, 0x0012, 0x002b,
                0xff01, 0x000b, 0x000a, 0x0015,
            ],
            signature_algorithms: vec![0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601],
        };
        assert_eq!(fingerprint(&ja4, 0x0304, true, Some(b"h2")), "t13d1516h2_8daaf6152771_e5627efa2ab1");
    }

    #[test]
    fn an_odd_protocol_is_marked_in_hexadecimal() {
        assert_eq!(alpn_mark(Some(b"http/1.1")), "h1");
        assert_eq!(alpn_mark(Some(&[0xab])), "ab");
        assert_eq!(alpn_mark(None), "00");
    }
}
