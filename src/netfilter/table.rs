//! The body of a table while it is written: sets, counters, and room for chains.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use super::elements::Addresses;
use super::names::{REASONS, set_name};
use super::plan::{Opening, Plan, RuleSet};

/// Clients whose share of the lines is known at once, in each family. What finds no room has no line.
const LOGGED_CLIENTS: u32 = 65_536;

/// Clients whose flows are counted, in each family. A new one that finds no room is refused.
const COUNTED_CLIENTS: u32 = 262_144;

/// The body of a table while it is written.
#[derive(Default)]
pub(super) struct Table {
    pub(super) text: String,
    pub(super) rules: usize,
}

impl Table {
    pub(super) fn chain(&mut self, name: &str, hook: Option<&str>, rules: impl FnOnce(&mut Self)) {
        let _ = writeln!(self.text, "  chain {name} {{");
        if let Some(hook) = hook {
            let _ = writeln!(self.text, "    type {hook};");
        }
        rules(self);
        self.text.push_str("  }\n");
    }

    pub(super) fn rule(&mut self, rule: impl Display) {
        self.rules += 1;
        let _ = writeln!(self.text, "    {rule}");
    }

    fn set(&mut self, name: &str, kind: &str, flags: &str, elements: &[String]) {
        let flags = if flags.is_empty() { String::new() } else { format!(" flags {flags};") };
        let elements =
            if elements.is_empty() { String::new() } else { format!(" elements = {{ {} }}", elements.join(", ")) };
        let _ = writeln!(self.text, "  set {name} {{ type {kind};{flags}{elements} }}");
    }

    pub(super) fn addresses(&mut self, name: &str, addresses: &Addresses) {
        let (v4, v6) = addresses.texts();
        self.set(&format!("{name}4"), "ipv4_addr", "interval", &v4);
        self.set(&format!("{name}6"), "ipv6_addr", "interval", &v6);
    }

    /// What only a restart changes.
    pub(super) fn fixed(plan: &Plan) -> Self {
        let mut table = Self::default();
        table.addresses("clients", &plan.clients);
        table.addresses("bypass", &plan.bypass);
        table.addresses("own", &plan.own);
        table.addresses("probes", &plan.probes);
        for (name, kind) in [
            ("log_limit4", "ipv4_addr"),
            ("log_limit6", "ipv6_addr"),
            ("log_limit_strangers4", "ipv4_addr"),
            ("log_limit_strangers6", "ipv6_addr"),
        ] {
            let kept = "flags dynamic, timeout; timeout 10s";
            let _ = writeln!(table.text, "  set {name} {{ type {kind}; size {LOGGED_CLIENTS}; {kept}; }}");
        }
        for part in 0..parts(plan.flows_per_client) {
            for (family, kind) in [("4", "ipv4_addr"), ("6", "ipv6_addr"), ("6net", "ipv6_addr")] {
                let name = format!("flows{part}_{family}");
                let _ = writeln!(table.text, "  set {name} {{ type {kind}; size {COUNTED_CLIENTS}; flags dynamic; }}");
            }
        }
        for reason in REASONS {
            let _ = writeln!(table.text, "  counter {reason} {{ }}");
        }
        table.prerouting(plan);
        table.forward(plan);
        table.platform(plan);
        table.input(plan);
        table.nat(plan);
        table.refusals();
        table
    }

    pub(super) fn changing_sets(&mut self, plan: &Plan) {
        let captured: Vec<String> = plan.rule_sets.captured.iter().map(u16::to_string).collect();
        self.set("captured", "inet_service", "", &captured);
        for (name, kind, is_v4) in [("steered4", "ipv4_addr", true), ("steered6", "ipv6_addr", false)] {
            let of_family =
                plan.rule_sets.mapped.iter().filter(|(from, to)| (from.is_ipv4(), to.is_ipv4()) == (is_v4, is_v4));
            let all: Vec<String> = of_family.map(|(from, to)| format!("{from} : {to}")).collect();
            let elements = if all.is_empty() { String::new() } else { format!(" elements = {{ {} }}", all.join(", ")) };
            let _ = writeln!(self.text, "  map {name} {{ type {kind} : {kind};{elements} }}");
        }
        for (action, rule_sets, count) in each_action(plan) {
            for number in 0..count {
                self.slot(action, number, rule_sets.get(number));
            }
        }
    }

    fn slot(&mut self, action: &str, number: usize, rule_set: Option<&RuleSet>) {
        let (sources, destinations, ports) = rule_set.map_or_else(Default::default, |set| {
            let elements = &set.elements;
            (elements.sources.clone(), elements.destinations.clone(), elements.ports.clone())
        });
        self.addresses(&set_name(action, number, "sources"), &sources);
        self.addresses(&set_name(action, number, "destinations"), &destinations);
        let ports: Vec<String> =
            ports.iter().map(|(protocol, low, high)| format!("{protocol} . {low}-{high}")).collect();
        self.set(&set_name(action, number, "ports"), "inet_proto . inet_service", "interval", &ports);
        if action == "allow" {
            for (family, kind) in [("4", "ipv4_addr"), ("6", "ipv6_addr")] {
                let learned = rule_set.into_iter().flat_map(|set| &set.learned);
                let learned = learned.filter(|(opening, _)| opening.is_of(family == "4"));
                let (asked, learned): (Vec<_>, Vec<_>) = learned.partition(|(opening, _)| opening.asker.is_some());
                let text = |(Opening { asker, to }, left): &&(Opening, Duration)| {
                    let asker = asker.map(|asker| format!("{asker} . ")).unwrap_or_default();
                    format!("{asker}{to} timeout {}s", left.as_secs().max(1))
                };
                let [learned, asked] = [learned, asked].map(|all| all.iter().map(text).collect::<Vec<_>>());
                self.set(&set_name(action, number, &format!("learned{family}")), kind, "timeout", &learned);
                let pair = format!("{kind} . {kind}");
                self.set(&set_name(action, number, &format!("asked{family}")), &pair, "timeout", &asked);
            }
            let _ = writeln!(self.text, "  counter {action}{number} {{ }}");
        }
    }
}

/// The actions of slots, in the order of their sets; denials are asked first.
pub(super) fn each_action(plan: &Plan) -> [(&'static str, &[RuleSet], usize); 2] {
    let [allows, denies] = plan.slots;
    [("allow", &plan.rule_sets.allows, allows), ("deny", &plan.rule_sets.denies, denies)]
}

/// Flows that are counted under one key, and the most keys of one client.
pub(super) const FLOWS_OF_A_PART: u32 = 1024;

pub(super) const MOST_PARTS: u32 = 64;

/// The keys under which a client's flows are counted.
pub(super) fn parts(flows_per_client: u32) -> u32 {
    (flows_per_client / FLOWS_OF_A_PART).clamp(1, MOST_PARTS)
}
