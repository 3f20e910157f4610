//! `egret check`: a configuration's faults, warnings and notes.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::common::{BUILT_IN, complain, judged, print};
use super::error::CommandError;
use crate::config::{self, Settings};

pub(super) fn check(path: Option<&Path>, strict: bool, as_json: bool) -> Result<ExitCode, CommandError> {
    let file = judged(path);
    let linted = match path {
        Some(path) => Settings::lint(path),
        None => Settings::lint_text(config::DEFAULT, BUILT_IN),
    };
    let (faults, warnings, notes, summary) = match linted {
        Ok(settings) => {
            let counts = [
                count(settings.listeners.len(), "listener"),
                count(settings.rules.apps.iter().filter(|rule| rule.decides()).count(), "application rule"),
                count(settings.rules.nets.len(), "network rule"),
            ];
            let word = match settings.warnings.len() {
                0 => "fine".to_owned(),
                n => count(n, "warning"),
            };
            (Vec::new(), settings.warnings, settings.notes, format!("{file}: {word}: {}", counts.join(", ")))
        }
        Err(error) => {
            let summary = format!("{file}: {}", count(error.faults.len(), "fault"));
            (error.faults, Vec::new(), Vec::new(), summary)
        }
    };
    let code = match (faults.is_empty(), warnings.is_empty()) {
        (false, _) => 2,
        (true, false) if strict => 1,
        (true, _) => 0,
    };
    if as_json {
        let list = |faults: &[config::Fault]| -> Vec<_> {
            let one = |f: &config::Fault| json!({ "line": f.position.line, "column": f.position.column, "path": f.path, "message": f.message });
            faults.iter().map(one).collect()
        };
        print(&format!(
            "{}\n",
            json!({ "file": file, "faults": list(&faults), "warnings": list(&warnings), "notes": list(&notes) })
        ))?;
        return Ok(ExitCode::from(code));
    }
    let mut text = String::new();
    for fault in &faults {
        text.push_str(&format!("error: {}\n", fault.at(&file)));
    }
    for warning in &warnings {
        text.push_str(&format!("warning: {}\n", warning.at(&file)));
    }
    for note in &notes {
        text.push_str(&format!("note: {}\n", note.at(&file)));
    }
    text.push_str(&summary);
    text.push('\n');
    if code == 0 {
        print(&text)?;
    } else {
        complain(&text);
    }
    Ok(ExitCode::from(code))
}

pub(super) fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}
