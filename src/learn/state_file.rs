//! What was found for names, on disk: a restart knows it at once, and flows go on that began before.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::files::read_bounded;
use egret_core::policy::Policy;
use egret_core::rule::NetRule;

/// The file in the state directory.
const FILE: &str = "learned.json";
/// How soon a new address is on disk.
const SOON: Duration = Duration::from_secs(5);
/// How old the times of known ones may get there.
const LATEST: Duration = Duration::from_secs(600);

/// Names, their addresses, and the second in which each was answered last (Unix time).
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Learned {
    names: BTreeMap<String, BTreeMap<IpAddr, u64>>,
}

impl Learned {
    fn of(policy: &Policy) -> Self {
        let (now, today) = (Instant::now().into_std(), SystemTime::now());
        let mut names: BTreeMap<String, BTreeMap<IpAddr, u64>> = BTreeMap::new();
        for kept in policy.network_rules().iter().flat_map(|rule| &rule.kept) {
            let known = names.entry(kept.name().as_str().to_owned()).or_default();
            for (ip, seen) in kept.addresses() {
                let at = today - now.saturating_duration_since(seen);
                let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                known.insert(ip, seconds);
            }
        }
        names.retain(|_, known| !known.is_empty());
        Self { names }
    }

    /// The same addresses, whenever they were answered.
    fn is_like(&self, other: &Self) -> bool {
        let plain = |learned: &Self| -> Vec<(String, Vec<IpAddr>)> {
            learned.names.iter().map(|(name, known)| (name.clone(), known.keys().copied().collect())).collect()
        };
        plain(self) == plain(other)
    }
}

/// Gives rules back what was found for their names before, as far as they still lead there. What was answered too
/// long ago, or in the future, is left out.
///
/// # Errors
/// A sentence, where there is a file that cannot be read.
pub fn restore(dir: &Path, rules: &[NetRule], nat64: Option<Ipv6Net>, remember: Duration) -> Result<(), String> {
    let path = dir.join(FILE);
    if !path.exists() {
        return Ok(());
    }
    let wrong = |why: String| format!("{}: {why}; addresses found before are not known", path.display());
    let text = read_bounded(&path).map_err(wrong)?;
    let learned: Learned = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let (now, today) = (Instant::now().into_std(), SystemTime::now());
    for rule in rules {
        for kept in &rule.kept {
            let known = learned.names.get(kept.name().as_str()).into_iter().flatten();
            let held = known.filter_map(|(ip, seconds)| {
                let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))?;
                let age = today.duration_since(at).ok()?;
                let seen = now.checked_sub(age).filter(|_| age < remember)?;
                rule.leads_to(*ip, nat64).then_some((*ip, seen))
            });
            kept.set(held.collect());
        }
    }
    Ok(())
}

/// Writes down what a policy has found, whenever it has found something, until it is dropped.
pub async fn keep_writing(dir: PathBuf, policy: std::sync::Arc<Policy>) {
    let (mut written, mut at, mut failed) = (Learned::default(), Instant::now(), false);
    loop {
        tokio::time::sleep(SOON).await;
        let learned = Learned::of(&policy);
        if learned.is_like(&written) && at.elapsed() < LATEST {
            continue;
        }
        let text = serde_json::to_string(&learned).unwrap_or_default();
        let place = dir.clone();
        let writing = tokio::task::spawn_blocking(move || write(&place, &text));
        match writing.await.unwrap_or_else(|join| Err(io::Error::other(join))) {
            Ok(()) => (written, at, failed) = (learned, Instant::now(), false),
            Err(error) if !std::mem::replace(&mut failed, true) => {
                tracing::warn!(%error, dir = %dir.display(), "addresses of names will not be known after a restart; make learn.state_dir writable");
            }
            Err(_) => {}
        }
    }
}

/// The whole file or the old one.
fn write(dir: &Path, text: &str) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let new = dir.join(format!("{FILE}.new"));
    std::fs::write(&new, text)?;
    std::fs::rename(new, dir.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use std::sync::Arc;

    fn settings(rule: &str) -> Settings {
        let text = format!(
            "listeners: [{{ kind: forward, bind: \"127.0.0.1:1\" }}]\npolicy: {{ network_rules: [{{ {rule}, protocols: [\"udp:123\"] }}] }}\n"
        );
        Settings::parse(&text, "t", Path::new(".")).unwrap()
    }

    fn known(rules: &[NetRule]) -> Vec<String> {
        rules[0].kept[0].addresses().iter().map(|(ip, _)| ip.to_string()).collect()
    }

    #[test]
    fn what_was_found_is_known_again_as_far_as_it_still_holds() {
        let dir = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(86_400);
        let first = settings("fqdns: [a.example]").rules;
        restore(dir.path(), &first.nets, None, day).unwrap();
        let now = Instant::now().into_std();
        let seen = |hours: u64| now.checked_sub(Duration::from_secs(hours * 3600)).unwrap();
        let found = [("1.1.1.1", 1_u64), ("1.1.1.2", 25), ("10.0.0.1", 1)];
        first.nets[0].kept[0].set(found.iter().map(|(ip, hours)| (ip.parse().unwrap(), seen(*hours))).collect());
        let policy = Policy::of(first, Arc::default());
        write(dir.path(), &serde_json::to_string(&Learned::of(&policy)).unwrap()).unwrap();

        let again = settings("fqdns: [a.example]").rules;
        restore(dir.path(), &again.nets, None, day).unwrap();
        assert_eq!(known(&again.nets), ["1.1.1.1"], "the others are too old, or not public");
        let private = settings("fqdns: [a.example], addresses: [10.0.0.0/8]").rules;
        restore(dir.path(), &private.nets, None, day).unwrap();
        assert_eq!(known(&private.nets), ["10.0.0.1"]);
        let other = settings("fqdns: [b.example]").rules;
        restore(dir.path(), &other.nets, None, day).unwrap();
        assert!(known(&other.nets).is_empty());
        let strange = format!("{{\"names\":{{\"b.example\":{{\"1.1.1.1\":{}}}}}}}", u64::MAX);
        std::fs::write(dir.path().join(FILE), strange).unwrap();
        restore(dir.path(), &other.nets, None, day).unwrap();
        assert!(known(&other.nets).is_empty());
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(restore(dir.path(), &other.nets, None, day).unwrap_err().contains("learned.json"));
    }
}
