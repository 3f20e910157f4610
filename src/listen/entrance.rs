//! What one listener asks of those who come in, and does with their requests.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::claim::ClientAddr;
use crate::config::{ListenerKind, ListenerSettings};
use crate::identity::{FileFault, Refreshed, TlsFiles, UsersFile};

/// A listener, but for its socket.
#[derive(Debug)]
pub struct Entrance {
    /// Its name in the log, such as `forward:127.0.0.1:3128`.
    pub name: Arc<str>,
    pub kind: ListenerKind,
    /// Who must say whose connection it is; `None`: nobody may.
    pub proxies: Option<Vec<IpNet>>,
    pub tls: Option<Refreshed<TlsFiles>>,
    pub users: Option<Refreshed<UsersFile>>,
    pub adds: Adds,
}

/// What is said of the way in requests and answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adds {
    /// RFC 9110 §7.6.3.
    pub via: bool,
    pub forwarded_for: bool,
}

impl Entrance {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// The first one that cannot be used.
    pub fn new(settings: &ListenerSettings) -> Result<Self, FileFault> {
        let ListenerSettings { bind, kind, proxies, tls, users, adds } = settings;
        Ok(Self {
            name: format!("{}:{bind}", kind.as_str()).into(),
            kind: *kind,
            proxies: proxies.clone(),
            tls: tls.clone().map(Refreshed::load).transpose()?,
            users: users.clone().map(Refreshed::load).transpose()?,
            adds: *adds,
        })
    }

    /// Reads the files again that have changed.
    pub fn refresh(&self) {
        self.tls.iter().for_each(Refreshed::refresh);
        self.users.iter().for_each(Refreshed::refresh);
    }

    /// Whether a peer may say whose connection it is.
    #[must_use]
    pub fn is_proxy(&self, peer: IpAddr) -> bool {
        self.proxies.iter().flatten().any(|net| net.contains(&peer))
    }
}

impl Adds {
    /// Fields of a request from this client.
    #[must_use]
    pub fn to_request(self, client: ClientAddr) -> Vec<u8> {
        let mut fields = self.to_answer().to_vec();
        if self.forwarded_for {
            fields.extend(format!("X-Forwarded-For: {}\r\n", client.ip()).into_bytes());
        }
        fields
    }

    /// Fields of an answer.
    #[must_use]
    pub const fn to_answer(self) -> &'static [u8] {
        if self.via { b"Via: 1.1 egret\r\n" } else { b"" }
    }
}
