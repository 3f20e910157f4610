//! A new policy for a running egret: read and compiled beside the old one, then put in its place.
//!
//! Connections never wait for it: who has begun to be judged is judged by the policy he began with, and the old one
//! is freed when the last of them is through. What is open goes on, or under `policy.on_change: cut` only as far as the
//! new policy would let it begin. A configuration with a fault changes nothing.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use nix::sys::signal::{SIGHUP, SigSet};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::Settings;
use crate::drain::Reviewer;
use crate::files::{Stamp, stamp};
use crate::keeper;
use crate::netfilter::kernel::ReloadError;
use crate::netfilter::plan::Filter;
use crate::netfilter::sidecar::{self, Other};
use crate::policy::{OwnAddresses, Policy};
use crate::session::House;

/// How often watched files are looked at, and how long they must have been left alone.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const QUIET: Duration = Duration::from_secs(1);

/// How often it is asked whether an old policy is still in use.
const IN_USE: Duration = Duration::from_secs(1);

/// The policy of the moment.
#[derive(Debug)]
pub struct Current(RwLock<Arc<Policy>>);

impl Current {
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self(RwLock::new(Arc::new(policy)))
    }

    /// What a connection or request is judged by, from its first question to its last.
    #[must_use]
    pub fn get(&self) -> Arc<Policy> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, policy: Arc<Policy>) -> Arc<Policy> {
        std::mem::replace(&mut self.0.write().unwrap_or_else(PoisonError::into_inner), policy)
    }
}

/// Has SIGHUP wait until [`listen`] on the same thread. Whoever asks for a reload of an egret that is still starting gets
/// it then, instead of ending it.
///
/// # Errors
/// The kernel's.
pub fn hold() -> io::Result<()> {
    Ok(SigSet::from(SIGHUP).thread_block()?)
}

/// Hears SIGHUP from now on.
///
/// # Errors
/// The kernel's.
pub fn listen() -> io::Result<Signal> {
    let hangup = signal(SignalKind::hangup())?;
    SigSet::from(SIGHUP).thread_unblock()?;
    Ok(hangup)
}

/// What a reload starts from.
#[derive(Debug)]
pub struct Source {
    /// `None`: the configuration in the binary, which cannot change.
    pub file: Option<PathBuf>,
    /// The settings of the start; their rules are gone into the policy.
    pub began: Settings,
    pub own: Arc<OwnAddresses>,
    /// In a sidecar: what the kernel does for the policy, which egret has no right to change.
    pub sidecar: Option<Vec<Other>>,
    /// Whether changed files are read again by themselves.
    pub watches: bool,
}

impl Source {
    fn compile(&self, file: &Path) -> (Vec<PathBuf>, Result<Fresh, String>) {
        let mut settings = match Settings::load(file) {
            Ok(settings) => settings,
            Err(error) => return (error.files.clone(), Err(error.to_string())),
        };
        let files = std::mem::take(&mut settings.files);
        let others = || sidecar::others(&settings.rules.nets, settings.rules.nat64);
        if self.sidecar.as_ref().is_some_and(|before| *before != others()) {
            let why = "the network rules for udp and icmp are others, and a sidecar's kernel rules are made once; start the pod anew";
            return (files, Err(why.to_owned()));
        }
        let waits = self.began.differs(&settings);
        let (cuts, watches) = (settings.rules.cuts, settings.rules.watches);
        let policy = std::mem::take(&mut settings.rules).compile(Arc::clone(&self.own));
        (files, Ok(Fresh { cuts, watches, policy, waits, warnings: settings.warnings.len() }))
    }
}

/// A policy that is ready to serve.
struct Fresh {
    policy: Policy,
    /// What else has changed in the file, and waits for a restart.
    waits: Vec<&'static str>,
    warnings: usize,
    /// Whether what a rule has let out ends with it.
    cuts: bool,
    watches: bool,
}

/// Somebody asks for a reload, and waits for what comes of it.
#[derive(Debug)]
pub struct Request {
    pub done: oneshot::Sender<Outcome>,
}

/// What came of a reload.
#[derive(Debug)]
pub struct Outcome {
    pub is_done: bool,
    /// Line by line, as it is logged.
    pub said: Vec<String>,
}

impl Outcome {
    fn refused(house: &House, why: &dyn Display) -> Self {
        tracing::error!("nothing has changed: {why}");
        house.book.metrics().reloaded("refused");
        Self { is_done: false, said: vec![format!("nothing has changed: {why}")] }
    }
}

/// Keeps the policy's names resolved, and replaces the policy whenever it is asked to, until the house is gone.
pub async fn run(
    mut hangup: Signal,
    mut requests: mpsc::Receiver<Request>,
    source: Source,
    house: Weak<House>,
    reviewer: Reviewer,
) {
    let keep = |policy| AbortOnDrop(tokio::spawn(keeper::run(Weak::clone(&house), policy)));
    let Some(keeper) = house.upgrade().map(|house| keep(house.policy.get())) else { return };
    let files = source.began.files.iter().chain(&source.file).cloned().collect();
    let mut watch = Watch::of(files, source.watches && source.file.is_some());
    let source = Arc::new(source);
    let mut reloading = Reloading { source, reviewer, keeper };
    loop {
        let (why, done) = tokio::select! {
            Some(()) = hangup.recv() => ("SIGHUP", None),
            Some(Request { done }) = requests.recv() => ("asked by the control socket", Some(done)),
            () = watch.changed() => ("files have changed", None),
            else => return,
        };
        let Some(house) = house.upgrade() else { return };
        if why != "files have changed" {
            house.book.reopen_log();
        }
        let outcome = reloading.reload(why, &house, &mut watch, &keep).await;
        if let Some(done) = done {
            // Who has asked may be gone.
            let _ = done.send(outcome);
        }
    }
}

/// What stays from one reload to the next.
struct Reloading {
    source: Arc<Source>,
    reviewer: Reviewer,
    keeper: AbortOnDrop,
}

impl Reloading {
    async fn reload(
        &mut self,
        why: &str,
        house: &Arc<House>,
        watch: &mut Watch,
        keep: &impl Fn(Arc<Policy>) -> AbortOnDrop,
    ) -> Outcome {
        let Some(file) = self.source.file.clone() else {
            let message = "the configuration in the binary cannot change; start egret with --config";
            tracing::warn!("{why}: {message}");
            return Outcome { is_done: false, said: vec![message.to_owned()] };
        };
        tracing::info!(file = %file.display(), "{why}: reading the configuration again");
        // Before they are read: what changes meanwhile is read again.
        watch.look();
        let compiling = Arc::clone(&self.source);
        let path = file.clone();
        let compiled = tokio::task::spawn_blocking(move || compiling.compile(&path)).await;
        let Fresh { policy, waits, warnings, cuts, watches } = match compiled {
            Ok((files, compiled)) => {
                watch.follow(files.into_iter().chain([file]));
                match compiled {
                    Ok(fresh) => fresh,
                    Err(error) => return Outcome::refused(house, &error),
                }
            }
            // A panic, whose words are on stderr already.
            Err(_) => return Outcome::refused(house, &"the configuration could not be read"),
        };
        let policy = Arc::new(policy);
        policy.inherit(&house.policy.get());
        let old = match tokio::task::block_in_place(|| put_in_force(house, &policy)) {
            Ok(old) => old,
            Err(error) => return Outcome::refused(house, &error),
        };
        watch.is_on = watches;
        if cuts {
            self.reviewer.ask();
            match house.kernel.as_ref().map(|kernel| tokio::task::block_in_place(|| kernel.cut())) {
                Some(Ok(flows)) => tracing::info!(flows, "flows whose rule is gone have ended"),
                Some(Err(error)) => tracing::error!(%error, "flows whose rule is gone go on"),
                None => {}
            }
        }
        let (rules, patterns) = policy.size();
        tracing::info!(rules, patterns, "the new policy is in force");
        let mut said = vec![format!("the new policy is in force: {rules} rules with {patterns} names and patterns")];
        if warnings > 0 {
            tracing::warn!(warnings, "`egret check` shows what is probably not meant");
            said.push(format!("warnings: {warnings}; `egret check` shows them"));
        }
        if !waits.is_empty() {
            let keys = waits.join(", ");
            tracing::warn!(keys, "changed too, and waits for a restart");
            said.push(format!("changed too, and waits for a restart: {keys}"));
        }
        house.book.metrics().reloaded("done");
        // The old one's last look-ups are of another generation.
        drop(std::mem::replace(&mut self.keeper, keep(policy)));
        tokio::spawn(retire(old));
        Outcome { is_done: true, said }
    }
}

/// Files that are looked at, so that a change of them is a reload.
struct Watch {
    seen: Vec<(PathBuf, Option<Stamp>)>,
    is_on: bool,
}

impl Watch {
    fn of(files: Vec<PathBuf>, is_on: bool) -> Self {
        let mut watch = Self { seen: Vec::new(), is_on };
        watch.follow(files);
        watch
    }

    /// Looks at these from now on. What of them is known keeps how it was seen.
    fn follow(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        let known = std::mem::take(&mut self.seen);
        let seen = |file: PathBuf| {
            let stamp = known.iter().find(|(path, _)| *path == file).map_or_else(|| stamp(&file), |(_, seen)| *seen);
            (file, stamp)
        };
        self.seen = files.into_iter().map(seen).collect();
    }

    /// Sees all as they are now; whether any has changed.
    fn look(&mut self) -> bool {
        let mut has_changed = false;
        for (file, seen) in &mut self.seen {
            let now = stamp(file);
            has_changed |= std::mem::replace(seen, now) != now;
        }
        has_changed
    }

    /// Returns when some file has changed, and all have been left alone for a while since.
    async fn changed(&mut self) {
        let mut changed_at: Option<Instant> = None;
        loop {
            if !self.is_on {
                return std::future::pending().await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
            if tokio::task::block_in_place(|| self.look()) {
                changed_at = Some(Instant::now());
            } else if changed_at.is_some_and(|at| at.elapsed() >= QUIET) {
                return;
            }
        }
    }
}

/// Puts a policy in the place of the old one, in the kernel and here. In between both let out only what each of them
/// does.
fn put_in_force(house: &House, policy: &Arc<Policy>) -> Result<Arc<Policy>, ReloadError> {
    let Some(kernel) = &house.kernel else { return Ok(house.policy.replace(Arc::clone(policy))) };
    let remember = house.learn.remember;
    let filter = Filter::of(policy.application_rules(), policy.network_rules(), policy.nat64(), remember);
    let narrowed = match kernel.narrow(&filter) {
        // `egret netfilter apply` has just made another table, which is filled when it is first seen.
        Err(ReloadError::NoTable) if kernel.inspect().is_ok() => kernel.narrow(&filter)?,
        narrowed => narrowed?,
    };
    let old = house.policy.replace(Arc::clone(policy));
    if let Err(error) = kernel.widen(narrowed) {
        house.policy.replace(old);
        return Err(error);
    }
    Ok(old)
}

/// Frees a policy once nobody is judged by it any more, and nowhere near a connection: a large one takes its time.
async fn retire(mut policy: Arc<Policy>) {
    loop {
        match Arc::try_unwrap(policy) {
            Ok(policy) => return drop(tokio::task::spawn_blocking(move || drop(policy))),
            Err(used) => policy = used,
        }
        tokio::time::sleep(IN_USE).await;
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
