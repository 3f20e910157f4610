//! The table `inet egret` as text for `nft -f`.
//!
//! Chains are a function of what only a restart changes, and of the number of slots; everything else is an element of
//! a set. `prerouting` decides, once per flow; `forward` opens for what was decided and for nothing else.

use std::fmt::Write as _;

use super::names::{TABLE, TABLE_ID};
use super::plan::Plan;
use super::routes;
use super::table::{Table, each_action};

/// The whole table, which takes the place of an older one in one transaction.
#[must_use]
pub fn text(plan: &Plan, nonce: u64) -> String {
    let mut sets = Table::default();
    sets.changing_sets(plan);
    let fixed = Table::fixed(plan);
    let [allows, denies] = plan.slots;
    let id = format!("{}{allows}_{denies}_{nonce:016x}", id(plan));
    let body = format!("  set {id} {{ type mark; }}\n  counter {id} {{ }}\n{}{}", sets.text, fixed.text);
    replacing("what is not let out by name or address does not leave.", &body)
}

/// A table that takes the place of an older one in one transaction.
pub(super) fn replacing(what: &str, body: &str) -> String {
    format!("# egret: {what}\ntable inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{body}}}\n")
}

/// Tells two makings of one table apart.
#[must_use]
pub fn nonce() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// How the name of a table begins that was made of such a plan, whatever its sets hold and however many there are. Behind
/// it stand the slots for rules that allow and those for rules that deny.
pub(super) fn id(plan: &Plan) -> String {
    use std::hash::BuildHasher as _;
    let bare = Table::fixed(&Plan { slots: [0, 0], ..plan.clone() });
    format!("{TABLE_ID}{:016x}_", foldhash::quality::FixedState::default().hash_one(&bare.text))
}

/// The number of rules in all chains: another number in the kernel means that another program has changed them.
pub(super) fn rules(plan: &Plan, slots: [usize; 2]) -> usize {
    Table::fixed(&Plan { slots, ..plan.clone() }).rules
}

/// What `egret netfilter show` prints: the table, and the routes beside it.
#[must_use]
pub fn shown(plan: &Plan) -> String {
    let mut out = text(plan, 0);
    out.push_str("\n# The rules behind the numbers; those without one are room for a reload:\n");
    for (action, rule_sets, _) in each_action(plan) {
        for (number, set) in rule_sets.iter().enumerate() {
            let _ = writeln!(out, "#   {action}{number} = {}", set.rule);
        }
    }
    out.push_str("\n# And, before the table, the policy routes:\n");
    for command in routes::commands() {
        let _ = writeln!(out, "#   {command}");
    }
    out
}
