//! Counters with closed label sets: no label value ever comes from the network.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use egret_core::outcome::{Ending, Reason, Stage};

/// A label set of words from closed sets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Words<const N: usize>([(&'static str, &'static str); N]);

impl<const N: usize> EncodeLabelSet for Words<N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.iter().try_for_each(|label| label.encode(encoder.encode_label()))
    }
}

/// All of egret's counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    active: Gauge,
    peek_memory: Gauge,
    endings: Family<Words<1>, Counter>,
    verdicts: Family<Words<1>, Counter>,
    empty: Counter,
    refusals: Family<Words<2>, Counter>,
    bytes_up: ShardedCounter,
    bytes_down: ShardedCounter,
    lookups: Family<Words<1>, Counter>,
    questions: Family<Words<1>, Counter>,
    /// One of them, which counts most often.
    answered: Counter,
    lost_lines: Family<Words<1>, Counter>,
    reloads: Family<Words<1>, Counter>,
    faults: Family<Words<1>, Gauge>,
    net_refusals: Family<Words<1>, Counter>,
    net_flows: Family<RuleLabel, Counter>,
    source_ports: Family<SourceLabel, Gauge>,
}

/// A counter that all threads add to all the time, each to a part of its own.
#[derive(Debug)]
struct ShardedCounter {
    /// What was shown last.
    shown: Mutex<Counter>,
    shards: [Shard; 16],
}

/// Alone in its cache line, and in the one that is fetched beside it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(AtomicU64);

impl ShardedCounter {
    fn add(&self, n: u64) {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        let shard = self.shards.get(THREAD.with(|thread| *thread) % self.shards.len());
        shard.map(|shard| shard.0.fetch_add(n, Ordering::Relaxed));
    }

    fn sum_up(&self) {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let sum: u64 = self.shards.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum();
        shown.inc_by(sum - shown.get());
    }
}

/// An address of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SourceLabel(IpAddr);

impl EncodeLabelSet for SourceLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        ("source", self.0.to_string()).encode(encoder.encode_label())
    }
}

/// A rule, by the name that the operator gave it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RuleLabel(Arc<str>);

impl EncodeLabelSet for RuleLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        ("rule", &*self.0).encode(encoder.encode_label())
    }
}

/// What is wrong with everything at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No upstream answered the last question.
    Dns,
    /// The last reload was refused.
    Reload,
    /// The kernel's rules are not in place.
    Kernel,
    /// The access log cannot be written.
    Log,
}

impl Fault {
    const ALL: [Self; 4] = [Self::Dns, Self::Reload, Self::Kernel, Self::Log];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Reload => "reload",
            Self::Kernel => "kernel",
            Self::Log => "log",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("egret");
        let (active, peek_memory) = (Gauge::default(), Gauge::default());
        let (endings, refusals) = (Family::default(), Family::default());
        let (verdicts, empty) = (Family::default(), Counter::default());
        let (bytes, lookups) = (Family::<Words<1>, Counter>::default(), Family::default());
        let [bytes_up, bytes_down] = ["up", "down"].map(|direction| {
            let shown = bytes.get_or_create(&Words([("direction", direction)])).clone();
            ShardedCounter { shown: Mutex::new(shown), shards: Default::default() }
        });
        let (lost_lines, reloads, faults) = (Family::default(), Family::default(), Family::default());
        registry.register("connections_active", "Client connections open now", active.clone());
        registry.register("peek_memory_bytes", "Memory that all peeks hold now", peek_memory.clone());
        registry.register("connections", "Client connections by how they ended", Family::clone(&endings));
        registry.register("verdicts", "Verdicts as they are given", Family::clone(&verdicts));
        registry.register("connections_empty", "Client connections that were closed without a byte", empty.clone());
        registry.register("refusals", "Refused connections by reason and stage", Family::clone(&refusals));
        registry.register("bytes", "Bytes relayed, as they go; up is towards the upstream", bytes);
        let questions = Family::<Words<1>, Counter>::default();
        let answered = questions.get_or_create(&Words([("outcome", "answered")])).clone();
        registry.register("dns_questions", "Questions of DNS clients by outcome", Family::clone(&questions));
        registry.register("dns_lookups", "Name look-ups by outcome", Family::clone(&lookups));
        registry.register("log_lines_lost", "Access lines that could not be written", Family::clone(&lost_lines));
        registry.register("reloads", "Reloads of the policy by outcome", Family::clone(&reloads));
        let (net_refusals, net_flows, source_ports) = (Family::default(), Family::default(), Family::default());
        let said = "Ports that a source has in use towards the one destination with the most of them";
        registry.register("source_ports_in_use", said, Family::clone(&source_ports));
        registry.register("net_refusals", "Packets that the kernel refused, by reason", Family::clone(&net_refusals));
        registry.register("net_flows", "Flows that the kernel let through, by network rule", Family::clone(&net_flows));
        registry.register("fault", "What is wrong with everything at once: 1 while it is", Family::clone(&faults));
        Self {
            registry,
            active,
            peek_memory,
            endings,
            verdicts,
            empty,
            refusals,
            bytes_up,
            bytes_down,
            lookups,
            answered,
            questions,
            lost_lines,
            reloads,
            faults,
            net_refusals,
            net_flows,
            source_ports,
        }
    }
}

impl Metrics {
    /// The page in OpenMetrics text format.
    #[must_use]
    pub fn page(&self, peek_memory: usize) -> String {
        self.peek_memory.set(i64::try_from(peek_memory).unwrap_or(i64::MAX));
        [&self.bytes_up, &self.bytes_down].into_iter().for_each(ShardedCounter::sum_up);
        let mut out = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut out, &self.registry);
        out
    }

    pub(crate) fn opened(&self) {
        self.active.inc();
    }

    pub(crate) fn closed(&self, ending: Ending) {
        self.active.dec();
        self.endings.get_or_create(&Words([("ending", ending.as_str())])).inc();
    }

    /// Bytes have gone on, up or down.
    pub(crate) fn moved(&self, is_up: bool, bytes: u64) {
        if is_up { &self.bytes_up } else { &self.bytes_down }.add(bytes);
    }

    /// A connection was closed without a byte.
    pub(crate) fn empty(&self) {
        self.empty.inc();
    }

    /// Something has been let out.
    pub(crate) fn allowed(&self) {
        self.verdicts.get_or_create(&Words([("verdict", "allow")])).inc();
    }

    pub(crate) fn refused(&self, reason: Reason, stage: Stage) {
        self.verdicts.get_or_create(&Words([("verdict", "deny")])).inc();
        self.refusals.get_or_create(&Words([("reason", reason.as_str()), ("stage", stage.as_str())])).inc();
    }

    /// A DNS client has been answered.
    pub(crate) fn dns_answered(&self) {
        self.answered.inc();
    }

    pub(crate) fn dns_refused(&self) {
        self.questions.get_or_create(&Words([("outcome", "refused")])).inc();
    }

    pub(crate) fn dns_cached(&self) {
        self.lookups.get_or_create(&Words([("outcome", "cached")])).inc();
    }

    /// An answer whose time is over has stood in for a new one.
    pub(crate) fn dns_stale(&self) {
        self.lookups.get_or_create(&Words([("outcome", "stale")])).inc();
    }

    pub(crate) fn dns_asked(&self, failed: Option<Reason>, is_silence: bool) {
        self.fault(Fault::Dns, is_silence);
        self.lookups.get_or_create(&Words([("outcome", failed.map_or("found", Reason::as_str))])).inc();
    }

    pub(crate) fn net_refused(&self, reason: Reason, packets: u64) {
        self.net_refusals.get_or_create(&Words([("reason", reason.as_str())])).inc_by(packets);
    }

    /// Replaces what was known of the ports in use.
    pub(crate) fn source_ports(&self, most: HashMap<IpAddr, u64>) {
        self.source_ports.clear();
        for (source, ports) in most {
            self.source_ports.get_or_create(&SourceLabel(source)).set(i64::try_from(ports).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn net_flows(&self, rule: &Arc<str>, flows: u64) {
        self.net_flows.get_or_create(&RuleLabel(Arc::clone(rule))).inc_by(flows);
    }

    pub(crate) fn fault(&self, fault: Fault, is_there: bool) {
        self.faults.get_or_create(&Words([("fault", fault.as_str())])).set(i64::from(is_there));
    }

    /// The faults that are there now.
    pub fn faults(&self) -> impl Iterator<Item = &'static str> {
        let is_there =
            |fault: &Fault| self.faults.get(&Words([("fault", fault.as_str())])).is_some_and(|g| g.get() > 0);
        Fault::ALL.into_iter().filter(is_there).map(Fault::as_str)
    }

    pub(crate) fn reloaded(&self, outcome: &'static str) {
        self.fault(Fault::Reload, outcome != "done");
        self.reloads.get_or_create(&Words([("outcome", outcome)])).inc();
    }

    pub(crate) fn lines_lost(&self, lane: &'static str, count: u64) {
        self.lost_lines.get_or_create(&Words([("lane", lane)])).inc_by(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_explained() {
        let metrics = Metrics::default();
        metrics.opened();
        metrics.empty();
        metrics.allowed();
        metrics.refused(Reason::NoRule, Stage::Name);
        metrics.moved(true, 7);
        metrics.closed(Ending::Refused);
        metrics.dns_cached();
        metrics.dns_answered();
        metrics.fault(Fault::Kernel, true);
        metrics.net_refused(Reason::NoRule, 1);
        metrics.net_flows(&"rule".into(), 1);
        metrics.source_ports(HashMap::from([(IpAddr::from([192, 0, 2, 1]), 1)]));
        metrics.reloaded("done");
        metrics.lines_lost("refused", 1);
        let shown = metrics.page(0);
        let shown =
            shown.lines().filter(|line| line.starts_with("egret_")).filter_map(|line| line.split(['{', ' ']).next());
        let shown: std::collections::BTreeSet<_> = shown.collect();
        let page = include_str!("../docs/metrics.md");
        let explained = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        assert_eq!(shown, explained.collect());
    }

    #[test]
    fn the_page_counts() {
        let metrics = Metrics::default();
        metrics.opened();
        metrics.refused(Reason::NoRule, Stage::Name);
        metrics.moved(true, 7);
        metrics.closed(Ending::Refused);
        let page = metrics.page(5);
        for line in [
            "egret_connections_active 0",
            "egret_peek_memory_bytes 5",
            "egret_connections_total{ending=\"refused\"} 1",
            "egret_refusals_total{reason=\"no_rule\",stage=\"name\"} 1",
            "egret_bytes_total{direction=\"up\"} 7",
            "# EOF",
        ] {
            assert!(page.contains(line), "{line} in\n{page}");
        }
    }
}
