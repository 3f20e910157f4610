//! A new policy for a running egret: read and compiled beside the old one, then put in its place.
//!
//! Connections never wait for it: who has begun to be judged is judged by the policy he began with, and the old one
//! is freed when the last of them is through. What is open goes on, or under `policy.on_change: cut` only as far as the
//! new policy would let it begin. A configuration with a fault changes nothing.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use nix::sys::signal::{SIGHUP, SigSet};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use crate::config::Settings;
use crate::drain::Reviewer;
use crate::keeper;
use crate::netfilter::kernel::ReloadError;
use crate::netfilter::plan::Filter;
use crate::netfilter::sidecar::{self, Other};
use crate::policy::{OwnAddresses, Policy};
use crate::session::House;

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
}

impl Source {
    fn compile(&self, file: &std::path::Path) -> Result<Fresh, String> {
        let mut settings = Settings::load(file).map_err(|error| error.to_string())?;
        let others = || sidecar::others(&settings.rules.nets, settings.rules.nat64);
        if self.sidecar.as_ref().is_some_and(|before| *before != others()) {
            return Err("the network rules for udp and icmp are others, and a sidecar's kernel rules are made once; start the pod anew".to_owned());
        }
        let waits = self.began.differs(&settings);
        let cuts = settings.rules.cuts;
        let policy = std::mem::take(&mut settings.rules).compile(Arc::clone(&self.own));
        Ok(Fresh { cuts, policy, waits, warnings: settings.warnings.len() })
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
}

/// Keeps the policy's names resolved, and replaces the policy whenever it is told to, until the house is gone.
pub async fn run(mut hangup: Signal, source: Source, house: Weak<House>, reviewer: Reviewer) {
    let source = Arc::new(source);
    let keep = |policy| AbortOnDrop(tokio::spawn(keeper::run(Weak::clone(&house), policy)));
    let Some(mut keeper) = house.upgrade().map(|house| keep(house.policy.get())) else { return };
    while hangup.recv().await.is_some() {
        let Some(file) = source.file.clone() else {
            tracing::warn!("SIGHUP: the configuration in the binary cannot change; start egret with --config");
            continue;
        };
        tracing::info!(file = %file.display(), "SIGHUP: reading the configuration again");
        let compiling = Arc::clone(&source);
        let compiled = tokio::task::spawn_blocking(move || compiling.compile(&file)).await;
        let Some(house) = house.upgrade() else { return };
        let refused = |why: &dyn Display| {
            tracing::error!("nothing has changed: {why}");
            house.book.metrics().reloaded("refused");
        };
        let Fresh { policy, waits, warnings, cuts } = match compiled {
            Ok(Ok(fresh)) => fresh,
            Ok(Err(error)) => {
                refused(&error);
                continue;
            }
            // A panic, whose words are on stderr already.
            Err(_) => {
                refused(&"the configuration could not be read");
                continue;
            }
        };
        let policy = Arc::new(policy);
        policy.inherit(&house.policy.get());
        let old = match tokio::task::block_in_place(|| put_in_force(&house, &policy)) {
            Ok(old) => old,
            Err(error) => {
                refused(&error);
                continue;
            }
        };
        if cuts {
            reviewer.ask();
            match house.kernel.as_ref().map(|kernel| tokio::task::block_in_place(|| kernel.cut())) {
                Some(Ok(flows)) => tracing::info!(flows, "flows whose rule is gone have ended"),
                Some(Err(error)) => tracing::error!(%error, "flows whose rule is gone go on"),
                None => {}
            }
        }
        let (rules, patterns) = policy.size();
        tracing::info!(rules, patterns, "the new policy is in force");
        if warnings > 0 {
            tracing::warn!(warnings, "`egret check` shows what is probably not meant");
        }
        if !waits.is_empty() {
            tracing::warn!(keys = waits.join(", "), "changed too, and waits for a restart");
        }
        house.book.metrics().reloaded("done");
        // The old one's last look-ups are of another generation.
        drop(std::mem::replace(&mut keeper, keep(policy)));
        tokio::spawn(retire(old));
    }
}

/// Puts a policy in the place of the old one, in the kernel and here. In between both let out only what each of them
/// does.
fn put_in_force(house: &House, policy: &Arc<Policy>) -> Result<Arc<Policy>, ReloadError> {
    let Some(kernel) = &house.kernel else { return Ok(house.policy.replace(Arc::clone(policy))) };
    let remember = house.learn.remember;
    let filter = Filter::of(policy.application_rules(), policy.network_rules(), policy.nat64(), remember);
    let narrowed = kernel.narrow(&filter)?;
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
