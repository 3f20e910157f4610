//! Addresses that were answered for names and stand for them: keeping them fresh, and on disk.

pub mod refresh;
pub mod settings;
pub mod state_file;
