//! Why a look-up brought no addresses.

use std::sync::Arc;

use egret_core::outcome::{Hint, Reason, Refusal, Stage};

/// Why a look-up brought no addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NoAnswer {
    pub(super) reason: Reason,
    /// What each server said, for the log.
    pub(super) words: Arc<str>,
    /// Whether former answers may stand in.
    pub(super) is_passing: bool,
}

impl NoAnswer {
    pub(super) fn of(reason: Reason, words: &str) -> Self {
        Self { reason, words: words.into(), is_passing: false }
    }
}

impl From<NoAnswer> for Refusal {
    fn from(NoAnswer { reason, words, .. }: NoAnswer) -> Self {
        let nearest = (!words.is_empty()).then(|| words.to_string());
        Self::new(reason, Stage::Dns).with(Hint { nearest, ..Hint::default() })
    }
}
