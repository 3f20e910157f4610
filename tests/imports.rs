//! Who may import whom, and that no two files import each other, however long the way around.
//!
//! Reads every path that begins with `crate`, `super`, `egret_core` or a child module, in `use` or inline, of everything
//! but tests. ARCHITECTURE.md has the same table in words.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that is wrong about its world should fail there"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may import; a room that is not named has no file.
const ALLOWED: &[(&str, &[&str])] = &[
    ("core/values", &[]),
    ("core/wire", &["core/values"]),
    ("core/rule", &["core/values"]),
    ("core/learned", &["core/values", "core/rule"]),
    ("core/policy", &["core/values", "core/wire", "core/rule", "core/learned"]),
    ("mechanisms", &["core"]),
    ("bundle", &["core", "mechanisms"]),
    ("netfilter", &["core", "mechanisms"]),
    ("metrics", &["core", "mechanisms"]),
    ("record", &["core", "mechanisms", "metrics"]),
    ("dns", &["core", "mechanisms", "metrics"]),
    ("learn", &["core", "mechanisms", "metrics", "dns", "netfilter"]),
    ("proxy", &["core", "mechanisms", "metrics", "netfilter", "record", "dns", "learn"]),
    ("config", &["core", "mechanisms", "bundle", "settings"]),
    ("control", &["core", "mechanisms", "metrics", "netfilter", "record", "dns", "learn", "proxy"]),
    ("netlog", &["core", "mechanisms", "metrics", "netfilter", "record", "dns", "learn", "proxy"]),
    ("admin", &["core", "mechanisms", "metrics", "netfilter", "record", "dns", "learn", "proxy"]),
    ("reload", &["core", "mechanisms", "metrics", "netfilter", "record", "dns", "learn", "proxy", "config", "control"]),
    ("app", &["*"]),
    ("cli", &["*"]),
    ("front", &["*"]),
];

/// Files that are no room's: what the machine offers, in this program's words.
const MECHANISMS: &[&str] = &["budget", "drain", "files", "identity", "local", "netlink", "privileges", "socket"];

/// Files whose types a configuration fills in.
const SETTINGS: &[&str] = &["settings", "limits"];

/// One source file, as a module.
#[derive(Debug)]
struct Module {
    file: PathBuf,
    /// `egret_core` or `crate`, then the module's names.
    path: Vec<String>,
    room: String,
    /// Line by line, without comments, texts and tests.
    lines: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, out);
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            out.push(path);
        }
    }
}

fn modules() -> Vec<Module> {
    let mut all = Vec::new();
    for (krate, folder) in [("egret_core", "crates/core/src"), ("crate", "src")] {
        let folder = root().join(folder);
        let mut found = Vec::new();
        files(&folder, &mut found);
        for file in found {
            let names = file.strip_prefix(&folder).unwrap().with_extension("");
            let names = names.iter().map(|name| name.to_str().unwrap().to_owned());
            let mut path = vec![krate.to_owned()];
            path.extend(names.filter(|name| name != "lib"));
            let lines = code(&fs::read_to_string(&file).unwrap());
            all.push(Module { room: room(&path), file: file.strip_prefix(root()).unwrap().to_owned(), path, lines });
        }
    }
    all
}

fn room(path: &[String]) -> String {
    let top = path.get(1).map_or("front", String::as_str);
    let last = path.last().map_or("", String::as_str);
    match (path[0].as_str(), top) {
        ("egret_core", "wire" | "rule" | "learned" | "policy") => format!("core/{top}"),
        ("egret_core", "front") => "front".to_owned(),
        ("egret_core", _) => "core/values".to_owned(),
        (_, "main" | "front") => "front".to_owned(),
        (_, top) if MECHANISMS.contains(&top) => "mechanisms".to_owned(),
        (_, top) if SETTINGS.contains(&last) && top != "config" => format!("{top}/settings"),
        (_, top) => top.to_owned(),
    }
}

/// A file's lines up to its tests, with comments and texts blanked.
fn code(text: &str) -> Vec<String> {
    let text = text.split("\n#[cfg(test)]\n").next().unwrap();
    let mut out = String::new();
    let mut rest = text.chars().peekable();
    let mut before = ' ';
    while let Some(c) = rest.next() {
        match c {
            '/' if rest.peek() == Some(&'/') => {
                while rest.peek().is_some_and(|c| *c != '\n') {
                    rest.next();
                }
            }
            '"' => {
                let raw = before == '#' || before == 'r';
                while let Some(c) = rest.next() {
                    match c {
                        '\n' => out.push('\n'),
                        '\\' if !raw => out.extend(rest.next().filter(|c| *c == '\n')),
                        '"' if before != '#' || rest.peek() == Some(&'#') => break,
                        _ => {}
                    }
                }
            }
            '\'' if rest.clone().nth(1) == Some('\'') => {
                rest.nth(1);
            }
            '\'' if rest.peek() == Some(&'\\') => {
                rest.nth(1);
                rest.by_ref().find(|c| *c == '\'');
            }
            c => out.push(c),
        }
        before = c;
    }
    out.lines().map(str::to_owned).collect()
}

/// Every path of a module's code, with the line where it begins: `use` groups are taken apart.
fn paths(module: &Module) -> Vec<(usize, Vec<String>)> {
    let text = module.lines.join("\n");
    let children: BTreeSet<&str> = module
        .lines
        .iter()
        .filter_map(|line| {
            line.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub ").strip_prefix("mod ")
        })
        .filter_map(|line| line.strip_suffix(';'))
        .collect();
    let mut found = Vec::new();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    while let Some(len) = text[at..].find(|c: char| c.is_alphabetic() || c == '_') {
        let start = at + len;
        let end = start + text[start..].find(|c| !is_name(c)).unwrap_or(text.len() - start);
        let (word, line) = (&text[start..end], text[..start].matches('\n').count() + 1);
        at = end;
        let follows = text[..start].trim_end().ends_with("::");
        let begins = ["crate", "super", "egret_core"].contains(&word) || children.contains(word);
        if begins && !follows && text[end..].starts_with("::") {
            let mut tails = Vec::new();
            at = end + 2 + tree(&text[end + 2..], &mut Vec::new(), &mut tails);
            found.extend(tails.into_iter().map(|tail| {
                let mut path = vec![word.to_owned()];
                path.extend(tail);
                (line, path)
            }));
        }
    }
    found
}

/// Reads what follows a `::`; how many bytes it was.
fn tree(text: &str, front: &mut Vec<String>, out: &mut Vec<Vec<String>>) -> usize {
    let space = text.len() - text.trim_start().len();
    let text_here = &text[space..];
    if let Some(group) = text_here.strip_prefix('{') {
        let mut at = 0;
        loop {
            at += tree(&group[at..], front, out);
            let rest = group[at..].trim_start();
            at = group.len() - rest.len();
            match rest.chars().next() {
                Some(',') => at += 1,
                Some('}') => return space + 1 + at + 1,
                // Not a `use` at all.
                _ => return space + 1 + at,
            }
            if group[at..].trim_start().starts_with('}') {
                let rest = group[at..].trim_start();
                return space + 1 + (group.len() - rest.len()) + 1;
            }
        }
    }
    let end = text_here.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text_here.len());
    let name = &text_here[..end];
    if name.is_empty() {
        out.push(front.clone());
        return space;
    }
    front.push(name.to_owned());
    let used = if text_here[end..].starts_with("::") {
        end + 2 + tree(&text_here[end + 2..], front, out)
    } else {
        out.push(front.clone());
        end
    };
    front.pop();
    space + used
}

/// The file that a path leads to: the deepest module on it.
fn target<'a>(all: &'a [Module], from: &Module, path: &[String]) -> Option<&'a Module> {
    let mut full: Vec<String> = Vec::new();
    let mut rest = path;
    match path[0].as_str() {
        "crate" => {
            full.push(from.path[0].clone());
            rest = &path[1..];
        }
        "egret_core" => {
            full.push("egret_core".to_owned());
            rest = &path[1..];
        }
        _ => {
            full.clone_from(&from.path);
            while rest.first().is_some_and(|name| name == "super") {
                full.pop();
                rest = &rest[1..];
            }
        }
    }
    full.extend(rest.iter().cloned());
    while !full.is_empty() {
        if let Some(found) = all.iter().find(|module| module.path == full) {
            return Some(found);
        }
        full.pop();
    }
    None
}

fn may(from: &str, to: &str) -> bool {
    let (from, to_top) = (from.split('/').next().unwrap_or(from), to.split('/').next().unwrap_or(to));
    from == to_top && !from.starts_with("core")
}

fn is_allowed(from: &Module, to: &Module) -> bool {
    if from.room == to.room || may(&from.room, &to.room) || to.room == "front" && to.path.len() == 1 {
        return to.room != "front" || from.room == "front" || to.path[0] == "egret_core";
    }
    let room = from.room.strip_suffix("/settings").unwrap_or(&from.room);
    let allowed = ALLOWED.iter().find(|(name, _)| *name == room);
    let (_, allowed) =
        allowed.unwrap_or_else(|| panic!("{}: the room {room} has no line in the table", from.file.display()));
    allowed.iter().any(|one| {
        *one == "*"
            || *one == to.room
            || to.room.strip_prefix(one).is_some_and(|rest| rest.starts_with('/'))
            || to.room.ends_with("/settings") && *one == "settings"
    })
}

#[test]
fn rooms_import_what_they_may() {
    let all = modules();
    let mut wrong = Vec::new();
    for module in &all {
        for (line, path) in paths(module) {
            let Some(to) = target(&all, module, &path) else { continue };
            if !is_allowed(module, to) {
                let (from, path) = (module.file.display(), path.join("::"));
                wrong.push(format!("{from}:{line}: {path} leads from {} to {}", module.room, to.room));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{} imports that the table does not allow:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn no_files_import_each_other() {
    let all = modules();
    let mut arrows: BTreeMap<&Path, BTreeMap<&Path, String>> = BTreeMap::new();
    for module in &all {
        for (line, path) in paths(module) {
            let to = target(&all, module, &path).filter(|to| to.file != module.file);
            if let Some(to) = to {
                let why = format!("{}:{line}: {}", module.file.display(), path.join("::"));
                arrows.entry(&module.file).or_default().entry(&to.file).or_insert(why);
            }
        }
    }
    let reaches = |from: &Path, to: &Path| {
        let (mut seen, mut next) = (BTreeSet::from([from]), vec![from]);
        while let Some(file) = next.pop() {
            next.extend(arrows.get(file).into_iter().flat_map(BTreeMap::keys).filter(|file| seen.insert(file)));
        }
        seen.contains(to)
    };
    let all = arrows.iter().flat_map(|(from, to)| to.iter().map(move |(to, why)| (*from, *to, why.as_str())));
    let ties: Vec<&str> = all.filter(|(from, to, _)| reaches(to, from)).map(|(.., why)| why).collect();
    assert!(ties.is_empty(), "these imports lead in circles:\n{}", ties.join("\n"));
}

#[test]
fn the_core_has_no_clock_no_files_and_no_sockets() {
    let outside = [
        "std::fs",
        "std::io",
        "std::env",
        "std::process",
        "std::thread",
        "std::os",
        "SystemTime",
        "Instant::now",
        "TcpStream",
        "UdpSocket",
        "tokio",
        "tracing",
        "println!",
        "eprintln!",
    ];
    let mut wrong = Vec::new();
    for module in modules().iter().filter(|module| module.path[0] == "egret_core") {
        for (number, line) in (1..).zip(&module.lines) {
            if let Some(word) = outside.iter().find(|word| line.contains(*word)) {
                wrong.push(format!("{}:{number}: {word}", module.file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
