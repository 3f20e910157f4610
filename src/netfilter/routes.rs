//! The policy routes: captured packets come to this machine, forwarded ones go their way, and clients have no other.
//!
//! The second barrier: it stands without the table, and is up before forwarding is.

use std::io;

use nix::sys::socket::SockProtocol;

use super::{CAPTURED, FORWARDED, KernelError, Plan, STATE};
use crate::netlink::{ACK, CREATE, DUMP, EXCL, Messages, REPLACE, Received, Socket, attributes};

/// The rules' places (ip-rule(8), priority): behind the local table, before all others.
const TO_EGRET: u32 = 80;
const LET_OUT: u32 = 81;
const BARRIER: u32 = 82;
/// The routing table by which everything is local.
const LOCAL: u32 = 1129;
const MAIN: u32 = 254;

const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
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
/// linux/rtnetlink.h: a local route, valid on this host.
const RTN_LOCAL: u8 = 2;
const SCOPE_HOST: u8 = 254;
const PROTO_STATIC: u8 = 4;
const OIF: u16 = 4;
/// Linux gives the first interface of every network namespace to loopback.
const LOOPBACK_INDEX: u32 = 1;
const FAMILIES: [(u8, &str); 2] = [(2, "-4"), (10, "-6")];

/// One policy rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    priority: u32,
    /// The mark's state, and the table it leads to; `None`: nowhere.
    leads: Option<(u32, u32)>,
    /// The interface that packets come from; `None`: whatever is not sent by this machine itself.
    interface: Option<String>,
}

/// The rules of a plan, in the order in which they are put up: the barrier last, when its gates stand.
fn rules(plan: &Plan) -> Vec<Rule> {
    let gate = |priority, mark, table| Rule { priority, leads: Some((mark, table)), interface: None };
    let barrier = |interface| Rule { priority: BARRIER, leads: None, interface };
    let mut rules = vec![gate(TO_EGRET, CAPTURED, LOCAL), gate(LET_OUT, FORWARDED, MAIN)];
    if plan.interfaces.is_empty() {
        rules.push(barrier(None));
    }
    rules.extend(plan.interfaces.iter().map(|name| barrier(Some(name.clone()))));
    rules
}

/// The same as ip(8) would be asked for them.
#[must_use]
pub fn commands(plan: &Plan) -> Vec<String> {
    let mut out = Vec::new();
    for (_, family) in FAMILIES {
        out.push(format!("ip {family} route replace local default dev lo table {LOCAL}"));
        out.extend(rules(plan).iter().map(|rule| format!("ip {family} rule add {rule}")));
    }
    out
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { priority, leads, interface } = self;
        write!(f, "pref {priority} ")?;
        match (leads, interface) {
            (Some((mark, table)), _) => write!(f, "fwmark {mark:#x}/{STATE:#x} lookup {table}"),
            (None, Some(name)) => write!(f, "iif {name} prohibit"),
            (None, None) => f.write_str("not iif lo prohibit"),
        }
    }
}

/// Puts up the routes and rules, and takes down those of an earlier plan that this one has not.
pub(super) fn install(plan: &Plan) -> Result<(), KernelError> {
    let failed = |what| KernelError::io(format!("cannot set the policy routes ({what})"));
    let socket = Socket::open(SockProtocol::NetlinkRoute).map_err(failed("socket"))?;
    for (family, _) in FAMILIES {
        ignoring(io::ErrorKind::AlreadyExists, local_route(&socket, family, NEW_ROUTE, CREATE | REPLACE))
            .map_err(failed("local table"))?;
        for rule in rules(plan) {
            ignoring(io::ErrorKind::AlreadyExists, change(&socket, family, &rule, NEW_RULE, CREATE | EXCL))
                .map_err(failed("rule"))?;
        }
        for old in present(&socket, family).map_err(failed("list"))? {
            if !rules(plan).contains(&old) {
                change(&socket, family, &old, DEL_RULE, 0).map_err(failed("old rule"))?;
            }
        }
    }
    Ok(())
}

/// Takes them all down, the barrier last.
pub(super) fn remove() -> Result<(), KernelError> {
    let failed = || KernelError::io("cannot take down the policy routes");
    let socket = Socket::open(SockProtocol::NetlinkRoute).map_err(failed())?;
    for (family, _) in FAMILIES {
        for rule in present(&socket, family).map_err(failed())? {
            change(&socket, family, &rule, DEL_RULE, 0).map_err(failed())?;
        }
        let gone = local_route(&socket, family, DEL_ROUTE, 0);
        // ESRCH: it was not there.
        gone.or_else(|e| if e.raw_os_error() == Some(3) { Ok(()) } else { Err(e) }).map_err(failed())?;
    }
    Ok(())
}

/// Whether all of a plan's rules stand.
///
/// # Errors
/// The kernel's.
pub fn stand(plan: &Plan) -> io::Result<bool> {
    let socket = Socket::open(SockProtocol::NetlinkRoute)?;
    for (family, _) in FAMILIES {
        let present = present(&socket, family)?;
        if !rules(plan).iter().all(|rule| present.contains(rule)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn ignoring(kind: io::ErrorKind, outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|error| if error.kind() == kind { Ok(()) } else { Err(error) })
}

fn local_route(socket: &Socket, family: u8, kind: u16, flags: u16) -> io::Result<()> {
    let mut messages = Messages::default();
    let head = [family, 0, 0, 0, 0, PROTO_STATIC, SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0];
    messages.begin(kind, flags | ACK, &head).attr(TABLE, &LOCAL.to_ne_bytes()).attr(OIF, &LOOPBACK_INDEX.to_ne_bytes());
    socket.ask(&messages)
}

fn change(socket: &Socket, family: u8, rule: &Rule, kind: u16, flags: u16) -> io::Result<()> {
    let mut messages = Messages::default();
    let (action, bits) = match (&rule.leads, &rule.interface) {
        (Some(_), _) => (TO_TABLE, 0),
        (None, Some(_)) => (PROHIBIT, 0),
        (None, None) => (PROHIBIT, INVERT),
    };
    let [a, b, c, d] = bits.to_ne_bytes();
    let mut message = messages.begin(kind, flags | ACK, &[family, 0, 0, 0, 0, 0, 0, action, a, b, c, d]);
    message.attr(PRIORITY, &rule.priority.to_ne_bytes());
    match rule.leads {
        Some((mark, table)) => {
            message.attr(TABLE, &table.to_ne_bytes());
            message.attr(MARK, &mark.to_ne_bytes()).attr(MASK, &STATE.to_ne_bytes());
        }
        None => {
            message.text(IIF, rule.interface.as_deref().unwrap_or("lo"));
        }
    }
    drop(message);
    socket.ask(&messages)
}

/// The rules at our places, whoever put them there.
fn present(socket: &Socket, family: u8) -> io::Result<Vec<Rule>> {
    let mut messages = Messages::default();
    messages.begin(GET_RULE, DUMP, &[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut found = Vec::new();
    socket.dump(&messages, |message| found.extend(read(message)))?;
    Ok(found)
}

fn read(message: Received<'_>) -> Option<Rule> {
    let number = |value: &[u8]| value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let attrs = || attributes(message.payload.get(12..).unwrap_or_default());
    let get = |kind| attrs().find(|(k, _)| *k == kind).map(|(_, value)| value);
    let priority = get(PRIORITY).and_then(number).filter(|p| (TO_EGRET..=BARRIER).contains(p))?;
    let leads = (message.payload.get(7) == Some(&TO_TABLE))
        .then(|| Some((get(MARK).and_then(number)?, get(TABLE).and_then(number)?)))
        .flatten();
    let interface = get(IIF).map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
    let inverted = message.payload.get(8..).and_then(number).is_some_and(|bits| bits & INVERT != 0);
    Some(Rule { priority, leads, interface: interface.filter(|_| !inverted) })
}
