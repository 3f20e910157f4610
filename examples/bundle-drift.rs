//! What a newer edition of the AKS documents prints that the rule set `aks` does not have, and the other way
//! round. Exit code 1 where there is something.
//!
//! `cargo run --example bundle-drift -- FILE` compares; with `--facts` it prints what it reads in the file.

#[path = "../tests/documents/mod.rs"]
mod documents;

use std::process::ExitCode;

use documents::Fact;
use egret::bundle::{self, Bundle, Row};

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let only_facts = args.first().is_some_and(|arg| arg == "--facts");
    if only_facts {
        args.remove(0);
    }
    let [file] = args.as_slice() else {
        eprintln!("say which document: bundle-drift [--facts] FILE");
        return ExitCode::from(2);
    };
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("cannot read {file}: {error}");
            return ExitCode::from(2);
        }
    };
    let facts = documents::facts(&text);
    if facts.is_empty() {
        eprintln!(
            "{file} holds no row that this tool can read; it knows Microsoft's \"Outbound network and FQDN rules\""
        );
        return ExitCode::from(2);
    }
    if only_facts {
        for Fact { cloud, part, printed, port } in &facts {
            println!("{cloud}\t{part}\t{printed}\t{port}");
        }
        return ExitCode::SUCCESS;
    }
    let bundle = match bundle::named("aks") {
        Ok(bundle) => bundle,
        Err(fault) => {
            eprintln!("{fault}");
            return ExitCode::from(2);
        }
    };
    let drift = drift(bundle, &facts);
    for line in &drift {
        println!("{line}");
    }
    println!("{} rows read, {} differences", facts.len(), drift.len());
    ExitCode::from(u8::from(!drift.is_empty()))
}

fn drift(bundle: &Bundle, facts: &[Fact]) -> Vec<String> {
    let Some(latest) = bundle.latest() else { return Vec::new() };
    let rows: Vec<&Row> = bundle.rows.iter().filter(|row| row.in_force(&latest.date)).collect();
    let in_cloud = |fact: &Fact, cloud: &str| rows.iter().any(|row| row.is_for(cloud) && documents::says(row, fact));
    let known = |fact: &Fact| match fact.cloud.as_str() {
        "any" => bundle.clouds.keys().all(|cloud| in_cloud(fact, cloud)),
        cloud => in_cloud(fact, cloud),
    };
    let new = facts.iter().filter(|fact| !known(fact));
    let mut out: Vec<String> =
        new.map(|f| format!("new      {:<7} {:<20} {} on {}", f.cloud, f.part, f.printed, f.port)).collect();
    // Other documents' rows are not expected in this one.
    for row in rows.iter().filter(|row| row.source == "outbound") {
        for name in row.fqdns.iter().filter(|name| row.printed.is_empty() && !name.contains("<private-zone>")) {
            let printed = |fact: &&Fact| fact.printed == *name && (fact.cloud == "any" || row.is_for(&fact.cloud));
            if !facts.iter().any(|fact| printed(&fact)) {
                out.push(format!(
                    "missing  {:<7} {:<20} {name} of row {}",
                    row.clouds.join(","),
                    row.features.join(","),
                    row.id
                ));
            }
        }
    }
    out
}
