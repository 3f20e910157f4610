//! What was made of files, and is made again when they change.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Files that something is made of.
pub trait Files {
    type Made;

    /// All of them.
    fn paths(&self) -> Vec<&Path>;

    /// Reads them.
    ///
    /// # Errors
    /// What is wrong with which.
    fn load(&self) -> Result<Self::Made, FileFault>;

    /// Reads them again after a change: what takes the place of what was, if anything, and what is wrong.
    fn reload(&self, _was: &Self::Made) -> (Option<Self::Made>, Option<FileFault>) {
        match self.load() {
            Ok(made) => (Some(made), None),
            Err(fault) => (None, Some(fault)),
        }
    }
}

/// Something wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct FileFault {
    /// The key that names the file; empty where it is about several.
    pub key: &'static str,
    pub message: String,
}

/// The newest good state of some files.
#[derive(Debug)]
pub struct Refreshed<F: Files> {
    files: F,
    made: RwLock<Arc<F::Made>>,
    seen: Mutex<Seen>,
}

/// What was seen of the files.
#[derive(Debug)]
struct Seen {
    /// When they were read last.
    stamps: Vec<Option<Stamp>>,
    /// What was wrong with them then, and has been logged; empty where nothing was.
    logged: String,
}

/// A file and how it was at some time.
pub type StampedFile = (PathBuf, Option<Stamp>);

/// What changes when a file does, behind all links; `None`: it is not there.
#[must_use]
pub fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    let changed = (meta.ctime(), meta.ctime_nsec());
    Some((meta.dev(), meta.ino(), meta.len(), (meta.mtime(), meta.mtime_nsec()), changed))
}

/// What changes when a file does: device and inode behind all links, length, times of contents and of the inode.
pub(super) type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

impl<F: Files> Refreshed<F> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// As [`Files::load`].
    pub fn load(files: F) -> Result<Self, FileFault> {
        // Stamped first: what changes while it is read is read again.
        let stamps = stamps(&files);
        let made = files.load()?;
        Ok(Self { files, made: RwLock::new(Arc::new(made)), seen: Mutex::new(Seen { stamps, logged: String::new() }) })
    }

    #[must_use]
    pub const fn files(&self) -> &F {
        &self.files
    }

    #[must_use]
    pub fn get(&self) -> Arc<F::Made> {
        Arc::clone(&self.made.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again if one has changed; `of` names their owner. A fault is logged once.
    pub fn refresh(&self, of: &str) {
        let now = stamps(&self.files);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have been the machine and not the file: what was wrong is tried again.
        if seen.stamps == now && seen.logged.is_empty() {
            return;
        }
        seen.stamps = now;
        let (made, fault) = self.files.reload(&self.get());
        let is_new = made.is_some();
        if let Some(made) = made {
            *self.made.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(made);
        }
        let names: Vec<String> = self.files.paths().iter().map(|path| path.display().to_string()).collect();
        let files = names.join(", ");
        match fault {
            None => {
                seen.logged.clear();
                tracing::info!(of, %files, "read again");
            }
            Some(fault) if seen.logged != fault.message => {
                let left = if is_new { "what cannot be used is left out" } else { "what was read before stays" };
                tracing::warn!(of, %files, error = %fault, "changed; {left}");
                seen.logged = fault.message;
            }
            Some(_) => {}
        }
    }
}

/// What is the same are the files, whatever is in them.
impl<F: Files + PartialEq> PartialEq for Refreshed<F> {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files
    }
}

impl<F: Files + Eq> Eq for Refreshed<F> {}

fn stamps(files: &impl Files) -> Vec<Option<Stamp>> {
    files.paths().into_iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::read_regular;

    /// A file whose text must not be "bad".
    struct Text(PathBuf);

    impl Files for Text {
        type Made = String;

        fn paths(&self) -> Vec<&Path> {
            vec![&self.0]
        }

        fn load(&self) -> Result<String, FileFault> {
            let text = read_regular(&self.0).map_err(|message| FileFault { key: "", message })?;
            let bad = FileFault { key: "", message: "bad".to_owned() };
            if text == "bad" { Err(bad) } else { Ok(text) }
        }

        fn reload(&self, _: &String) -> (Option<String>, Option<FileFault>) {
            match self.load() {
                Ok(text) => (Some(text), None),
                Err(fault) => (Some("nothing".to_owned()), Some(fault)),
            }
        }
    }

    #[test]
    fn whatever_the_path_leads_to_is_what_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("good"), "good").unwrap();
        std::fs::write(path("faulty"), "bad").unwrap();
        let lead_to = |name: &str| {
            let _ = std::fs::remove_file(path("link"));
            std::os::unix::fs::symlink(path(name), path("link")).unwrap();
        };
        lead_to("good");
        let files = Refreshed::load(Text(path("link"))).unwrap();
        let now = || {
            files.refresh("test");
            files.get().to_string()
        };
        assert_eq!(now(), "good");
        lead_to("faulty");
        assert_eq!(now(), "nothing");
        // Back to the very file that was good before.
        lead_to("good");
        assert_eq!(now(), "good");
        std::fs::remove_file(path("link")).unwrap();
        assert_eq!(now(), "nothing");
        lead_to("good");
        assert_eq!(now(), "good");
        // A device, or a pipe, is not a file, and is not waited for.
        lead_to("/dev/zero");
        assert_eq!(now(), "nothing");
    }
}
