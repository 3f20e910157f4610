//! Addresses that were answered for names and stand for them: keeping them fresh, and on disk. And synthetic addresses, which stand for names in answers.

pub mod refresh;
pub mod settings;
pub mod state_file;
pub mod steering;
