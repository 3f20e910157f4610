//! Reading a configuration, and the files that it names.

use std::fmt;
use std::path::Path;

use super::check::{self, Depth};
use super::fault::{Fault, Position};
use super::settings::Settings;
use crate::files::{StampedFile, read_bounded, stamp};

/// Why there are no settings.
#[derive(Debug)]
pub struct ConfigError {
    /// The file's name as given; `default.yaml` for the one in the binary.
    pub file: String,
    /// At least one, in the order of the text.
    pub faults: Vec<Fault>,
    /// Files that were read, or looked for, as they were before.
    pub files: Vec<StampedFile>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            writeln!(f, "{}", fault.at(&self.file))?;
        }
        write!(f, "{}: {} fault{}", self.file, self.faults.len(), if self.faults.len() == 1 { "" } else { "s" })
    }
}

impl Settings {
    /// Reads a configuration file, and the files it names.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::read(path, Depth::Load)
    }

    /// Reads a configuration file as [`Settings::load`] does, and also looks for what is probably not meant.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn lint(path: &Path) -> Result<Self, ConfigError> {
        Self::read(path, Depth::Lint)
    }

    /// The same for a text.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn lint_text(text: &str, file: &str) -> Result<Self, ConfigError> {
        Self::from_text(text, file, Path::new("."), Depth::Lint)
    }

    fn read(path: &Path, depth: Depth) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let own = (path.to_owned(), stamp(path));
        let text = read_bounded(path).map_err(|message| ConfigError {
            file: file.clone(),
            faults: vec![Fault { position: Position::default(), path: String::new(), message }],
            files: vec![own.clone()],
        })?;
        match Self::from_text(&text, &file, path.parent().unwrap_or_else(|| Path::new(".")), depth) {
            Ok(mut settings) => {
                settings.files.push(own);
                Ok(settings)
            }
            Err(mut error) => {
                error.files.push(own);
                Err(error)
            }
        }
    }

    /// Checks a configuration's text; relative paths in it start at `folder`.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn parse(text: &str, file: &str, folder: &Path) -> Result<Self, ConfigError> {
        Self::from_text(text, file, folder, Depth::Load)
    }

    pub(super) fn from_text(text: &str, file: &str, folder: &Path, depth: Depth) -> Result<Self, ConfigError> {
        let mut files = Vec::new();
        match check::settings(text, folder, depth, &mut files) {
            Ok(settings) => Ok(Self { files, ..settings }),
            Err(mut faults) => {
                faults.sort_by_key(|fault| fault.position);
                Err(ConfigError { file: file.to_owned(), faults, files })
            }
        }
    }
}
