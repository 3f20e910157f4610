//! Users and their passwords: a file of hashes, and the check, which is dear on purpose.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use argon2::{Argon2, PasswordHash, PasswordVerifier as _};
use ring::hmac;

use super::turns::{ClientQueues, FairSemaphore};
use crate::files::{FileFault, Files, read_regular};
use egret_core::credentials::{Credentials, MAX_USER};

/// A hash that takes seconds, or all memory, would be a way to stop the proxy.
const BCRYPT_COSTS: std::ops::RangeInclusive<u32> = 4..=15;
const MAX_ARGON2_KIB: u32 = 64 << 10;
const MAX_ARGON2_WORK: u64 = 1 << 20;

/// Checks at once: a flood of wrong passwords takes half the machine at most, and nothing from known users.
static CHECKS: LazyLock<Arc<FairSemaphore>> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    FairSemaphore::new(cores.div_ceil(2).min(4))
});

/// One check at a time for a client's address, so that a flood from one waits behind itself and not before others.
static QUEUES: LazyLock<Arc<ClientQueues>> = LazyLock::new(|| ClientQueues::new(1));

/// The file of users: `name:hash` a line, as `htpasswd -B` and `argon2 -e` write hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsersFile(pub PathBuf);

impl Files for UsersFile {
    type Made = Users;

    fn paths(&self) -> Vec<&Path> {
        vec![&self.0]
    }

    fn load(&self) -> Result<Users, FileFault> {
        match self.read()? {
            (_, Some(fault)) => Err(fault),
            (users, None) if users.hashes.is_empty() => {
                let message = format!("{}: there is no user; write NAME:HASH, as `htpasswd -B` does", self.0.display());
                Err(FileFault { key: "users_file", message })
            }
            (users, None) => Ok(users),
        }
    }

    /// A user whose line is gone, or cannot be read, is not a user any more.
    fn reload(&self, was: &Users) -> (Option<Users>, Option<FileFault>) {
        match self.read() {
            Ok((users, fault)) => (Some(users.remembering(was)), fault),
            Err(fault) => (Users::parse("").ok().map(|(none, _)| none), Some(fault)),
        }
    }
}

impl UsersFile {
    /// The users that can be read, and the first fault.
    fn read(&self) -> Result<(Users, Option<FileFault>), FileFault> {
        let fault = |message| FileFault { key: "users_file", message };
        let text = read_regular(&self.0).map_err(fault)?;
        let (users, first) = Users::parse(&text).map_err(fault)?;
        let first = first.map(|(line, what)| fault(format!("{}:{line} {what}", self.0.display())));
        Ok((users, first))
    }
}

/// A hash's text, which has been checked.
#[derive(Clone, PartialEq, Eq)]
struct Hash(Box<str>);

/// What a client was let in by.
#[derive(Clone)]
pub struct Pass {
    user: String,
    hash: Hash,
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pass")
    }
}

/// Users and their hashes.
pub struct Users {
    hashes: HashMap<Box<str>, Hash>,
    /// The dearest, checked in place of a user that is none, so that time tells little. `None`: there are no users.
    stand_in: Option<Hash>,
    /// Of this process.
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
    /// Reads a file's text: its users, and the first faulty line's number and what would be right there; never a hash.
    ///
    /// # Errors
    /// Where the machine has no random numbers.
    pub fn parse(text: &str) -> Result<(Self, Option<(usize, String)>), String> {
        let mut hashes: HashMap<Box<str>, Hash> = HashMap::new();
        let (mut seen, mut fault) = (HashSet::new(), None);
        for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match user(line) {
                Ok((name, hash)) if seen.insert(name) => {
                    hashes.insert(name.into(), hash);
                }
                Ok((name, _)) => {
                    // Which of them is meant is not for egret to say.
                    hashes.remove(name);
                    fault.get_or_insert_with(|| {
                        (number, "repeats a user that is there already; write each once".to_owned())
                    });
                }
                Err(what) => {
                    fault.get_or_insert((number, what));
                }
            }
        }
        let stand_in = hashes.values().max_by_key(|hash| hash.work()).cloned();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
            .map_err(|_| "this machine has no random numbers".to_owned())?;
        Ok((Self { hashes, stand_in, key, known: Mutex::default() }, fault))
    }

    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.hashes.contains_key(name)
    }

    /// The pass of a user with these credentials, from an address. May wait for other checks: call it under a deadline.
    pub async fn admit(self: Arc<Self>, shown: Credentials, from: IpAddr) -> Option<Pass> {
        // The name's length is part of it, or a colon could be moved.
        let Credentials { user, password } = shown;
        let length = u64::try_from(user.len()).unwrap_or(u64::MAX).to_be_bytes();
        let message = [&length, user.as_bytes(), &password].concat();
        if let Some(pass) = self.known(&user, &message) {
            return Some(pass);
        }
        let place = QUEUES.enter(from).await;
        let turn = CHECKS.next(from).await;
        // Many may have waited to show the same.
        if let Some(pass) = self.known(&user, &message) {
            return Some(pass);
        }
        let checked = tokio::task::spawn_blocking(move || {
            let hash = self.hashes.get(&*user);
            let fits = hash.or(self.stand_in.as_ref()).is_some_and(|hash| hash.fits(&password));
            let pass = hash.filter(|_| fits).map(|hash| Pass { user: user.clone(), hash: hash.clone() });
            if pass.is_some() {
                let tag = hmac::sign(&self.key, &message);
                self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(user, tag);
            }
            if pass.is_none() {
                CHECKS.failed(from);
            }
            // The client may be gone; the next check for its address begins when this one has ended.
            drop((turn, place));
            pass
        });
        checked.await.ok().flatten()
    }

    /// Whether the user of a pass is still there, with the same hash.
    #[must_use]
    pub fn stand(&self, pass: &Pass) -> bool {
        self.hashes.get(&*pass.user) == Some(&pass.hash)
    }

    fn known(&self, user: &str, message: &[u8]) -> Option<Pass> {
        let tag = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(user).copied()?;
        let hash = self.hashes.get(user)?;
        hmac::verify(&self.key, message, tag.as_ref()).ok()?;
        Some(Pass { user: user.to_owned(), hash: hash.clone() })
    }

    /// Takes over what is known of users whose lines have not changed.
    fn remembering(mut self, was: &Self) -> Self {
        let known = was.known.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |user: &str| self.hashes.contains_key(user) && self.hashes.get(user) == was.hashes.get(user);
        let kept = known.iter().filter(|(user, _)| same(user)).map(|(user, tag)| (user.clone(), *tag)).collect();
        self.known = Mutex::new(kept);
        self.key = was.key.clone();
        self
    }
}

/// One line: a name and its hash. A fault names neither: people put one where the other belongs.
fn user(line: &str) -> Result<(&str, Hash), String> {
    let (name, hash) =
        line.split_once(':').ok_or_else(|| "is not a user; write NAME:HASH, as `htpasswd -B` does".to_owned())?;
    if name.is_empty() || name.len() > MAX_USER || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("has no usable name; write 1 to 255 characters without blanks".to_owned());
    }
    Ok((name, Hash::parse(hash)?))
}

impl Hash {
    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("$2") {
            let parts: bcrypt::HashParts = text.parse().map_err(|_| "has no whole bcrypt hash".to_owned())?;
            if !BCRYPT_COSTS.contains(&parts.get_cost()) {
                let (least, most) = BCRYPT_COSTS.into_inner();
                return Err(format!("has a bcrypt cost of {}; write one from {least} to {most}", parts.get_cost()));
            }
            return Ok(Self(text.into()));
        }
        if !text.starts_with("$argon2") {
            return Err("has a hash that is neither bcrypt nor argon2; make one with `htpasswd -nB NAME`".to_owned());
        }
        let broken = || "has no whole argon2 hash".to_owned();
        let hash = PasswordHash::new(text).map_err(|_| broken())?;
        let params = argon2::Params::try_from(&hash).map_err(|_| broken())?;
        if hash.salt.is_none() || hash.hash.is_none() {
            return Err(broken());
        }
        let work = u64::from(params.m_cost()) * u64::from(params.t_cost());
        if params.m_cost() > MAX_ARGON2_KIB || work > MAX_ARGON2_WORK {
            return Err(format!(
                "has an argon2 hash that takes too much; {MAX_ARGON2_KIB} KiB are the most, and {MAX_ARGON2_WORK} KiB times passes"
            ));
        }
        Ok(Self(text.into()))
    }

    /// About as long as a check takes, in microseconds.
    fn work(&self) -> u64 {
        match self.0.parse::<bcrypt::HashParts>() {
            Ok(parts) => 50 << parts.get_cost(),
            Err(_) => {
                let params = PasswordHash::new(&self.0).ok().and_then(|hash| argon2::Params::try_from(&hash).ok());
                params.map_or(0, |params| u64::from(params.m_cost()) * u64::from(params.t_cost()))
            }
        }
    }

    fn fits(&self, password: &[u8]) -> bool {
        if self.0.starts_with("$2") {
            return bcrypt::verify(password, &self.0).unwrap_or(false);
        }
        PasswordHash::new(&self.0).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
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
        Arc::clone(users).admit(shown, "192.0.2.1".parse().unwrap()).await.is_some()
    }

    #[tokio::test]
    async fn only_a_users_own_password_fits() {
        let (users, fault) = Users::parse(FILE).unwrap();
        assert_eq!(fault, None);
        let users = Arc::new(users);
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

    #[tokio::test]
    async fn whoever_is_as_before_is_known_after_a_change() {
        let (alice, bob) = (FILE.lines().nth(2).unwrap(), FILE.lines().nth(3).unwrap());
        let was = Arc::new(Users::parse(FILE).unwrap().0);
        let pass =
            Arc::clone(&was).admit(Credentials::new(b"alice", b"correct horse").unwrap(), "::1".parse().unwrap());
        let pass = pass.await.unwrap();
        assert!(have(&was, "bob", "correct horse").await && was.stand(&pass));
        let other = bob.replace("bob", "alice");
        for (text, is_known, stands) in [
            (alice.to_owned(), 1, true),
            (format!("{alice}\n{bob}"), 2, true),
            (bob.to_owned(), 1, false),
            (other, 0, false),
        ] {
            let users = Users::parse(&text).unwrap().0.remembering(&was);
            assert_eq!((users.known.lock().unwrap().len(), users.stand(&pass)), (is_known, stands), "{text}");
        }
    }

    #[tokio::test]
    async fn a_fault_takes_its_own_line_and_no_other() {
        let (alice, bob) = (FILE.lines().nth(2).unwrap(), FILE.lines().nth(3).unwrap());
        for (text, alice_is, bob_is) in [
            (format!("{alice}\n{bob}"), true, true),
            (format!("{alice}\nbob:broken"), true, false),
            (format!("{alice}\n{bob}\n{alice}\n{alice}"), false, true),
            (String::new(), false, false),
        ] {
            let users = Arc::new(Users::parse(&text).unwrap().0);
            let got = (have(&users, "alice", "correct horse").await, have(&users, "bob", "correct horse").await);
            assert_eq!(got, (alice_is, bob_is), "{text}");
        }
    }

    #[test]
    fn a_fault_names_the_line_and_the_cure_and_no_hash() {
        let fault = |text: &str| Users::parse(text).unwrap().1.unwrap();
        let swapped = "$2y$05$DXv7v4to5HpPR0uKRPDUMOdxNeQAecGHCYLUWjtLLxmTFy3JWhExq:alice";
        let (alice, bob) = (FILE.lines().nth(2).unwrap(), FILE.lines().nth(3).unwrap());
        for (text, line, says) in [
            ("alice", 1, "NAME:HASH"),
            (":x", 1, "name"),
            ("a b:x", 1, "name"),
            ("\nalice:secret", 2, "htpasswd"),
            ("alice:$apr1$n8fUtPTV$Pd215XGZfRRg9cYoSZ1yY0", 1, "neither"),
            ("alice:$2y$05$short", 1, "whole"),
            (&alice.replace("$05$", "$02$"), 1, "cost of 2"),
            (&alice.replace("$05$", "$31$"), 1, "cost of 31"),
            (&bob.replace("m=4096", "m=4194304"), 1, "too much"),
            (&bob.replace("t=2", "t=2000000"), 1, "too much"),
            ("bob:$argon2id$v=19$m=4096,t=2,p=1$c2FsdHNhbHQ", 1, "whole"),
            (&format!("{alice}\n{alice}"), 2, "already"),
            (swapped, 1, "neither"),
        ] {
            let (at, message) = fault(text);
            assert!(at == line && message.contains(says), "{text}: {at} {message}");
            assert!(!message.contains("secret") && !message.contains("DXv7"), "{message}");
        }
    }
}
