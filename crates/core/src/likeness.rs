//! How alike two words are: for "did you mean" and for the rule that almost matched.

/// Letters that may differ before a likeness is chance.
pub(crate) const MAX_TYPOS: usize = 2;

/// The number of single-letter changes between two texts, if there are [`MAX_TYPOS`] at most.
#[must_use]
pub(crate) fn typos(a: &str, b: &str) -> Option<usize> {
    // Most pairs differ in length, and need no table.
    let may_be = a.len().abs_diff(b.len()) <= MAX_TYPOS;
    may_be.then(|| strsim::levenshtein(a, b)).filter(|typos| *typos <= MAX_TYPOS)
}

/// The most alike of some words, or none.
pub fn closest<'a>(word: &str, among: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    among.into_iter().filter_map(|other| typos(word, other).map(|n| (n, other))).min().map(|(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_letters_apart_is_alike() {
        assert_eq!(typos("github.com", "github.com"), Some(0));
        assert_eq!(typos("github.com", "gihub.com"), Some(1));
        assert_eq!(typos("github.com", "guthib.com"), Some(2));
        assert_eq!(typos("github.com", "bitbucket.org"), None);
        assert_eq!(typos("github.com", "github.example"), None);
        assert_eq!(typos("", "ab"), Some(2));
        assert_eq!(closest("fqdn", ["fqdns", "fqdns_file", "name"]), Some("fqdns"));
    }
}
