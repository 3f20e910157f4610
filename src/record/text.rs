//! Bytes from the wire as a line may have them.

/// What is not a name and stands where one belongs: before an `@` it may be a password.
pub(super) fn without_userinfo(raw: &[u8]) -> &[u8] {
    raw.rsplit(|b| *b == b'@').next().unwrap_or_default()
}

/// Bytes from the wire as printable ASCII, cut at 255 characters.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    bytes.escape_ascii().map(char::from).take(255).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_bytes_cannot_break_a_line() {
        assert_eq!(escape(b"a\r\n\"\\\xff\x1b[2J"), r#"a\r\n\"\\\xff\x1b[2J"#);
        assert_eq!(escape(&[0xff; 1000]).len(), 255);
        assert_eq!(without_userinfo(b"bob:hunter2@x@a.test:80"), b"a.test:80");
    }
}
