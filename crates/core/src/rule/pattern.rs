//! The pattern language of FQDN rules: text in, one checked shape out.
//!
//! | pattern | matches |
//! |---|---|
//! | `a.example` | itself |
//! | `*.a.example` | one or more labels in front |
//! | `.a.example` | the bare name and everything under it |
//! | `md-*.a.example`, `*.x.*.a.example` | `*` inside a label, or as one label in the middle |
//! | `arc-{east,west}?.a.example` | globs inside a label, as globset reads them |
//! | `*` | every name |
//!
//! Owns the grammar and its errors. IDNA happens here and nowhere else.

use globset::{GlobBuilder, GlobMatcher};

use crate::name::{HostName, MAX_LABEL, MAX_NAME, NameFault};

/// A pattern that means something.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// As matched: lower case, A-labels.
    text: Box<str>,
    shape: Shape,
}

#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Any,
    Exact,
    /// The literal labels below the leading `*.` or `.`.
    Under {
        bare_too: bool,
    },
    Glob(Glob),
}

/// A pattern with wild labels before its longest literal ending.
#[derive(Clone, Debug)]
pub(crate) struct Glob {
    /// Where the ending begins.
    pub(crate) ending: usize,
    pub(crate) rich: Option<Box<Rich>>,
}

/// The labels that need globset, by the number of labels between them and the ending.
pub(crate) type Rich = [(usize, GlobMatcher)];

/// What some label must begin or end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Labels between it and the ending.
    pub(crate) depth: u8,
    pub(crate) at_end: bool,
    /// Where it stands in the pattern.
    pub(crate) start: usize,
    /// At most [`MAX_LABEL`].
    pub(crate) len: u8,
}

/// Why some text is not a pattern, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternFault {
    #[error("the pattern is empty; write a host name, or `*` for every name")]
    Empty,
    #[error("`**` is not a pattern; `*.{0}` already means one or more labels in front")]
    DoubleStar(String),
    #[error("a pattern is a name only; write `{0}` and put the port and protocol into `protocols`")]
    NotOnlyAName(String),
    #[error("{0} are not part of a name; write one pattern per list entry")]
    Several(&'static str),
    #[error("a pattern is a glob, not a regular expression; write such as `{0}`")]
    Regex(String),
    #[error("`{0}` (U+{code:04X}) is not part of a name; type the name anew, in plain quotes or none", code = u32::from(*.0))]
    Typographic(char),
    #[error("`{0}` is not filled in; write the value, or `*` for any one label")]
    Placeholder(String),
    #[error("the last label must be literal; write one pattern for each ending that is meant")]
    WildEnd,
    #[error("a leading dot takes plain labels; write `*{0}`")]
    DotGlob(String),
    #[error("`{0}` is an address; write a network rule with `destinations` for it")]
    Address(String),
    #[error("{0}")]
    Name(String),
    #[error("label `{label}`: {problem}")]
    Glob { label: String, problem: String },
}

impl Pattern {
    /// The literal labels that a wild pattern ends in; `None` for an exact name and for `*`.
    #[must_use]
    pub fn ending(&self) -> Option<&str> {
        match &self.shape {
            Shape::Any | Shape::Exact => None,
            Shape::Under { .. } => Some(self.text.trim_start_matches('*').trim_start_matches('.')),
            Shape::Glob(glob) => self.text.get(glob.ending..),
        }
    }

    /// Whether any label may stand in front of the ending.
    #[must_use]
    pub const fn is_free(&self) -> bool {
        matches!(self.shape, Shape::Any | Shape::Under { .. })
    }

    /// Reads a pattern as written in a configuration.
    ///
    /// # Errors
    /// [`PatternFault`], which says what to write instead.
    pub fn parse(written: &str) -> Result<Self, PatternFault> {
        refuse_foreign_syntax(written)?;
        let text = to_ascii(written)?;
        let bare = text.strip_suffix('.').unwrap_or(&text);
        if bare == "*" {
            return Ok(Self { text: "*".into(), shape: Shape::Any });
        }
        if let Some(rest) = bare.strip_prefix('.') {
            if is_wild(rest) {
                return Err(PatternFault::DotGlob(bare.to_owned()));
            }
            return Ok(Self { text: format!(".{}", literal(rest)?).into(), shape: Shape::Under { bare_too: true } });
        }
        if let Some(rest) = bare.strip_prefix("*.")
            && !is_wild(rest)
        {
            return Ok(Self { text: format!("*.{}", literal(rest)?).into(), shape: Shape::Under { bare_too: false } });
        }
        if !is_wild(bare) {
            return Ok(Self { text: literal(bare)?.as_str().into(), shape: Shape::Exact });
        }
        Ok(Self { text: bare.into(), shape: Shape::Glob(Glob::parse(bare)?) })
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Whether it needs globset, of which a policy may hold only so many.
    #[must_use]
    pub fn is_rich(&self) -> bool {
        matches!(&self.shape, Shape::Glob(glob) if glob.rich.is_some())
    }

    #[must_use]
    pub const fn is_any(&self) -> bool {
        matches!(self.shape, Shape::Any)
    }

    /// The name, where the pattern is one.
    #[must_use]
    pub fn exact(&self) -> Option<HostName> {
        matches!(self.shape, Shape::Exact).then(|| HostName::from_wire(self.text.as_bytes()).ok())?
    }
}

impl Glob {
    fn parse(text: &str) -> Result<Self, PatternFault> {
        let rest = text.strip_prefix("*.").unwrap_or(text);
        let labels = split_labels(rest)?;
        let literal_tail = labels.iter().rev().take_while(|label| !is_wild(label)).count();
        let (front, tail) = labels.split_at_checked(labels.len() - literal_tail).unwrap_or_default();
        if tail.is_empty() {
            return Err(PatternFault::WildEnd);
        }
        let ending = literal(&tail.join("."))?;
        let mut rich = Vec::new();
        for (depth, label) in front.iter().rev().enumerate() {
            rich.extend(matcher(label)?.map(|matcher| (depth, matcher)));
        }
        let rich = (!rich.is_empty()).then(|| rich.into());
        Ok(Self { ending: text.len() - ending.as_str().len(), rich })
    }
}

/// What a label needs beyond stars, if anything.
fn matcher(label: &str) -> Result<Option<GlobMatcher>, PatternFault> {
    let fault = |problem: String| PatternFault::Glob { label: label.to_owned(), problem };
    if label.is_empty() {
        return Err(fault("is empty".into()));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_*?[]{},!^".contains(c);
    if let Some(odd) = label.chars().find(|c| !allowed(*c)) {
        return Err(fault(format!("`{odd}` cannot be in a name")));
    }
    if !is_rich(label) {
        return Ok(None);
    }
    let glob = GlobBuilder::new(label)
        .literal_separator(true)
        .backslash_escape(false)
        .build()
        .map_err(|e| fault(e.kind().to_string()))?;
    Ok(Some(glob.compile_matcher()))
}

/// Whether the labels before an ending fit what a pattern writes there, both without the dot between.
pub(crate) fn fits(glob: &str, rich: Option<&Rich>, front: &str) -> bool {
    let (leading, glob) = glob.strip_prefix("*.").map_or((false, glob), |rest| (true, rest));
    let mut rest = Some(front);
    for (depth, wanted) in glob.rsplit('.').enumerate() {
        let Some(here) = rest else { return false };
        let (before, label) = here.rsplit_once('.').map_or((None, here), |(before, last)| (Some(before), last));
        let matcher = rich.and_then(|rich| rich.iter().find(|(at, _)| *at == depth));
        if !matcher.map_or_else(|| fits_stars(wanted, label), |(_, matcher)| matcher.is_match(label)) {
            return false;
        }
        rest = before;
    }
    rest.is_some() == leading
}

/// Leftmost placement of each middle piece is enough: a later one would leave less room for the rest.
fn fits_stars(wanted: &str, label: &str) -> bool {
    let Some((first, rest)) = wanted.split_once('*') else { return wanted == label };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut label) = label.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else { return false };
    for piece in middle.split('*').filter(|piece| !piece.is_empty()) {
        let Some((_, after)) = label.split_once(piece) else { return false };
        label = after;
    }
    true
}

/// The longest piece that a label of the front must begin or end with; `None` where there is none.
pub(crate) fn piece(glob: &str) -> Option<Piece> {
    let mut end = glob.len();
    let mut best: Option<Piece> = None;
    // No name has more labels.
    for (depth, label) in (0..=127).zip(glob.rsplit('.')) {
        let start = end - label.len();
        let head = label.find(is_special).unwrap_or(label.len());
        let tail = label.rfind(is_special).map_or(label.len(), |at| label.len() - at - 1);
        for (at_end, start, len) in [(false, start, head), (true, end - tail, tail)] {
            // No name has a label as long as an alternative may be.
            let Some(len) = u8::try_from(len).ok().filter(|len| (1..=MAX_LABEL).contains(&usize::from(*len))) else {
                continue;
            };
            if best.is_none_or(|best| best.len < len) {
                best = Some(Piece { depth, at_end, start, len });
            }
        }
        end = start.saturating_sub(1);
    }
    best
}

const fn is_special(c: char) -> bool {
    matches!(c, '*' | '?' | '[' | ']' | '{' | '}')
}

fn is_rich(label: &str) -> bool {
    label.contains(|c| is_special(c) && c != '*' || matches!(c, ',' | '!' | '^'))
}

fn is_wild(text: &str) -> bool {
    text.contains(is_special)
}

/// Dots inside brackets or braces would let one label match across a dot.
fn split_labels(text: &str) -> Result<Vec<&str>, PatternFault> {
    for part in text.split('.') {
        if part.matches('{').count() != part.matches('}').count()
            || part.matches('[').count() != part.matches(']').count()
        {
            let problem = "brackets and braces must open and close inside one label".to_owned();
            return Err(PatternFault::Glob { label: part.to_owned(), problem });
        }
    }
    Ok(text.split('.').collect())
}

fn literal(text: &str) -> Result<HostName, PatternFault> {
    // The one trailing dot that may be there is gone already.
    if text.ends_with('.') {
        return Err(PatternFault::Name(NameFault::EmptyLabel.to_string()));
    }
    HostName::from_wire(text.as_bytes()).map_err(|fault| match fault {
        NameFault::Address => PatternFault::Address(text.to_owned()),
        fault => PatternFault::Name(fault.to_string()),
    })
}

/// Alternatives may be longer than any name; a person does not write this many.
const MAX_WRITTEN: usize = 1024;

fn refuse_foreign_syntax(written: &str) -> Result<(), PatternFault> {
    if written.len() > MAX_WRITTEN {
        return Err(PatternFault::Name(format!("the pattern is longer than {MAX_WRITTEN} bytes; write several")));
    }
    if written.is_empty() {
        return Err(PatternFault::Empty);
    }
    if written.chars().any(char::is_whitespace) {
        return Err(PatternFault::Several("spaces"));
    }
    if written.contains(',') && !written.contains('{') {
        return Err(PatternFault::Several("commas"));
    }
    if let Some(odd) = written.chars().find(|c| is_typographic(*c)) {
        return Err(PatternFault::Typographic(odd));
    }
    for (opens, closes) in [("<", '>'), ("${", '}'), ("{{", '}')] {
        // Braces in braces may hold alternatives.
        if let Some(start) = written.find(opens)
            && !written.contains(',')
        {
            let end = written.rfind(closes).map_or(written.len(), |at| at + 1);
            return Err(PatternFault::Placeholder(written.get(start..end).unwrap_or(written).to_owned()));
        }
    }
    let is_regex = written.starts_with('^')
        || written.ends_with('$')
        || written.len() > 1 && written.starts_with('/') && written.ends_with('/')
        || ["\\.", ".+", "(", "|"].iter().any(|part| written.contains(part));
    if is_regex {
        return Err(PatternFault::Regex(as_glob(written)));
    }
    let host = written.split_once("://").map_or(written, |(_, rest)| rest);
    let host = host.split(['/', ':', '\\']).next().unwrap_or_default();
    if written.parse::<std::net::IpAddr>().is_ok() || written.parse::<ipnet::IpNet>().is_ok() {
        return Err(PatternFault::Address(written.to_owned()));
    }
    if host != written {
        return Err(PatternFault::NotOnlyAName(host.to_owned()));
    }
    if written.contains("**") {
        return Err(PatternFault::DoubleStar(written.trim_start_matches(['*', '.']).to_owned()));
    }
    Ok(())
}

/// Quotation marks that an editor made of plain ones, and what cannot be seen: IDNA drops some of it silently. The joiners
/// (U+200C, U+200D) are not among them, for some scripts need them.
const fn is_typographic(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{ab}' | '\u{bb}' | '\u{2018}'..='\u{201f}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{feff}')
}

/// What a regular expression for a name and all under it means here, where it is as simple as that.
fn as_glob(regex: &str) -> String {
    let bare = regex.trim_start_matches('^').trim_end_matches('$').replace("\\.", ".");
    let under = [".*.", ".+."].iter().find_map(|any| bare.strip_prefix(any));
    let is_name = |name: &str| name.contains('.') && HostName::from_wire(name.as_bytes()).is_ok();
    match under {
        Some(name) if is_name(name) => format!("*.{name}"),
        None if is_name(&bare) => bare,
        _ => "*.example.org".to_owned(),
    }
}

/// Lower case and A-labels (UTS 46); what IDNA lets pass is checked by the next reader of the labels.
fn to_ascii(written: &str) -> Result<String, PatternFault> {
    if written.is_ascii() {
        return Ok(written.to_ascii_lowercase());
    }
    // An A-label is an encoding of the whole label: a star in it would stand for something else.
    let mixes = |label: &&str| !label.is_ascii() && label.contains(['*', '?', '[', ']', '{', '}', ',']);
    if let Some(label) = written.split('.').find(mixes) {
        let why = "has letters beyond ASCII and a wildcard, which its form on the wire cannot hold";
        return Err(PatternFault::Name(format!("`{label}` {why}; write each name, or a wildcard for the whole label")));
    }
    let fault = || PatternFault::Name(format!("`{written}` has no ASCII form (IDNA)"));
    let ascii =
        idna::domain_to_ascii_cow(written.as_bytes(), idna::AsciiDenyList::EMPTY).map_err(|_| fault())?.into_owned();
    if ascii.len() > MAX_NAME + 2 { Err(fault()) } else { Ok(ascii) }
}

#[cfg(test)]
pub(crate) mod naive {
    //! The table of the module's documentation, read as directly as it can be: the matcher's oracle.

    use super::*;

    pub(crate) fn matches(pattern: &Pattern, name: &HostName) -> bool {
        let name: Vec<&str> = name.as_str().split('.').collect();
        let text = pattern.as_str();
        if text == "*" {
            return true;
        }
        if let Some(base) = text.strip_prefix('.') {
            let base: Vec<&str> = base.split('.').collect();
            return name.ends_with(&base);
        }
        let wanted: Vec<&str> = text.split('.').collect();
        let (least, wanted) = match wanted.split_first() {
            Some((&"*", rest)) => (rest.len() + 1, rest),
            _ => (wanted.len(), wanted.as_slice()),
        };
        let fits = least == wanted.len() && name.len() == least || least > wanted.len() && name.len() >= least;
        fits && wanted.iter().rev().zip(name.iter().rev()).all(|(glob, label)| label_matches(glob, label))
    }

    fn label_matches(glob: &str, label: &str) -> bool {
        GlobBuilder::new(glob).literal_separator(true).build().unwrap().compile_matcher().is_match(label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn fault(written: &str, says: &str) {
        let message = Pattern::parse(written).expect_err(written).to_string();
        assert!(message.contains(says), "{written:?} says {message:?}");
    }

    #[test]
    fn a_label_beyond_ascii_takes_no_wildcard() {
        for text in
            ["arc-{east,west}-md-*\u{41d}*.blo", "b\u{fc}*.example", "*b\u{fc}cher.example", "{a,b\u{fc}}.example"]
        {
            let fault = Pattern::parse(text).unwrap_err().to_string();
            assert!(fault.contains("a wildcard for the whole label"), "{text}: {fault}");
        }
        for text in ["*.b\u{fc}cher.example", "b\u{fc}cher.*.example", "?.b\u{fc}cher.example"] {
            let pattern = Pattern::parse(text).unwrap();
            assert!(pattern.as_str().contains("xn--bcher-kva."), "{text}: {}", pattern.as_str());
            assert_eq!(Pattern::parse(pattern.as_str()).unwrap().as_str(), pattern.as_str());
        }
    }

    #[test]
    fn what_is_no_pattern_says_what_to_write() {
        fault("", "write a host name");
        fault("**.example.com", "`*.example.com` already means");
        fault("a.**.example.com", "`**` is not a pattern");
        fault("https://example.com", "write `example.com`");
        fault("example.com:443", "write `example.com`");
        fault("example.com/path", "write `example.com`");
        fault("a.example.com b.example.com", "one pattern per list entry");
        fault("*.hcp.<location>.azmk8s.io", "`<location>` is not filled in");
        fault("example.*", "last label must be literal");
        fault("*.*", "last label must be literal");
        fault("?", "last label must be literal");
        fault(".a*.example.com", "write `*.a*.example.com`");
        fault("10.0.0.1", "network rule");
        fault("10.0.0.0/8", "network rule");
        fault("0x7f.1", "network rule");
        fault("2001:db8::1", "network rule");
        fault("a..example.com", "a label is empty");
        fault("*..example.com", "a label is empty");
        fault("a*..example.com", "is empty");
        for dots in ["example.com..", "*.example.com..", ".example.com..", "a*.example.com.."] {
            fault(dots, "a label is empty");
        }
        fault(&format!("{{{}}}.example.com", "a,".repeat(600)), "longer than 1024");
        fault("{a.b,c}.example.com", "inside one label");
        fault("[a.example.com", "inside one label");
        fault("a]b[.example.com", "label");
        fault("a;?.example.com", "cannot be in a name");
        fault(&format!("{}.example.com", "a".repeat(64)), "longer than 63");
        fault(&format!("*.{}", "a.".repeat(128)), "longer than 253");
    }

    #[test]
    fn names_of_other_scripts_become_a_labels() {
        assert_eq!(Pattern::parse("*.BÜCHER.example").unwrap().as_str(), "*.xn--bcher-kva.example");
        assert_eq!(Pattern::parse("例え.テスト").unwrap().as_str(), "xn--r8jz45g.xn--zckzah");
        fault("１２７.0.0.1", "network rule");
    }
}
