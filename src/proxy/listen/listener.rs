//! What one listener asks of its clients, and does with their requests.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::limit::{ConnectionLimit, ConnectionSlot};
use super::settings::{Adds, Capture, ListenerKind, ListenerSettings};
use crate::files::Refreshed;
use crate::identity::{TlsFiles, UsersFile};
use egret_core::claim::{ClientAddr, OriginalDst};
use egret_core::outcome::{Reason, Refusal};

/// A listener, but for its socket.
#[derive(Debug)]
pub struct Listener {
    /// Its name in the log, such as `forward:127.0.0.1:3128`.
    pub name: Arc<str>,
    pub kind: ListenerKind,
    bind: SocketAddr,
    /// Peers that must send the PROXY protocol; `None`: no peer may.
    pub proxies: Option<Vec<IpNet>>,
    pub tls: Option<Arc<Refreshed<TlsFiles>>>,
    pub users: Option<Arc<Refreshed<UsersFile>>>,
    pub adds: Adds,
    /// A contact for refused clients.
    pub contact: Option<Arc<str>>,
}

impl Listener {
    #[must_use]
    pub fn new(settings: &ListenerSettings, contact: Option<Arc<str>>) -> Self {
        let ListenerSettings { bind, kind, proxies, tls, users, adds } = settings.clone();
        Self { name: settings.name().into(), kind, bind, proxies, tls, users, adds, contact }
    }

    /// Where a connection was going before the kernel handed it over; `None` on listeners that clients dial.
    ///
    /// # Errors
    /// `no_original_dst`: the client dialled the listener itself.
    pub fn original_dst(&self, stream: &TcpStream) -> Result<Option<OriginalDst>, Refusal> {
        let ListenerKind::Transparent { capture, .. } = self.kind else { return Ok(None) };
        let socket = SockRef::from(stream);
        let local = stream.local_addr().ok();
        let dst = match capture {
            Capture::Tproxy => local.filter(|dst| dst.port() != self.bind.port()),
            Capture::Redirect => {
                let v4 = local.is_some_and(|local| local.ip().to_canonical().is_ipv4());
                let asked = if v4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
                let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
                let dst = asked.ok().and_then(|dst| dst.as_socket());
                dst.filter(|dst| Some(plain(*dst)) != local.map(plain))
            }
        };
        let dst = dst.map(|dst| OriginalDst(SocketAddr::new(dst.ip().to_canonical(), dst.port())));
        dst.map(Some).ok_or_else(|| Refusal::at_claim(Reason::NoOriginalDst, "the client dialled the listener itself"))
    }

    /// Whether one address is that of every client: on loopback, and where the kernel redirects this machine's own
    /// connections.
    #[must_use]
    pub fn has_shared_address(&self) -> bool {
        self.proxies.is_none() && (self.bind.ip().is_loopback() || self.kind.captures(Capture::Redirect))
    }

    /// A slot for a connection, if there is one. With the PROXY protocol, the client is not known yet.
    #[must_use]
    pub fn admit(&self, limit: &Arc<ConnectionLimit>, peer: SocketAddr) -> Option<ConnectionSlot> {
        let client = ClientAddr(peer).ip();
        let counted = limit.counts(client, self.has_shared_address()).filter(|_| self.proxies.is_none());
        limit.enter(counted)
    }

    /// Reads the files again that have changed.
    pub fn refresh(&self) {
        self.tls.iter().for_each(|files| files.refresh(&self.name));
        self.users.iter().for_each(|file| file.refresh(&self.name));
    }

    /// Whether a peer may say whose connection it is.
    #[must_use]
    pub fn is_proxy(&self, peer: IpAddr) -> bool {
        self.proxies.iter().flatten().any(|net| net.contains(&peer))
    }
}
