//! What changed between two editions, row by row.

use std::collections::BTreeMap;

use super::rows::{Bundle, Date, Row};

/// A row that is not the same in two editions.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    pub cloud: &'a str,
    pub id: &'a str,
    /// `None`: added.
    pub old: Option<&'a Row>,
    /// `None`: removed.
    pub new: Option<&'a Row>,
}

impl Change<'_> {
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match (self.old, self.new) {
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        }
    }
}

/// Added, removed and changed rows, by cloud and in the order of their names.
#[must_use]
pub fn diff<'a>(bundle: &'a Bundle, old: &Date, new: &Date) -> Vec<Change<'a>> {
    let mut out = Vec::new();
    for cloud in bundle.clouds.keys() {
        let at = |date: &Date| -> BTreeMap<&str, &Row> {
            let rows = bundle.rows.iter().filter(|row| row.is_for(cloud) && row.in_force(date));
            rows.map(|row| (row.id.as_str(), row)).collect()
        };
        let (before, after) = (at(old), at(new));
        let mut ids: Vec<&str> = before.keys().chain(after.keys()).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let (old, new) = (before.get(id).copied(), after.get(id).copied());
            if old.zip(new).is_some_and(|(old, new)| same(old, new)) {
                continue;
            }
            out.push(Change { cloud, id, old, new });
        }
    }
    out
}

/// Whether two rows open the same for the same.
fn same(a: &Row, b: &Row) -> bool {
    a.fqdns == b.fqdns
        && a.destinations == b.destinations
        && a.protocols == b.protocols
        && a.need == b.need
        && a.features == b.features
        && a.os == b.os
        && a.when == b.when
        && a.unless == b.unless
        && a.unless_clouds == b.unless_clouds
        && a.except == b.except
        && a.narrowed_by == b.narrowed_by
}
