//! One thing wrong with a configuration, and where.

/// A position in the text, both counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: u64,
    pub column: u64,
}

/// One thing wrong with a configuration, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub position: Position,
    /// Such as `policy.application_rules[2].fqdns[0]`; empty where no key is meant.
    pub path: String,
    pub message: String,
}

impl Fault {
    /// `egret.yaml:12:7: policy.mode: message`.
    #[must_use]
    pub fn at(&self, file: &str) -> String {
        let Position { line, column } = self.position;
        match (line, self.path.as_str()) {
            (0, _) => format!("{file}: {}", self.message),
            (_, "") => format!("{file}:{line}:{column}: {}", self.message),
            (_, path) => format!("{file}:{line}:{column}: {path}: {}", self.message),
        }
    }
}
