//! Names in the table: its own, those of its sets, and those of its counters.

use egret_core::outcome::Reason;

/// The group that refused packets are copied to (nfnetlink_log).
pub const LOG_GROUP: u16 = 1129;

/// The table's name, in the family `inet`.
pub const TABLE: &str = "egret";

/// The switches of forwarding, IPv4 and IPv6.
pub const FORWARDING: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// Why packets are refused in the table: a chain and a counter for each.
pub const REASONS: &[Reason] = &[
    Reason::NoRule,
    Reason::RuleDenied,
    Reason::SourceNotAllowed,
    Reason::OwnAddress,
    Reason::NoFlow,
    Reason::ProtocolDenied,
    Reason::QuicDenied,
    Reason::RateLimited,
];

/// The names of a slot's sets, such as `allow0_sources4`.
#[must_use]
pub fn set_name(action: &str, number: usize, what: &str) -> String {
    format!("{action}{number}_{what}")
}

/// How the table's name for itself begins: a set and a counter have it, and each change of sets demands the set.
pub const TABLE_ID: &str = "table_";

/// The slots of a table of egret's, whatever it was made of.
pub(super) fn any_slots(table: &str) -> Option<[usize; 2]> {
    let (hash, _) = table.strip_prefix(TABLE_ID)?.split_once('_')?;
    slots(table, &format!("{TABLE_ID}{hash}_"))
}

/// The slots of a table of this name, where it was made of a plan that names it so.
pub(super) fn slots(table: &str, id: &str) -> Option<[usize; 2]> {
    let mut parts = table.strip_prefix(id)?.split('_');
    Some([parts.next()?.parse().ok()?, parts.next()?.parse().ok()?])
}
