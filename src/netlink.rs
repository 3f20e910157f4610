//! Netlink (RFC 3549; netlink(7)): messages, their attributes, and the socket that carries them.
//!
//! Owns the format. What the messages say is the callers' business.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, setsockopt, sockopt,
};

/// netlink(7): header flags.
pub const REQUEST: u16 = 0x1;
pub const ACK: u16 = 0x4;
pub const DUMP: u16 = 0x300;
pub const REPLACE: u16 = 0x100;
pub const EXCL: u16 = 0x200;
pub const CREATE: u16 = 0x400;
/// rtnetlink(7): messages about routes, and the kind of those that end on this host.
pub const NEW_ROUTE: u16 = 24;
pub const DEL_ROUTE: u16 = 25;
pub const GET_ROUTE: u16 = 26;
pub const RTN_LOCAL: u8 = 2;
/// An attribute that holds others.
const NESTED: u16 = 0x8000;
const HEADER: usize = 16;
/// Message kinds that every family has.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Messages one behind the other.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    count: u32,
    /// Messages that want an acknowledgement.
    asked: usize,
}

/// One message while it is written.
#[derive(Debug)]
pub struct Message<'a> {
    all: &'a mut Messages,
    begin: usize,
}

impl Messages {
    #[cfg(test)]
    pub(crate) fn contain(&self, bytes: &[u8]) -> bool {
        self.bytes.windows(bytes.len()).any(|window| window == bytes)
    }

    /// Begins a message: its kind, its flags beside [`REQUEST`], and the family's own header.
    pub fn begin(&mut self, kind: u16, flags: u16, head: &[u8]) -> Message<'_> {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(head);
        self.count += 1;
        self.asked += usize::from(flags & ACK != 0);
        Message { all: self, begin }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Message<'_> {
    fn pad(&mut self) {
        self.all.bytes.resize(self.all.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute.
    pub fn attr(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let len = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
        self.all.bytes.extend_from_slice(&len.to_ne_bytes());
        self.all.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.all.bytes.extend_from_slice(payload);
        self.pad();
        self
    }

    /// Adds a text, with the NUL that ends it.
    pub fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        self.attr(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that holds others; together they may have 64 KiB.
    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let begin = self.all.bytes.len();
        self.attr(kind | NESTED, &[]);
        inner(self);
        let len = u16::try_from(self.all.bytes.len() - begin).unwrap_or(u16::MAX);
        self.patch(begin, &len.to_ne_bytes());
        self
    }

    fn patch(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.all.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

impl Drop for Message<'_> {
    /// The header gets the length that the message has come to.
    fn drop(&mut self) {
        self.pad();
        let len = u32::try_from(self.all.bytes.len() - self.begin).unwrap_or(u32::MAX);
        self.patch(self.begin, &len.to_ne_bytes());
    }
}

/// A message from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    pub kind: u16,
    /// Behind netlink's header.
    pub payload: &'a [u8],
}

/// The messages of a datagram.
pub fn received(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let payload = bytes.get(HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Received { kind, payload })
    })
}

/// The attributes of a payload behind its family's header: kind and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !(NESTED | 0x4000), value))
    })
}

/// The value of the first attribute of a kind.
#[must_use]
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens one for a family, such as [`SockProtocol::NetlinkRoute`], and joins groups of events: a mask of the first
    /// 32 of them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self(fd))
    }

    /// Makes room for what is sent or received at once; beyond the system's usual bound it takes CAP_NET_ADMIN.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_room(&self, send: usize, receive: usize) -> io::Result<()> {
        setsockopt(&self.0, sockopt::SndBufForce, &send)?;
        Ok(setsockopt(&self.0, sockopt::RcvBufForce, &receive)?)
    }

    /// Sends messages that the kernel carries out before this returns.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, messages: &Messages) -> io::Result<()> {
        socket::send(self.0.as_raw_fd(), messages.bytes(), MsgFlags::empty())?;
        Ok(())
    }

    /// Waits for the next datagram.
    ///
    /// # Errors
    /// The kernel's; ENOBUFS where some were lost.
    pub fn receive<'a>(&self, buffer: &'a mut [u8], flags: MsgFlags) -> io::Result<&'a [u8]> {
        let n = socket::recv(self.0.as_raw_fd(), buffer, flags)?;
        Ok(buffer.get(..n).unwrap_or_default())
    }

    /// Forgets what an earlier question left behind, which is not an answer to the next one.
    fn drain(&self, buffer: &mut [u8]) {
        while self.receive(buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }

    /// Sends messages of which some ask for an acknowledgement, and gathers what the kernel says. Done is only what it
    /// has acknowledged.
    ///
    /// # Errors
    /// The first of the kernel's.
    pub fn ask(&self, messages: &Messages) -> io::Result<()> {
        let mut buffer = vec![0; 8 << 10];
        self.drain(&mut buffer);
        self.send(messages)?;
        let (mut acknowledged, mut outcome) = (0, Ok(()));
        loop {
            // Everything has been carried out: what there is to say stands in the queue.
            let bytes = match self.receive(&mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            for message in received(bytes).filter(|message| message.kind == ERROR) {
                match failure(&message) {
                    None => acknowledged += 1,
                    Some(code) if outcome.is_ok() => outcome = Err(code),
                    Some(_) => {}
                }
            }
        }
        outcome?;
        if acknowledged == messages.asked {
            return Ok(());
        }
        Err(io::Error::other(format!("the kernel has acknowledged {acknowledged} of {} changes", messages.asked)))
    }

    /// Asks for one message.
    ///
    /// # Errors
    /// The kernel's.
    pub fn one<T>(&self, messages: &Messages, read: impl Fn(Received<'_>) -> Option<T>) -> io::Result<T> {
        let mut buffer = vec![0; 8 << 10];
        self.drain(&mut buffer);
        self.send(messages)?;
        let answer = received(self.receive(&mut buffer, MsgFlags::empty())?).next();
        match answer {
            Some(message) if message.kind == ERROR => {
                Err(failure(&message).unwrap_or_else(|| io::Error::other("no answer")))
            }
            answer => answer.and_then(read).ok_or_else(|| io::Error::other("the kernel's answer makes no sense")),
        }
    }

    /// Asks for a list, and hands on each of its parts.
    ///
    /// # Errors
    /// The kernel's.
    pub fn dump(&self, messages: &Messages, mut each: impl FnMut(Received<'_>)) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        self.drain(&mut buffer);
        self.send(messages)?;
        loop {
            let bytes = self.receive(&mut buffer, MsgFlags::empty())?;
            for message in received(bytes) {
                match message.kind {
                    DONE => return Ok(()),
                    ERROR => return failure(&message).map_or(Ok(()), Err),
                    _ => each(message),
                }
            }
        }
    }
}

/// What an error message says, if it is one and no acknowledgement.
fn failure(message: &Received<'_>) -> Option<io::Error> {
    let code = (message.kind == ERROR).then(|| message.payload.first_chunk())??;
    let code = i32::from_ne_bytes(*code);
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut messages = Messages::default();
        messages.begin(7, ACK, &[1, 2, 3, 4]).attr(1, b"abc").nest(2, |inner| {
            inner.text(3, "x").attr(4, &[]);
        });
        messages.begin(8, 0, &[]);
        let all: Vec<_> = received(messages.bytes()).collect();
        assert_eq!(all.iter().map(|m| m.kind).collect::<Vec<_>>(), [7, 8]);
        let attrs: Vec<_> = attributes(&all[0].payload[4..]).collect();
        assert_eq!(attrs[0], (1, &b"abc"[..]));
        assert_eq!(attributes(attrs[1].1).collect::<Vec<_>>(), [(3, &b"x\0"[..]), (4, &b""[..])]);
    }

    #[test]
    fn broken_datagrams_end() {
        for bytes in [&[][..], &[0; 16], &[255; 40], &[17, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]] {
            assert!(received(bytes).take(100).count() < 100);
            assert!(attributes(bytes).take(100).count() < 100);
        }
    }
}
