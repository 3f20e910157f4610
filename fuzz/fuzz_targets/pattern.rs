//! Any text is a pattern or an explained fault; matching never panics.
#![no_main]

use egret::name::HostName;
use egret::policy::hosts::HostIndex;
use egret::policy::pattern::Pattern;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (String, Vec<u8>)| {
    let (text, name) = input;
    let Ok(pattern) = Pattern::parse(&text) else { return };
    // A pattern's own text is a pattern, and the same one.
    assert_eq!(Pattern::parse(pattern.as_str()).expect("reads again").as_str(), pattern.as_str());
    let mut index = HostIndex::default();
    index.add(&pattern, 0);
    if let Ok(name) = HostName::from_wire(&name) {
        index.matches(&name, |_| {});
    }
});
