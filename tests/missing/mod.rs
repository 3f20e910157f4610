//! What a test says that cannot run here.

#![allow(unreachable_pub, reason = "a module of test binaries")]

use std::io::Write as _;

/// Says loudly that a test did not run, or fails where everything must.
pub fn missing(what: &str) {
    let all = std::env::var_os("EGRET_TEST_ALL").is_some_and(|v| v == "1");
    assert!(!all, "EGRET_TEST_ALL=1 and {what} is missing");
    let mut terminal = std::io::stderr();
    // Straight to the terminal: the harness would swallow a print of a test that passes.
    let _ = writeln!(terminal, "\n*** DID NOT RUN: {what} is missing (test {:?}) ***\n", std::thread::current().name());
}
