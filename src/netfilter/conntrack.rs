//! Flows that the kernel forwards, from conntrack (linux/netfilter/nfnetlink_conntrack.h): reported when they end, and ended
//! when their rule is gone.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, SockProtocol};

use super::elements::{TCP, UDP};
use super::marks::{FORWARDED, STATE};
use super::settings::Dnat;
use crate::netlink::{ACK, DUMP, Messages, Socket, attribute, attributes, received};
use egret_core::rule::NetPort;

const NEW: u16 = 1 << 8;
const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;
/// The group of ended flows, as a bit.
const ENDED: u32 = 1 << (3 - 1);
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const MARK: u16 = 8;
const COUNTERS_ORIGINAL: u16 = 9;
const COUNTERS_REPLY: u16 = 10;
const TIMESTAMP: u16 = 20;
const MARK_MASK: u16 = 21;
const ROOM: usize = 8 << 20;

/// One flow that was let through by address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub client: SocketAddr,
    pub destination: SocketAddr,
    /// The address that answers: another one than the destination where that was translated.
    pub upstream: SocketAddr,
    pub protocol: u8,
    pub mark: u32,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub duration: Option<Duration>,
    /// The original tuple as the kernel wrote it: what the flow is deleted by.
    tuple: Vec<u8>,
    family: u8,
}

fn read(payload: &[u8]) -> Option<Flow> {
    let family = *payload.first()?;
    let attrs = payload.get(4..)?;
    let get = |kind| attribute(attrs, kind);
    let mark = u32::from_be_bytes(*get(MARK)?.first_chunk()?);
    if mark & STATE != FORWARDED {
        return None;
    }
    let original = get(TUPLE_ORIGINAL)?;
    let (client, destination, protocol) = tuple(original)?;
    let (upstream, _, _) = tuple(get(TUPLE_REPLY)?)?;
    let bytes = |kind| get(kind).and_then(|counters| number(counters, 2)).unwrap_or(0);
    let duration = get(TIMESTAMP).and_then(|stamps| {
        let (start, stop) = (number(stamps, 1)?, number(stamps, 2)?);
        Some(Duration::from_nanos(stop.saturating_sub(start)))
    });
    Some(Flow {
        client,
        destination,
        upstream,
        protocol,
        mark,
        bytes_up: bytes(COUNTERS_ORIGINAL),
        bytes_down: bytes(COUNTERS_REPLY),
        duration,
        tuple: original.to_vec(),
        family,
    })
}

fn number(attrs: &[u8], kind: u16) -> Option<u64> {
    Some(u64::from_be_bytes(*attribute(attrs, kind)?.first_chunk()?))
}

/// Source, destination and protocol of a tuple.
fn tuple(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr, u8)> {
    let (ip, proto) = (attribute(bytes, 1)?, attribute(bytes, 2)?);
    let address = |v4: u16, v6: u16| {
        attributes(ip).find_map(|(kind, value)| match kind {
            _ if kind == v4 => Some(IpAddr::from(*value.first_chunk::<4>()?)),
            _ if kind == v6 => Some(IpAddr::from(*value.first_chunk::<16>()?)),
            _ => None,
        })
    };
    let port =
        |kind| attribute(proto, kind).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u16::from_be_bytes(*bytes));
    let protocol = *attribute(proto, 1)?.first()?;
    Some((SocketAddr::new(address(1, 3)?, port(2)), SocketAddr::new(address(2, 4)?, port(3)), protocol))
}

/// A socket for what conntrack knows, and its events.
fn conntrack(groups: u32) -> io::Result<Socket> {
    let socket = Socket::open(SockProtocol::NetlinkNetFilter, groups)?;
    socket.set_room(64 << 10, ROOM)?;
    Ok(socket)
}

/// Where the kernel reports flows that have ended.
#[derive(Debug)]
pub struct Endings(Socket);

impl Endings {
    /// Begins to listen.
    ///
    /// # Errors
    /// The kernel's; it takes CAP_NET_ADMIN.
    pub fn listen() -> io::Result<Self> {
        Ok(Self(conntrack(ENDED)?))
    }

    /// Waits for some; `None` where the kernel had more to report than there was room for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn next(&self, buffer: &mut [u8]) -> io::Result<Option<Vec<Flow>>> {
        match self.0.receive(buffer, MsgFlags::empty()) {
            Ok(bytes) => Ok(Some(received(bytes).filter_map(|message| read(message.payload)).collect())),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// How many ports each source has in use towards the destination that it uses most of them for: those of flows that the
/// kernel translates and of egret's own connections alike, for they share them.
///
/// # Errors
/// The kernel's.
pub fn ports_in_use(is_source: impl Fn(IpAddr) -> bool) -> io::Result<HashMap<IpAddr, u64>> {
    let socket = conntrack(0)?;
    let mut messages = Messages::default();
    drop(messages.begin(GET, DUMP, &[0, 0, 0, 0]));
    let mut uses: HashMap<(IpAddr, SocketAddr, u8), u64> = HashMap::new();
    socket.dump(&messages, |message| {
        let attrs = message.payload.get(4..).unwrap_or_default();
        let reply = attribute(attrs, TUPLE_REPLY).and_then(tuple);
        if let Some((to, from, protocol)) = reply.filter(|(_, from, _)| is_source(from.ip())) {
            *uses.entry((from.ip(), to, protocol)).or_default() += 1;
        }
    })?;
    let mut most: HashMap<IpAddr, u64> = HashMap::new();
    for ((source, ..), count) in uses {
        let of_source = most.entry(source).or_default();
        *of_source = count.max(*of_source);
    }
    Ok(most)
}

/// Forgets flows that came before there was a translation for them: a sender that goes on would never get it.
///
/// # Errors
/// The kernel's.
pub fn forget_untranslated(dnat: &[Dnat]) -> io::Result<()> {
    let socket = conntrack(0)?;
    let mut messages = Messages::default();
    drop(messages.begin(GET, DUMP, &[0, 0, 0, 0]));
    let mut old = Vec::new();
    socket.dump(&messages, |message| {
        let (head, attrs) = message.payload.split_at_checked(4).unwrap_or_default();
        let (Some(original), Some(reply)) = (attribute(attrs, TUPLE_ORIGINAL), attribute(attrs, TUPLE_REPLY)) else {
            return;
        };
        let (Some((_, to, protocol)), Some((from, ..))) = (tuple(original), tuple(reply)) else { return };
        let is_meant = |dnat: &Dnat| match &dnat.port {
            NetPort::Tcp(ports) => protocol == TCP && ports.contains(&to.port()),
            NetPort::Udp(ports) => protocol == UDP && ports.contains(&to.port()),
            NetPort::Icmp => false,
        };
        if from == to && dnat.iter().any(is_meant) {
            old.extend(head.first().map(|family| (*family, original.to_vec())));
        }
    })?;
    old.into_iter().try_for_each(|(family, original)| delete(&socket, family, &original).map(|_| ()))
}

/// Ends one flow; whether it was still there.
fn delete(socket: &Socket, family: u8, original: &[u8]) -> io::Result<bool> {
    let mut messages = Messages::default();
    messages.begin(DELETE, ACK, &[family, 0, 0, 0]).attr(TUPLE_ORIGINAL | 0x8000, original);
    match socket.ask(&messages) {
        Ok(()) => Ok(true),
        // It has ended by itself.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Looks at every forwarded flow.
fn forwarded(socket: &Socket, mut look: impl FnMut(Flow)) -> io::Result<()> {
    let mut messages = Messages::default();
    let mut message = messages.begin(GET, DUMP, &[0, 0, 0, 0]);
    message.attr(MARK, &FORWARDED.to_be_bytes()).attr(MARK_MASK, &STATE.to_be_bytes());
    drop(message);
    socket.dump(&messages, |message| {
        (message.kind == NEW).then(|| read(message.payload)).flatten().into_iter().for_each(&mut look);
    })
}

/// Clients of forwarded flows with their destinations, as far as those are wanted.
///
/// # Errors
/// The kernel's.
pub fn in_use(is_wanted: impl Fn(IpAddr) -> bool) -> io::Result<HashSet<(IpAddr, IpAddr)>> {
    let mut found = HashSet::new();
    forwarded(&conntrack(0)?, |flow| {
        let pair = (flow.client.ip(), flow.destination.ip());
        found.extend(Some(pair).filter(|(_, ip)| is_wanted(*ip)));
    })?;
    Ok(found)
}

/// Ends the forwarded flows that are not wanted any more; how many there were.
///
/// # Errors
/// The kernel's.
pub fn cut(mut is_wanted: impl FnMut(&Flow) -> bool) -> io::Result<usize> {
    let socket = conntrack(0)?;
    let mut gone = Vec::new();
    forwarded(&socket, |flow| gone.extend(Some(flow).filter(|flow| !is_wanted(flow))))?;
    let (mut count, mut failed) = (0, None);
    for flow in gone {
        match delete(&socket, flow.family, &flow.tuple) {
            Ok(is_ended) => count += usize::from(is_ended),
            // The others end all the same.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(count), Err)
}
