//! The kernel's part of a next hop: which flows come to egret, which are let through by address, and that nothing
//! else leaves.
//!
//! ```text
//! Settings ──▶ Plan ──▶ ruleset (text, for `nft`) ──▶ table inet egret
//!               │  └──▶ routes (netlink) ──▶ ip rules: no way for clients but by egret's mark
//!               └──▶ elements ──▶ batch (netlink) ──▶ what changes while egret runs: set elements, never chains
//! ```
//!
//! Two barriers, each enough by itself. The table decides once per flow, at its first packet, and writes the decision
//! into the flow's conntrack mark: **captured** (comes to egret, never leaves the forward chain) or **forwarded**. The
//! policy routes give what carries no such mark no way out, so that a flushed table closes.

mod apply;
mod batch;
mod chains;
pub mod conntrack;
pub mod elements;
pub mod error;
pub mod live_table;
pub mod marks;
pub mod names;
pub mod nflog;
pub mod packet;
pub mod plan;
mod routes;
pub mod ruleset;
pub mod settings;
pub mod sidecar;
mod slots;
mod sysctl;
mod table;
pub mod writer;

pub use apply::{apply, apply_sidecar, remove, remove_what_is_there};
pub use error::{KernelError, may_apply};
pub use live_table::LiveTable;
pub use plan::Plan;
pub use sidecar::Sidecar;
