//! Which names have synthetic addresses in place of their own.

use std::net::IpAddr;
use std::sync::Arc;

use super::hosts::HostIndex;
use crate::name::HostName;
use crate::rule::pattern::Pattern;
use crate::rule::rules::Rules;
use crate::rule::{Action, AppRule, NetRule};
use crate::steered::Pool;

/// The names that have synthetic addresses: all, but those that some rule with `steer: false` lists.
#[derive(Clone, Debug, Default)]
pub struct SteeredNames {
    pool: Option<Pool>,
    exempt: Arc<HostIndex>,
}

impl PartialEq for SteeredNames {
    fn eq(&self, other: &Self) -> bool {
        let texts = |names: &Self| names.exempt.ids().map(|id| names.exempt.text(id).to_owned()).collect::<Vec<_>>();
        self.pool == other.pool && (Arc::ptr_eq(&self.exempt, &other.exempt) || texts(self) == texts(other))
    }
}

impl Eq for SteeredNames {}

impl SteeredNames {
    #[must_use]
    pub fn of(rules: &Rules) -> Self {
        let mut exempt = HostIndex::default();
        let apps = rules.apps.iter().filter(|rule| rule.action == Action::Allow && !rule.steer);
        let nets = rules.nets.iter().filter(|rule| rule.action == Action::Allow && !rule.steer);
        let patterns = apps.flat_map(|AppRule { fqdns, .. }| fqdns).chain(nets.flat_map(|NetRule { fqdns, .. }| fqdns));
        patterns.for_each(|pattern| _ = exempt.add(pattern, 0));
        let kept = rules.nets.iter().filter(|rule| !rule.steer).flat_map(|rule| &rule.kept);
        let kept = kept.filter_map(|name| Pattern::parse(name.name().as_str()).ok());
        kept.for_each(|pattern| _ = exempt.add(&pattern, 0));
        Self { pool: rules.pool, exempt: Arc::new(exempt) }
    }

    /// Whether a name has synthetic addresses.
    #[must_use]
    pub fn include(&self, name: &HostName) -> bool {
        self.pool.is_some() && !self.exempt(name)
    }

    /// Whether some rule wants the name's own addresses.
    #[must_use]
    pub fn exempt(&self, name: &HostName) -> bool {
        self.exempt.lists(name)
    }

    /// Whether an address is synthetic.
    #[must_use]
    pub fn is_synthetic(&self, ip: IpAddr) -> bool {
        self.pool.is_some_and(|pool| pool.contains(ip))
    }

    /// Whether what was learned for a name may lead clients there: an address of its own opens for every name behind it, and
    /// opens nothing where the name has a synthetic one.
    #[must_use]
    pub fn admit(&self, name: &HostName, ip: IpAddr) -> bool {
        self.is_synthetic(ip) == self.include(name)
    }
}
