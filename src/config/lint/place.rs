//! Where a rule stands, and how its faults are reported.

use crate::config::findings::Findings;
use egret_core::rule::AppRule;

/// An application rule and its place in the configuration.
pub(super) struct AppPlace<'a> {
    pub(super) rule: &'a AppRule,
    pub(super) path: &'a str,
    /// Patterns that stand in the file itself; the others are in a list of their own.
    pub(super) inline: usize,
    pub(super) is_bundle: bool,
}

impl AppPlace<'_> {
    /// Bundles inform, rules warn. Of a rule's own list, the pattern's place.
    pub(super) fn say(&self, out: &mut Findings<'_>, pattern: Option<usize>, message: String) {
        if self.is_bundle {
            // The names are the documents'; there is nothing to write instead.
            let message = message.split("; write").next().unwrap_or_default();
            return out.note(self.path, format!("{}: {message}", self.rule.name));
        }
        let path = match pattern {
            Some(at) if at < self.inline => format!("{}.fqdns[{at}]", self.path),
            Some(_) => format!("{}.fqdns_file", self.path),
            None => self.path.to_owned(),
        };
        out.warn(&path, message);
    }
}
