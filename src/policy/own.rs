//! egret's own addresses: the ones no name may ever lead to.

use std::net::{IpAddr, SocketAddr};
use std::sync::RwLock;

use ipnet::IpNet;

/// What egret listens on, what its machine is called, and what the operator added.
#[derive(Debug, Default)]
pub struct OwnAddresses {
    /// Every socket egret has bound, admin and health among them.
    listeners: Vec<SocketAddr>,
    /// `own_addresses`: a fleet's frontend, for example.
    configured: Vec<IpNet>,
    /// The machine's interfaces; they may change while egret runs.
    interfaces: RwLock<Vec<IpAddr>>,
}

/// How an address is egret's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Own {
    /// An interface's address: a rule may open exactly this one (a server on the same machine).
    UnlessNamed,
    /// Never to be dialled, whatever a rule says.
    Always,
}

impl OwnAddresses {
    #[must_use]
    pub fn new(listeners: Vec<SocketAddr>, configured: Vec<IpNet>) -> Self {
        Self { listeners, configured, interfaces: RwLock::default() }
    }

    /// Replaces the interfaces' addresses. Loopback is left out: it is a range of its own in the guard.
    pub fn set_interfaces(&self, addresses: Vec<IpAddr>) {
        let mut kept = addresses;
        kept.retain(|ip| !ip.is_loopback());
        // A panic while holding this lock is impossible: assignment only.
        *self.interfaces.write().unwrap_or_else(std::sync::PoisonError::into_inner) = kept;
    }

    /// Whether an address is one of the machine's interfaces'.
    #[must_use]
    pub fn is_interface(&self, ip: IpAddr) -> bool {
        let interfaces = self.interfaces.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        interfaces.iter().any(|own| own.to_canonical() == ip.to_canonical())
    }

    pub(super) fn own(&self, address: SocketAddr) -> Option<Own> {
        let ip = address.ip().to_canonical();
        let on_interface = self.is_interface(ip);
        let listens = self.listeners.iter().any(|listener| {
            let bound = listener.ip().to_canonical();
            let here = bound == ip || (bound.is_unspecified() && (on_interface || ip.is_loopback()));
            listener.port() == address.port() && (here || ip.is_unspecified())
        });
        if listens || self.configured.iter().any(|net| net.contains(&ip)) {
            return Some(Own::Always);
        }
        on_interface.then_some(Own::UnlessNamed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(own: &OwnAddresses, address: &str, expected: Option<Own>) {
        assert_eq!(own.own(address.parse().unwrap()), expected, "{address}");
    }

    #[test]
    fn a_listener_is_found_behind_every_spelling() {
        let own = OwnAddresses::new(
            vec!["127.0.0.1:3128".parse().unwrap(), "[::]:443".parse().unwrap()],
            vec!["203.0.113.7/32".parse().unwrap()],
        );
        own.set_interfaces(vec!["10.0.0.4".parse().unwrap(), "127.0.0.1".parse().unwrap()]);
        check(&own, "127.0.0.1:3128", Some(Own::Always));
        check(&own, "[::ffff:127.0.0.1]:3128", Some(Own::Always));
        check(&own, "0.0.0.0:3128", Some(Own::Always));
        check(&own, "127.0.0.1:3129", None);
        check(&own, "10.0.0.4:443", Some(Own::Always));
        check(&own, "127.0.0.9:443", Some(Own::Always));
        check(&own, "10.0.0.4:444", Some(Own::UnlessNamed));
        check(&own, "10.0.0.5:443", None);
        check(&own, "203.0.113.7:9", Some(Own::Always));
        check(&own, "203.0.113.8:9", None);
    }
}
