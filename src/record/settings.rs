//! What a configuration says of the access log.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    pub format: LogFormat,
    pub output: LogOutput,
    pub access: LogAccess,
    pub overflow: LogOverflow,
    /// Whether flows that the kernel let out have a line.
    pub net_all: bool,
    /// How long something is open before it has a line; `None`: it has one at its end.
    pub open: Option<Duration>,
    /// Whether connections without a byte have a line.
    pub empty: bool,
}

/// What happens where lines come faster than they can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOverflow {
    /// Lines are lost, and counted.
    Drop,
    /// New connections and requests wait.
    Block,
}

/// Which lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogAccess {
    All,
    Refused,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    Stdout,
    Stderr,
    File(PathBuf),
}

impl fmt::Display for LogOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::Stderr => f.write_str("stderr"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}
