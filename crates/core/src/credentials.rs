//! What a client shows to say which user it is.

/// RFC 1929 §2: a name's length is one byte.
pub const MAX_USER: usize = 255;

/// Longer than any that people or machines have; HTTP has no bound of its own.
pub const MAX_PASSWORD: usize = 1024;

/// A name and a password, as a client shows them.
pub struct Credentials {
    pub user: String,
    pub password: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    /// Neither may get into a log: people type one where the other belongs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// `None` where no file could hold them.
    #[must_use]
    pub fn new(user: &[u8], password: &[u8]) -> Option<Self> {
        let fits = user.len() <= MAX_USER && password.len() <= MAX_PASSWORD;
        let user = std::str::from_utf8(user).ok().filter(|_| fits)?;
        Some(Self { user: user.to_owned(), password: password.to_vec() })
    }

    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The value of a `Proxy-Authorization` field (RFC 7617 §2).
    #[must_use]
    pub fn basic(value: &[u8]) -> Option<Self> {
        let (scheme, rest) = value.split_at_checked(6)?;
        let encoded = rest.trim_ascii_start();
        if !scheme.eq_ignore_ascii_case(b"basic ") {
            return None;
        }
        let plain = data_encoding::BASE64.decode(encoded).ok()?;
        let colon = plain.iter().position(|b| *b == b':')?;
        let (user, password) = plain.split_at_checked(colon)?;
        Self::new(user, password.get(1..)?)
    }
}
