//! A YAML text as a tree that remembers where everything stands.
//!
//! Owns positions. Does not know what a key means.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::fault::{Fault, Position};

/// One node of the text.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) value: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<Pair>),
}

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) key: String,
    pub(super) position: Position,
    pub(super) node: Node,
}

/// Reads a text.
///
/// # Errors
/// One fault: a text that is not YAML has no second position to speak of. Aliases, depth and size are bounded
/// by the parser's own budget.
pub(super) fn parse(text: &str) -> Result<Node, Fault> {
    let options = serde_saphyr::options! {
        merge_keys: serde_saphyr::MergeKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
    };
    let tree: Spanned<Content> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let position =
            error.location().map_or_else(Position::default, |at| Position { line: at.line(), column: at.column() });
        let message = error.to_string();
        // The parser's advice is for programmers.
        let first = message.lines().next().unwrap_or_default();
        let first = first.split_once(", set ").map_or(first, |(what, _)| what);
        let what = first.rsplit_once(": line ").map_or(first, |(_, rest)| rest);
        let what = what.strip_prefix("error: ").unwrap_or(what);
        let what = what.split_once(": ").filter(|(at, _)| at.contains("column")).map_or(what, |(_, rest)| rest);
        let what = what.split_once(" at line ").map_or(what, |(what, _)| what);
        let cure = match what {
            // `[*.github.com]` reads as an alias.
            _ if what.contains("alias") => "quote patterns that begin with `*`",
            _ if what.contains("budget") => "write names into a file, and the file into `fqdns_file`",
            _ if what.contains("multiple YAML documents") => "write one document, without `---` inside",
            _ => "the text must be YAML",
        };
        let what = what.split_once("; use ").map_or(what, |(what, _)| what);
        let message = at_fault(text, position, what).unwrap_or_else(|| format!("{what}; {cure}"));
        Fault { position, path: String::new(), message }
    })?;
    Ok(tree.into())
}

/// What only the text shows: where a key stood first, and where a quotation mark opened.
fn at_fault(text: &str, position: Position, what: &str) -> Option<String> {
    let line = usize::try_from(position.line).ok()?.checked_sub(1)?;
    let column = usize::try_from(position.column).ok()?.checked_sub(1)?;
    if let Some(key) = what.strip_prefix("duplicate mapping key: ") {
        let is_key = |text: &str| {
            let (indent, rest) = text.split_at_checked(column).unwrap_or_default();
            indent.chars().all(|c| matches!(c, ' ' | '-')) && rest.strip_prefix(key).is_some_and(|r| r.starts_with(':'))
        };
        let (first, _) = text.lines().enumerate().take(line).filter(|(_, text)| is_key(text)).last()?;
        return Some(format!(
            "duplicate mapping key `{key}`: it stands at {}:{} already; write it once",
            first + 1,
            position.column
        ));
    }
    if what.contains("after double-quoted scalar") {
        let before: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
        let of_line = text.get(before..)?.char_indices().nth(column).map_or(0, |(at, _)| at);
        let marks: Vec<usize> = text.get(..before + of_line)?.match_indices('"').map(|(at, _)| at).collect();
        let [.., opens, closes] = marks.as_slice() else { return None };
        let position = |at: usize| {
            let upto = text.get(..at).unwrap_or_default();
            format!(
                "{}:{}",
                upto.matches('\n').count() + 1,
                upto.rsplit('\n').next().unwrap_or_default().chars().count() + 1
            )
        };
        return Some(format!(
            "the quotation mark at {} closes only at {}; write one behind each value",
            position(*opens),
            position(*closes)
        ));
    }
    None
}

impl Node {
    /// The same tree without its places and without the keys at these paths: what is left can still be
    /// checked.
    pub(super) fn json_without(&self, left_out: &[Fault], path: &str) -> Value {
        match &self.value {
            Content::Scalar(value) => value.clone(),
            Content::List(items) => {
                let below = |(at, item): (usize, &Self)| item.json_without(left_out, &format!("{path}[{at}]"));
                Value::Array(items.iter().enumerate().map(below).collect())
            }
            Content::Map(pairs) => {
                let keep = pairs.iter().map(|pair| (pair, join(path, &pair.key)));
                let keep = keep.filter(|(_, path)| !left_out.iter().any(|fault| fault.path == *path));
                Value::Object(
                    keep.map(|(pair, path)| (pair.key.clone(), pair.node.json_without(left_out, &path))).collect(),
                )
            }
        }
    }

    /// The position of a key path such as `policy.application_rules[2].fqdns[0]`; of the deepest part that is
    /// there where not all of it is.
    pub(super) fn position_of(&self, path: &str) -> Position {
        let mut here = self;
        let mut position = self.position;
        let mut rest = path;
        while !rest.is_empty() {
            let next = match &here.value {
                Content::Map(pairs) => {
                    let key = rest.trim_start_matches('.');
                    // Keys may hold dots themselves (`dns.zones`): the longest that fits is meant.
                    let fits = |pair: &&Pair| {
                        key.strip_prefix(&pair.key).is_some_and(|r| r.is_empty() || r.starts_with(['.', '[']))
                    };
                    let pair = pairs.iter().filter(fits).max_by_key(|pair| pair.key.len());
                    pair.map(|pair| (&pair.node, key.get(pair.key.len()..).unwrap_or_default()))
                }
                Content::List(items) => {
                    rest.strip_prefix('[').and_then(|r| r.split_once(']')).and_then(|(at, rest)| {
                        let item = items.get(at.parse::<usize>().ok()?)?;
                        Some((item, rest))
                    })
                }
                Content::Scalar(_) => None,
            };
            let Some((node, after)) = next else { break };
            (here, rest, position) = (node, after, node.position);
        }
        position
    }
}

impl From<Spanned<Content>> for Node {
    fn from(spanned: Spanned<Content>) -> Self {
        Self { position: position(&spanned.referenced), value: spanned.value }
    }
}

fn position(at: &serde_saphyr::Location) -> Position {
    Position { line: at.line(), column: at.column() }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Content>>()? {
            items.push(item.into());
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut pairs = Vec::new();
        while let Some((key, node)) = map.next_entry::<Spanned<String>, Spanned<Content>>()? {
            pairs.push(Pair { position: position(&key.referenced), key: key.value, node: node.into() });
        }
        Ok(Content::Map(pairs))
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
