//! What is known when a name is judged, and how far a rule's conditions hold.

use crate::claim::{Claim, Source, Transport};
use crate::rule::{Action, AppPort, AppProtocol, AppRule, Ech, InnerName, paths};
use crate::wire::http::{Overrides, RequestHead};

/// A client and what it would send, for rules by address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow<'a> {
    pub(super) source: &'a Source,
    pub(super) transport: Transport,
    /// Echo requests have none.
    pub(super) port: Option<u16>,
}

impl<'a> Flow<'a> {
    pub(super) const fn of(claim: &Claim, source: &'a Source) -> Self {
        Self { source, transport: claim.transport, port: Some(claim.port) }
    }
}

/// What is known about a connection when its name is judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence<'a> {
    pub(super) source: &'a Source,
    pub(super) port: u16,
    pub(super) protocol: AppProtocol,
    pub(super) alpn: Option<&'a [Box<[u8]>]>,
    pub(super) ech: bool,
    pub(super) inner: InnerName,
    /// `None` before a request has been read.
    pub(super) request: Option<Request<'a>>,
}

impl<'a> Evidence<'a> {
    /// Before a byte has been seen: what speaks a protocol at a port.
    pub(super) const fn of(source: &'a Source, protocol: AppProtocol, port: u16) -> Self {
        Self { source, port, protocol, alpn: None, ech: false, inner: InnerName::Same, request: None }
    }
}

/// What rules may ask of a plain HTTP request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    /// `None`: any method (`explain`).
    pub(super) method: Option<&'a str>,
    /// As sent, with its query; a request without one fits no rule with `paths`.
    pub(super) path: Option<&'a str>,
    pub(super) overrides: Overrides,
    pub(super) upgrades: bool,
}

impl<'a> From<&'a RequestHead> for Request<'a> {
    fn from(head: &'a RequestHead) -> Self {
        Self {
            method: Some(&head.method),
            path: head.path(),
            overrides: head.overrides,
            upgrades: head.upgrade.is_some(),
        }
    }
}

/// How far a name got through the rules that list it; the furthest one is the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    Listed,
    Source,
    Port,
    Method,
    Path,
    Upgrade,
    Alpn,
}

/// A rule's conditions in their order; how far it got where one is not met.
pub(super) fn conditions(rule: &AppRule, evidence: &Evidence<'_>) -> Result<(), Progress> {
    if !rule.sources.include(evidence.source) {
        return Err(Progress::Listed);
    }
    // Bytes that are not looked at may be of any protocol, one that is denied too.
    let any_protocol = rule.action == Action::Deny && evidence.protocol == AppProtocol::Tcp;
    let on_port = |app: &AppPort| app.port == evidence.port && (any_protocol || app.protocol == evidence.protocol);
    let any_port = rule.protocols.is_empty() && rule.action == Action::Deny;
    if !any_port && !rule.protocols.iter().any(on_port) {
        return Err(Progress::Source);
    }
    if let (Some(allowed), Some(offered)) = (&rule.alpn, evidence.alpn)
        && !offered.iter().all(|p| allowed.contains(p))
    {
        return Err(Progress::Port);
    }
    if let Some(request) = evidence.request {
        let has = |all: &Vec<Box<str>>| request.method.is_none_or(|method| all.iter().any(|one| **one == *method));
        let methods = rule.methods.as_ref().is_none_or(has);
        let paths = rule.paths.as_ref().is_none_or(|all| {
            request.path.and_then(paths::normal).is_some_and(|plain| all.iter().any(|path| path.fits(&plain)))
        });
        // A rule that asks for either is about the request's first line, and so is what it allows.
        let asks = rule.methods.is_some() || rule.paths.is_some();
        if !methods || (asks && request.overrides.method) {
            return Err(Progress::Method);
        }
        if !paths || (asks && request.overrides.path) {
            return Err(Progress::Path);
        }
        if request.upgrades && !rule.websocket && rule.action == Action::Allow {
            return Err(Progress::Upgrade);
        }
    }
    let hidden = evidence.ech && rule.ech == Ech::Deny;
    let other_name = evidence.inner != InnerName::Same && rule.inner != evidence.inner;
    if rule.action == Action::Allow && (hidden || other_name) { Err(Progress::Alpn) } else { Ok(()) }
}
