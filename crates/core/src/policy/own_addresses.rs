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
    /// What the machine takes for its own; that may change while egret runs.
    local: RwLock<Vec<IpNet>>,
}

/// How an address is egret's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Own {
    /// An address of the machine's: a rule may open exactly this one (a server on the same machine).
    UnlessNamed,
    /// Never to be dialled, whatever a rule says.
    Always,
}

impl OwnAddresses {
    #[must_use]
    pub fn new(listeners: Vec<SocketAddr>, configured: Vec<IpNet>) -> Self {
        Self { listeners, configured, local: RwLock::default() }
    }

    /// Replaces the machine's addresses. Loopback is left out: it is a range of its own in the guard.
    pub fn set_local(&self, addresses: Vec<IpNet>) {
        let mut kept = addresses;
        kept.retain(|net| !net.network().is_loopback());
        // A panic while holding this lock is impossible: assignment only.
        *self.local.write().unwrap_or_else(std::sync::PoisonError::into_inner) = kept;
    }

    /// Whether an address is one of the machine's.
    #[must_use]
    pub fn is_local(&self, ip: IpAddr) -> bool {
        let (local, ip) = (self.local.read().unwrap_or_else(std::sync::PoisonError::into_inner), ip.to_canonical());
        local.iter().any(|net| net.contains(&ip))
    }

    /// Whether an address is egret's own; without a port, whether any port of it would be.
    pub(super) fn own(&self, ip: IpAddr, port: Option<u16>) -> Option<Own> {
        let ip = ip.to_canonical();
        let is_local = self.is_local(ip);
        let listens = self.listeners.iter().any(|listener| {
            let bound = listener.ip().to_canonical();
            let here = bound == ip || (bound.is_unspecified() && (is_local || ip.is_loopback()));
            Some(listener.port()) == port && (here || ip.is_unspecified())
        });
        if listens || self.configured.iter().any(|net| net.contains(&ip)) {
            return Some(Own::Always);
        }
        is_local.then_some(Own::UnlessNamed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(own: &OwnAddresses, address: &str, expected: Option<Own>) {
        let address: SocketAddr = address.parse().unwrap();
        assert_eq!(own.own(address.ip(), Some(address.port())), expected, "{address}");
    }

    #[test]
    fn a_listener_is_found_behind_every_spelling() {
        let own = OwnAddresses::new(
            vec!["127.0.0.1:3128".parse().unwrap(), "[::]:443".parse().unwrap()],
            vec!["203.0.113.7/32".parse().unwrap()],
        );
        own.set_local(vec![
            "10.0.0.4/32".parse().unwrap(),
            "10.9.0.0/16".parse().unwrap(),
            "127.0.0.0/8".parse().unwrap(),
        ]);
        check(&own, "127.0.0.1:3128", Some(Own::Always));
        check(&own, "[::ffff:127.0.0.1]:3128", Some(Own::Always));
        check(&own, "0.0.0.0:3128", Some(Own::Always));
        check(&own, "127.0.0.1:3129", None);
        check(&own, "10.0.0.4:443", Some(Own::Always));
        check(&own, "127.0.0.9:443", Some(Own::Always));
        check(&own, "10.0.0.4:444", Some(Own::UnlessNamed));
        check(&own, "10.0.0.5:443", None);
        check(&own, "10.9.1.2:444", Some(Own::UnlessNamed));
        check(&own, "203.0.113.7:9", Some(Own::Always));
        check(&own, "203.0.113.8:9", None);
    }
}
