//! The wildcards of a network rule: which of the names that have been learned are its own.

use std::sync::Arc;

use super::hosts::HostIndex;
use crate::rule::{LearnedName, NetRule, Reach};

/// The wildcards of one network rule, and where its names may lead.
#[derive(Clone, Debug)]
pub struct Wild {
    index: Arc<HostIndex>,
    reach: Reach,
}

impl Wild {
    /// `None`: the rule lists exact names only.
    #[must_use]
    pub fn of(rule: &NetRule) -> Option<Self> {
        let mut index = HostIndex::default();
        for pattern in rule.fqdns.iter().filter(|pattern| pattern.exact().is_none()) {
            index.add(pattern, 0);
        }
        (!index.is_empty()).then(|| Self { index: Arc::new(index), reach: rule.reach.clone() })
    }

    /// Whether addresses that were learned for a name are the rule's.
    #[must_use]
    pub fn covers(&self, name: &LearnedName) -> bool {
        *name.reach() == self.reach && self.index.lists(name.name())
    }

    /// Where its names may lead.
    #[must_use]
    pub const fn reach(&self) -> &Reach {
        &self.reach
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.index.ids().map(|pattern| self.index.text(pattern))
    }
}

impl PartialEq for Wild {
    fn eq(&self, other: &Self) -> bool {
        self.reach == other.reach && self.texts().eq(other.texts())
    }
}

impl Eq for Wild {}
