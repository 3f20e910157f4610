//! A new policy for a running egret: read and compiled beside the old one, then put in its place.
//!
//! Connections never wait for it: a connection is judged by the policy it started with, and the old policy is freed when
//! its last user is done. What is open goes on, or under `policy.on_change: cut` only as far as the
//! new policy would let it begin. A configuration with a fault changes nothing.

use std::fmt::{self, Display};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::sys::signal::{SIGHUP, SigSet};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::config::Settings;
use crate::control::{ReloadOutcome, ReloadRequest};
use crate::drain::Reauthorizer;
use crate::files::{StampedFile, stamp};
use crate::netfilter::LiveTable;
use crate::netfilter::plan::RuleSets;
use crate::netfilter::sidecar::{self, Other};
use crate::netfilter::writer::ReloadError;
use crate::proxy::services::Services;
use egret_core::answers::Answers;
use egret_core::policy::{OwnAddresses, Policy};
use egret_core::rule::LearnedName;

/// How often watched files are looked at, and how long they must have been left alone.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const QUIET: Duration = Duration::from_secs(1);

/// How often it is asked whether an old policy is still in use.
const IN_USE: Duration = Duration::from_secs(1);

/// Has SIGHUP wait until [`listen`] on the same thread. A reload requested while egret is still starting is done
/// then, instead of ending the process.
///
/// # Errors
/// The kernel's.
pub fn block_sighup() -> io::Result<()> {
    Ok(SigSet::from(SIGHUP).thread_block()?)
}

/// Receives SIGHUP from now on.
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
    fn compile(&self, file: &Path) -> (Vec<StampedFile>, Result<Fresh, String>) {
        let mut settings = match Settings::load(file) {
            Ok(settings) => settings,
            Err(mut error) => return (std::mem::take(&mut error.files), Err(error.to_string())),
        };
        let files = std::mem::take(&mut settings.files);
        let leads_questions = self.began.pod_nameserver().is_some();
        let others = || sidecar::others(&settings.rules.nets, settings.rules.nat64, leads_questions);
        if self.sidecar.as_ref().is_some_and(|before| *before != others()) {
            let why = "the network rules for UDP, ICMP or DNS servers have changed, and a sidecar's table is made only once; restart the pod";
            return (files, Err(why.to_owned()));
        }
        let waits = self.began.differs(&settings);
        let (cuts, watches) = (settings.rules.cuts, settings.rules.watches);
        settings.rules.pool = self.began.nameserver.steer.as_ref().map(|steer| steer.pool);
        let policy = Policy::of(std::mem::take(&mut settings.rules), Arc::clone(&self.own));
        if self.began.nameservers().next().is_some() {
            policy.prepare_for_questions();
        }
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

/// A refusal, which is also logged and counted.
fn refused(services: &Services, why: &dyn Display) -> ReloadOutcome {
    tracing::error!("nothing has changed: {why}");
    services.access_log.metrics().reloaded("refused");
    ReloadOutcome { is_done: false, said: vec![format!("nothing has changed: {why}")] }
}

/// Keeps the policy's names resolved, and replaces the policy whenever it is asked to, until the services are gone.
pub async fn run(
    mut hangup: Signal,
    mut requests: mpsc::Receiver<ReloadRequest>,
    source: Source,
    services: Weak<Services>,
    policies: watch::Sender<Arc<Policy>>,
    reauthorizer: Reauthorizer,
) {
    let mut watch = FileWatch { files: source.began.files.clone(), is_on: source.watches && source.file.is_some() };
    let source = Arc::new(source);
    let mut reloading = Reloading { source, policies, reauthorizer };
    loop {
        let cause = tokio::select! {
            Some(()) = hangup.recv() => Cause::Signal,
            Some(request) = requests.recv() => Cause::Control(request),
            () = watch.changed() => Cause::Files,
        };
        let Some(services) = services.upgrade() else { return };
        if !matches!(cause, Cause::Files) {
            services.access_log.reopen_log();
        }
        let outcome = reloading.reload(&cause, &services, &mut watch).await;
        if let Cause::Control(ReloadRequest { done }) = cause {
            // The requester may have disconnected.
            let _ = done.send(outcome);
        }
    }
}

/// Why the policy is read again.
enum Cause {
    Signal,
    Control(ReloadRequest),
    Files,
}

impl Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signal => "SIGHUP",
            Self::Control(_) => "control socket",
            Self::Files => "files changed",
        })
    }
}

/// What stays from one reload to the next.
struct Reloading {
    source: Arc<Source>,
    /// For those that follow the policy's names.
    policies: watch::Sender<Arc<Policy>>,
    reauthorizer: Reauthorizer,
}

impl Reloading {
    async fn reload(&mut self, cause: &Cause, services: &Arc<Services>, watch: &mut FileWatch) -> ReloadOutcome {
        let Some(file) = self.source.file.clone() else {
            let message = "the configuration in the binary cannot change; start egret with --config";
            tracing::warn!("{cause}: {message}");
            return ReloadOutcome { is_done: false, said: vec![message.to_owned()] };
        };
        tracing::info!(file = %file.display(), "{cause}: reading the configuration again");
        let compiling = Arc::clone(&self.source);
        let compiled = tokio::task::spawn_blocking(move || compiling.compile(&file)).await;
        let Fresh { policy, waits, warnings, cuts, watches } = match compiled {
            Ok((files, compiled)) => {
                watch.files = files;
                match compiled {
                    Ok(fresh) => fresh,
                    Err(error) => return refused(services, &error),
                }
            }
            // A panic, whose words are on stderr already.
            Err(_) => return refused(services, &"the configuration could not be read"),
        };
        let policy = Arc::new(policy);
        if let Err(error) = review_claims(services, &policy) {
            return refused(
                services,
                &format!("which names synthetic addresses stand for cannot be written down: {error}"),
            );
        }
        keep_names(services, &policy);
        let old = match put_in_force(services, &policy).await {
            Ok(old) => old,
            Err(error) => {
                keep_names(services, &services.policy.get());
                return refused(services, &error);
            }
        };
        // Of names that were answered meanwhile.
        if let Err(error) = review_claims(services, &policy) {
            tracing::error!(%error, "that names are claimed cannot be written down: after a restart their synthetic addresses may pass to others; make learn.state_dir writable");
        }
        watch.is_on = watches;
        if cuts {
            self.reauthorizer.ask();
            match services.table.as_ref().map(|table| tokio::task::block_in_place(|| table.cut())) {
                Some(Ok(flows)) => tracing::info!(flows, "flows whose rule is gone have ended"),
                Some(Err(error)) => tracing::error!(%error, "flows whose rule is gone go on"),
                None => {}
            }
        }
        let (rules, patterns) = policy.size();
        tracing::info!(rules, patterns, "the new policy is in force");
        let size = format!("{} with {}", count(rules, "rule"), count(patterns, "name or pattern"));
        let mut said = vec![format!("the new policy is in force: {size}")];
        if warnings > 0 {
            tracing::warn!(warnings, "`egret check` shows what is probably not meant");
            said.push(format!("warnings: {warnings}; `egret check` shows them"));
        }
        if !waits.is_empty() {
            let keys = waits.join(", ");
            tracing::warn!(keys, "also changed, and takes effect only after a restart");
            said.push(format!("also changed, and takes effect only after a restart: {keys}"));
        }
        services.access_log.metrics().reloaded("done");
        self.policies.send_replace(policy);
        tokio::spawn(retire(old));
        ReloadOutcome { is_done: true, said }
    }
}

fn count(n: usize, thing: &str) -> String {
    match (n, thing.split_once(" or ")) {
        (1, _) => format!("1 {thing}"),
        (_, Some((one, other))) => format!("{n} {one}s or {other}s"),
        (_, None) => format!("{n} {thing}s"),
    }
}

/// Files that the policy was read from, and how they were then.
struct FileWatch {
    files: Vec<StampedFile>,
    is_on: bool,
}

impl FileWatch {
    /// Returns when some file has changed, and all have been left alone for a while since.
    async fn changed(&mut self) {
        let mut changed_at: Option<Instant> = None;
        while self.is_on {
            tokio::time::sleep(LOOK_EVERY).await;
            let before = self.files.clone();
            // A file system may hang.
            let look = move || before.into_iter().map(|(path, _)| (stamp(&path), path)).map(|(now, path)| (path, now));
            let Ok(now) = tokio::task::spawn_blocking(move || look().collect::<Vec<_>>()).await else { continue };
            if std::mem::replace(&mut self.files, now.clone()) != now {
                changed_at = Some(Instant::now());
            } else if changed_at.is_some_and(|at| at.elapsed() >= QUIET) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}

/// Writes down which synthetic addresses never pass to other names under a policy.
fn review_claims(services: &Services, policy: &Policy) -> io::Result<()> {
    let Some(steering) = &services.steering else { return Ok(()) };
    tokio::task::block_in_place(|| steering.review(|name| policy.is_claimed(name)))
}

/// Keeps what is known of the policy's names; a new one takes over what is known of the same name, as far as its rule lets
/// it lead there.
fn keep_names(services: &Services, policy: &Policy) {
    let known = services.known();
    let leads = |name: &LearnedName, ip| {
        // Of a synthetic address, what is behind it.
        let ip = if policy.steered_names().is_synthetic(ip) { known.behind(ip) } else { Some(ip) };
        let Some(ip) = ip else { return false };
        let clearance = policy.clearance_to_keep(name);
        clearance.is_some_and(|clearance| policy.by_kept_answer(&clearance, &Answers::literal(ip)).is_ok())
    };
    services.learned.keep(policy.kept_names().into_iter().cloned(), leads, Instant::now().into_std());
}

/// Puts a policy in the place of the old one, in the kernel and here. In between both let out only what each of them
/// does.
async fn put_in_force(services: &Services, policy: &Arc<Policy>) -> Result<Arc<Policy>, ReloadError> {
    let Some(table) = &services.table else { return Ok(services.policy.replace(Arc::clone(policy))) };
    let rule_sets = || {
        let (apps, nets) = (policy.application_rules(), policy.network_rules());
        RuleSets::of(apps, nets, policy.nat64(), policy.steered_names(), services.known())
    };
    let narrowed = match table.narrow(rule_sets()).await {
        // `egret netfilter apply` has just made another table, which is filled when it is first seen.
        Err(ReloadError::NoTable) if inspects(table).await => table.narrow(rule_sets()).await?,
        narrowed => narrowed?,
    };
    let old = services.policy.replace(Arc::clone(policy));
    if let Err(error) = table.widen(narrowed).await {
        services.policy.replace(old);
        return Err(error);
    }
    Ok(old)
}

async fn inspects(table: &Arc<LiveTable>) -> bool {
    let table = Arc::clone(table);
    tokio::task::spawn_blocking(move || table.inspect().is_ok()).await.unwrap_or(false)
}

/// Frees a policy when its last user is done, away from every connection: a large one takes its time.
async fn retire(mut policy: Arc<Policy>) {
    loop {
        match Arc::try_unwrap(policy) {
            Ok(policy) => return drop(tokio::task::spawn_blocking(move || drop(policy))),
            Err(used) => policy = used,
        }
        tokio::time::sleep(IN_USE).await;
    }
}
