//! Why a command failed, and so its exit code.

use crate::app::StartError;
use crate::config::ConfigError;
use crate::netfilter::KernelError;
use crate::privileges::PrivilegeError;

/// What went wrong with a command, and so its exit code.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Start(#[from] StartError),
    #[error("{0}")]
    Kernel(#[from] KernelError),
    #[error("{0}")]
    Privilege(#[from] PrivilegeError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl CommandError {
    pub(super) const fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage(_) => 2,
            Self::Start(_) | Self::Kernel(_) | Self::Privilege(_) | Self::Io(_) => 1,
        }
    }
}
