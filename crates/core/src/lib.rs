//! What egret decides, and what it decides by: names, claims, rules, the policy, and every reader of peer bytes.
//!
//! Pure: no socket, no file, no log, and no clock; where time matters, it is an argument.

#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

pub mod answers;
pub mod claim;
pub mod credentials;
pub mod learned;
pub mod likeness;
pub mod name;
pub mod outcome;
pub mod policy;
pub mod rule;
pub mod steered;
pub mod wire;
