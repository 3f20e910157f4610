//! The policy routes: captured packets come to this machine, forwarded ones go their way, and clients have no other.
//!
//! The second barrier: it stands without the table, and is up before forwarding is.

use std::io;

use nix::libc;
use nix::sys::socket::SockProtocol;

use super::error::KernelError;
use super::marks::{CAPTURED, FORWARDED, STATE};
use super::plan::Plan;
use crate::netlink::{
    ACK, CREATE, DEL_ROUTE, DUMP, EXCL, GET_ROUTE, Messages, NEW_ROUTE, REPLACE, RTN_LOCAL, Received, Socket, attribute,
};

/// The rules' places (ip-rule(8), priority): behind the local table, before all others.
const TO_EGRET: u32 = 80;
const LET_OUT: u32 = 81;
const BARRIER: u32 = 82;
/// The routing table by which everything is local.
const LOCAL: u32 = 1129;
const MAIN: u32 = 254;

const NEW_RULE: u16 = 32;
const DEL_RULE: u16 = 33;
const GET_RULE: u16 = 34;
/// linux/fib_rules.h
const INVERT: u32 = 2;
const TO_TABLE: u8 = 1;
const PROHIBIT: u8 = 8;
const IIF: u16 = 3;
const PRIORITY: u16 = 6;
const MARK: u16 = 10;
const TABLE: u16 = 15;
const MASK: u16 = 16;
const PROTOCOL: u16 = 21;
/// linux/rtnetlink.h: valid on this host.
const SCOPE_HOST: u8 = 254;
const OIF: u16 = 4;
/// Linux gives the first interface of every network namespace to loopback.
const LOOPBACK_INDEX: u32 = 1;
const V4: u8 = 2;
const FAMILIES: [(u8, &str); 2] = [(V4, "-4"), (10, "-6")];

/// What marks the rules and routes as egret's (linux/rtnetlink.h: numbers that no other program uses).
const OURS: u8 = 112;

/// One policy rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    priority: u32,
    /// The mark's state, and the table it leads to; `None`: whatever this machine does not send itself leads nowhere.
    leads: Option<(u32, u32)>,
}

/// The rules, in the order in which they are put up: the barrier last, when its gates stand.
const RULES: [Rule; 3] = [
    Rule { priority: TO_EGRET, leads: Some((CAPTURED, LOCAL)) },
    Rule { priority: LET_OUT, leads: Some((FORWARDED, MAIN)) },
    Rule { priority: BARRIER, leads: None },
];

/// The same as ip(8) would be asked for them.
#[must_use]
pub(super) fn commands() -> Vec<String> {
    let mut out = Vec::new();
    for (_, family) in FAMILIES {
        out.push(format!("ip {family} route replace local default dev lo table {LOCAL}"));
        out.extend(RULES.iter().map(|rule| format!("ip {family} rule add {rule}")));
    }
    out
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pref {} ", self.priority)?;
        match self.leads {
            Some((mark, table)) => write!(f, "fwmark {mark:#x}/{STATE:#x} lookup {table}"),
            None => f.write_str("not iif lo prohibit"),
        }
    }
}

/// The families that this kernel has.
fn families() -> impl Iterator<Item = u8> {
    let has_v6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
    FAMILIES.into_iter().map(|(family, _)| family).filter(move |family| *family == V4 || has_v6)
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> KernelError {
    move |error| {
        let what = match error.raw_os_error() {
            Some(libc::ENETDOWN) => "; loopback is down: ip link set lo up",
            _ => what,
        };
        KernelError::io(format!("cannot set the policy routes{what}"))(error)
    }
}

/// Puts up the routes and rules.
pub(super) fn install(plan: &Plan) -> Result<(), KernelError> {
    let socket = Socket::open(SockProtocol::NetlinkRoute, 0).map_err(failed(""))?;
    for family in families() {
        match local_route(&socket, family, NEW_ROUTE, CREATE | REPLACE) {
            // IPv6 is switched off: what does not come in needs no way to egret.
            Err(error) if family != V4 && !plan.has_v6() && error.raw_os_error() == Some(libc::EACCES) => {}
            outcome => outcome.map_err(failed(" (local table)"))?,
        }
        let there = present(&socket, family).map_err(failed(" (list)"))?;
        for rule in RULES.iter().filter(|rule| !there.contains(rule)) {
            change(&socket, family, rule, NEW_RULE, CREATE | EXCL).map_err(failed(" (rule)"))?;
        }
    }
    Ok(())
}

/// Takes them all down, the barrier last.
pub(super) fn remove() -> Result<(), KernelError> {
    let socket = Socket::open(SockProtocol::NetlinkRoute, 0).map_err(failed(""))?;
    for family in families() {
        for rule in present(&socket, family).map_err(failed(" (list)"))? {
            change(&socket, family, &rule, DEL_RULE, 0).map_err(failed(" (rule)"))?;
        }
        let gone = local_route(&socket, family, DEL_ROUTE, 0);
        // It was not there.
        gone.or_else(|e| if e.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(e) })
            .map_err(failed(" (local table)"))?;
    }
    Ok(())
}

/// Whether any of the rules is there.
pub(super) fn any() -> Result<bool, KernelError> {
    let socket = Socket::open(SockProtocol::NetlinkRoute, 0).map_err(failed(""))?;
    for family in families() {
        if !present(&socket, family).map_err(failed(" (list)"))?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The first of the rules and routes that is not there, if any.
///
/// # Errors
/// The kernel's.
pub(super) fn missing(plan: &Plan) -> io::Result<Option<String>> {
    let socket = Socket::open(SockProtocol::NetlinkRoute, 0)?;
    for family in families() {
        let present = present(&socket, family)?;
        if let Some(rule) = RULES.iter().find(|rule| !present.contains(rule)) {
            return Ok(Some(format!("ip rule {rule}")));
        }
        if (family == V4 || plan.has_v6()) && !has_local_route(&socket, family)? {
            return Ok(Some(format!("ip route local default dev lo table {LOCAL}")));
        }
    }
    Ok(None)
}

fn local_route(socket: &Socket, family: u8, kind: u16, flags: u16) -> io::Result<()> {
    let mut messages = Messages::default();
    let head = [family, 0, 0, 0, 0, OURS, SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0];
    messages.begin(kind, flags | ACK, &head).attr(TABLE, &LOCAL.to_ne_bytes()).attr(OIF, &LOOPBACK_INDEX.to_ne_bytes());
    socket.ask(&messages)
}

fn has_local_route(socket: &Socket, family: u8) -> io::Result<bool> {
    let mut messages = Messages::default();
    drop(messages.begin(GET_ROUTE, DUMP, &[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    let mut is_there = false;
    socket.dump(&messages, |message| {
        let (head, attrs) = message.payload.split_at_checked(12).unwrap_or_default();
        let is_local = matches!(head, [_, 0, _, _, _, _, _, RTN_LOCAL, ..]);
        is_there |= is_local && number(attribute(attrs, TABLE)) == Some(LOCAL);
    })?;
    Ok(is_there)
}

fn change(socket: &Socket, family: u8, rule: &Rule, kind: u16, flags: u16) -> io::Result<()> {
    let mut messages = Messages::default();
    let (action, bits) = if rule.leads.is_some() { (TO_TABLE, 0) } else { (PROHIBIT, INVERT) };
    let [a, b, c, d] = bits.to_ne_bytes();
    let mut message = messages.begin(kind, flags | ACK, &[family, 0, 0, 0, 0, 0, 0, action, a, b, c, d]);
    message.attr(PRIORITY, &rule.priority.to_ne_bytes()).attr(PROTOCOL, &[OURS]);
    match rule.leads {
        Some((mark, table)) => {
            message.attr(TABLE, &table.to_ne_bytes());
            message.attr(MARK, &mark.to_ne_bytes()).attr(MASK, &STATE.to_ne_bytes());
        }
        None => {
            message.text(IIF, "lo");
        }
    }
    drop(message);
    socket.ask(&messages)
}

/// The rules that egret has put up.
fn present(socket: &Socket, family: u8) -> io::Result<Vec<Rule>> {
    let mut messages = Messages::default();
    drop(messages.begin(GET_RULE, DUMP, &[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    let mut found = Vec::new();
    socket.dump(&messages, |message| found.extend(read(message)))?;
    Ok(found)
}

/// A rule of egret's, in every part as it was put up; another one is not.
fn read(message: Received<'_>) -> Option<Rule> {
    let (head, attrs) = message.payload.split_at_checked(12)?;
    let [_, to_len, from_len, _, _, _, _, action, bits @ ..] = head else { return None };
    let inverts = number(Some(bits))? & INVERT != 0;
    let is_plain = *to_len == 0 && *from_len == 0 && attribute(attrs, PROTOCOL) == Some(&[OURS]);
    let priority = number(attribute(attrs, PRIORITY)).filter(|_| is_plain)?;
    let leads = match (*action, inverts) {
        (TO_TABLE, false) => {
            let (mark, mask) = (number(attribute(attrs, MARK))?, number(attribute(attrs, MASK))?);
            Some((mark, number(attribute(attrs, TABLE))?)).filter(|_| mask == STATE)
        }
        (PROHIBIT, true) if attribute(attrs, IIF) == Some(b"lo\0") => None,
        _ => return None,
    };
    Some(Rule { priority, leads })
}

fn number(value: Option<&[u8]>) -> Option<u32> {
    value?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}
