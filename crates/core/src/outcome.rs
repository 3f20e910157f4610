//! How a connection ends: a closed set of words shared by the record, the metrics and the client.
//!
//! Owns the reasons, the stages and the refusal. Knows no room.

use std::sync::Arc;

/// Makes an enum whose variants are words of a closed set. Three enums use it; the words are the
/// contract with every log query ever written, so each stands beside its variant.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word in the log, the metric label and the body a client reads.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// Why something was refused. Every refusal carries exactly one.
    Reason {
        NoRule = "no_rule",
        RuleDenied = "rule_denied",
        SourceNotAllowed = "source_not_allowed",
        PortNotAllowed = "port_not_allowed",
        AlpnNotAllowed = "alpn_not_allowed",
        NoSni = "no_sni",
        BadSni = "bad_sni",
        IpLiteral = "ip_literal",
        NotTls = "not_tls",
        BadTls = "bad_tls",
        HelloTooLarge = "hello_too_large",
        PeekTimeout = "peek_timeout",
        EchDenied = "ech_denied",
        EsniDenied = "esni_denied",
        NameMismatch = "name_mismatch",
        NoHost = "no_host",
        BadHost = "bad_host",
        BadRequest = "bad_request",
        AmbiguousRequest = "ambiguous_request",
        HeadTooLarge = "head_too_large",
        UpgradeDenied = "upgrade_denied",
        NoSuchName = "no_such_name",
        DnsFailed = "dns_failed",
        DnsTimeout = "dns_timeout",
        QtypeDenied = "qtype_denied",
        AddressDenied = "address_denied",
        AddressMixed = "address_mixed",
        DstNotInDns = "dst_not_in_dns",
        LearnedExpired = "learned_expired",
        OwnAddress = "own_address",
        NoFlow = "no_flow",
        ConnectRefused = "connect_refused",
        ConnectTimeout = "connect_timeout",
        Unreachable = "unreachable",
        TooManyConnections = "too_many_connections",
        RateLimited = "rate_limited",
        AuthFailed = "auth_failed",
        BadProxyHeader = "bad_proxy_header",
        NoOriginalDst = "no_original_dst",
        MethodNotAllowed = "method_not_allowed",
        PathNotAllowed = "path_not_allowed",
        ProtocolDenied = "protocol_denied",
        CnameLoop = "cname_loop",
        BadDns = "bad_dns",
        PortsExhausted = "ports_exhausted",
        QuicDenied = "quic_denied",
        BadAnswer = "bad_answer",
        Draining = "draining",
        Internal = "internal",
    }
}

words! {
    /// Where on its way a connection was refused.
    Stage {
        Claim = "claim",
        Peek = "peek",
        Name = "name",
        Dns = "dns",
        Address = "address",
        Dial = "dial",
        Relay = "relay",
        Limit = "limit",
        Http = "http",
        Network = "network",
    }
}

words! {
    /// How the bytes stopped.
    Ending {
        /// They have not stopped yet: in a line about what lasts.
        Open = "open",
        /// Both sides finished.
        Closed = "closed",
        ClientReset = "client_reset",
        UpstreamReset = "upstream_reset",
        /// Nothing moved for `limits.idle`.
        Idle = "idle",
        /// Cut at the end of `limits.drain`.
        Drained = "drained",
        /// A reload took the permission away.
        Revoked = "revoked",
        Refused = "refused",
        /// egret's own fault.
        Failed = "failed",
    }
}

impl Stage {
    /// Whether a refusal here is the policy's word, and so may be sent to the client in full. What DNS,
    /// the address guard and the dialler found out is not: the client would learn what our network
    /// looks like.
    #[must_use]
    pub const fn is_spoken(self) -> bool {
        match self {
            Self::Claim | Self::Peek | Self::Name | Self::Http | Self::Network | Self::Limit => true,
            Self::Dns | Self::Address | Self::Dial | Self::Relay => false,
        }
    }
}

/// A refusal: one reason, the stage, and what helps to understand it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub stage: Stage,
    /// Boxed: refusals are rare and travel in every `Result` of the data path.
    pub hint: Option<Box<Hint>>,
}

/// How a conversation with an upstream stopped before its relay could end by itself.
#[derive(Debug)]
pub enum Halt {
    /// What the bytes turned out to be is not allowed; a word to the client is still possible.
    Refused(Refusal),
    Broken(Ending),
}

/// What a refusal can say beyond its reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// The rule that decided, or came closest.
    pub rule: Option<Arc<str>>,
    pub pattern: Option<String>,
    /// The closest rule and why it missed.
    pub nearest: Option<String>,
    /// The rule, one line, that would allow it.
    pub fix: Option<String>,
    /// What the client should have sent. Said to the client too.
    pub instead: Option<&'static str>,
}

impl Refusal {
    #[must_use]
    pub const fn new(reason: Reason, stage: Stage) -> Self {
        Self { reason, stage, hint: None }
    }

    /// A refusal of a claim that says more to the log than to the client.
    #[must_use]
    pub fn at_claim(reason: Reason, why: &str) -> Self {
        Self::new(reason, Stage::Claim).with(Hint { nearest: Some(why.to_owned()), ..Hint::default() })
    }

    /// A refusal of a claim that says, to the log and to the client, what to send instead.
    #[must_use]
    pub fn instead(reason: Reason, instead: &'static str) -> Self {
        let nearest = Some(instead.to_owned());
        Self::new(reason, Stage::Claim).with(Hint { nearest, instead: Some(instead), ..Hint::default() })
    }

    #[must_use]
    pub fn with(mut self, hint: Hint) -> Self {
        self.hint = Some(Box::new(hint));
        self
    }
}

/// What went through, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Client to upstream.
    pub up: u64,
    /// Upstream to client.
    pub down: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_one_of_its_kind() {
        let words: std::collections::HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        assert!(words.iter().all(|w| w.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }

    #[test]
    fn every_reason_is_explained_to_people() {
        let page = include_str!("../../../docs/reasons.md");
        for reason in Reason::ALL {
            assert!(page.contains(&format!("`{reason}`")), "docs/reasons.md does not explain {reason}");
        }
    }

    #[test]
    fn only_policy_is_spoken() {
        assert!(Stage::Name.is_spoken());
        assert!(!Stage::Dns.is_spoken());
        assert!(!Stage::Address.is_spoken());
        assert!(!Stage::Dial.is_spoken());
    }
}
