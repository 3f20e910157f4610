//! What commands share: the configuration they are about, and where they print.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use super::error::CommandError;
use crate::config::{self, ConfigError, Settings};
use crate::learn::state_file;
use egret_core::learned::Learned;

/// What the configuration in the binary is called.
pub(super) const BUILT_IN: &str = "default.yaml";

pub(super) fn load(path: Option<&Path>) -> Result<Settings, ConfigError> {
    match path {
        Some(path) => Settings::load(path),
        None => Settings::parse(config::DEFAULT, BUILT_IN, Path::new(".")),
    }
}

/// What a configuration is called.
pub(super) fn judged(path: Option<&Path>) -> String {
    path.map_or_else(|| format!("{BUILT_IN} (built in)"), |path| path.display().to_string())
}

/// The store of learned addresses, with what was learned for the rules' names before.
pub(super) fn learned(settings: &Settings) -> Learned {
    let (learned, fault) = state_file::open(&settings.learn, &settings.rules);
    fault.iter().for_each(|fault| complain(&format!("egret: {fault}\n")));
    learned
}

/// Where stderr is closed, the exit code still says it.
pub(super) fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// A reader that went away (`| head`) is not an error.
pub(super) fn print(text: &str) -> Result<ExitCode, CommandError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
