//! What a configuration says of addresses that stand for names.

use std::path::PathBuf;
use std::time::Duration;

/// How long addresses stand for names in network rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnSettings {
    pub refresh: Duration,
    pub remember: Duration,
    /// `None`: nothing outlives a restart.
    pub state_dir: Option<PathBuf>,
}
