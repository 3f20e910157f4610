//! Any text is a pattern or an explained fault; matching never panics.
#![no_main]

use egret_core::name::HostName;
use egret_core::policy::hosts::HostIndex;
use egret_core::rule::pattern::Pattern;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // What follows a space is the name to match.
    let (text, name) = text.split_once(' ').unwrap_or((text, text));
    let Ok(pattern) = Pattern::parse(text) else { return };
    // A pattern's own text is a pattern, and the same one.
    assert_eq!(Pattern::parse(pattern.as_str()).expect("reads again").as_str(), pattern.as_str());
    let mut index = HostIndex::default();
    index.add(&pattern, 0);
    if let Ok(name) = HostName::from_wire(name.as_bytes()) {
        index.matches(&name, |_| {});
    }
});
