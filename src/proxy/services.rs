//! What every connection shares.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::time::Instant;

use super::limits::Limits;
use super::listen::ConnectionLimit;
use super::peek::PeekLimits;
use super::upstream::OwnDials;
use crate::budget::Budget;
use crate::dns::Resolver;
use crate::learn::steering::Steering;
use crate::netfilter::LiveTable;
use crate::record::AccessLog;
use egret_core::learned::{Known, Learned};
use egret_core::policy::Policy;

/// What every connection shares.
#[derive(Debug)]
pub struct Services {
    pub policy: Current,
    pub dns: Arc<Resolver>,
    pub limits: Limits,
    /// Memory that all peeks may hold together.
    pub peek_memory: Arc<Budget>,
    pub connections: Arc<ConnectionLimit>,
    /// Addresses that are tried beside another one of their name.
    pub parallel_dials: Arc<Budget>,
    pub access_log: Arc<AccessLog>,
    /// This machine's addresses to dial from; empty: the system's choice.
    pub sources: Vec<IpAddr>,
    /// Addresses that stand for names.
    pub learned: Arc<Learned>,
    /// Synthetic addresses, where DNS clients are answered with them.
    pub steering: Option<Arc<Steering>>,
    /// The kernel's rules, on a next hop.
    pub table: Option<Arc<LiveTable>>,
    /// What egret dials, where the kernel leads this machine's own connections here.
    pub own_dials: Option<Arc<OwnDials>>,
}

impl Services {
    /// What has been learned, as of now.
    #[must_use]
    pub fn known(&self) -> Known<'_> {
        Known::at(&self.learned, Instant::now().into_std())
    }

    /// One deadline for all that a client must show, from now.
    pub fn peek_limits(&self) -> PeekLimits {
        let Limits { hello, head, peek, .. } = self.limits;
        PeekLimits { hello, head, until: Instant::now() + peek }
    }
}

/// The policy of the moment.
#[derive(Debug)]
pub struct Current(RwLock<(Arc<Policy>, u64)>);

impl Current {
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self(RwLock::new((Arc::new(policy), 0)))
    }

    /// What a connection or request is judged by, from its first question to its last.
    #[must_use]
    pub fn get(&self) -> Arc<Policy> {
        self.numbered().0
    }

    /// The same, and how many there were before it.
    #[must_use]
    pub fn numbered(&self) -> (Arc<Policy>, u64) {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another one in its place, and returns the old one.
    pub fn replace(&self, policy: Arc<Policy>) -> Arc<Policy> {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        current.1 += 1;
        std::mem::replace(&mut current.0, policy)
    }
}
