//! What a configuration says of listeners.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::files::Refreshed;
use crate::identity::{TlsFiles, UsersFile};
use egret_core::claim::ClientAddr;
use egret_core::wire::Expected;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSettings {
    pub bind: SocketAddr,
    pub kind: ListenerKind,
    /// Peers that must send the PROXY protocol; `None`: no peer may.
    pub proxies: Option<Vec<IpNet>>,
    pub tls: Option<Arc<Refreshed<TlsFiles>>>,
    pub users: Option<Arc<Refreshed<UsersFile>>>,
    pub adds: Adds,
}

/// What is said of the way in plain HTTP requests and answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adds {
    /// RFC 9110 §7.6.3.
    pub via: bool,
    pub forwarded_for: bool,
}

impl ListenerSettings {
    /// What the log calls it, such as `forward:127.0.0.1:3128`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}:{}", self.kind.as_str(), self.bind)
    }

    /// Whether a question sent to this place comes to it.
    #[must_use]
    pub fn answers_at(&self, place: SocketAddr, is_local: impl Fn(IpAddr) -> bool) -> bool {
        let takes_all = self.bind.ip().is_unspecified();
        self.kind == ListenerKind::Dns
            && self.bind.port() == place.port()
            && (self.bind.ip() == place.ip() || (takes_all && is_local(place.ip())))
    }

    /// Whether what a pod's own kernel redirects comes to it: it is led to loopback.
    #[must_use]
    pub fn takes_redirected(&self) -> bool {
        self.bind.ip().is_unspecified() || self.bind.ip().is_loopback()
    }

    /// Whether clients must identify themselves.
    #[must_use]
    pub fn identifies(&self) -> bool {
        self.users.is_some() || self.certifies()
    }

    /// Whether clients must show a certificate.
    #[must_use]
    pub fn certifies(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.files().client_ca.is_some())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    Forward,
    /// The port every name is dialled at.
    Sni {
        port: u16,
        /// What its clients may speak, as far as the port's rules allow it.
        speaks: Expected,
    },
    Transparent {
        capture: Capture,
        /// Whether upstreams see the client's address.
        preserve_source: bool,
    },
    /// Questions over UDP and TCP.
    Dns,
}

/// How the kernel hands connections over, and so where it says where they were going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Routed traffic: the socket's own address is the original destination.
    Tproxy,
    /// The machine's own traffic: netfilter remembers the original destination.
    Redirect,
}

impl ListenerKind {
    /// Whether the kernel hands it connections in this way.
    #[must_use]
    pub fn captures(self, by: Capture) -> bool {
        matches!(self, Self::Transparent { capture, .. } if capture == by)
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Sni { .. } => "sni",
            Self::Transparent { .. } => "transparent",
            Self::Dns => "dns",
        }
    }
}

impl Adds {
    /// Fields of a request from this client.
    #[must_use]
    pub fn to_request(self, client: ClientAddr, is_http_10: bool) -> Vec<u8> {
        let mut fields = self.via(is_http_10).to_vec();
        if self.forwarded_for {
            fields.extend(format!("X-Forwarded-For: {}\r\n", client.ip()).into_bytes());
        }
        fields
    }

    /// RFC 9110 §7.6.3: the version in which the message came.
    #[must_use]
    pub const fn via(self, is_http_10: bool) -> &'static [u8] {
        match (self.via, is_http_10) {
            (false, _) => b"",
            (true, true) => b"Via: 1.0 egret\r\n",
            (true, false) => b"Via: 1.1 egret\r\n",
        }
    }
}
