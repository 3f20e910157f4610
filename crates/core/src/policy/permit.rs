//! What the policy hands out: what is still to be shown, leave to resolve, leave to dial.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::hosts::PatternId;
use crate::claim::{Source, Transport};
use crate::name::HostName;
use crate::outcome::{Reason, Refusal, Stage};
use crate::rule::LearnedName;
use crate::wire::{Expected, Sighting};

/// What the claim leaves to be shown by the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Expectation {
    pub(super) expected: Expected,
}

impl Expectation {
    #[must_use]
    pub const fn expected(&self) -> Expected {
        self.expected
    }

    pub(super) fn admits(self, sighting: &Sighting) -> Result<(), Refusal> {
        match sighting {
            Sighting::Tls(_) if !self.expected.tls => Err(Refusal::new(Reason::BadRequest, Stage::Peek)),
            Sighting::Http(_) if !self.expected.http => Err(Refusal::new(Reason::NotTls, Stage::Peek)),
            Sighting::Tls(_) | Sighting::Http(_) => Ok(()),
        }
    }
}

/// The way on after the claim.
#[derive(Clone, Debug)]
pub enum Passage {
    /// The bytes must show a name.
    Peek(Expectation),
    /// A network rule covers the claim: nothing to peek.
    Passthrough(Clearance),
}

/// Leave to resolve one name, or to use one literal address. Made by [`Policy`](super::Policy) alone.
#[derive(Clone, Debug)]
pub struct Clearance {
    pub(super) destination: Destination,
    pub(super) transport: Transport,
    /// Echo requests have none, nor has a name that is only kept resolved.
    pub(super) port: Option<u16>,
    /// The client's address family goes first.
    pub(super) prefers_v6: bool,
    /// Where the client wanted to go itself, where that is known.
    pub(super) dst: Option<IpAddr>,
    pub(super) source: Source,
    /// Never empty; in the order of the configuration.
    pub(super) grants: Vec<Grant>,
}

/// What a clearance is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Name(HostName),
    Literal(IpAddr),
}

/// One rule that allows, and how it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    App {
        rule: u32,
        pattern: PatternId,
    },
    NetAddress {
        rule: u32,
    },
    /// A name that egret keeps resolved for the rule.
    NetKept {
        rule: u32,
    },
    NetName {
        rule: u32,
        pattern: PatternId,
    },
}

impl Clearance {
    #[must_use]
    pub const fn destination(&self) -> &Destination {
        &self.destination
    }

    #[must_use]
    pub const fn is_name(&self) -> bool {
        matches!(self.destination, Destination::Name(_))
    }

    /// Where the client wanted to go itself, where that is known.
    #[must_use]
    pub const fn dst(&self) -> Option<IpAddr> {
        self.dst
    }

    /// The authorized client; `None`: no client asks.
    #[must_use]
    pub const fn client(&self) -> Option<IpAddr> {
        self.source.ip
    }
}

/// What an answer teaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lesson {
    pub name: LearnedName,
    pub rule: Arc<str>,
    pub by: LessonUse,
}

/// What goes by a lesson.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LessonUse {
    /// A network rule that lists the name: egret keeps it resolved besides.
    Network,
    /// A network rule that lists it by wildcard: what DNS clients are answered is all there is.
    Wildcard,
    /// An application rule that wants the client's own destination to be the name's.
    Destination,
}

/// How a name's synthetic address is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steers {
    /// Whether some rule judges the name by the claim alone.
    pub is_claimed: bool,
    /// Whether some network rule lists it, whose flows the kernel leads on.
    pub is_forwarded: bool,
}

/// Leave to ask servers about one name on behalf of a DNS client. Made by [`Policy`](super::Policy) alone.
#[derive(Clone, Debug)]
pub struct QuestionClearance {
    pub(super) name: HostName,
    /// The alias's target that is asked for in its place.
    pub(super) target: Option<HostName>,
    pub(super) source: Source,
    pub(super) matched: MatchedRule,
    /// Every rule that could use the name, network rules first; none of a zone's, whose keys are asked for.
    pub(super) grants: Vec<Grant>,
    /// Whether only wildcards list the name.
    pub(super) is_wild: bool,
}

impl QuestionClearance {
    #[must_use]
    pub const fn name(&self) -> &HostName {
        &self.name
    }

    /// What servers are asked for: the name, or the target of an alias of its own.
    #[must_use]
    pub fn asked(&self) -> &HostName {
        self.target.as_ref().unwrap_or(&self.name)
    }

    /// Leave to ask for what the name's alias leads to, as the client was answered.
    #[must_use]
    pub fn through(self, target: HostName) -> Self {
        Self { target: Some(target), ..self }
    }

    #[must_use]
    pub const fn matched_rule(&self) -> &MatchedRule {
        &self.matched
    }

    /// The wildcard that lists the name, where no rule lists the name itself.
    #[must_use]
    pub fn wildcard(&self) -> Option<&str> {
        self.matched.pattern.as_deref().filter(|_| self.is_wild)
    }

    /// Whether some network rule lists the name.
    #[must_use]
    pub fn is_for_network(&self) -> bool {
        self.grants.iter().any(|grant| !matches!(grant, Grant::App { .. }))
    }

    /// Whom it is for.
    #[must_use]
    pub const fn source(&self) -> &Source {
        &self.source
    }
}

/// Leave to dial these addresses and no other. Made by [`Policy::by_address`](super::Policy::by_address) alone.
#[derive(Clone, Debug)]
pub struct Permit {
    pub(super) destination: Destination,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) because: MatchedRule,
}

impl Permit {
    /// The judged addresses, in the order to try them.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    #[must_use]
    pub const fn matched_rule(&self) -> &MatchedRule {
        &self.because
    }

    /// Whether this is leave for what another one was given for: the same name or literal, by the same rule, to
    /// the same addresses.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let sorted = |permit: &Self| {
            let mut addresses = permit.addresses.clone();
            addresses.sort_unstable();
            addresses
        };
        self.destination == other.destination && self.because == other.because && sorted(self) == sorted(other)
    }
}

/// The rule behind a decision, for the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchedRule {
    pub rule: Arc<str>,
    pub pattern: Option<String>,
}

impl Grant {
    pub(super) const fn rule(self) -> u32 {
        match self {
            Self::App { rule, .. }
            | Self::NetAddress { rule }
            | Self::NetKept { rule }
            | Self::NetName { rule, .. } => rule,
        }
    }
}
