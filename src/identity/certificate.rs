//! The names in a client's certificate, which rules may list.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// RFC 5280 appendix A: id-at-commonName.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
/// RFC 5280 §4.2.1.6: id-ce-subjectAltName, as an extension begins. Where it stands by chance, no name is lost but a
/// common one.
const SUBJECT_ALT_NAME: &[u8] = &[6, 3, 0x55, 0x1d, 0x11];

/// DNS names (in lower case) and URIs of the subject's alternative names; the common name where there are no
/// alternative ones of any kind. What would pass for another kind of name is left out.
#[must_use]
pub fn names(certificate: &CertificateDer<'_>) -> Vec<Box<str>> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    let dns = certificate.valid_dns_names().map(|name| name.to_ascii_lowercase().into());
    let has_scheme = |uri: &&str| uri.split_once(':').is_some_and(|(scheme, _)| !scheme.eq_ignore_ascii_case("user"));
    let uris = certificate.valid_uri_names().filter(has_scheme).map(Into::into);
    let names: Vec<Box<str>> = dns.chain(uris).collect();
    // A subject with alternative names of whatever kind has named itself.
    let has_others = certificate.der().windows(SUBJECT_ALT_NAME.len()).any(|bytes| bytes == SUBJECT_ALT_NAME);
    if !has_others {
        return common_name(certificate.subject())
            .filter(|name| !name.contains(':'))
            .map(Into::into)
            .into_iter()
            .collect();
    }
    names
}

/// The one common name of a subject: a sequence of sets of sequences of a type and a value (RFC 5280 §4.1.2.4).
fn common_name(mut subject: &[u8]) -> Option<&str> {
    let mut found = None;
    while !subject.is_empty() {
        let (mut set, rest) = element(subject, 0x31)?;
        subject = rest;
        while !set.is_empty() {
            let (pair, rest) = element(set, 0x30)?;
            set = rest;
            let (kind, value) = element(pair, 6)?;
            // UTF8String, PrintableString, IA5String.
            let text = [0x0c, 0x13, 0x16].into_iter().find_map(|tag| element(value, tag));
            if kind == COMMON_NAME && found.replace(std::str::from_utf8(text?.0).ok()?).is_some() {
                return None;
            }
        }
    }
    found.filter(|name| !name.is_empty())
}

/// The contents of an element with this tag, and what follows it (X.690 §8.1).
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (_, rest) = bytes.split_first().filter(|(first, _)| **first == tag)?;
    let (length, rest) = match rest {
        [0x81, length, rest @ ..] => (usize::from(*length), rest),
        [0x82, high, low, rest @ ..] => (usize::from(*high) << 8 | usize::from(*low), rest),
        [length @ 0..=0x7f, rest @ ..] => (usize::from(*length), rest),
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn made(common: &[&str], sans: Vec<SanType>) -> Vec<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "an organisation".repeat(10));
        for name in common {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.subject_alt_names = sans;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        names(certificate.der()).into_iter().map(Into::into).collect()
    }

    #[test]
    fn alternative_names_come_before_the_common_one() {
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let uri = |name: &str| SanType::URI(name.try_into().unwrap());
        assert_eq!(made(&["agent"], vec![]), ["agent"]);
        assert_eq!(made(&["agent"], vec![dns("A.Example"), uri("spiffe://x/y")]), ["a.example", "spiffe://x/y"]);
        assert!(made(&["agent"], vec![SanType::IpAddress("192.0.2.1".parse().unwrap())]).is_empty());
        assert!(made(&["agent"], vec![dns("not a name")]).is_empty());
        assert!(made(&[], vec![]).is_empty());
        // Neither may pass for a user, nor a common name for a URI.
        assert!(made(&["agent"], vec![uri("user:alice")]).is_empty());
        assert!(made(&["user:alice"], vec![]).is_empty());
        assert!(made(&["spiffe://x/y"], vec![]).is_empty());
    }

    #[test]
    fn a_broken_subject_has_no_name() {
        let pair = [0x30, 10, 6, 3, 0x55, 4, 3, 0x0c, 3, b'a', b'b', b'c'];
        let subject = [&[0x31, 12][..], &pair].concat();
        assert_eq!(common_name(&subject), Some("abc"));
        for end in 1..subject.len() {
            assert_eq!(common_name(&subject[..end]), None, "{end}");
        }
        assert_eq!(common_name(&[&subject[..], &subject].concat()), None, "two of them");
    }
}
