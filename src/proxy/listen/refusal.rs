//! How a refusal sounds: in the protocol the client is speaking, and never more than it may know.
//!
//! Policy's reasons are sent in full. What DNS, the address guard and the dialler found is only
//! "unreachable": a client that could distinguish a private address from a missing name would have an oracle.

use egret_core::outcome::{Reason, Refusal, Stage};
use egret_core::wire::socks5;

/// RFC 8446 §6: fatal, access_denied.
const ACCESS_DENIED: &[u8] = &[21, 3, 3, 0, 2, 2, 49];
/// SOCKS4: request rejected or failed.
const SOCKS4_REJECTED: &[u8] = &[0, 0x5b, 0, 0, 0, 0, 0, 0];

/// The protocol a client would understand at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speech {
    Http,
    Socks4,
    /// While methods are chosen.
    Socks5Methods,
    /// While a user is checked.
    Socks5Password,
    Socks5,
    Tls,
    /// The client's own bytes, if there are any.
    ByBytes,
}

/// What is said beside the reason.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct About<'a> {
    /// What the client asked for.
    pub(super) name: Option<&'a str>,
    /// `messages.contact`.
    pub(super) contact: Option<&'a str>,
    /// Whether the listener asks for a user.
    pub(super) asks_for_user: bool,
}

impl Speech {
    /// The words, or none where the connection is to be reset.
    pub(super) fn words(self, refusal: &Refusal, about: About<'_>, unread: &[u8]) -> Vec<u8> {
        match self {
            Self::Http => http(refusal, about),
            Self::Socks4 => SOCKS4_REJECTED.to_vec(),
            Self::Socks5Methods => socks5::NO_METHOD.to_vec(),
            Self::Socks5Password => socks5::PASSWORD_FAILS.to_vec(),
            Self::Socks5 => socks5::reply(socks_code(refusal)).to_vec(),
            Self::Tls if refusal.stage.is_spoken() => ACCESS_DENIED.to_vec(),
            Self::Tls => Vec::new(),
            Self::ByBytes => match unread.first() {
                Some(first) if first.is_ascii_graphic() => http(refusal, about),
                Some(0x16 | 0x80..) => Self::Tls.words(refusal, about, unread),
                _ => Vec::new(),
            },
        }
    }
}

fn socks_code(refusal: &Refusal) -> u8 {
    match (refusal.reason, refusal.stage) {
        (Reason::ProtocolDenied, _) => socks5::COMMAND_NOT_SUPPORTED,
        (_, Stage::Limit) | (Reason::BadRequest | Reason::PeekTimeout, _) => socks5::GENERAL_FAILURE,
        (_, stage) if stage.is_spoken() => socks5::NOT_ALLOWED,
        _ => socks5::HOST_UNREACHABLE,
    }
}

fn http(refusal: &Refusal, about: About<'_>) -> Vec<u8> {
    let spoken = refusal.stage.is_spoken();
    let status = status(refusal, about.asks_for_user);
    let word = if spoken { refusal.reason.as_str() } else { "unreachable" };
    let hint = refusal.hint.as_ref().filter(|_| spoken);
    let mut body = "egret refused this request\n".to_owned();
    for (key, value) in [
        ("name", about.name.filter(|_| spoken)),
        ("reason", Some(word)),
        ("rule", hint.and_then(|hint| hint.rule.as_deref())),
        ("instead", hint.and_then(|hint| hint.instead)),
        ("contact", about.contact.filter(|_| spoken)),
    ] {
        body.extend(value.map(|value| format!("{key}: {value}\n")));
    }
    // RFC 9209: the standard field for what a proxy has to say; curl shows it for CONNECT, too.
    let error = if spoken { "http_request_denied" } else { "destination_unavailable" };
    // RFC 7617 §2.1: names and passwords are UTF-8.
    let ask = match refusal.reason {
        Reason::AuthFailed if about.asks_for_user => "Proxy-Authenticate: Basic realm=\"egret\", charset=\"UTF-8\"\r\n",
        _ => "",
    };
    format!(
        "HTTP/1.1 {status} ({word})\r\n{ask}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Proxy-Status: egret; error={error}; details=\"{word}\"\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn status(refusal: &Refusal, asks_for_user: bool) -> &'static str {
    match (refusal.reason, refusal.stage) {
        (_, stage) if !stage.is_spoken() => "502 Bad Gateway",
        (_, Stage::Limit) => "503 Service Unavailable",
        (Reason::AuthFailed, _) if asks_for_user => "407 Proxy Authentication Required",
        (Reason::PeekTimeout, _) => "408 Request Timeout",
        (Reason::HeadTooLarge, _) => "431 Request Header Fields Too Large",
        (Reason::BadRequest | Reason::AmbiguousRequest | Reason::NoHost | Reason::BadHost, _) => "400 Bad Request",
        _ => "403 Forbidden",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_core::outcome::Hint;

    fn spoken(speech: Speech, reason: Reason, stage: Stage, unread: &[u8]) -> String {
        let hint = Hint { rule: Some("secret-rule".into()), ..Hint::default() };
        let about = About { name: Some("a.test"), contact: Some("help@a.test"), asks_for_user: false };
        let words = speech.words(&Refusal::new(reason, stage).with(hint), about, unread);
        String::from_utf8_lossy(&words).into_owned()
    }

    #[test]
    fn a_refusal_of_policy_is_sent_with_reason_and_rule() {
        let text = spoken(Speech::Http, Reason::RuleDenied, Stage::Name, b"");
        assert!(text.starts_with("HTTP/1.1 403 Forbidden (rule_denied)\r\n"), "{text}");
        let body = "\nname: a.test\nreason: rule_denied\nrule: secret-rule\ncontact: help@a.test\n";
        assert!(text.ends_with(body), "{text}");
        assert!(text.contains("details=\"rule_denied\""), "{text}");
        assert_eq!(spoken(Speech::Socks5, Reason::NoRule, Stage::Name, b"").as_bytes()[1], 2);
        assert_eq!(spoken(Speech::ByBytes, Reason::NoRule, Stage::Name, &[22, 3]).as_bytes(), ACCESS_DENIED);
    }

    #[test]
    fn what_the_network_is_like_is_not_sent() {
        for (reason, stage) in [
            (Reason::NoSuchName, Stage::Dns),
            (Reason::AddressDenied, Stage::Address),
            (Reason::OwnAddress, Stage::Address),
            (Reason::ConnectRefused, Stage::Dial),
        ] {
            let text = spoken(Speech::Http, reason, stage, b"");
            assert!(text.starts_with("HTTP/1.1 502"), "{text}");
            assert!(!text.contains(reason.as_str()) && !text.contains("secret-rule"), "{text}");
            let same = spoken(Speech::Http, Reason::ConnectTimeout, Stage::Dial, b"");
            assert_eq!(text, same, "no oracle");
            assert_eq!(spoken(Speech::Socks5, reason, stage, b"").as_bytes()[1], 4);
            assert_eq!(spoken(Speech::ByBytes, reason, stage, &[22, 3]), "", "a reset where TLS was expected");
        }
    }
}
