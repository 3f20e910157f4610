//! Changes of the table while egret runs: transactions of nf_tables messages (linux/netfilter/nf_tables.h), which take
//! effect together or not at all. No process is started for them.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::libc::ENOENT;
use nix::sys::socket::SockProtocol;

use super::error::KernelError;
use super::names::TABLE;
use super::plan::Opening;
use crate::netlink::{ACK, CREATE, DUMP, Messages, Socket, attribute};

const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
const NF_TABLES: u16 = 10 << 8;
const DEL_TABLE: u16 = NF_TABLES | 2;
const GET_RULE: u16 = NF_TABLES | 7;
const GET_GENERATION: u16 = NF_TABLES | 16;
const GENERATION_ID: u16 = 1;
const NEW_ELEMENT: u16 = NF_TABLES | 12;
const DEL_ELEMENT: u16 = NF_TABLES | 14;
/// NFPROTO_INET.
const INET: u8 = 1;
/// Attributes.
const TABLE_NAME: u16 = 1;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_TIMEOUT: u16 = 4;
const ELEMENT_KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;
const INTERVAL_END: u32 = 1;
/// What one list of elements may hold: an attribute's length has 16 bits.
const PER_LIST: usize = 1000;
/// Room for the largest transaction.
const ROOM: usize = 64 << 20;

/// One transaction.
#[derive(Debug)]
pub(super) struct Batch {
    messages: Messages,
}

/// An element of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    key: Vec<u8>,
    /// The other end of a range of several fields.
    end: Option<Vec<u8>>,
    /// The first address behind an interval.
    is_end: bool,
    timeout: Option<Duration>,
    /// In a map: what the key leads to.
    data: Option<Vec<u8>>,
}

impl Element {
    /// A single value.
    #[must_use]
    pub(super) fn value(key: &[u8]) -> Self {
        Self { key: key.to_vec(), end: None, is_end: false, timeout: None, data: None }
    }

    /// An address that counts for a while, behind the client that it is for, if any.
    #[must_use]
    pub(super) fn learned(Opening { asker, to }: Opening, timeout: Duration) -> Self {
        let mut key = asker.map(octets).unwrap_or_default();
        key.extend(octets(to));
        Self { timeout: Some(timeout), ..Self::value(&key) }
    }

    /// An address that a map leads from, and the one it leads to.
    #[must_use]
    pub(super) fn mapped(from: IpAddr, to: IpAddr) -> Self {
        Self { data: Some(octets(to)), ..Self::value(&octets(from)) }
    }

    /// A protocol with a range of ports: each field has four bytes.
    #[must_use]
    pub(super) fn ports(protocol: u8, low: u16, high: u16) -> Self {
        let key = |port: u16| {
            let [a, b] = port.to_be_bytes();
            vec![protocol, 0, 0, 0, a, b, 0, 0]
        };
        Self { end: Some(key(high)), ..Self::value(&key(low)) }
    }

    /// An interval of IPv4 addresses, both ends included.
    pub(super) fn v4((low, high): (u32, u32)) -> impl Iterator<Item = Self> {
        let end = high.checked_add(1).map(|end| Self { is_end: true, ..Self::value(&end.to_be_bytes()) });
        std::iter::once(Self::value(&low.to_be_bytes())).chain(end)
    }

    /// An interval of IPv6 addresses, both ends included.
    pub(super) fn v6((low, high): (u128, u128)) -> impl Iterator<Item = Self> {
        let end = high.checked_add(1).map(|end| Self { is_end: true, ..Self::value(&end.to_be_bytes()) });
        std::iter::once(Self::value(&low.to_be_bytes())).chain(end)
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// linux/netfilter/nfnetlink.h: family, version, and a number in network order.
const fn head(family: u8, number: u16) -> [u8; 4] {
    let [a, b] = number.to_be_bytes();
    [family, 0, a, b]
}

impl Batch {
    fn begin() -> Self {
        let mut messages = Messages::default();
        // NFNL_SUBSYS_NFTABLES.
        drop(messages.begin(BEGIN, 0, &head(0, 10)));
        Self { messages }
    }

    /// A transaction for the table of this name and no other: emptying its name's set, which is empty, fails elsewhere.
    pub(super) fn of(table: &str) -> Self {
        let mut batch = Self::begin();
        batch.flush(table);
        batch
    }

    #[cfg(test)]
    pub(super) fn names(&self, ip: std::net::Ipv4Addr) -> bool {
        self.messages.contain(&ip.octets())
    }

    /// Adds elements to a set; those that are there already stay as they are.
    pub(super) fn add(&mut self, set: &str, elements: &[Element]) {
        self.elements(NEW_ELEMENT, CREATE, set, elements);
    }

    /// Takes elements out of a set, which must be there.
    pub(super) fn take(&mut self, set: &str, elements: &[Element]) {
        self.elements(DEL_ELEMENT, 0, set, elements);
    }

    /// Puts elements in with their time, whether they are there or not, and without a moment in which they are not.
    pub(super) fn renew(&mut self, set: &str, elements: &[Element]) {
        self.add(set, elements);
        self.take(set, elements);
        self.add(set, elements);
    }

    /// Empties a set.
    pub(super) fn flush(&mut self, set: &str) {
        let mut message = self.messages.begin(DEL_ELEMENT, ACK, &head(INET, 0));
        message.text(LIST_TABLE, TABLE).text(LIST_SET, set);
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &str, elements: &[Element]) {
        for part in elements.chunks(PER_LIST) {
            let mut message = self.messages.begin(kind, flags | ACK, &head(INET, 0));
            message.text(LIST_TABLE, TABLE).text(LIST_SET, set).nest(LIST_ELEMENTS, |list| {
                for Element { key, end, is_end, timeout, data } in part {
                    list.nest(LIST_ELEMENT, |element| {
                        element.nest(ELEMENT_KEY, |data| {
                            data.attr(DATA_VALUE, key);
                        });
                        if let Some(to) = data {
                            element.nest(ELEMENT_DATA, |data| {
                                data.attr(DATA_VALUE, to);
                            });
                        }
                        if let Some(end) = end {
                            element.nest(ELEMENT_KEY_END, |data| {
                                data.attr(DATA_VALUE, end);
                            });
                        }
                        if *is_end {
                            element.attr(ELEMENT_FLAGS, &INTERVAL_END.to_be_bytes());
                        }
                        if let Some(timeout) = timeout {
                            let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
                            element.attr(ELEMENT_TIMEOUT, &milliseconds.to_be_bytes());
                        }
                    });
                }
            });
        }
    }

    /// Carries it out.
    ///
    /// # Errors
    /// The kernel's: nothing has changed then.
    pub(super) fn commit(mut self, socket: &Socket) -> io::Result<()> {
        drop(self.messages.begin(END, 0, &head(0, 10)));
        socket.ask(&self.messages)
    }
}

/// A socket for transactions.
///
/// # Errors
/// The kernel's; without CAP_NET_ADMIN large transactions are refused.
pub(super) fn socket() -> io::Result<Socket> {
    let socket = Socket::open(SockProtocol::NetlinkNetFilter, 0)?;
    socket.set_room(ROOM, ROOM)?;
    Ok(socket)
}

/// Deletes the table; there may be none.
pub(super) fn delete_table() -> Result<(), KernelError> {
    let mut batch = Batch::begin();
    batch.messages.begin(DEL_TABLE, ACK, &head(INET, 0)).text(TABLE_NAME, TABLE);
    let socket = socket().map_err(KernelError::io("cannot talk to nf_tables"))?;
    match batch.commit(&socket) {
        Err(error) if error.raw_os_error() != Some(ENOENT) => Err(KernelError::io("cannot delete the table")(error)),
        _ => Ok(()),
    }
}

/// The rules of the table, as the kernel has them: how many, and a hash that changes with each.
///
/// # Errors
/// The kernel's.
pub(super) fn rules(socket: &Socket) -> io::Result<(usize, u64)> {
    use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
    let mut messages = Messages::default();
    messages.begin(GET_RULE, DUMP, &head(INET, 0)).text(TABLE_NAME, TABLE);
    let (mut count, mut hasher) = (0, foldhash::quality::FixedState::default().build_hasher());
    let dumped = socket.dump(&messages, |message| {
        count += 1;
        // Behind the header, which counts generations of all tables.
        message.payload.get(4..).hash(&mut hasher);
    });
    match dumped {
        Err(error) if error.raw_os_error() == Some(ENOENT) => Ok((0, 0)),
        outcome => outcome.map(|()| (count, hasher.finish())),
    }
}

/// How often the kernel's tables have changed, all of them together.
///
/// # Errors
/// The kernel's.
pub(super) fn generation(socket: &Socket) -> io::Result<u32> {
    let mut messages = Messages::default();
    drop(messages.begin(GET_GENERATION, 0, &head(0, 0)));
    socket.one(&messages, |message| {
        let id = attribute(message.payload.get(4..)?, GENERATION_ID)?;
        id.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    })
}
