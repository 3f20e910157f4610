//! What is looked at again and again while egret serves: addresses, the kernel's rules, files.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::local;
use crate::metrics::{Fault, Metrics};
use crate::netfilter::LiveTable;
use crate::netfilter::conntrack;
use crate::netfilter::sidecar::PodTable;
use crate::netlog::Counted;
use crate::proxy::listen::Listener;
use crate::proxy::services::Services;
use egret_core::policy::OwnAddresses;

/// How often the machine's own addresses are read again, whatever the kernel tells of them.
const LOCAL_EVERY: Duration = Duration::from_secs(10);

/// How often the files of users and certificates are looked at: an operator waits for the change.
const FILES_EVERY: Duration = Duration::from_secs(1);

/// How often it is seen whether the kernel's rules stand.
const KERNEL_EVERY: Duration = Duration::from_secs(1);

/// How often the ports in use are counted, which is a look at every flow.
const PORTS_EVERY: Duration = Duration::from_secs(15);

/// Notifies of changes to this machine's addresses, from a detached thread.
pub(super) fn follow_local(changes: local::Changes, changed: &Arc<Notify>) -> io::Result<()> {
    let changed = Arc::downgrade(changed);
    let follow = move || {
        loop {
            if let Err(error) = changes.next() {
                tracing::error!(%error, "the kernel reports this machine's addresses no more; they are read now and then");
                return;
            }
            let Some(changed) = changed.upgrade() else { return };
            changed.notify_one();
        }
    };
    std::thread::Builder::new().name("local-addresses".to_owned()).spawn(follow)?;
    Ok(())
}

/// Reads this machine's addresses again when they have changed, and now and then. Nothing else does while egret serves:
/// what was read last holds.
pub(super) async fn watch_local(own: Arc<OwnAddresses>, changed: Arc<Notify>) {
    loop {
        let _ = tokio::time::timeout(LOCAL_EVERY, changed.notified()).await;
        match tokio::task::block_in_place(local::addresses) {
            Ok(addresses) => own.set_local(addresses),
            // The last ones known still hold.
            Err(error) => tracing::warn!(%error, "cannot read this machine's addresses again"),
        }
    }
}

/// Sees whether the kernel's rules stand. Their loss is noticed within a second; meanwhile nothing gets
/// out, for the routes or the table alone are enough.
pub(super) async fn watch_kernel(
    table: Arc<LiveTable>,
    services: Weak<Services>,
    mut counted: Counted,
    own: Arc<OwnAddresses>,
) {
    let mut ports_at = Instant::now();
    let mut last = LastFault::default();
    loop {
        let looking = Arc::clone(&table);
        let looked = tokio::task::spawn_blocking(move || looking.look()).await;
        let Some(services) = services.upgrade() else { return };
        let looked = looked.unwrap_or_else(|join| Err(join.to_string()));
        services.access_log.metrics().fault(Fault::Kernel, looked.is_err());
        let now = looked.map(|counters| counted.count(&services, counters)).err();
        last.log(now);
        if ports_at <= Instant::now() {
            let own = Arc::clone(&own);
            let used = tokio::task::spawn_blocking(move || conntrack::ports_in_use(|ip| own.is_local(ip))).await;
            services.access_log.metrics().source_ports(used.unwrap_or_else(|_| Ok(HashMap::new())).unwrap_or_default());
            ports_at = Instant::now() + PORTS_EVERY;
        }
        drop(services);
        tokio::time::sleep(KERNEL_EVERY).await;
    }
}

/// Sees whether the pod's table stands, and is the one for this process.
pub(super) async fn watch_table(table: Arc<PodTable>, metrics: Arc<Metrics>) {
    let mut last = LastFault::default();
    loop {
        tokio::time::sleep(KERNEL_EVERY).await;
        let looking = Arc::clone(&table);
        let looked = tokio::task::spawn_blocking(move || looking.look().map_err(|fault| fault.to_string())).await;
        let looked = looked.unwrap_or_else(|join| Err(join.to_string()));
        metrics.fault(Fault::Kernel, looked.is_err());
        last.log(looked.err().map(|fault| format!("{fault}: not ready until then")));
    }
}

/// What was last found of the kernel's rules, of which each change is logged once.
#[derive(Default)]
pub(super) struct LastFault(Option<String>);

impl LastFault {
    fn log(&mut self, fault: Option<String>) {
        match (std::mem::replace(&mut self.0, fault), &self.0) {
            (before, Some(now)) if before.as_ref() != Some(now) => tracing::error!("{now}"),
            (Some(_), None) => tracing::info!("the kernel's rules are in place again"),
            _ => {}
        }
    }
}

/// Looks after the files of listeners and of the resolver.
pub(super) async fn watch_files(listeners: Vec<Arc<Listener>>, services: Weak<Services>) {
    loop {
        tokio::time::sleep(FILES_EVERY).await;
        let (listeners, services) = (listeners.clone(), Weak::clone(&services));
        let looking = tokio::task::spawn_blocking(move || {
            listeners.iter().for_each(|listener| listener.refresh());
            services.upgrade().iter().for_each(|services| services.dns.refresh());
        });
        if let Err(error) = looking.await {
            tracing::error!(%error, "cannot look whether files have changed");
        }
    }
}
