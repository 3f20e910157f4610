//! Packets that the table refused, as the kernel reports them (linux/netfilter/nfnetlink_log.h), and the counters of
//! all of them: reports are bounded, counts are not.

use std::io;

use nix::sys::socket::{MsgFlags, SockProtocol};

use super::names::{LOG_GROUP, REASONS, TABLE};
use super::packet::{self, Packet};
use crate::netlink::{ACK, DUMP, Messages, Socket, attribute, received};
use egret_core::outcome::Reason;

const LOG_PACKET: u16 = 4 << 8;
const LOG_CONFIG: u16 = (4 << 8) | 1;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_MODE: u16 = 2;
const CONFIG_TOGETHER: u16 = 5;
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
/// Bytes of each packet: headers, and not what the client says.
const COPIED: u32 = 96;
const LOG_PAYLOAD: u16 = 9;
const LOG_PREFIX: u16 = 10;
const GET_OBJECT: u16 = (10 << 8) | 19;
const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
/// NFT_OBJECT_COUNTER.
const COUNTER: u32 = 1;
const COUNTER_PACKETS: u16 = 2;
/// Room for what comes while egret writes.
const ROOM: usize = 4 << 20;

/// A refused packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub packet: Packet,
    pub reason: Reason,
}

/// Where the kernel reports refused packets.
#[derive(Debug)]
pub struct Refusals(Socket);

impl Refusals {
    /// Begins to listen; one process can.
    ///
    /// # Errors
    /// The kernel's: another process listens, or CAP_NET_ADMIN is missing.
    pub fn listen() -> io::Result<Self> {
        let socket = Socket::open(SockProtocol::NetlinkNetFilter, 0)?;
        socket.set_room(64 << 10, ROOM)?;
        let [high, low] = LOG_GROUP.to_be_bytes();
        let mut messages = Messages::default();
        messages.begin(LOG_CONFIG, ACK, &[0, 0, high, low]).attr(CONFIG_COMMAND, &[BIND]);
        let mut mode = COPIED.to_be_bytes().to_vec();
        mode.extend([COPY_PACKET, 0]);
        messages.begin(LOG_CONFIG, ACK, &[0, 0, high, low]).attr(CONFIG_MODE, &mode);
        // Each at once: a line has the time at which it is read, and the kernel would keep it for a second.
        messages.begin(LOG_CONFIG, ACK, &[0, 0, high, low]).attr(CONFIG_TOGETHER, &1u32.to_be_bytes());
        socket.ask(&messages)?;
        Ok(Self(socket))
    }

    /// Waits for some.
    ///
    /// # Errors
    /// The kernel's; what did not fit is counted by it, and no error.
    pub fn next(&self, buffer: &mut [u8]) -> io::Result<Vec<Refused>> {
        match self.0.receive(buffer, MsgFlags::empty()) {
            Ok(bytes) => Ok(received(bytes).filter(|m| m.kind == LOG_PACKET).filter_map(|m| read(m.payload)).collect()),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

fn read(payload: &[u8]) -> Option<Refused> {
    let attrs = payload.get(4..)?;
    let prefix = attribute(attrs, LOG_PREFIX)?.split(|b| *b == 0).next()?;
    let reason = REASONS.iter().find(|reason| reason.as_str().as_bytes() == prefix)?;
    Some(Refused { packet: packet::read(attribute(attrs, LOG_PAYLOAD)?)?, reason: *reason })
}

/// The packets that each of the table's counters has seen.
///
/// # Errors
/// The kernel's.
pub fn counters(socket: &Socket) -> io::Result<Vec<(String, u64)>> {
    let mut messages = Messages::default();
    let mut message = messages.begin(GET_OBJECT, DUMP, &[1, 0, 0, 0]);
    message.text(OBJECT_TABLE, TABLE).attr(OBJECT_TYPE, &COUNTER.to_be_bytes());
    drop(message);
    let mut found = Vec::new();
    socket.dump(&messages, |message| {
        let attrs = message.payload.get(4..).unwrap_or_default();
        let name =
            attribute(attrs, OBJECT_NAME).map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
        let packets = attribute(attrs, OBJECT_DATA).and_then(|data| attribute(data, COUNTER_PACKETS));
        let packets = packets.and_then(|value| value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)));
        found.extend(name.zip(packets));
    })?;
    Ok(found)
}
