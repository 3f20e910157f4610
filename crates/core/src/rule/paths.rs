//! Paths of plain HTTP requests: one spelling for all readers, and patterns held against it.
//!
//! A path that two servers could read differently has no such spelling, and no rule with `paths` allows it.

use globset::{GlobBuilder, GlobMatcher};

/// What a rule says of paths.
#[derive(Clone, Debug)]
pub struct PathPattern(Shape);

#[derive(Clone, Debug)]
enum Shape {
    /// The path itself and all under it.
    Under(Box<str>),
    Glob(Box<GlobMatcher>),
}

impl PathPattern {
    /// Reads `/dists`, which is the path and all under it, or a glob: `/pool/*/x?.deb`, `/pool/**`.
    ///
    /// # Errors
    /// A sentence that says what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("`{text}` is not a path; write it from the root, such as /{text}"));
        }
        if text.contains(['#', ' ']) || text.bytes().any(|b| !(0x20..0x7f).contains(&b)) {
            return Err(format!("`{text}` holds what no path does; write it percent-encoded"));
        }
        if text.contains(['*', '?', '[', '{']) {
            let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(false).build();
            let glob = glob.map_err(|e| format!("`{text}` is not a glob: {}", e.kind()))?;
            return Ok(Self(Shape::Glob(Box::new(glob.compile_matcher()))));
        }
        match normal(text) {
            Some(plain) if plain == text => Ok(Self(Shape::Under(text.trim_end_matches('/').into()))),
            Some(plain) => Err(format!("`{text}` is matched in its plain spelling; write {plain}")),
            None => Err(format!(
                "`{text}` has no plain spelling, so that nothing could match it; write it without encoded slashes and dots"
            )),
        }
    }

    /// Whether a path in its plain spelling fits.
    #[must_use]
    pub fn fits(&self, plain: &str) -> bool {
        match &self.0 {
            Shape::Under(front) => {
                plain.strip_prefix(&**front).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Shape::Glob(glob) => glob.is_match(plain),
        }
    }
}

/// The plain spelling of a request's path, without its query: RFC 3986 §6.2.2, and runs of slashes as one.
/// `None` where servers disagree: encoded slashes, backslashes and control characters, bytes that are not UTF-8,
/// characters that some of them take for a slash or a dot, what is encoded twice, what leads above the root, and dots
/// with parameters.
#[must_use]
pub fn normal(target: &str) -> Option<String> {
    let path = target.split('?').next().unwrap_or_default();
    let decoded = decode(path.as_bytes())?;
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = decoded.split('/');
    if segments.next() != Some("") || decoded.is_empty() {
        return None;
    }
    let mut ends_in_slash = false;
    for segment in segments {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()?),
            // Some servers cut parameters off before they look at dots.
            dots if is_dots_with_parameters(dots) => return None,
            segment => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(decoded.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if ends_in_slash || kept.is_empty() {
        out.push('/');
    }
    Some(out)
}

/// Some servers take parameters off before they look at dots, and some of these decode first.
fn is_dots_with_parameters(segment: &str) -> bool {
    let end = segment.find(';').into_iter().chain(segment.find("%3B")).min();
    end.and_then(|end| segment.get(..end)).is_some_and(|front| matches!(front, "" | "." | ".."))
}

/// Whether a server may take a character for a slash, a backslash or a dot: those that Unicode's compatibility
/// mapping (UAX #15, NFKC) or the best-fit tables of Windows lead there, and what does not print.
fn is_confusable(c: char) -> bool {
    // Every character whose NFKC form holds one of `./\\%;`: leaders, account-of signs, numbers with a full stop,
    // abbreviations, and full-width and small forms.
    let by_mapping =
        matches!(c, '\u{37e}' | '\u{2024}'..='\u{2026}' | '\u{2100}' | '\u{2101}' | '\u{2105}' | '\u{2106}')
            || matches!(c, '\u{2488}'..='\u{249b}' | '\u{33c2}' | '\u{33c7}' | '\u{33d8}' | '\u{1f100}')
            || matches!(c, '\u{fe14}' | '\u{fe19}' | '\u{fe30}' | '\u{fe52}' | '\u{fe54}' | '\u{fe68}' | '\u{fe6a}')
            || matches!(c, '\u{ff05}' | '\u{ff0e}' | '\u{ff0f}' | '\u{ff1b}' | '\u{ff3c}');
    let by_likeness =
        matches!(c, '\u{2044}' | '\u{2215}' | '\u{2216}' | '\u{29f8}' | '\u{29f9}' | '\u{3002}' | '\u{ff61}');
    by_mapping || by_likeness || c.is_control()
}

/// Unreserved characters as themselves, everything else encoded in capitals.
fn decode(path: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'\\' => return None,
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                let byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                rest = after;
                bytes.push(byte);
                match byte {
                    b'/' | b'\\' => return None,
                    b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
                    byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
                    byte => out.push_str(&format!("%{byte:02X}")),
                }
            }
            byte => {
                bytes.push(*byte);
                out.push(char::from(*byte));
            }
        }
    }
    // Encoded twice: some servers decode twice.
    let is_encoded = |three: &[u8]| matches!(three, [b'%', a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    if bytes.windows(3).any(is_encoded) {
        return None;
    }
    let meant = std::str::from_utf8(&bytes).ok()?;
    (!meant.contains(is_confusable)).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_spelling_or_none() {
        for (written, plain) in [
            ("/", "/"),
            ("/a/b?x=/../y", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("//a///b//", "/a/b/"),
            ("/%61%2Eb/%2e%2E/c", "/c"),
            ("/a%20b%3f", "/a%20b%3F"),
            ("/a%25", "/a%25"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/a%3bv/%C3%A4%e2%82%ac", "/a%3Bv/%C3%A4%E2%82%AC"),
            ("/a%e2%80%93b", "/a%E2%80%93b"),
        ] {
            assert_eq!(normal(written).as_deref(), Some(plain), "{written}");
            assert_eq!(normal(plain).as_deref(), Some(plain), "a plain spelling is its own");
        }
        for written in [
            "",
            "a",
            "*",
            "/..",
            "/a/../..",
            "/%2e%2e/a",
            "/a%2fb",
            "/a%5Cb",
            "/a\\b",
            "/a%00",
            "/%",
            "/%2",
            "/%zz",
            "/%+1",
            "/a/%252e%252e",
            "/a/..;/b",
            "/.;x/b",
            "/;/b",
            "/a/..%3bx/b",
            "/%3b/b",
            "/a%0d%0ab",
            "/a%09",
            "/a%7f",
            "/a%1b",
            "/%c0%ae%c0%ae/b",
            "/a%c0%afb",
            "/a%ff",
            "/a%c2",
            "/a%c2%85",
            "/a%ef%bc%8fb",
            "/%ef%bc%8e%ef%bc%8e/b",
            "/a%ef%bc%bcb",
            "/%e2%80%a5/b",
            "/a%e2%88%95b",
            "/a/%25%32%65%25%32%65/b",
            "/a/%252%65/b",
            "/a/%EF%B8%B0/b",
            "/a/%e2%84%85b",
            "/a%ef%bc%85b",
        ] {
            assert_eq!(normal(written), None, "{written}");
        }
    }

    #[test]
    fn patterns_hold_where_they_say() {
        let fits = |pattern: &str, path: &str| PathPattern::parse(pattern).unwrap().fits(&normal(path).unwrap());
        assert!(fits("/dists", "/dists") && fits("/dists", "/dists/") && fits("/dists", "/dists/x/y"));
        assert!(!fits("/dists", "/distsx") && !fits("/dists", "/dist") && !fits("/dists", "/x/dists"));
        assert!(!fits("/dists", "/dists/../pool") && fits("/dists/", "/dists/x") && fits("/", "/anything"));
        assert!(fits("/pool/*/x?.deb", "/pool/main/xy.deb") && !fits("/pool/*/x?.deb", "/pool/a/b/xy.deb"));
        assert!(fits("/pool/**", "/pool/a/b/c") && !fits("/pool/**", "/poo/a"));
        for (bad, says) in [
            ("dists", "write it from the root, such as /dists"),
            ("/a b", "percent-encoded"),
            ("/a#b", "percent-encoded"),
            ("/a/../b", "write /b"),
            ("/a%2fb", "has no plain spelling"),
            ("/[a", "is not a glob"),
        ] {
            let fault = PathPattern::parse(bad).unwrap_err();
            assert!(fault.contains(says), "{bad}: {fault}");
        }
    }
}
