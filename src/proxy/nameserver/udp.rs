//! Questions over UDP, many at a time. An answer leaves from the address that was asked.
//!
//! Threads of their own take questions and answer at once what is known or refused; only what must be asked of servers
//! becomes a task.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, sendmsg,
    setsockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Handle;

use super::reply::MOST_OVER_UDP;
use super::{LARGEST, Nameserver, Prompt};
use crate::drain::DrainGuard;
use egret_core::wire::dns::DnsQuery;

/// Questions that are taken, and answers that are sent, by one system call.
const AT_ONCE: usize = 32;
/// What the kernel holds while egret is busy, in bytes.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How often a thread that hears nothing looks whether it shall end.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Threads for one listener; each answers some hundred thousand questions a second.
const MOST_THREADS: usize = 4;

/// Binds a socket for questions. An IPv6 wildcard takes IPv4 too.
///
/// # Errors
/// The kernel's.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
        setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, Ipv4PacketInfo, &true)?;
    }
    // What the system permits of it is enough.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.set_read_timeout(Some(LOOK_EVERY))?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Starts the threads that answer until a drain begins. Must run inside a runtime.
///
/// # Errors
/// Where the system has no room for a thread.
pub fn start(socket: UdpSocket, nameserver: &Arc<Nameserver>, guard: DrainGuard) -> io::Result<()> {
    let (socket, guard) = (Arc::new(socket), Arc::new(guard));
    let is_over = Arc::new(AtomicBool::new(false));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for number in 0..(cores / 2).clamp(1, MOST_THREADS) {
        let listening = Listening {
            socket: Arc::clone(&socket),
            nameserver: Arc::clone(nameserver),
            runtime: Handle::current(),
            is_over: Arc::clone(&is_over),
            _guard: Arc::clone(&guard),
        };
        std::thread::Builder::new().name(format!("dns-{number}")).spawn(move || listening.run())?;
    }
    tokio::spawn(async move {
        guard.stopping().await;
        is_over.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Where a question came from, and to.
#[derive(Clone, Copy)]
struct Ways {
    client: SocketAddr,
    asked: Option<Asked>,
}

/// The address that was asked.
#[derive(Clone, Copy)]
enum Asked {
    V4(in_pktinfo),
    V6(in6_pktinfo),
}

/// One thread of a listener.
struct Listening {
    socket: Arc<UdpSocket>,
    nameserver: Arc<Nameserver>,
    runtime: Handle,
    is_over: Arc<AtomicBool>,
    /// The drain waits for it.
    _guard: Arc<DrainGuard>,
}

impl Listening {
    fn run(self) {
        let mut buffers = vec![[0; LARGEST]; AT_ONCE];
        let mut inbox = MultiHeaders::preallocate(AT_ONCE, Some(nix::cmsg_space!(in6_pktinfo)));
        let mut replies: Vec<(Vec<u8>, Ways)> = Vec::with_capacity(AT_ONCE);
        while !self.is_over.load(Ordering::Relaxed) {
            match self.receive(&mut inbox, &mut buffers, &mut replies) {
                Ok(()) => self.send_all(&mut replies),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                // Of an answer that did not arrive (ICMP), for example.
                Err(error) => tracing::debug!(%error, "questions could not be received"),
            }
        }
    }

    /// Waits for questions, and answers at once what can be.
    fn receive(
        &self,
        inbox: &mut MultiHeaders<SockaddrStorage>,
        buffers: &mut [[u8; LARGEST]],
        replies: &mut Vec<(Vec<u8>, Ways)>,
    ) -> nix::Result<()> {
        let mut parts: Vec<[IoSliceMut<'_>; 1]> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let received = recvmmsg(self.socket.as_raw_fd(), inbox, parts.iter_mut(), MsgFlags::MSG_WAITFORONE, None)?;
        for received in received {
            let Some(client) = received.address.as_ref().and_then(socket_address) else { continue };
            if received.flags.contains(MsgFlags::MSG_TRUNC) {
                self.nameserver.too_large(client);
                continue;
            }
            let Ok(mut control) = received.cmsgs() else { continue };
            let asked = control.find_map(|message| match message {
                ControlMessageOwned::Ipv4PacketInfo(info) => Some(Asked::V4(info)),
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(Asked::V6(info)),
                _ => None,
            });
            let Some(message) = received.iovs().next() else { continue };
            let ways = Ways { client, asked };
            replies.extend(self.take(message, ways).map(|reply| (reply, ways)));
        }
        Ok(())
    }

    /// Answers one message, where nothing must be waited for.
    fn take(&self, message: &[u8], ways: Ways) -> Option<Vec<u8>> {
        let nameserver = &self.nameserver;
        let query = match DnsQuery::read(message) {
            Ok(query) => query,
            Err(unreadable) => return nameserver.unreadable(unreadable, ways.client),
        };
        let room = query.udp_room(MOST_OVER_UDP);
        let judged = match nameserver.at_once(&query, message, ways.client) {
            Prompt::Answer(answer) => return Some(answer.write(&query, message, room)),
            Prompt::Ask(judged) => judged,
        };
        let Some(share) = nameserver.room_for(&judged) else {
            return Some(nameserver.busy(&query, message, ways.client));
        };
        let (socket, nameserver, message) = (Arc::clone(&self.socket), Arc::clone(nameserver), message.to_vec());
        self.runtime.spawn(async move {
            let reply = nameserver.reply((&judged, share), &query, &message, ways.client, room).await;
            send(&socket, &reply, ways);
        });
        None
    }

    /// Sends answers, those from one address together.
    fn send_all(&self, replies: &mut Vec<(Vec<u8>, Ways)>) {
        for group in replies.chunk_by(|(_, one), (_, other)| same(one.asked, other.asked)) {
            let Some((_, Ways { asked, .. })) = group.first() else { continue };
            let mut from = asked.map(outgoing);
            let (control, room) = match &mut from {
                Some(Asked::V4(info)) => {
                    (vec![ControlMessage::Ipv4PacketInfo(info)], Some(nix::cmsg_space!(in_pktinfo)))
                }
                Some(Asked::V6(info)) => {
                    (vec![ControlMessage::Ipv6PacketInfo(info)], Some(nix::cmsg_space!(in6_pktinfo)))
                }
                None => (Vec::new(), None),
            };
            let parts: Vec<[IoSlice<'_>; 1]> = group.iter().map(|(reply, _)| [IoSlice::new(reply)]).collect();
            let to: Vec<Option<SockaddrStorage>> = group.iter().map(|(_, ways)| Some(ways.client.into())).collect();
            let mut sent = 0;
            // One that cannot be sent is lost, and its client asks again; the others go on.
            while let (Some(parts), Some(to)) = (parts.get(sent..), to.get(sent..))
                && !parts.is_empty()
            {
                let mut headers = MultiHeaders::preallocate(parts.len(), room.clone());
                let flags = MsgFlags::MSG_DONTWAIT;
                let result = sendmmsg(self.socket.as_raw_fd(), &mut headers, parts, to, &control, flags);
                sent += result.map_or(0, Iterator::count).max(1);
            }
        }
        replies.clear();
    }
}

fn same(one: Option<Asked>, other: Option<Asked>) -> bool {
    match (one, other) {
        (Some(Asked::V4(one)), Some(Asked::V4(other))) => one == other,
        (Some(Asked::V6(one)), Some(Asked::V6(other))) => one == other,
        (None, None) => true,
        _ => false,
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::new(IpAddr::V4(v4.ip()), v4.port()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

/// The same for a reply, which takes whichever way leads to the client.
fn outgoing(asked: Asked) -> Asked {
    match asked {
        Asked::V4(info) => Asked::V4(in_pktinfo { ipi_ifindex: 0, ..info }),
        // A link-local address means nothing without its interface.
        Asked::V6(info) if Ipv6Addr::from(info.ipi6_addr.s6_addr).is_unicast_link_local() => asked,
        Asked::V6(info) => Asked::V6(in6_pktinfo { ipi6_ifindex: 0, ..info }),
    }
}

/// Sends one answer; what cannot be sent at once is lost, and its client asks again.
fn send(socket: &UdpSocket, reply: &[u8], Ways { client, asked }: Ways) {
    let (parts, from) = ([IoSlice::new(reply)], asked.map(outgoing));
    let control: Vec<ControlMessage<'_>> = match &from {
        Some(Asked::V4(info)) => vec![ControlMessage::Ipv4PacketInfo(info)],
        Some(Asked::V6(info)) => vec![ControlMessage::Ipv6PacketInfo(info)],
        None => Vec::new(),
    };
    let to = SockaddrStorage::from(client);
    let sent = sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&to));
    if let Err(error) = sent {
        tracing::debug!(%error, %client, "an answer could not be sent");
    }
}
