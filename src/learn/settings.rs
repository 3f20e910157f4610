//! What a configuration says of addresses that stand for names.

use std::path::PathBuf;
use std::time::Duration;

use egret_core::steered::Pool;

/// How long addresses stand for names in network rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnSettings {
    pub refresh: Duration,
    pub remember: Duration,
    /// Whether what DNS clients are answered opens for the one alone that asked.
    pub opens_for_asker: bool,
    /// `None`: nothing outlives a restart.
    pub state_dir: Option<PathBuf>,
}

/// What a configuration says of synthetic addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteerSettings {
    pub pool: Pool,
    /// Where names outlive a restart.
    pub state_dir: PathBuf,
    /// How long an address stands for its name after it was last used.
    pub remember: Duration,
}
