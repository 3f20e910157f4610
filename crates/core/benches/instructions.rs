//! How many instructions does each step of a connection take? A count under callgrind does not waver with a machine's
//! other work, so a regression shows.
//!
//! `cargo bench --bench instructions` compares with `instructions.json` beside it and fails above a tenth more; `--
//! --write` makes the file anew. Needs valgrind.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot build its input has nothing to measure")]
#![allow(unreachable_pub, dead_code, reason = "modules of one benchmark")]

mod cases;
#[path = "../../../tests/missing/mod.rs"]
mod missing;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

const TIMES: u64 = 1000;
/// What a change may add before it must be explained by a new file.
const TOLERANCE: f64 = 1.10;

/// All that callgrind counts.
#[inline(never)]
fn counted(run: &mut dyn FnMut()) {
    (0..TIMES).for_each(|_| run());
}

fn count(name: &str) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*instructions*counted*"])
        .arg(std::env::current_exe().unwrap())
        .args(["--case", name])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|line| line.split("Collected : ").nth(1));
    line.unwrap_or_else(|| panic!("callgrind counts {name}: {text}")).trim().parse::<u64>().unwrap() / TIMES
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--case") {
        let name = arguments.get(at + 1);
        let mut case = cases::deciding().into_iter().find(|case| Some(case.name) == name.map(String::as_str)).unwrap();
        counted(&mut case.run);
        return ExitCode::SUCCESS;
    }
    if !Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success()) {
        missing::missing("valgrind");
        return ExitCode::SUCCESS;
    }
    let names: Vec<&str> = cases::deciding().iter().map(|case| case.name).collect();
    let counts: BTreeMap<&str, u64> = names.into_iter().map(|name| (name, count(name))).collect();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json");
    if arguments.iter().any(|argument| argument == "--write") {
        fs::write(file, format!("{:#}\n", serde_json::json!(counts))).unwrap();
        return ExitCode::SUCCESS;
    }
    let known: BTreeMap<String, u64> = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let mut code = ExitCode::SUCCESS;
    for (name, count) in &counts {
        let ratio_of = |count: u64| known.get(*name).map_or(f64::INFINITY, |known| count as f64 / *known as f64);
        // Hashes are seeded anew in every process: one draw may be a bad one, a regression is in all of them.
        let mut count = *count;
        for _ in 0..4 {
            if ratio_of(count) > TOLERANCE {
                count = count.min(self::count(name));
            }
        }
        let ratio = ratio_of(count);
        let word =
            if ratio > TOLERANCE { "  TOO MANY: make it cheaper, or say why and write the file anew" } else { "" };
        println!("{name:<20} {count:>8} instructions, {ratio:.3} of the known{word}");
        if ratio > TOLERANCE {
            code = ExitCode::FAILURE;
        }
    }
    code
}
