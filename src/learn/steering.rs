//! Synthetic addresses on disk: a name's place is written down before any client is answered with it, so that no restart
//! gives its address to another name.
//!
//! A file of lines, each a place and its name; a later line takes an earlier one's place or name. It is written anew at
//! each start.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, TrySendError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::settings::SteerSettings;
use egret_core::claim::{Claim, OriginalDst, Target, Via};
use egret_core::name::HostName;
use egret_core::outcome::{Hint, Reason, Refusal, Stage};
use egret_core::steered::{Assigned, Full, InUse, Pool, Steered, Wanted};

/// The file in the state directory.
const FILE: &str = "steered";
/// Names that wait for the disk at once.
const MOST_WAITING: usize = 4096;
/// How often a full pool is a warning.
const WARNS_EVERY: Duration = Duration::from_secs(60);

/// Why there are no synthetic addresses.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    #[error("dns.steer: {}: {source}; the names of synthetic addresses must be kept, so make learn.state_dir writable", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "dns.steer: {} was written for another pool, whose addresses clients may still have; remove it once they have forgotten them (learn.remember)", path.display()
    )]
    OtherPool { path: PathBuf },
    #[error("dns.steer: line {line} of {} cannot be read; remove the file once clients have forgotten its addresses", path.display())]
    Broken { path: PathBuf, line: usize },
}

/// One line, and where its being on disk is said.
type Entry = (String, oneshot::Sender<io::Result<()>>);

/// Gives names synthetic addresses, and keeps them.
#[derive(Debug)]
pub struct Steering {
    steered: Steered,
    writer: mpsc::SyncSender<Entry>,
    warned: Mutex<Option<Instant>>,
}

impl Steering {
    /// Reads what was written before, and starts the thread that writes.
    ///
    /// # Errors
    /// [`SteeringError`].
    pub fn open(settings: &SteerSettings) -> Result<Self, SteeringError> {
        let SteerSettings { pool, state_dir, remember } = settings;
        let path = state_dir.join(FILE);
        let wrong = |source| SteeringError::File { path: path.clone(), source };
        let steered = Steered::new(*pool, *remember);
        std::fs::create_dir_all(state_dir).map_err(wrong)?;
        match std::fs::read_to_string(&path) {
            Ok(text) => restore(&steered, &text, &path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(wrong(error)),
        }
        let file = write_anew(&steered, state_dir, &path).map_err(wrong)?;
        let (writer, lines) = mpsc::sync_channel(MOST_WAITING);
        std::thread::Builder::new()
            .name("steered".to_owned())
            .spawn(move || keep_writing(Lines::of(file), &lines))
            .map_err(wrong)?;
        Ok(Self { steered, writer, warned: Mutex::default() })
    }

    #[must_use]
    pub const fn pool(&self) -> Pool {
        self.steered.pool()
    }

    /// The address of one family that stands for a name, once that is on disk; `None` where the pool has none of the family.
    ///
    /// # Errors
    /// A refusal: then the client must have no address at all.
    pub async fn address(&self, wanted: &Wanted, is_v6: bool) -> Result<Option<IpAddr>, Refusal> {
        let assigned = self.steered.assign(wanted, Instant::now().into_std());
        let Assigned { place, is_new, is_claimed } = assigned.map_err(|full| self.full(&full))?;
        if is_new {
            let written = self.write(place, &Wanted { is_claimed, ..wanted.clone() });
            if let Err(error) = written.await.unwrap_or_else(|_| Err(lost())) {
                tracing::error!(%error, "a name's synthetic address cannot be written down: the answer is kept back; make learn.state_dir writable");
                return Err(internal(format!("the name's synthetic address could not be written down: {error}")));
            }
            self.steered.written(&wanted.name, is_claimed);
        }
        Ok(self.pool().address(place, is_v6))
    }

    /// Has a line written; where what came of it will be.
    fn write(&self, place: u32, wanted: &Wanted) -> oneshot::Receiver<io::Result<()>> {
        let (said, written) = oneshot::channel();
        if let Err(refused) = self.writer.try_send((line(place, wanted), said)) {
            let (error, (_, said)) = match refused {
                TrySendError::Full(entry) => (io::Error::other("too many names wait for the disk"), entry),
                TrySendError::Disconnected(entry) => (lost(), entry),
            };
            // Its receiver is below.
            let _ = said.send(Err(error));
        }
        written
    }

    /// Sees to it that the addresses of names which rules judge by the claim alone never pass to other names: rules may have
    /// come since they were answered. Blocks until that is on disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn review(&self, is_claimed: impl Fn(&HostName) -> bool) -> io::Result<()> {
        let is_due = |(_, wanted): &(u32, Wanted)| !wanted.is_claimed && is_claimed(&wanted.name);
        let names: Vec<(u32, Wanted)> = self.steered.snapshot().into_iter().filter(is_due).collect();
        // As many as are written together.
        for some in names.chunks(MOST_WAITING / 4) {
            let claimed = some.iter().map(|(_, wanted)| Wanted { is_claimed: true, ..wanted.clone() });
            // Each has a place, and keeps it.
            let claimed = claimed.filter_map(|wanted| {
                let Assigned { place, .. } = self.steered.assign(&wanted, Instant::now().into_std()).ok()?;
                Some((self.write(place, &wanted), wanted.name))
            });
            for (written, name) in claimed.collect::<Vec<_>>() {
                written.blocking_recv().unwrap_or_else(|_| Err(lost()))?;
                self.steered.written(&name, true);
            }
        }
        Ok(())
    }

    /// The addresses that stand for a name, IPv4 and IPv6, for as long again as after an answer; none, where clients were
    /// never answered with them.
    #[must_use]
    pub fn keep(&self, name: &HostName) -> [Option<IpAddr>; 2] {
        let place = self.steered.touch(name, Instant::now().into_std());
        [false, true].map(|is_v6| self.pool().address(place?, is_v6))
    }

    /// Whether an address of the pool stands for a name, and which.
    #[must_use]
    pub fn name(&self, ip: IpAddr) -> Option<HostName> {
        self.steered.name(ip)
    }

    /// Makes a claim of a synthetic address one of its name. What is returned keeps the address for it.
    ///
    /// # Errors
    /// A refusal of an address that stands for no name.
    pub fn claim(&self, claim: &mut Claim) -> Result<Option<InUse>, Refusal> {
        let Target::Address(OriginalDst(dst)) = claim.target else { return Ok(None) };
        // An absolute-form request names its host, and that is what is judged.
        if claim.via == Via::Absolute || !self.pool().contains(dst.ip()) {
            return Ok(None);
        }
        let Some((name, in_use)) = self.steered.claimed(dst.ip(), Instant::now().into_std()) else {
            let why =
                "the address is in dns.steer's pool and stands for no name; the client must ask for the name again";
            return Err(Refusal::at_claim(Reason::DstNotInDns, why));
        };
        (claim.target, claim.via) = (Target::Name(name), Via::Steered);
        Ok(Some(in_use))
    }

    fn full(&self, full: &Full) -> Refusal {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|last| last.elapsed() >= WARNS_EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!("names get no synthetic address: {full}");
        }
        let hint = Hint { nearest: Some(full.to_string()), ..Hint::default() };
        Refusal::new(Reason::RateLimited, Stage::Limit).with(hint)
    }
}

fn lost() -> io::Error {
    io::Error::other("the thread that writes has ended")
}

fn internal(nearest: String) -> Refusal {
    Refusal::new(Reason::Internal, Stage::Limit).with(Hint { nearest: Some(nearest), ..Hint::default() })
}

/// The first line: which pool the places are of.
fn head(pool: Pool) -> String {
    let nets: Vec<String> = pool.nets().map(|net| net.to_string()).collect();
    format!("pool {}\n", nets.join(" "))
}

/// `12 a.example - *.example 10.0.0.9`: the place, the name, `tcp` where it is judged by the claim alone, the wildcard, and
/// the client that asked, if any.
fn line(place: u32, wanted: &Wanted) -> String {
    let Wanted { name, wildcard, asker, is_claimed } = wanted;
    let how = if *is_claimed { "tcp" } else { "-" };
    let asker = asker.map(|asker| format!(" {asker}")).unwrap_or_default();
    format!("{place} {name} {how} {}{asker}\n", wildcard.as_deref().unwrap_or("-"))
}

fn read(line: &str) -> Option<(u32, Wanted)> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let (place, name, how, wildcard) = (next()?, next()?, next()?, next()?);
    let asker = next().map(str::parse).transpose().ok()?;
    if next().is_some() || !["tcp", "-"].contains(&how) {
        return None;
    }
    let name = HostName::from_wire(name.as_bytes()).ok()?;
    let wildcard = (wildcard != "-").then(|| wildcard.into());
    Some((place.parse().ok()?, Wanted { name, wildcard, asker, is_claimed: how == "tcp" }))
}

fn restore(steered: &Steered, text: &str, path: &Path) -> Result<(), SteeringError> {
    let Some(rest) = text.strip_prefix(&head(steered.pool())) else {
        // Nothing was written behind it yet.
        return if text.contains('\n') { Err(SteeringError::OtherPool { path: path.to_owned() }) } else { Ok(()) };
    };
    // A last line without its end was being written: no client was answered with it.
    let whole = rest.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let now = Instant::now().into_std();
    for (number, line) in (2..).zip(whole.lines()) {
        let Some((place, wanted)) = read(line) else {
            return Err(SteeringError::Broken { path: path.to_owned(), line: number });
        };
        steered.restore(place, &wanted, now);
    }
    Ok(())
}

/// The file with one line for each name, open for more.
fn write_anew(steered: &Steered, dir: &Path, path: &Path) -> io::Result<File> {
    let new = dir.join(format!("{FILE}.new"));
    let mut text = head(steered.pool());
    steered.snapshot().iter().for_each(|(place, wanted)| text.push_str(&line(*place, wanted)));
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    std::fs::rename(&new, path)?;
    File::open(dir)?.sync_all()?;
    OpenOptions::new().append(true).open(path)
}

/// Writes lines as they come, those that wait together.
fn keep_writing(mut file: Lines, lines: &mpsc::Receiver<Entry>) {
    while let Ok(first) = lines.recv() {
        let all: Vec<Entry> = std::iter::once(first).chain(lines.try_iter()).collect();
        let text: String = all.iter().map(|(line, _)| line.as_str()).collect();
        let written = file.write(text.as_bytes());
        for (_, said) in all {
            let result = written.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string())).copied();
            // Where its client has gone, nothing waits for it.
            let _ = said.send(result);
        }
    }
}

/// A file of whole lines.
#[derive(Debug)]
struct Lines {
    file: File,
    /// What is whole, in bytes; `None`: not known yet.
    whole: Option<u64>,
    /// Behind that stands a part of a line.
    is_torn: bool,
}

impl Lines {
    const fn of(file: File) -> Self {
        Self { file, whole: None, is_torn: false }
    }

    /// All of it, or nothing. What is left of lines that could not be written is taken back before any other is.
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let whole = self.whole.map_or_else(|| self.file.metadata().map(|data| data.len()), Ok)?;
        self.whole = Some(whole);
        if self.is_torn {
            self.file.set_len(whole)?;
            self.is_torn = false;
        }
        let written = self.file.write_all(text).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => self.whole = Some(whole + text.len() as u64),
            Err(_) => self.is_torn = self.file.set_len(whole).is_err(),
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path, v4: &str) -> SteerSettings {
        let pool = Pool { v4: Some(v4.parse().unwrap()), v6: None };
        SteerSettings { pool, state_dir: dir.to_owned(), remember: Duration::from_secs(60) }
    }

    fn wanted(name: &str) -> Wanted {
        let name = HostName::from_wire(name.as_bytes()).unwrap();
        Wanted { name, wildcard: Some("*.example".into()), asker: None, is_claimed: true }
    }

    #[tokio::test]
    async fn a_restart_gives_no_address_to_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let one = Steering::open(&settings(dir.path(), "198.18.0.0/20")).unwrap();
        let first = one.address(&wanted("a.example"), false).await.unwrap().unwrap();
        assert_eq!(one.address(&wanted("a.example"), false).await.unwrap(), Some(first));
        assert_eq!(one.address(&wanted("a.example"), true).await.unwrap(), None, "no addresses of the family");
        let second = one.address(&wanted("b.example"), false).await.unwrap().unwrap();
        assert_ne!(first, second);
        // Killed while it wrote.
        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "pool 198.18.0.0/20\n0 a.example tcp *.example\n1 b.example tcp *.example\n");
        std::fs::write(&path, format!("{text}2 c.exam")).unwrap();
        let other = Steering::open(&settings(dir.path(), "198.18.0.0/20")).unwrap();
        let names = [first, second].map(|ip| other.name(ip).unwrap().to_string());
        assert_eq!(names, ["a.example", "b.example"]);
        assert_eq!(other.address(&wanted("b.example"), false).await.unwrap(), Some(second));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        let moved = Steering::open(&settings(dir.path(), "198.18.16.0/20"));
        assert!(matches!(moved, Err(SteeringError::OtherPool { .. })), "{moved:?}");
        std::fs::write(&path, text.replace("0 a.", "zero a.")).unwrap();
        let broken = Steering::open(&settings(dir.path(), "198.18.0.0/20"));
        assert!(matches!(broken, Err(SteeringError::Broken { line: 2, .. })), "{broken:?}");
    }

    #[test]
    fn lines_that_tore_are_taken_back_before_others_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let mut lines = Lines::of(OpenOptions::new().append(true).create(true).open(&path).unwrap());
        lines.write(b"0 a.example - -\n").unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"1").unwrap();
        lines.is_torn = true;
        lines.write(b"3 b.example - -\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "0 a.example - -\n3 b.example - -\n");
    }

    #[tokio::test]
    async fn a_rule_for_claimed_names_that_comes_later_is_written_down_and_clients_with_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let steering = Steering::open(&settings(dir.path(), "198.18.0.0/20")).unwrap();
        let asker = Some(IpAddr::from([10, 0, 0, 9]));
        let asked = Wanted { is_claimed: false, asker, ..wanted("a.example") };
        steering.address(&asked, false).await.unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| steering.review(|name| name.as_str() == "a.example").unwrap());
        });
        let text = "pool 198.18.0.0/20\n0 a.example - *.example 10.0.0.9\n0 a.example tcp *.example 10.0.0.9\n";
        assert_eq!(std::fs::read_to_string(dir.path().join(FILE)).unwrap(), text);
        let again = Steering::open(&settings(dir.path(), "198.18.0.0/20")).unwrap();
        assert_eq!(again.steered.snapshot(), [(0, Wanted { is_claimed: true, ..asked })]);
    }

    #[tokio::test]
    async fn what_cannot_be_written_down_is_not_answered() {
        let dir = tempfile::tempdir().unwrap();
        let steering = Steering::open(&settings(dir.path(), "198.18.0.0/20")).unwrap();
        // Written before, without its being claimed.
        let unclaimed = Wanted { is_claimed: false, ..wanted("known.example") };
        let known = steering.address(&unclaimed, false).await.unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (writer, lines) = mpsc::sync_channel(1);
        std::thread::spawn(move || keep_writing(Lines::of(full), &lines));
        let steering = Steering { writer, ..steering };
        for _ in 0..2 {
            let refusal = steering.address(&wanted("a.example"), false).await.unwrap_err();
            assert_eq!(refusal.reason, Reason::Internal);
            let refusal = steering.address(&wanted("known.example"), false).await.unwrap_err();
            assert_eq!(refusal.reason, Reason::Internal, "that it is claimed is not on disk");
        }
        assert!(steering.steered.claimed(known.unwrap(), Instant::now().into_std()).is_some());
        let place = Pool { v4: Some("198.18.0.0/20".parse().unwrap()), v6: None }.address(1, false).unwrap();
        assert!(steering.steered.claimed(place, Instant::now().into_std()).is_none());
    }
}
