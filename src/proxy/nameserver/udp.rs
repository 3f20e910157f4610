//! Questions over UDP. An answer leaves from the address that was asked.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Nameserver;
use super::reply::MOST_OVER_UDP;
use crate::drain::DrainGuard;
use egret_core::wire::dns::DnsQuery;

/// Larger than any question.
const LARGEST: usize = 4096;
/// Questions that are taken before other tasks run.
const AT_ONCE: usize = 64;
/// What the kernel holds while egret is busy, in bytes.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Binds a socket for questions. An IPv6 wildcard takes IPv4 too.
///
/// # Errors
/// The kernel's.
pub fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
        setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, Ipv4PacketInfo, &true)?;
    }
    // What the system permits of it is enough.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Answers until a drain begins.
pub async fn serve(socket: UdpSocket, nameserver: Arc<Nameserver>, guard: DrainGuard) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; LARGEST];
    loop {
        let ready = tokio::select! {
            ready = socket.readable() => ready,
            () = guard.stopping() => return,
        };
        if let Err(error) = ready {
            tracing::error!(%error, listener = %nameserver.name, "questions over UDP are not taken any more");
            return;
        }
        for _ in 0..AT_ONCE {
            match socket.try_io(Interest::READABLE, || receive(&socket, &mut buffer)) {
                Ok(Some((len, way))) => take(&socket, &nameserver, buffer.get(..len).unwrap_or_default(), way),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Of an answer that did not arrive (ICMP), for example.
                Err(error) => tracing::debug!(%error, "a question could not be received"),
            }
        }
        tokio::task::yield_now().await;
    }
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

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<(usize, Ways)>> {
    let mut control = nix::cmsg_space!(in_pktinfo, in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let received =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    if received.flags.contains(MsgFlags::MSG_TRUNC) {
        return Ok(None);
    }
    let asked = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(Asked::V4(info)),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Asked::V6(info)),
        _ => None,
    });
    let client = received.address.as_ref().and_then(socket_address);
    Ok(client.map(|client| (received.bytes, Ways { client, asked })))
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::new(IpAddr::V4(v4.ip()), v4.port()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

/// Answers one message, at once where nothing must be waited for.
fn take(socket: &Arc<UdpSocket>, nameserver: &Arc<Nameserver>, message: &[u8], ways: Ways) {
    let query = match DnsQuery::read(message) {
        Ok(query) => query,
        Err(unreadable) => {
            unreadable.reply().into_iter().for_each(|reply| send(socket, &reply, ways));
            return;
        }
    };
    let mut share = nameserver.questions.share(nameserver.holder(&query, ways.client));
    if share.grow(1).is_err() {
        return send(socket, &nameserver.busy(&query, message, ways.client), ways);
    }
    let (socket, nameserver, message) = (Arc::clone(socket), Arc::clone(nameserver), message.to_vec());
    tokio::spawn(async move {
        let eviction = share.eviction();
        let reply = tokio::select! {
            reply = nameserver.write(&query, &message, ways.client, query.udp_room(MOST_OVER_UDP)) => reply,
            () = eviction.evicted() => nameserver.busy(&query, &message, ways.client),
        };
        send(&socket, &reply, ways);
    });
}

/// A reply that cannot be sent at once is lost: the client asks again.
fn send(socket: &UdpSocket, reply: &[u8], ways: Ways) {
    let parts = [IoSlice::new(reply)];
    let to = SockaddrStorage::from(ways.client);
    let sent = socket.try_io(Interest::WRITABLE, || {
        let mut from = ways.asked;
        let control = match &mut from {
            Some(Asked::V4(info)) => {
                info.ipi_ifindex = 0;
                vec![ControlMessage::Ipv4PacketInfo(info)]
            }
            Some(Asked::V6(info)) => {
                // A link-local address means nothing without its interface.
                if !Ipv6Addr::from(info.ipi6_addr.s6_addr).is_unicast_link_local() {
                    info.ipi6_ifindex = 0;
                }
                vec![ControlMessage::Ipv6PacketInfo(info)]
            }
            None => Vec::new(),
        };
        Ok(sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&to))?)
    });
    if let Err(error) = sent {
        tracing::debug!(%error, client = %ways.client, "an answer could not be sent");
    }
}
