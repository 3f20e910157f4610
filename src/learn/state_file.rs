//! What was learned for the names of rules, on disk: a restart knows it at once, and flows go on that began before.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::settings::LearnSettings;
use crate::files::read_bounded;
use egret_core::learned::Learned;
use egret_core::rule::LearnedName;
use egret_core::rule::guard::{self, Judgement};
use egret_core::rule::rules::Rules;

/// The file in the state directory.
const FILE: &str = "learned.json";
/// How soon a new address is on disk.
const SOON: Duration = Duration::from_secs(5);
/// How old the times of known ones may get there.
const LATEST: Duration = Duration::from_secs(600);

/// Names, their addresses, and the second in which each was answered last (Unix time).
#[derive(Debug, Default, Serialize, Deserialize)]
struct StateFile {
    names: BTreeMap<String, BTreeMap<IpAddr, u64>>,
}

/// This moment, by both clocks.
struct Now {
    instant: StdInstant,
    time: SystemTime,
}

impl Now {
    fn new() -> Self {
        Self { instant: Instant::now().into_std(), time: SystemTime::now() }
    }

    fn seconds(&self, seen: StdInstant) -> u64 {
        let at = self.time - self.instant.saturating_duration_since(seen);
        at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    /// `None`: in the future, or longer ago than this machine has run.
    fn instant(&self, seconds: u64) -> Option<StdInstant> {
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
        self.instant.checked_sub(self.time.duration_since(at).ok()?)
    }
}

impl StateFile {
    fn of(learned: &Learned) -> Self {
        let now = Now::new();
        let mut names: BTreeMap<String, BTreeMap<IpAddr, u64>> = BTreeMap::new();
        for (name, addresses) in learned.snapshot(now.instant) {
            let known = names.entry(name.name().as_str().to_owned()).or_default();
            for (ip, seen) in addresses {
                let last = known.entry(ip).or_default();
                *last = now.seconds(seen).max(*last);
            }
        }
        names.retain(|_, known| !known.is_empty());
        Self { names }
    }
}

/// The store for some rules, with what was learned for their names before; and a sentence, where there is a file that cannot
/// be read.
#[must_use]
pub fn open(settings: &LearnSettings, rules: &Rules) -> (Learned, Option<String>) {
    let learned = Learned::new(settings.remember);
    let names: Vec<LearnedName> = rules.nets.iter().flat_map(|rule| &rule.kept).cloned().collect();
    let leads = |name: &LearnedName, ip| guard::judge(ip, name.reach(), rules.nat64) == Judgement::Permitted;
    learned.keep(names.iter().cloned(), leads, Instant::now().into_std());
    let restored = settings.state_dir.as_ref().map_or(Ok(()), |dir| restore(dir, &learned, &names, leads));
    (learned, restored.err())
}

/// Gives names back what was learned for them before, as far as `leads` lets each lead there. What was answered too
/// long ago, or in the future, is left out.
///
/// # Errors
/// A sentence, where there is a file that cannot be read.
fn restore(
    dir: &Path,
    learned: &Learned,
    names: &[LearnedName],
    leads: impl Fn(&LearnedName, IpAddr) -> bool,
) -> Result<(), String> {
    let path = dir.join(FILE);
    if !path.exists() {
        return Ok(());
    }
    let wrong = |why: String| format!("{}: {why}; addresses found before are not known", path.display());
    let text = read_bounded(&path).map_err(wrong)?;
    let file: StateFile = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let now = Now::new();
    for name in names {
        let known = file.names.get(name.name().as_str()).into_iter().flatten();
        let known = known.filter_map(|(ip, seconds)| Some((*ip, now.instant(*seconds)?)));
        let known: Vec<_> = known.filter(|(ip, _)| leads(name, *ip)).collect();
        learned.merge(name, &known, now.instant);
    }
    Ok(())
}

/// Writes down what has been learned, whenever there is something new, until it is dropped.
pub async fn keep_writing(dir: PathBuf, learned: Arc<Learned>) {
    let (mut written, mut at, mut failed) = (None, Instant::now(), false);
    loop {
        tokio::time::sleep(SOON).await;
        let changes = learned.changes();
        if written == Some(changes) && at.elapsed() < LATEST {
            continue;
        }
        let text = serde_json::to_string(&StateFile::of(&learned)).unwrap_or_default();
        let place = dir.clone();
        let writing = tokio::task::spawn_blocking(move || write(&place, &text));
        match writing.await.unwrap_or_else(|join| Err(io::Error::other(join))) {
            Ok(()) => (written, at, failed) = (Some(changes), Instant::now(), false),
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
    use egret_core::learned::Known;
    use egret_core::name::HostName;
    use egret_core::rule::Reach;

    fn name(text: &str, reach: Reach) -> LearnedName {
        LearnedName::new(HostName::from_wire(text.as_bytes()).unwrap(), reach)
    }

    fn restored(dir: &Path, name: &LearnedName, leads: impl Fn(&LearnedName, IpAddr) -> bool) -> Vec<String> {
        let learned = Learned::new(Duration::from_secs(86_400));
        restore(dir, &learned, std::slice::from_ref(name), leads).unwrap();
        let known = Known::at(&learned, Instant::now().into_std()).of(name);
        known.iter().map(|(ip, _)| ip.to_string()).collect()
    }

    #[test]
    fn what_was_found_is_known_again_as_far_as_it_still_holds() {
        let dir = tempfile::tempdir().unwrap();
        let everywhere = |_: &LearnedName, _: IpAddr| true;
        let public = name("a.example", Reach::default());
        assert!(restored(dir.path(), &public, everywhere).is_empty(), "there is no file yet");
        let learned = Learned::new(Duration::from_secs(2 * 86_400));
        let now = Instant::now().into_std();
        learned.keep([public.clone()], |_, _| true, now);
        let seen = |hours: u64| now.checked_sub(Duration::from_secs(hours * 3600)).unwrap();
        let found = [("1.1.1.1", 1_u64), ("1.1.1.2", 25), ("10.0.0.1", 1)];
        let found: Vec<_> = found.iter().map(|(ip, hours)| (ip.parse().unwrap(), seen(*hours))).collect();
        learned.merge(&public, &found, now);
        write(dir.path(), &serde_json::to_string(&StateFile::of(&learned)).unwrap()).unwrap();

        let not_private = |_: &LearnedName, ip: IpAddr| ip != IpAddr::from([10, 0, 0, 1]);
        assert_eq!(restored(dir.path(), &public, not_private), ["1.1.1.1"], "the others are too old, or not public");
        let reach = Reach { public: false, prefixes: vec!["10.0.0.0/8".parse().unwrap()] };
        let private = name("a.example", reach);
        assert_eq!(restored(dir.path(), &private, |_, ip| ip.to_string().starts_with("10.")), ["10.0.0.1"]);
        let other = name("b.example", Reach::default());
        assert!(restored(dir.path(), &other, everywhere).is_empty());
        let strange = format!("{{\"names\":{{\"b.example\":{{\"1.1.1.1\":{}}}}}}}", u64::MAX);
        std::fs::write(dir.path().join(FILE), strange).unwrap();
        assert!(restored(dir.path(), &other, everywhere).is_empty());
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let nothing = Learned::new(Duration::from_secs(1));
        assert!(restore(dir.path(), &nothing, &[other], everywhere).unwrap_err().contains("learned.json"));
    }
}
