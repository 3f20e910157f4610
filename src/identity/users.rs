//! Users and their passwords: a file of hashes, and the check, which is dear on purpose.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use argon2::{Argon2, PasswordHash, PasswordVerifier as _};
use ring::hmac;
use tokio::sync::Semaphore;

use super::refreshed::{FileFault, Files};
use crate::config::read_bounded;

/// RFC 1929 §2: a name's length is one byte.
const MAX_NAME: usize = 255;
/// Longer than any that people or machines have; HTTP has no bound of its own.
const MAX_PASSWORD: usize = 1024;
/// A hash that takes seconds, or a gigabyte, would be a way to stop the proxy.
const MAX_BCRYPT_COST: u32 = 15;
const MAX_ARGON2_KIB: u32 = 256 << 10;
const MAX_ARGON2_WORK: u64 = 4 << 20;

/// Checks at once: a flood of wrong passwords takes half the machine at most, and nothing from those who are known.
static TURNS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2))));

/// The file of users: `name:hash` a line, as `htpasswd -B` and `argon2 -e` write hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsersFile(pub PathBuf);

impl Files for UsersFile {
    type Made = Users;

    fn paths(&self) -> Vec<&Path> {
        vec![&self.0]
    }

    fn load(&self) -> Result<Users, FileFault> {
        let read = read_bounded(&self.0);
        let read = read.and_then(|text| {
            Users::parse(&text).map_err(|(line, fault)| format!("{}:{line}: {fault}", self.0.display()))
        });
        read.map_err(|message| FileFault { key: "users_file", message })
    }
}

/// A name and a password, as a client shows them.
pub struct Credentials {
    user: String,
    password: Vec<u8>,
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
        let fits = user.len() <= MAX_NAME && password.len() <= MAX_PASSWORD;
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

#[derive(Clone)]
enum Hash {
    Bcrypt(Box<str>),
    Argon2(Arc<PasswordHash>),
}

/// Users and their hashes.
pub struct Users {
    hashes: HashMap<Box<str>, Hash>,
    /// Checked in place of a user that is none, so that time does not tell.
    stand_in: Hash,
    /// Of this process and this reading of the file.
    key: hmac::Key,
    /// What was shown last and was right: a request must not cost a hash each.
    known: Mutex<HashMap<String, hmac::Tag>>,
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Users({})", self.hashes.len())
    }
}

impl Users {
    /// Reads a file's text.
    ///
    /// # Errors
    /// A line's number and what would be right; never a hash.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut hashes = HashMap::new();
        let mut stand_in = None;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, hash) = line
                .split_once(':')
                .ok_or_else(|| (number, "is no user; write NAME:HASH, as `htpasswd -B` does".to_owned()))?;
            if name.is_empty() || name.len() > MAX_NAME || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
                return Err((number, "has no usable name; write 1 to 255 characters without blanks".to_owned()));
            }
            let hash = Hash::parse(hash).map_err(|fault| (number, format!("user {name}: {fault}")))?;
            if hashes.insert(name.into(), hash.clone()).is_some() {
                return Err((number, format!("user {name} stands there twice; write it once")));
            }
            stand_in = Some(hash);
        }
        let stand_in =
            stand_in.ok_or_else(|| (1, "there is no user; write NAME:HASH, as `htpasswd -B` does".to_owned()))?;
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
            .map_err(|_| (1, "this machine has no random numbers".to_owned()))?;
        Ok(Self { hashes, stand_in, key, known: Mutex::default() })
    }

    /// Whether these are a user's. May wait for other checks: call it under a deadline.
    pub async fn have(self: Arc<Self>, shown: Credentials) -> bool {
        // The name's length is part of it, or a colon could be moved.
        let Credentials { user, password } = shown;
        let length = u64::try_from(user.len()).unwrap_or(u64::MAX).to_be_bytes();
        let message = [&length, user.as_bytes(), &password].concat();
        if self.knows(&user, &message) {
            return true;
        }
        let Ok(turn) = TURNS.acquire().await else { return false };
        // Many may have waited to show the same.
        if self.knows(&user, &message) {
            return true;
        }
        let checked = tokio::task::spawn_blocking(move || {
            let hash = self.hashes.get(&*user);
            let fits = hash.unwrap_or(&self.stand_in).fits(&password) && hash.is_some();
            if fits {
                let tag = hmac::sign(&self.key, &message);
                self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(user, tag);
            }
            drop(turn);
            fits
        });
        checked.await.unwrap_or(false)
    }

    fn knows(&self, user: &str, message: &[u8]) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(user).copied();
        known.is_some_and(|tag| hmac::verify(&self.key, message, tag.as_ref()).is_ok())
    }
}

impl Hash {
    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("$2") {
            let parts: bcrypt::HashParts = text.parse().map_err(|_| "is no whole bcrypt hash".to_owned())?;
            return match parts.get_cost() {
                0..=MAX_BCRYPT_COST => Ok(Self::Bcrypt(text.into())),
                cost => Err(format!("a bcrypt cost of {cost} takes too long; {MAX_BCRYPT_COST} is the most")),
            };
        }
        if !text.starts_with("$argon2") {
            return Err("its hash is neither bcrypt nor argon2; make one with `htpasswd -nB NAME`".to_owned());
        }
        let broken = "is no whole argon2 hash";
        let hash = PasswordHash::new(text).map_err(|_| broken.to_owned())?;
        let params = argon2::Params::try_from(&hash).map_err(|_| broken.to_owned())?;
        if hash.salt.is_none() || hash.hash.is_none() {
            return Err(broken.to_owned());
        }
        let work = u64::from(params.m_cost()) * u64::from(params.t_cost());
        if params.m_cost() > MAX_ARGON2_KIB || work > MAX_ARGON2_WORK {
            return Err(format!(
                "its argon2 hash takes too much; {MAX_ARGON2_KIB} KiB are the most, and {MAX_ARGON2_WORK} KiB times passes"
            ));
        }
        Ok(Self::Argon2(Arc::new(hash)))
    }

    fn fits(&self, password: &[u8]) -> bool {
        match self {
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Self::Argon2(hash) => Argon2::default().verify_password(password, &**hash).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `htpasswd -nbB` and `argon2 -id -e`, both of "correct horse".
    const FILE: &str = "# who may\n\nalice:$2y$05$DXv7v4to5HpPR0uKRPDUMOdxNeQAecGHCYLUWjtLLxmTFy3JWhExq\n\
         bob:$argon2id$v=19$m=4096,t=2,p=1$c2FsdHNhbHQ$CKenyQBYugZw5wFrZTaehyF/jNk2bcSNQY7jAvjCc5k\n";

    async fn have(users: &Arc<Users>, user: &str, password: &str) -> bool {
        let shown = Credentials::new(user.as_bytes(), password.as_bytes()).unwrap();
        Arc::clone(users).have(shown).await
    }

    #[tokio::test]
    async fn only_a_users_own_password_fits() {
        let users = Arc::new(Users::parse(FILE).unwrap());
        for name in ["alice", "bob"] {
            // The second time it is known, and another password is still wrong.
            for _ in 0..2 {
                assert!(have(&users, name, "correct horse").await, "{name}");
                assert!(!have(&users, name, "correct horsf").await, "{name}");
                assert!(!have(&users, name, "").await, "{name}");
            }
        }
        assert!(!have(&users, "carol", "correct horse").await);
        assert!(!have(&users, "", "").await);
        assert!(!have(&users, "alice\0", "correct horse").await);
        // What is known of one user is nothing of another, wherever the name ends.
        assert!(!have(&users, "alicec", "orrect horse").await);
        assert_eq!(users.known.lock().unwrap().len(), 2, "what is wrong is not kept");
    }

    #[test]
    fn a_field_is_read_as_it_is_specified() {
        let read = |value: &str| Credentials::basic(value.as_bytes()).map(|c| (c.user, c.password));
        let bob = Some(("bob".to_owned(), b"a:b".to_vec()));
        assert_eq!(read("Basic Ym9iOmE6Yg=="), bob);
        assert_eq!(read("bAsIc   Ym9iOmE6Yg=="), bob);
        assert_eq!(read("Basic Og=="), Some((String::new(), Vec::new())));
        for none in
            ["", "Basic", "Basic ", "Basic Ym9i", "Basic !", "Bearer Ym9iOmE6Yg==", "BasicYm9iOmE6Yg==", "Basic /zph"]
        {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn a_fault_names_the_line_and_the_cure_and_no_hash() {
        let fault = |text: &str| Users::parse(text).unwrap_err();
        let (alice, bob) = (FILE.lines().nth(2).unwrap(), FILE.lines().nth(3).unwrap());
        for (text, line, says) in [
            ("", 1, "no user"),
            ("# none\n", 1, "no user"),
            ("alice", 1, "NAME:HASH"),
            (":x", 1, "name"),
            ("a b:x", 1, "name"),
            ("\nalice:secret", 2, "htpasswd"),
            ("alice:$apr1$n8fUtPTV$Pd215XGZfRRg9cYoSZ1yY0", 1, "neither"),
            ("alice:$2y$05$short", 1, "whole"),
            (&alice.replace("$05$", "$31$"), 1, "cost of 31"),
            (&bob.replace("m=4096", "m=4194304"), 1, "too much"),
            (&bob.replace("t=2", "t=2000000"), 1, "too much"),
            ("bob:$argon2id$v=19$m=4096,t=2,p=1$c2FsdHNhbHQ", 1, "whole"),
            (&format!("{alice}\n{alice}"), 2, "twice"),
        ] {
            let (at, message) = fault(text);
            assert!(at == line && message.contains(says), "{text}: {at} {message}");
            assert!(!message.contains("secret") && !message.contains("DXv7"), "{message}");
        }
    }
}
