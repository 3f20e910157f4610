//! What was made of files, and is made again when they change.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
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
    stamps: Mutex<Vec<Option<Stamp>>>,
}

/// What changes when a file does: device and inode behind all links, length, times of contents and of the inode.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

impl<F: Files> Refreshed<F> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// As [`Files::load`].
    pub fn load(files: F) -> Result<Self, FileFault> {
        // Stamped first: what changes while it is read is read again.
        let stamps = stamps(&files);
        let made = files.load()?;
        Ok(Self { files, made: RwLock::new(Arc::new(made)), stamps: Mutex::new(stamps) })
    }

    #[must_use]
    pub fn get(&self) -> Arc<F::Made> {
        Arc::clone(&self.made.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again if one has changed. What cannot be read changes nothing, and is told of once.
    pub fn refresh(&self) {
        let now = stamps(&self.files);
        {
            let mut seen = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == now {
                return;
            }
            *seen = now;
        }
        let names: Vec<String> = self.files.paths().iter().map(|path| path.display().to_string()).collect();
        let files = names.join(", ");
        match self.files.load() {
            Ok(made) => {
                *self.made.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(made);
                tracing::info!(%files, "read again");
            }
            Err(error) => tracing::warn!(%files, %error, "changed, and cannot be used; what was read before stays"),
        }
    }
}

fn stamps(files: &impl Files) -> Vec<Option<Stamp>> {
    let stamp = |path: &Path| {
        let meta = std::fs::metadata(path).ok()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Some((meta.dev(), meta.ino(), meta.len(), (meta.mtime(), meta.mtime_nsec()), changed))
    };
    files.paths().into_iter().map(stamp).collect()
}
