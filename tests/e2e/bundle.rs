//! The built-in rules against the document they come from, row by row.

use std::process::Command;

use crate::support::missing;

/// The code spans of the names in the first column of one table of the newest outbound rules.
fn required_names() -> Option<Vec<String>> {
    let file = "../shared/sources/aks-docs-2026-08-outbound-rules-control-egress.md";
    let Ok(text) = std::fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))) else {
        missing("the document with the outbound rules");
        return None;
    };
    let table = text.split("### Azure Global required FQDN / application rules").nth(1)?.split("\n### ").next()?;
    let cells = table.lines().filter_map(|line| line.strip_prefix("| **")).filter_map(|line| line.split('|').next());
    Some(cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect())
}

fn explain(target: &str) -> i32 {
    let status = Command::new(env!("CARGO_BIN_EXE_egret")).args(["explain", target]).output().unwrap().status;
    status.code().unwrap()
}

#[test]
fn every_required_name_of_the_global_cloud_is_let_out_and_its_neighbours_are_not() {
    let Some(names) = required_names() else { return };
    assert_eq!(names.len(), 9, "{names:?}");
    for printed in names {
        let name = printed.replace("<location>", "westeurope");
        let plain = name.strip_prefix("*.").unwrap_or(&name);
        let (inside, outside) = if plain == name {
            (name.clone(), format!("x.{name}"))
        } else {
            (format!("cluster-1a2b.{plain}"), plain.to_owned())
        };
        assert_eq!(explain(&format!("https://{inside}")), 0, "{printed}");
        for neighbour in [
            format!("https://{outside}"),
            format!("https://evil{plain}"),
            format!("https://{inside}.evil.test"),
            format!("https://{inside}:444"),
            format!("http://{inside}"),
            format!("tcp://{inside}:443"),
        ] {
            assert_eq!(explain(&neighbour), 1, "{neighbour} beside {printed}");
        }
    }
}
