//! A name that egret keeps resolved, so that its addresses can stand for it: of a network rule, or a cluster's API
//! server, which clients dial by address.

use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use crate::name::HostName;

/// A name and the addresses found for it. Nothing is open before the first answer.
#[derive(Debug)]
pub struct Kept {
    name: HostName,
    /// With the time of the last answer that had them.
    addresses: RwLock<Vec<(IpAddr, Instant)>>,
}

impl Kept {
    #[must_use]
    pub fn new(name: HostName) -> Self {
        Self { name, addresses: RwLock::default() }
    }

    #[must_use]
    pub const fn name(&self) -> &HostName {
        &self.name
    }

    /// Replaces the addresses; they must have passed the guard.
    pub fn set(&self, addresses: Vec<(IpAddr, Instant)>) {
        // A panic while holding this lock is impossible: assignment only.
        *self.addresses.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    #[must_use]
    pub fn addresses(&self) -> Vec<(IpAddr, Instant)> {
        self.addresses.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.addresses.read().unwrap_or_else(PoisonError::into_inner).iter().any(|(known, _)| *known == ip)
    }
}
