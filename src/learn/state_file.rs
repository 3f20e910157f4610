//! What was learned for the names of rules, on disk: a restart knows it at once, and flows go on that began before.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::settings::LearnSettings;
use crate::files::read_bounded;
use egret_core::learned::{Answered, Known, Learned};
use egret_core::name::HostName;
use egret_core::policy::Wild;
use egret_core::rule::guard::{self, Judgement};
use egret_core::rule::rules::Rules;
use egret_core::rule::{LearnedName, NetRule, Reach};

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
    /// What DNS clients were answered under wildcards.
    #[serde(default)]
    answered: Vec<StoredAnswer>,
    /// The real addresses behind synthetic ones.
    #[serde(default)]
    behind: BTreeMap<IpAddr, IpAddr>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredAnswer {
    /// Empty: no network rule listed the name.
    rule: String,
    name: String,
    /// The one client that they are for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asker: Option<IpAddr>,
    addresses: BTreeMap<IpAddr, u64>,
    /// For how many seconds they stand for the name after the last of those times.
    lasts: u64,
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
        let answered = learned.answers(now.instant).into_iter().filter_map(|answered| {
            let last = answered.addresses.iter().map(|(_, seen)| *seen).max()?;
            Some(StoredAnswer {
                rule: answered.rule.to_string(),
                name: answered.name.name().as_str().to_owned(),
                asker: answered.name.asker(),
                addresses: answered.addresses.iter().map(|(ip, seen)| (*ip, now.seconds(*seen))).collect(),
                lasts: answered.until.saturating_duration_since(last).as_secs(),
            })
        });
        let answered = answered.collect();
        let behind = Known::at(learned, now.instant).mapped().into_iter().collect();
        Self { names, answered, behind }
    }
}

/// The store for some rules, with what was learned for their names before; and a sentence, where there is a file that cannot
/// be read.
#[must_use]
pub fn open(settings: &LearnSettings, rules: &Rules) -> (Learned, Option<String>) {
    let learned = Learned::new(settings.remember);
    let names: Vec<LearnedName> = rules.nets.iter().flat_map(|rule| &rule.kept).cloned().collect();
    learned.keep(names.iter().cloned(), |name, ip| leads(name, ip, rules), Instant::now().into_std());
    let restored = settings
        .state_dir
        .as_ref()
        .map_or(Ok(()), |dir| restore(dir, &learned, rules, &names, settings.opens_for_asker));
    (learned, restored.err())
}

fn leads(name: &LearnedName, ip: IpAddr, rules: &Rules) -> bool {
    guard::judge(ip, name.reach(), rules.nat64) == Judgement::Permitted
}

/// Gives names back what was learned for them before, as far as each may lead there. What was answered too long ago, or in
/// the future, is left out.
///
/// # Errors
/// A sentence, where there is a file that cannot be read.
fn restore(
    dir: &Path,
    learned: &Learned,
    rules: &Rules,
    names: &[LearnedName],
    opens_for_asker: bool,
) -> Result<(), String> {
    let path = dir.join(FILE);
    if !path.exists() {
        return Ok(());
    }
    let wrong = |why: String| format!("{}: {why}; addresses found before are not known", path.display());
    let text = read_bounded(&path).map_err(wrong)?;
    let file: StateFile = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let now = Now::new();
    let is_synthetic = |ip: &IpAddr| rules.pool.is_some_and(|pool| pool.contains(*ip));
    let behind: BTreeMap<IpAddr, IpAddr> = file.behind.into_iter().filter(|(ip, _)| is_synthetic(ip)).collect();
    for (synthetic, real) in &behind {
        learned.map(*synthetic, &[*real]);
    }
    let leads = |name: &LearnedName, ip| match is_synthetic(&ip) {
        true => behind.get(&ip).is_some_and(|real| leads(name, *real, rules)),
        false => leads(name, ip, rules),
    };
    for name in names {
        let known = file.names.get(name.name().as_str()).into_iter().flatten();
        let known = known.filter_map(|(ip, seconds)| Some((*ip, now.instant(*seconds)?)));
        let known: Vec<_> = known.filter(|(ip, _)| leads(name, *ip)).collect();
        learned.merge(name, &known, now.instant);
    }
    let wild = |rule: &NetRule| Some((Arc::clone(&rule.name), (Wild::of(rule)?, rule.reach.clone())));
    let wild: HashMap<Arc<str>, (Wild, Reach)> = rules.nets.iter().filter_map(wild).collect();
    for StoredAnswer { rule, name, asker, addresses, lasts } in file.answered {
        // It was for all.
        if opens_for_asker && asker.is_none() {
            continue;
        }
        let Ok(name) = HostName::from_wire(name.as_bytes()) else { continue };
        let (wild, reach) = match wild.get(&*rule) {
            Some((wild, reach)) => (Some(wild), reach.clone()),
            None => (None, Reach::default()),
        };
        let name = LearnedName::new(name, reach);
        let name = asker.map_or_else(|| name.clone(), |asker| name.asked_by(asker));
        // A rule that is gone, or lists the name no more, has no use for it.
        if !wild.map_or(rule.is_empty(), |wild| wild.covers(&name)) {
            continue;
        }
        let known = addresses.iter().filter_map(|(ip, seconds)| Some((*ip, now.instant(*seconds)?)));
        let addresses: Vec<_> = known.filter(|(ip, _)| leads(&name, *ip)).collect();
        let Some(last) = addresses.iter().map(|(_, seen)| *seen).max() else { continue };
        let until = last + Duration::from_secs(lasts).min(learned.remember());
        if until > now.instant {
            learned.learn_answered(&Answered { rule: rule.into(), name, addresses, until }, now.instant);
        }
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
        let (place, of) = (dir.clone(), Arc::clone(&learned));
        let writing = tokio::task::spawn_blocking(move || save(&place, &of));
        match writing.await.unwrap_or_else(|join| Err(io::Error::other(join))) {
            Ok(()) => (written, at, failed) = (Some(changes), Instant::now(), false),
            Err(error) if !std::mem::replace(&mut failed, true) => {
                tracing::warn!(%error, dir = %dir.display(), "addresses of names will not be known after a restart; make learn.state_dir writable");
            }
            Err(_) => {}
        }
    }
}

/// Writes down what has been learned. Blocks.
///
/// # Errors
/// The file system's.
pub fn save(dir: &Path, learned: &Learned) -> io::Result<()> {
    write(dir, &serde_json::to_string(&StateFile::of(learned)).unwrap_or_default())
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
    use egret_core::rule::pattern::Pattern;
    use egret_core::rule::{Action, Sources};
    use egret_core::steered::Pool;

    fn name(text: &str, reach: Reach) -> LearnedName {
        LearnedName::new(HostName::from_wire(text.as_bytes()).unwrap(), reach)
    }

    fn open_in(dir: &Path, rules: &Rules) -> Learned {
        let settings = LearnSettings {
            refresh: Duration::from_secs(30),
            remember: Duration::from_secs(86_400),
            opens_for_asker: false,
            state_dir: Some(dir.to_owned()),
        };
        let (learned, fault) = open(&settings, rules);
        assert_eq!(fault, None);
        learned
    }

    fn known(learned: &Learned, name: &LearnedName) -> Vec<String> {
        let known = Known::at(learned, Instant::now().into_std()).of(name);
        known.iter().map(|(ip, _)| ip.to_string()).collect()
    }

    fn rule(fqdns: &str, reach: &Reach) -> NetRule {
        let fqdns = vec![Pattern::parse(fqdns).unwrap()];
        let kept = fqdns.iter().filter_map(Pattern::exact).map(|name| LearnedName::new(name, reach.clone())).collect();
        NetRule {
            name: "r".into(),
            action: Action::Allow,
            sources: Sources::default(),
            destinations: std::iter::empty().collect(),
            kept,
            fqdns,
            ports: Vec::new(),
            steer: true,
            reach: reach.clone(),
        }
    }

    fn restored(dir: &Path, name: &LearnedName) -> Vec<String> {
        let rules = Rules { nets: vec![rule(name.name().as_str(), name.reach())], ..Rules::default() };
        known(&open_in(dir, &rules), name)
    }

    #[test]
    fn what_was_found_is_known_again_as_far_as_it_still_holds() {
        let dir = tempfile::tempdir().unwrap();
        let public = name("a.example", Reach::default());
        assert!(restored(dir.path(), &public).is_empty(), "there is no file yet");
        let learned = Learned::new(Duration::from_secs(2 * 86_400));
        let now = Instant::now().into_std();
        learned.keep([public.clone()], |_, _| true, now);
        let seen = |hours: u64| now.checked_sub(Duration::from_secs(hours * 3600)).unwrap();
        let found = [("1.1.1.1", 1_u64), ("1.1.1.2", 25), ("10.0.0.1", 1)];
        let found: Vec<_> = found.iter().map(|(ip, hours)| (ip.parse().unwrap(), seen(*hours))).collect();
        learned.merge(&public, &found, now);
        write(dir.path(), &serde_json::to_string(&StateFile::of(&learned)).unwrap()).unwrap();

        assert_eq!(restored(dir.path(), &public), ["1.1.1.1"], "the others are too old, or not public");
        let reach = Reach { public: false, prefixes: vec!["10.0.0.0/8".parse().unwrap()] };
        let private = name("a.example", reach);
        assert_eq!(restored(dir.path(), &private), ["10.0.0.1"]);
        let other = name("b.example", Reach::default());
        assert!(restored(dir.path(), &other).is_empty());
        let strange = format!("{{\"names\":{{\"b.example\":{{\"1.1.1.1\":{}}}}}}}", u64::MAX);
        std::fs::write(dir.path().join(FILE), strange).unwrap();
        assert!(restored(dir.path(), &other).is_empty());
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let nothing = Learned::new(Duration::from_secs(1));
        assert!(
            restore(dir.path(), &nothing, &Rules::default(), &[other], false).unwrap_err().contains("learned.json")
        );
    }

    #[test]
    fn what_clients_were_answered_under_wildcards_is_known_again_for_as_long_as_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let reach = Reach::default();
        let of = |fqdns| Rules {
            nets: vec![rule(fqdns, &reach)],
            pool: Some(Pool { v4: Some("198.18.0.0/24".parse().unwrap()), v6: None }),
            ..Rules::default()
        };
        let (learned, now) = (Learned::new(Duration::from_secs(86_400)), Instant::now().into_std());
        let before = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap();
        let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let [real, steered, lost, over] =
            ["a.tun.example", "b.tun.example", "c.tun.example", "d.tun.example"].map(|text| name(text, reach.clone()));
        let r: Arc<str> = "r".into();
        learned.learn_for(&r, &real, &[ip("20.0.0.1"), ip("10.0.0.1")], hour, before(60));
        learned.learn_for(&r, &steered, &[ip("198.18.0.1")], hour, now);
        learned.map(ip("198.18.0.1"), &[ip("20.0.0.2")]);
        learned.learn_for(&r, &lost, &[ip("198.18.0.2")], hour, now);
        learned.learn_for(&r, &real.asked_by(ip("10.0.0.9")), &[ip("20.0.0.4")], hour, now);
        learned.learn_for(&r, &over, &[ip("20.0.0.3")], minute, before(61));
        save(dir.path(), &learned).unwrap();

        let again = open_in(dir.path(), &of("*.tun.example"));
        assert_eq!(known(&again, &real), ["20.0.0.1"], "where the rule lets it lead");
        assert_eq!(known(&again, &real.asked_by(ip("10.0.0.9"))), ["20.0.0.4"], "for one client");
        assert_eq!(known(&again, &steered), ["198.18.0.1"]);
        assert_eq!(known(&again, &lost), [] as [&str; 0], "nothing is behind it");
        assert_eq!(known(&again, &over), [] as [&str; 0], "its time was over");
        let at = |after| Known::at(&again, now + after);
        assert!(at(minute).has(&real, ip("20.0.0.1")) && !at(hour).has(&real, ip("20.0.0.1")));
        assert_eq!(at(minute).behind(ip("198.18.0.1")), Some(ip("20.0.0.2")));
        assert_eq!(known(&open_in(dir.path(), &of("*.other.example")), &real), [] as [&str; 0]);
        let by_client = Learned::new(Duration::from_secs(86_400));
        restore(dir.path(), &by_client, &of("*.tun.example"), &[], true).unwrap();
        assert_eq!(known(&by_client, &real), [] as [&str; 0], "what was open for all");
        assert_eq!(known(&by_client, &real.asked_by(ip("10.0.0.9"))), ["20.0.0.4"]);
    }
}
