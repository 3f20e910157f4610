//! Any text is a configuration or a list of faults, each with a place inside the text.
#![no_main]

use egret::config::Settings;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // A file named by the text would be read; nothing here may touch the disk.
    if ["_file", "tls", "service_tags"].iter().any(|key| text.contains(key)) {
        return;
    }
    if let Err(error) = Settings::parse(text, "fuzz", std::path::Path::new("/nonexistent")) {
        assert!(!error.faults.is_empty());
    }
});
