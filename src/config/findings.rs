//! Where faults, warnings and notes are gathered.

use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::document::Node;
use super::fault::Fault;
use crate::files::{StampedFile, stamp};
use egret_core::rule::prefixes::prefix;

/// Where faults and warnings are gathered; knows where each key path stands.
pub(super) struct Findings<'a> {
    pub(super) tree: &'a Node,
    pub(super) folder: &'a Path,
    /// Files that the policy names.
    pub(super) files: &'a mut Vec<StampedFile>,
    /// Whether the kernel carries what egret itself does not.
    pub(super) has_kernel: bool,
    /// Whether its rules are made once, by another process.
    pub(super) is_sidecar: bool,
    /// Whether egret answers DNS clients.
    pub(super) answers_dns: bool,
    pub(super) is_fleet: bool,
    pub(super) faults: Vec<Fault>,
    /// The first so many are about the shape.
    pub(super) shape_faults: usize,
    pub(super) warnings: Vec<Fault>,
    pub(super) notes: Vec<Fault>,
}

impl Findings<'_> {
    pub(super) fn fault(&mut self, path: &str, message: impl Into<String>) {
        // A part with a wrong key in it has its fault; what is missing there may be that very key.
        let below = |fault: &Fault| fault.path.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '[']));
        if self.faults.iter().take(self.shape_faults).any(below) {
            return;
        }
        let position = self.tree.position_of(path);
        self.faults.push(Fault { position, path: path.to_owned(), message: message.into() });
    }

    pub(super) fn warn(&mut self, path: &str, message: impl Into<String>) {
        let position = self.tree.position_of(path);
        self.warnings.push(Fault { position, path: path.to_owned(), message: message.into() });
    }

    pub(super) fn note(&mut self, path: &str, message: impl Into<String>) {
        let position = self.tree.position_of(path);
        self.notes.push(Fault { position, path: path.to_owned(), message: message.into() });
    }

    /// The value, or its fault noted.
    pub(super) fn keep<T>(&mut self, path: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|message| self.fault(path, message)).ok()
    }

    /// A file that the policy names.
    pub(super) fn policy_file(&mut self, name: &str) -> PathBuf {
        let file = self.folder.join(name);
        // Before it is read: what changes meanwhile is seen as a change.
        self.files.push((file.clone(), stamp(&file)));
        file
    }

    pub(super) fn nets(&mut self, path: &str, texts: &[String]) -> Vec<IpNet> {
        let read = |(at, text): (usize, &String)| self.keep(&format!("{path}[{at}]"), prefix(text));
        texts.iter().enumerate().filter_map(read).collect()
    }
}
