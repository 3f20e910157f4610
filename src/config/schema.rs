//! The JSON Schema of the configuration, and a text held against it.
//!
//! One description serves both: what `egret schema` prints is what refuses an unknown key. Owns shape
//! (which keys, which kinds of value); meaning is `check`'s.

use serde_json::Value;

use super::document::{Content, Node, join};
use super::fault::Fault;
use super::file;
use egret_core::likeness::closest;

/// Keys of the format that this version does not serve yet. Refused by name: silence would let an operator
/// believe in a barrier that is not there.
const NOT_YET: &[&str] = &["audit", "until"];

/// The schema, as `egret schema` prints it.
#[must_use]
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(file::File).to_value();
    if let Some(map) = schema.as_object_mut() {
        map.insert("title".into(), "egret configuration".into());
    }
    schema
}

/// Holds a text against the schema; every fault, in the order of the text.
pub(super) fn check(node: &Node) -> Vec<Fault> {
    let root = schema();
    let mut walk = Walk { root: &root, faults: Vec::new() };
    walk.node(node, &root, "");
    walk.faults
}

struct Walk<'a> {
    root: &'a Value,
    faults: Vec<Fault>,
}

impl<'a> Walk<'a> {
    fn node(&mut self, node: &Node, schema: &'a Value, path: &str) {
        let schema = self.resolve(schema);
        if let Some(words) = self.words(schema) {
            return self.word(node, &words, path);
        }
        if let Some(choices) = alternatives(schema) {
            return self.any_of(node, choices, path);
        }
        let kinds = kinds(schema);
        let kind = kind(node);
        // A key with nothing behind it is a forgotten value: what it asks for must not just be left out.
        let is_nothing = kind == "null";
        let fits = kinds.is_empty() || kinds.contains(&kind) || (kind == "integer" && kinds.contains(&"number"));
        if is_nothing && kinds.contains(&"null") {
            return self.fault(
                node,
                path,
                format!("nothing stands here; write {}, or remove the key", expected(&kinds)),
            );
        }
        if !fits {
            let is_quantity = kinds.contains(&"string") && (path.starts_with("limits.") || path.starts_with("dns."));
            let example = match (&node.value, kind) {
                _ if is_quantity => ", such as 5s or 64KiB".to_owned(),
                _ if path.ends_with(".edition") => ", such as \"2023-06-13\" in quotes".to_owned(),
                (Content::Scalar(Value::String(text)), _) if kinds.contains(&"array") && text.len() < 100 => {
                    format!(": [{text:?}]")
                }
                _ => String::new(),
            };
            return self.fault(
                node,
                path,
                format!("{} stands here; write {}{example}", article(kind), expected(&kinds)),
            );
        }
        match &node.value {
            Content::Scalar(value) => self.range(node, schema, value, path),
            Content::List(items) => {
                if let Some(item_schema) = schema.get("items") {
                    for (at, item) in items.iter().enumerate() {
                        self.node(item, item_schema, &format!("{path}[{at}]"));
                    }
                }
            }
            Content::Map(_) => self.map(node, schema, path),
        }
    }

    fn map(&mut self, node: &Node, schema: &'a Value, path: &str) {
        let Content::Map(pairs) = &node.value else { return };
        let empty = serde_json::Map::new();
        let known = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let other = schema.get("additionalProperties");
        for pair in pairs {
            let below = join(path, &pair.key);
            match (known.get(&pair.key).and_then(|_| schema.get("properties")?.get(&pair.key)), other) {
                (Some(inner), _) => self.node(&pair.node, inner, &below),
                (None, Some(inner)) if inner.is_object() => self.node(&pair.node, inner, &below),
                (None, _) => {
                    // One step too far out, such as rules beside `policy`.
                    let holds =
                        |inner: &&Value| inner.pointer("/properties").is_some_and(|p| p.get(&pair.key).is_some());
                    let groups = known.iter().filter(|_| path.is_empty());
                    let mut groups = groups.filter(|(_, inner)| self.group(inner).filter(holds).is_some());
                    let message = match (groups.next(), groups.next()) {
                        (Some((group, _)), None) => format!("`{}` belongs under `{group}`; write it there", pair.key),
                        _ => unknown(&pair.key, known.keys().map(String::as_str)),
                    };
                    self.faults.push(Fault { position: pair.position, path: below, message });
                }
            }
        }
        for needed in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if !pairs.iter().any(|pair| pair.key == needed) {
                self.fault(node, path, format!("the key `{needed}` is missing; write it here"));
            }
        }
    }

    fn any_of(&mut self, node: &Node, choices: &'a [Value], path: &str) {
        let mut same_kind = None;
        for choice in choices.iter().filter(|choice| kind(node) != "null" || !self.is_null(choice)) {
            let mut trial = Walk { root: self.root, faults: Vec::new() };
            trial.node(node, choice, path);
            if trial.faults.is_empty() {
                return;
            }
            if kinds(self.resolve(choice)).contains(&kind(node)) {
                same_kind = Some(trial.faults);
            }
        }
        match same_kind {
            Some(faults) => self.faults.extend(faults),
            None => {
                let all: Vec<&str> =
                    choices.iter().flat_map(|c| kinds(self.resolve(c))).filter(|k| *k != "null").collect();
                let remove = if choices.iter().any(|choice| self.is_null(choice)) { ", or remove the key" } else { "" };
                self.fault(
                    node,
                    path,
                    format!("{} stands here; write {}{remove}", article(kind(node)), expected(&all)),
                );
            }
        }
    }

    /// The words of a schema that allows nothing else, but perhaps nothing at all.
    fn words(&self, schema: &'a Value) -> Option<Vec<&'a str>> {
        let schema = self.resolve(schema);
        if let Some(word) = schema.get("const") {
            return Some(vec![word.as_str()?]);
        }
        if let Some(words) = schema.get("enum").and_then(Value::as_array) {
            return words.iter().map(Value::as_str).collect();
        }
        let choices = alternatives(schema)?.iter().filter(|choice| !self.is_null(choice));
        let words: Vec<Vec<&str>> = choices.map(|choice| self.words(choice)).collect::<Option<_>>()?;
        Some(words.concat())
    }

    fn is_null(&self, schema: &'a Value) -> bool {
        self.resolve(schema).get("type").and_then(Value::as_str) == Some("null")
    }

    fn word(&mut self, node: &Node, words: &[&str], path: &str) {
        let given = match &node.value {
            Content::Scalar(Value::String(word)) => word.clone(),
            _ => {
                return self.fault(node, path, format!("{} stands here; write {}", article(kind(node)), listed(words)));
            }
        };
        if words.contains(&&*given) {
            return;
        }
        let message = match closest(&given, words.iter().copied()) {
            _ if NOT_YET.contains(&&*given) => {
                format!("`{given}` is not available in this version; write {}", listed(words))
            }
            Some(near) => format!("`{given}` is none of the possible words; did you mean `{near}`?"),
            None => format!("`{given}` is none of the possible words; write {}", listed(words)),
        };
        self.fault(node, path, message);
    }

    fn range(&mut self, node: &Node, schema: &Value, value: &Value, path: &str) {
        // Beyond 64 bits is beyond every bound.
        let Some(number) = value.as_number().map(|n| n.as_i64().unwrap_or(i64::MAX)) else { return };
        let bound = |key: &str| schema.get(key).and_then(Value::as_i64);
        let (low, high) = (bound("minimum").unwrap_or(i64::MIN), bound("maximum").unwrap_or(i64::MAX));
        if number < low || number > high {
            self.fault(node, path, format!("{value} is out of range; write a number from {low} to {high}"));
        }
    }

    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let name = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/"));
        name.and_then(|name| self.root.get("$defs")?.get(name)).unwrap_or(schema)
    }

    /// The group of keys that a schema allows, perhaps beside nothing at all.
    fn group(&self, schema: &'a Value) -> Option<&'a Value> {
        let choices = alternatives(schema).unwrap_or_else(|| std::slice::from_ref(schema));
        choices.iter().map(|choice| self.resolve(choice)).find(|choice| choice.get("properties").is_some())
    }

    fn fault(&mut self, node: &Node, path: &str, message: String) {
        self.faults.push(Fault { position: node.position, path: path.to_owned(), message });
    }
}

fn listed(words: &[&str]) -> String {
    let list: Vec<String> = words.iter().map(|w| format!("`{w}`")).collect();
    list.join(" or ")
}

fn alternatives(schema: &Value) -> Option<&[Value]> {
    schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array).map(Vec::as_slice)
}

fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    if NOT_YET.contains(&key) {
        return format!("`{key}` is not available in this version; remove it");
    }
    if let Some(near) = closest(key, known.clone()) {
        return format!("unknown key `{key}`; did you mean `{near}`?");
    }
    let list: Vec<String> = known.map(|k| format!("`{k}`")).collect();
    format!("unknown key `{key}`; possible here: {}", list.join(", "))
}

fn kinds(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        _ if schema.get("const").is_some() || schema.get("enum").is_some() => vec!["string"],
        _ => Vec::new(),
    }
}

fn kind(node: &Node) -> &'static str {
    match &node.value {
        Content::List(_) => "array",
        Content::Map(_) => "object",
        Content::Scalar(Value::Null) => "null",
        Content::Scalar(Value::Bool(_)) => "boolean",
        Content::Scalar(Value::Number(n)) if n.is_f64() => "number",
        Content::Scalar(Value::Number(_)) => "integer",
        Content::Scalar(_) => "string",
    }
}

fn article(kind: &str) -> &'static str {
    match kind {
        "array" => "a list",
        "object" => "a group of keys",
        "null" => "nothing",
        "boolean" => "true or false",
        "integer" | "number" => "a number",
        _ => "a text",
    }
}

fn expected(kinds: &[&str]) -> String {
    let mut words: Vec<&str> = kinds.iter().filter(|k| **k != "null").map(|k| article(k)).collect();
    words.dedup();
    words.join(" or ")
}
