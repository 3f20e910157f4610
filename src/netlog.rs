//! What the kernel did by itself, logged and counted: refused packets, and flows that have ended.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use crate::netfilter::conntrack::Endings;
use crate::netfilter::elements::{ICMP, ICMPV6, TCP, UDP, protocol_name};
use crate::netfilter::marks::{BYPASSED, INGRESS, INGRESS_PLAIN};
use crate::netfilter::names::REASONS;
use crate::netfilter::nflog::{Refusals, Refused};
use crate::proxy::services::Services;
use crate::record::NetVerdict;
use egret_core::claim::Source;
use egret_core::name::{Host, HostName};
use egret_core::outcome::{Ending, Hint, Reason, Refusal, Stage, Totals};
use egret_core::policy::explain::{Question, Subject};

/// Bytes of one datagram from the kernel.
const DATAGRAM: usize = 64 << 10;

/// Starts the threads that listen to the kernel; they hold nothing that egret's end waits for.
///
/// # Errors
/// The kernel's: CAP_NET_ADMIN is missing, or another egret listens in this network namespace.
pub fn listen(services: &Arc<Services>, logs_flows: bool) -> io::Result<()> {
    let (refusals, weak) = (Refusals::listen()?, Arc::downgrade(services));
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    thread("net-refusals").spawn(move || {
        let mut buffer = vec![0; DATAGRAM];
        while let Some(all) = heard(refusals.next(&mut buffer), "refused packets") {
            let Some(services) = weak.upgrade() else { return };
            all.iter().for_each(|refused| log_refusal(&services, refused));
        }
    })?;
    if logs_flows {
        let (endings, weak) = (Endings::listen()?, Arc::downgrade(services));
        thread("net-flows").spawn(move || log_flows(&endings, &weak))?;
    }
    Ok(())
}

fn heard<T>(outcome: io::Result<T>, what: &str) -> Option<T> {
    outcome.inspect_err(|error| tracing::error!(%error, "the kernel reports no more {what}")).ok()
}

fn log_refusal(services: &Services, refused: &Refused) {
    let Refused { packet, reason } = refused;
    let verdict = NetVerdict::Refused(refusal(services, refused));
    let to = (packet.to, steered(services, packet.to));
    services.access_log.net(verdict, packet.from, to, protocol_name(packet.protocol));
    if let Some(table) = &services.table {
        table.has_line(*reason);
    }
}

/// The name that a synthetic address stands for.
fn steered(services: &Services, to: SocketAddr) -> Option<HostName> {
    services.steering.as_ref()?.name(to.ip())
}

/// The refusal with the rule that denied it, or what would have to be written for it.
fn refusal(services: &Services, refused: &Refused) -> Refusal {
    let Refused { packet, reason } = refused;
    let plain = Refusal::new(*reason, Stage::Network);
    let port = packet.to.port();
    let subject = |host| match packet.protocol {
        TCP => Some(Subject::Tcp { host, port }),
        UDP => Some(Subject::Udp { host, port }),
        _ => None,
    };
    let to = Host::Address(packet.to.ip());
    let Some(by_address) = subject(to.clone()) else {
        let nearest = match packet.protocol {
            _ if *reason != Reason::ProtocolDenied => return plain,
            ICMP | ICMPV6 => "an icmp rule lets out echo requests; errors pass as part of a flow".to_owned(),
            other => format!("IP protocol {other}; rules are for tcp, udp and icmp"),
        };
        return plain.with(Hint { nearest: Some(nearest), ..Hint::default() });
    };
    if *reason == Reason::RateLimited {
        let nearest = "the client has reached netfilter.flows_per_client";
        return plain.with(Hint { nearest: Some(nearest.into()), ..Hint::default() });
    }
    if !matches!(reason, Reason::NoRule | Reason::RuleDenied) {
        return plain;
    }
    let policy = services.policy.get();
    if policy.own_addresses().is_local(packet.to.ip()) {
        let nearest = "this machine itself: clients reach its listeners and `health.bind`, and no rule opens more";
        return plain.with(Hint { nearest: Some(nearest.into()), ..Hint::default() });
    }
    let question = |subject| Question { subject, source: Source::at(packet.from.ip()), dst: None, alpn: Vec::new() };
    let asked =
        question(subject(steered(services, packet.to).map_or(to, Host::Name)).unwrap_or_else(|| by_address.clone()));
    // The name may have been asked for again since.
    let expired = || policy.expired_since(&question(by_address), services.known());
    let explained = policy.explain_knowing(&asked, services.known()).err().or_else(expired);
    // The policy may have changed since. The kernel does not know why an address is in no set.
    let is_same = |explained: &Refusal| {
        explained.reason == *reason || (*reason, explained.reason) == (Reason::NoRule, Reason::LearnedExpired)
    };
    explained.filter(is_same).map_or(plain, |explained| Refusal { stage: Stage::Network, ..explained })
}

fn log_flows(endings: &Endings, services: &Weak<Services>) {
    let mut buffer = vec![0; DATAGRAM];
    while let Some(ended) = heard(endings.next(&mut buffer), "ended flows") {
        let Some(services) = services.upgrade() else { return };
        let Some(ended) = ended else {
            tracing::warn!("more flows ended at once than could be reported; some have no line");
            continue;
        };
        for flow in ended {
            let rule = match flow.mark {
                BYPASSED => Arc::from("netfilter.bypass"),
                INGRESS | INGRESS_PLAIN => Arc::from("netfilter.dnat"),
                _ => services.table.as_ref().and_then(|table| table.rule(&flow)).unwrap_or_else(|| "?".into()),
            };
            let totals = Totals { up: flow.bytes_up, down: flow.bytes_down };
            let duration = flow.duration.unwrap_or_default();
            let was_cut = services.table.as_ref().is_some_and(|table| table.was_cut(&flow));
            let ending = if was_cut { Ending::Revoked } else { Ending::Closed };
            let verdict = NetVerdict::Ended { rule, upstream: flow.upstream, totals, duration, ending };
            let to = (flow.destination, steered(&services, flow.destination));
            services.access_log.net(verdict, flow.client, to, protocol_name(flow.protocol));
        }
    }
}

/// What the counters showed before. What came before this process is not its to log.
#[derive(Debug)]
pub struct Counted(HashMap<String, u64>);

impl From<Vec<(String, u64)>> for Counted {
    fn from(readings: Vec<(String, u64)>) -> Self {
        Self(readings.into_iter().collect())
    }
}

impl Counted {
    /// Takes new readings: metrics grow by what came since, and refused packets without a line get one together.
    pub fn count(&mut self, services: &Services, readings: Vec<(String, u64)>) {
        let Some(table) = &services.table else { return };
        for (name, packets) in readings {
            let before = self.0.insert(name.clone(), packets).unwrap_or(0);
            // A table made anew begins at nothing.
            let new = if packets < before { packets } else { packets - before };
            if let Some(reason) = REASONS.iter().find(|reason| reason.as_str() == name) {
                services.access_log.metrics().net_refused(*reason, new);
                let left_out = table.left_out(*reason, new);
                if left_out > 0 {
                    services.access_log.net_left_out(*reason, left_out);
                }
            } else if let Some(rule) = table.rule_of_counter(&name) {
                services.access_log.metrics().net_flows(&rule, new);
            }
        }
    }
}
