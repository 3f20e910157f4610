//! Text files that a configuration names: bounded, and with a sentence for what is wrong with them.

mod refreshed;

use std::io::Read as _;
use std::path::Path;

pub use refreshed::{FileFault, Files, Refreshed, StampedFile, stamp};

/// A larger file holds a list that belongs into `fqdns_file`.
const MAX_FILE: u64 = 64 << 20;

/// A text file with a bound, or the sentence that says why not.
pub(crate) fn read_bounded(path: &Path) -> Result<String, String> {
    let name = path.display();
    let cannot = |e: std::io::Error| format!("cannot read {name}: {e}");
    let mut bytes = Vec::new();
    // What it says of its length is not asked: some files have none, and no end.
    std::fs::File::open(path).map_err(cannot)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("{name} has more than {MAX_FILE} bytes, which are the most"));
    }
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return Err(format!("{name} is compressed; unpack it"));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(format!("{name} is not UTF-8 but UTF-16; save it as UTF-8"));
    }
    String::from_utf8(bytes).map_err(|e| {
        let before = String::from_utf8_lossy(e.as_bytes().get(..e.utf8_error().valid_up_to()).unwrap_or_default());
        let (line, column) =
            (before.matches('\n').count() + 1, before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1);
        format!("{name} is not UTF-8 at line {line}, column {column}; save it as UTF-8")
    })
}

/// A file's text. Pipes and devices, which could be waited for without end, are none.
pub(crate) fn read_regular(path: &Path) -> Result<String, String> {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(format!("{} is not a file; write the name of one", path.display())),
        _ => read_bounded(path),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_file_of_another_encoding_says_where_and_what_to_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (bytes, says) in [
            (&b"a: b\nc: caf\xe9\n"[..], "is not UTF-8 at line 2, column 7; save it as UTF-8"),
            (b"\xff\xfea\0", "is not UTF-8 but UTF-16; save it as UTF-8"),
        ] {
            std::fs::write(file.path(), bytes).unwrap();
            let said = super::read_bounded(file.path()).unwrap_err();
            assert!(said.ends_with(says), "{said}");
        }
    }
}
