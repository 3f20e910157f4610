//! The table's chains, which only a restart changes: the order of the kernel's questions.
//!
//! `prerouting` decides, once per flow; `forward` opens for what was decided and for nothing else.

use std::net::{IpAddr, SocketAddr};

use super::elements::{Addresses, ICMP, ICMPV6, TCP, UDP};
use super::marks::{ASKING, BYPASSED, CAPTURED, FORWARDED, INGRESS, INGRESS_PLAIN, STATE};
use super::names::{LOG_GROUP, REASONS, set_name};
use super::plan::Plan;
use super::table::{Table, each_action, parts};
use egret_core::outcome::Reason;
use egret_core::rule::NetPort;
use egret_core::rule::guard;

/// Refused packets that have a line each second; the others are only counted.
const LINES_PER_SECOND: u32 = 100;

/// Of these, the ones of one client, so that no client turns another one's into a count.
const LINES_PER_CLIENT: u32 = 20;

/// Flows of one IPv6 /64, in those of one address: a whole cluster may share it.
const FLOWS_OF_A_NETWORK: u32 = 4;

/// Echo requests of all clients together to destinations that a rule opens for `icmp`, each second and family.
const ECHOES_PER_SECOND: u32 = 50;

/// RFC 4443 §2.4 (c): an error needs no more than this.
const LARGEST_ICMP_ERROR: u32 = 1280;

impl Table {
    pub(super) fn prerouting(&mut self, plan: &Plan) {
        let inside = interfaces(plan);
        self.chain("prerouting", Some("filter hook prerouting priority mangle; policy accept"), |chain| {
            chain.rule("iifname \"lo\" accept");
            // No host outside is a client, amid a client's flow either.
            let outside = inside
                .as_ref()
                .map_or_else(|| "fib saddr . iif oif missing".to_owned(), |inside| format!("iifname != {inside}"));
            chain.rule(format_args!("ip saddr @clients4 {outside} goto drop_source_not_allowed"));
            chain.rule(format_args!("ip6 saddr @clients6 {outside} goto drop_source_not_allowed"));
            // A flow begins with this, whatever is still known of an older one between the same ports: its rule may be
            // gone. It is judged anew.
            chain.rule(format_args!(
                "ct mark & {STATE:#x} == {FORWARDED:#x} ct direction original tcp flags & (fin | syn | rst | ack) == syn goto reused_tuple"
            ));
            // What was decided holds in both directions, for as long as the flow is known.
            chain.rule(format_args!("ct mark & {STATE:#x} == {FORWARDED:#x} meta mark set ct mark accept"));
            chain.rule(format_args!("ct mark & {STATE:#x} == {CAPTURED:#x} goto to_egret"));
            chain.rule(format_args!("ct mark & {STATE:#x} == {ASKING:#x} accept"));
            // Replies to this machine's own traffic come in on the interface that routes to the sender; other interfaces
            // are not trusted for them.
            chain.rule("ct direction reply ct state established fib saddr . iif oif missing goto drop_source_not_allowed");
            if plan.preserves_source {
                // Answers to what egret itself dialled from a client's address.
                chain.rule(format_args!(
                    "ct direction reply meta l4proto tcp socket transparent 1 meta mark set {CAPTURED:#x} accept"
                ));
                chain.rule(format_args!(
                    "ct state related meta l4proto {{ {ICMP}, {ICMPV6} }} socket transparent 1 meta mark set {CAPTURED:#x} accept"
                ));
            }
            // What this machine itself has asked.
            chain.rule("ct direction reply ct state established accept");
            chain.rule("goto by_source");
        });
        self.chain("by_source", None, |chain| {
            chain.rule("ip saddr @clients4 goto from_client");
            chain.rule("ip6 saddr @clients6 goto from_client");
            chain.rule("goto from_elsewhere");
        });
        self.chain("reused_tuple", None, |chain| {
            // Ingress flows do not belong to a client.
            chain.rule(format_args!("ct mark {{ {INGRESS:#x}, {INGRESS_PLAIN:#x} }} meta mark set ct mark accept"));
            chain.rule("goto by_source");
        });
        self.count_flows(plan.flows_per_client);
        self.chain("from_elsewhere", None, |chain| {
            // No host on the clients' side is an outsider: what this machine answers would go out to whichever host a client
            // names. The platform's own address asks on every interface.
            let platform = guard::PLATFORM;
            chain.rule(format_args!("ip saddr {platform} fib daddr type {{ local, broadcast }} accept"));
            chain.rule(format_args!(
                "ip saddr != {platform} fib daddr type local fib saddr . iif oif missing goto drop_source_not_allowed"
            ));
            chain.rule(
                "ip6 saddr != { ::, fe80::/10 } fib daddr type { local, multicast, anycast } fib saddr . iif oif missing goto drop_source_not_allowed",
            );
            for dnat in &plan.dnat {
                let mark = if dnat.masquerades { INGRESS } else { INGRESS_PLAIN };
                let from = sources(&dnat.sources);
                let family = if dnat.to.is_ipv4() { "ipv4" } else { "ipv6" };
                chain.rule(format_args!(
                    "meta nfproto {family} ct direction original {from}fib daddr type local {} ct mark set {mark:#x} meta mark set {mark:#x} accept",
                    port(&dnat.port)
                ));
            }
            // Not for this machine, and not from a client.
            chain.rule("fib daddr type unicast goto drop_source_not_allowed");
            chain.rule("accept");
        });
        self.chain("from_client", None, |chain| {
            chain.rule("ip frag-off & 0x3fff != 0 goto refuse_protocol_denied");
            chain.rule("exthdr frag exists goto refuse_protocol_denied");
            chain.rule("fib daddr type { local, broadcast, multicast, anycast } accept");
            chain.rule("ct state invalid goto refuse_no_flow");
            chain.rule("ct state new tcp flags & (fin | syn | rst | ack) != syn goto refuse_no_flow");
            chain.rule("ip daddr @own4 goto refuse_own_address");
            chain.rule("ip6 daddr @own6 goto refuse_own_address");
            for pool in pools(plan) {
                chain.rule(format_args!("{pool} goto steered"));
            }
            for family in ["ip daddr @bypass4", "ip6 daddr @bypass6"] {
                chain.rule(format_args!("{family} goto bypassed"));
            }
            // Metadata as some translator or tunnel would unwrap it: RFC 6052 §2.2, RFC 4380 §4 (inverted), RFC 3056 §2,
            // RFC 4291 §2.5.5.
            for bits in guard::metadata().map(u32::from) {
                let (high, low) = (bits >> 16, bits & 0xffff);
                let [a, b, c, d] = bits.to_be_bytes();
                for disguised in [
                    format!("64:ff9b::/32 @nh,288,32 {bits:#x}"),
                    format!("2001::/32 @nh,288,32 {:#x}", !bits),
                    format!("{{ 2002:{high:x}:{low:x}::/48, ::{high:x}:{low:x} }}"),
                    // RFC 8215: a network chooses the length of its prefix in there, and bits 64 to 71 are skipped.
                    format!("64:ff9b:1::/48 ip6 daddr & 0:0:0:ffff:ff:ff00:: == 0:0:0:{high:x}:{c:x}:{d:02x}00::"),
                    format!("64:ff9b:1::/48 ip6 daddr & 0:0:0:ff:ff:ffff:: == 0:0:0:{a:x}:{b:x}:{c:x}{d:02x}::"),
                    format!(
                        "64:ff9b:1::/48 ip6 daddr & 0:0:0:0:ff:ffff:ff00:: == 0:0:0:0:{a:x}:{b:x}{c:02x}:{d:02x}00::"
                    ),
                ] {
                    chain.rule(format_args!("ip6 daddr {disguised} goto refuse_no_rule"));
                }
            }
            chain.protocols();
            for (action, _, count) in each_action(plan).into_iter().rev() {
                chain.slots(action, count, action);
            }
            for (family, _) in nameservers(plan) {
                chain.rule(format_args!(
                    "meta nfproto {family} meta l4proto {{ {TCP}, {UDP} }} th dport 53 goto asking"
                ));
            }
            chain.rule(format_args!("tcp dport @captured ct mark set {CAPTURED:#x} goto to_egret"));
            chain.rule("udp dport 443 goto refuse_quic_denied");
            chain.rule("goto refuse_no_rule");
        });
        for (action, _, count) in each_action(plan) {
            for number in 0..count {
                self.slot_chains(action, number);
            }
        }
        if pools(plan).next().is_some() {
            self.steered(plan);
        }
        self.chain("asking", None, |chain| {
            chain.rule("ct state new jump count_flow");
            chain.rule(format_args!("ct mark set {ASKING:#x} accept"));
        });
        self.chain("bypassed", None, |chain| {
            chain.rule("ct state new jump count_flow");
            chain.rule(format_args!("ct mark set {BYPASSED:#x} meta mark set ct mark accept"));
        });
        self.chain("to_egret", None, |chain| {
            // The mark first: whatever becomes of the packet, it has no way but to this machine.
            chain.rule(format_args!("meta mark set {CAPTURED:#x}"));
            for (listener, family, ip) in
                plan.listeners.iter().zip([("ipv4", "ip"), ("ipv6", "ip6")]).map(|(l, (f, i))| (l, f, i))
            {
                let Some(listener) = listener else { continue };
                let to = address_of(*listener);
                chain.rule(format_args!("meta nfproto {family} meta l4proto {TCP} tproxy {ip} to {to} accept"));
            }
            chain.rule(format_args!("meta l4proto {{ {ICMP}, {ICMPV6} }} accept"));
            // There is no listener: another service of this machine must not hear it.
            chain.rule("goto refuse_no_rule");
        });
    }

    /// What goes to synthetic addresses: on by a network rule of the name, or to egret, which knows the name.
    fn steered(&mut self, plan: &Plan) {
        let [allows, denies] = plan.slots;
        self.chain("steered", None, |chain| {
            chain.protocols();
            chain.slots("allow", allows, "steered");
            chain.rule(format_args!("meta l4proto {TCP} ct mark set {CAPTURED:#x} goto to_egret"));
            chain.rule("goto refuse_no_rule");
        });
        for number in 0..allows {
            self.chain(&format!("steered{number}"), None, |chain| {
                for (ip, family) in [("ip", "4"), ("ip6", "6")] {
                    chain.learned(number, ip, family);
                }
            });
        }
        // Denials are of real addresses.
        self.chain("steered_out", None, |chain| {
            chain.slots("deny", denies, "deny");
            chain.rule("ip daddr @own4 goto refuse_own_address");
            chain.rule("ip6 daddr @own6 goto refuse_own_address");
        });
    }

    /// Lets out what goes to addresses that a slot's rule has learned, for all its clients or for one.
    fn learned(&mut self, number: usize, ip: &str, family: &str) {
        let [sources, learned, asked] =
            ["sources", "learned", "asked"].map(|what| set_name("allow", number, &format!("{what}{family}")));
        let passes = format!("goto allow{number}_passes");
        self.rule(format_args!("{ip} saddr @{sources} {ip} daddr @{learned} {passes}"));
        self.rule(format_args!("{ip} saddr @{sources} {ip} saddr . {ip} daddr @{asked} {passes}"));
    }

    /// Refuses what no rule can be about.
    fn protocols(&mut self) {
        self.rule("meta l4proto != { tcp, udp, icmp, ipv6-icmp } goto refuse_protocol_denied");
        self.rule("meta nfproto ipv4 meta l4proto ipv6-icmp goto refuse_protocol_denied");
        self.rule("meta nfproto ipv6 meta l4proto icmp goto refuse_protocol_denied");
        self.rule("icmp type != echo-request goto refuse_protocol_denied");
        self.rule("icmpv6 type != echo-request goto refuse_protocol_denied");
    }

    /// Asks the chains of slots whose ports fit.
    fn slots(&mut self, action: &str, count: usize, chain: &str) {
        for number in 0..count {
            let ports = set_name(action, number, "ports");
            self.rule(format_args!("meta l4proto . th dport @{ports} jump {chain}{number}"));
        }
    }

    pub(super) fn slot_chains(&mut self, action: &'static str, number: usize) {
        let passes = format!("{action}{number}_passes");
        let verdict = if action == "allow" { format!("goto {passes}") } else { "goto refuse_rule_denied".to_owned() };
        if action == "allow" {
            self.chain(&passes, None, |chain| {
                let mark = FORWARDED | u32::try_from(number).unwrap_or(0);
                chain.rule("ct state new jump count_flow");
                chain.rule(format_args!(
                    "counter name {action}{number} ct mark set {mark:#x} meta mark set ct mark accept"
                ));
            });
        }
        self.chain(&format!("{action}{number}"), None, |chain| {
            for (ip, family) in [("ip", "4"), ("ip6", "6")] {
                let [sources, destinations] =
                    ["sources", "destinations"].map(|what| set_name(action, number, &format!("{what}{family}")));
                chain.rule(format_args!("{ip} saddr @{sources} {ip} daddr @{destinations} {verdict}"));
                if action == "allow" {
                    chain.learned(number, ip, family);
                }
            }
        });
    }

    pub(super) fn forward(&mut self, plan: &Plan) {
        self.chain("forward", Some("filter hook forward priority filter; policy drop"), |chain| {
            chain.rule(format_args!("ct mark & {STATE:#x} == {FORWARDED:#x} ct state != invalid goto forwarded"));
        });
        self.chain("forwarded", None, |chain| {
            for pool in pools(plan) {
                // Nothing is behind it.
                chain.rule(format_args!("{pool} goto refuse_no_rule"));
                chain.rule(format_args!("ct state new ct original {pool} jump steered_out"));
            }
            // What some protocol's helper expects beside a flow is a flow of its own, which no rule has let out.
            chain.rule(format_args!("ct state related meta l4proto != {{ {ICMP}, {ICMPV6} }} goto refuse_no_rule"));
            chain.rule(format_args!(
                "ct state related meta l4proto {{ {ICMP}, {ICMPV6} }} meta length > {LARGEST_ICMP_ERROR} drop"
            ));
            chain.rule(
                "ct state related icmp type != { destination-unreachable, time-exceeded, parameter-problem } drop",
            );
            chain.rule("ct state related icmpv6 type != { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } drop");
            for echoes in ["icmp type echo-request", "icmpv6 type echo-request"] {
                let over = format!("limit rate over {ECHOES_PER_SECOND}/second burst {ECHOES_PER_SECOND} packets");
                chain.rule(format_args!("ct mark != {BYPASSED:#x} {echoes} {over} drop"));
            }
            chain.rule("tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu");
            chain.rule("accept");
        });
    }

    pub(super) fn input(&mut self, plan: &Plan) {
        self.chain("input", Some("filter hook input priority filter; policy accept"), |chain| {
            chain.rule("iifname \"lo\" accept");
            let captured = format!("ct mark & {STATE:#x} == {CAPTURED:#x}");
            chain.rule(format_args!("{captured} meta l4proto {TCP} socket transparent 1 accept"));
            chain.rule(format_args!("{captured} meta l4proto {{ {ICMP}, {ICMPV6} }} accept"));
            chain.rule(format_args!("{captured} drop"));
            let asking = format!("ct mark & {STATE:#x} == {ASKING:#x}");
            for (family, nameserver) in nameservers(plan) {
                let port = nameserver.port();
                chain.rule(format_args!(
                    "{asking} meta nfproto {family} meta l4proto {{ {TCP}, {UDP} }} th dport {port} accept"
                ));
            }
            chain.rule(format_args!("{asking} meta l4proto {{ {ICMP}, {ICMPV6} }} accept"));
            chain.rule(format_args!("{asking} drop"));
            // What this machine itself has asked.
            chain.rule("ct direction reply ct state established accept");
            chain.rule("ct state related meta l4proto { icmp, ipv6-icmp } accept");
            chain.rule(format_args!("ip saddr {} goto platform", guard::PLATFORM));
            chain.rule("ip saddr @clients4 goto at_the_door");
            chain.rule("ip6 saddr @clients6 goto at_the_door");
            // A client's neighbour address, and any other of a family that clients are not known by.
            chain.rule(match interfaces(plan) {
                Some(inside) => format!("iifname {inside} meta nfproto ipv6 goto at_the_door"),
                None => "ip6 saddr fe80::/10 goto at_the_door".to_owned(),
            });
        });
        // Where clients and the way out share a link, this machine would tell them to go around it.
        self.chain("output", Some("filter hook output priority filter; policy accept"), |chain| {
            chain.rule("icmp type redirect drop");
            chain.rule("icmpv6 type nd-redirect drop");
            // The kernel answers some packets before any rule sees them (unknown options, fragments without their rest)
            // and quotes them to whomever they name.
            chain.rule(
                "ct state invalid icmp type { destination-unreachable, time-exceeded, parameter-problem } ip daddr != @clients4 drop",
            );
            chain.rule(
                "ct state invalid icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } ip6 daddr != @clients6 drop",
            );
        });
        self.chain("at_the_door", None, |chain| {
            if !plan.interfaces.is_empty() {
                // No client shows this machine its way. Where clients share the link with the way out, its router does.
                chain.rule("icmpv6 type nd-router-advert drop");
            }
            chain.rule("icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert, mld-listener-query } accept");
            // A DHCPv6 server answers from a link-local address (RFC 8415 §18.3). DHCPv4 from a client passes only as a
            // reply to this machine's own request.
            chain.rule("ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept");
            for door in &plan.doors {
                chain.rule(format_args!("{} accept", at_door(*door, "tcp")));
            }
            for door in &plan.udp_doors {
                chain.rule(format_args!("{} accept", at_door(*door, "udp")));
            }
            if let Some(health) = plan.health {
                chain.rule(format_args!("ip saddr @probes4 {} accept", at_door(health, "tcp")));
                chain.rule(format_args!("ip6 saddr @probes6 {} accept", at_door(health, "tcp")));
            }
            chain.rule("fib daddr type { broadcast, multicast } drop");
            chain.rule("goto refuse_no_rule");
        });
    }

    /// Counts a flow that begins for its client, or refuses it. What is captured is not counted here: egret counts it.
    ///
    /// The kernel looks through all that it counts under one key for what has ended, so that the cost of a flow grows
    /// with their number: it is kept small by parts, by destination and ports. A count that finds no room does not
    /// match, and the flow is refused.
    pub(super) fn count_flows(&mut self, flows_per_client: u32) {
        let parts = parts(flows_per_client);
        self.chain("count_flow", None, |chain| {
            let all: Vec<String> = (0..parts).map(|part| format!("{part} : goto count_flow{part}")).collect();
            match parts {
                1 => chain.rule("goto count_flow0"),
                _ => {
                    for ip in ["ip", "ip6"] {
                        let part = format!("jhash {ip} daddr . th sport . th dport mod {parts}");
                        chain.rule(format_args!("{part} vmap {{ {} }}", all.join(", ")));
                    }
                }
            }
            chain.rule("goto refuse_rate_limited");
        });
        let most = flows_per_client.div_ceil(parts);
        let of_net = most.saturating_mul(FLOWS_OF_A_NETWORK);
        for part in 0..parts {
            self.chain(&format!("count_flow{part}"), None, |chain| {
                chain.rule(format_args!("add @flows{part}_4 {{ ip saddr ct count {most} }} return"));
                chain.rule(format_args!(
                    "add @flows{part}_6net {{ ip6 saddr & ffff:ffff:ffff:ffff:: ct count {of_net} }} add @flows{part}_6 {{ ip6 saddr ct count {most} }} return"
                ));
                chain.rule("goto refuse_rate_limited");
            });
        }
    }

    /// The platform's own address, which can be forged: it probes and offers leases, and may do nothing else.
    pub(super) fn platform(&mut self, plan: &Plan) {
        self.chain("platform", None, |chain| {
            chain.rule("udp sport 67 udp dport 68 accept");
            if let Some(health) = plan.health {
                chain.rule(format_args!("ip saddr @probes4 {} accept", at_door(health, "tcp")));
            }
            chain.rule("goto drop_source_not_allowed");
        });
    }

    pub(super) fn nat(&mut self, plan: &Plan) {
        if plan.nameservers.iter().any(Option::is_some) {
            // Whichever server a client asks, egret answers.
            self.chain("questions", Some("nat hook prerouting priority dstnat; policy accept"), |chain| {
                for (family, nameserver) in nameservers(plan) {
                    let ip = if family == "ipv4" { "ip" } else { "ip6" };
                    let to = match nameserver.ip() {
                        to if to.is_unspecified() => format!("redirect to :{}", nameserver.port()),
                        _ => format!("dnat {ip} to {nameserver}"),
                    };
                    chain.rule(format_args!(
                        "ct mark {ASKING:#x} meta nfproto {family} meta l4proto {{ {TCP}, {UDP} }} {to}"
                    ));
                }
            });
        }
        if pools(plan).next().is_some() {
            self.chain("real", Some("nat hook prerouting priority dstnat; policy accept"), |chain| {
                for pool in pools(plan) {
                    let (ip, map) = if pool.starts_with("ip6 ") { ("ip6", "steered6") } else { ("ip", "steered4") };
                    let to = format!("dnat {ip} to {ip} daddr map @{map}");
                    chain.rule(format_args!("ct mark & {STATE:#x} == {FORWARDED:#x} {pool} {to}"));
                }
            });
        }
        if !plan.dnat.is_empty() {
            self.chain("ingress", Some("nat hook prerouting priority dstnat; policy accept"), |chain| {
                for dnat in &plan.dnat {
                    let mark = if dnat.masquerades { INGRESS } else { INGRESS_PLAIN };
                    let (ip, from) = (family(dnat.to.ip()), sources(&dnat.sources));
                    let to = dnat.to;
                    chain.rule(format_args!("ct mark {mark:#x} {from}{} dnat {ip} to {to}", port(&dnat.port)));
                }
            });
        }
        self.chain("postrouting", Some("nat hook postrouting priority srcnat; policy accept"), |chain| {
            chain.rule(format_args!("ct mark & {STATE:#x} != {FORWARDED:#x} accept"));
            chain.rule(format_args!("ct mark {{ {BYPASSED:#x}, {INGRESS_PLAIN:#x} }} accept"));
            chain.rule(format_args!("ct mark {INGRESS:#x} masquerade"));
            if !plan.masquerades {
                return;
            }
            for is_v4 in [true, false] {
                let of_family: Vec<IpAddr> = plan.pool.iter().filter(|ip| ip.is_ipv4() == is_v4).copied().collect();
                let (nfproto, ip) = if is_v4 { ("ipv4", "ip") } else { ("ipv6", "ip6") };
                match of_family.as_slice() {
                    [] => chain.rule(format_args!("meta nfproto {nfproto} masquerade")),
                    [only] => chain.rule(format_args!("meta nfproto {nfproto} snat {ip} to {only}")),
                    several => {
                        let map: Vec<String> =
                            several.iter().enumerate().map(|(at, source)| format!("{at} : {source}")).collect();
                        chain.rule(format_args!(
                            "meta nfproto {nfproto} snat {ip} to jhash {ip} saddr mod {} map {{ {} }}",
                            several.len(),
                            map.join(", ")
                        ));
                    }
                }
            }
        });
    }

    /// Refusing: counted always, logged within bounds, and answered so that clients fail at once. What comes from
    /// nowhere it should is not answered.
    pub(super) fn refusals(&mut self) {
        for reason in REASONS {
            let line = format!(
                "limit rate {LINES_PER_SECOND}/second burst {LINES_PER_SECOND} packets log prefix \"{reason}\" group {LOG_GROUP} snaplen 128"
            );
            let of_one = format!("limit rate {LINES_PER_CLIENT}/second burst {LINES_PER_CLIENT} packets");
            let is_silent = *reason == Reason::SourceNotAllowed;
            let name = if is_silent { format!("drop_{reason}") } else { format!("refuse_{reason}") };
            self.chain(&name, None, |chain| {
                chain.rule(format_args!("counter name {reason}"));
                // Sources that are not clients may be forged, and must not use up what clients have.
                let set = if is_silent { "log_limit_strangers" } else { "log_limit" };
                for (family, saddr) in [("4", "ip saddr"), ("6", "ip6 saddr & ffff:ffff:ffff:ffff::")] {
                    chain.rule(format_args!("update @{set}{family} {{ {saddr} {of_one} }} {line}"));
                }
                if is_silent {
                    chain.rule("drop");
                } else {
                    chain.rule("meta l4proto tcp reject with tcp reset");
                    chain.rule("meta l4proto udp reject with icmpx type port-unreachable");
                    chain.rule("drop");
                }
            });
        }
    }
}

/// What is sent to synthetic addresses.
fn pools(plan: &Plan) -> impl Iterator<Item = String> {
    let (v4, v6) = plan.steered.texts();
    let of = |ip: &'static str| move |net| format!("{ip} daddr {net}");
    v4.into_iter().map(of("ip")).chain(v6.into_iter().map(of("ip6")))
}

fn interfaces(plan: &Plan) -> Option<String> {
    let quoted: Vec<String> = plan.interfaces.iter().map(|name| format!("\"{name}\"")).collect();
    (!quoted.is_empty()).then(|| format!("{{ {} }}", quoted.join(", ")))
}

const fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ip" } else { "ip6" }
}

/// Traffic to a socket of this machine's.
fn at_door(door: SocketAddr, transport: &str) -> String {
    match door.ip() {
        ip if ip.is_unspecified() => format!("{transport} dport {}", door.port()),
        ip => format!("{} daddr {ip} {transport} dport {}", family(ip), door.port()),
    }
}

/// Where questions go, by family.
fn nameservers(plan: &Plan) -> impl Iterator<Item = (&'static str, SocketAddr)> {
    ["ipv4", "ipv6"].into_iter().zip(plan.nameservers).filter_map(|(family, to)| Some((family, to?)))
}

/// `ip saddr { … } ` for some networks; nothing for everyone.
fn sources(nets: &[ipnet::IpNet]) -> String {
    let listed = Addresses::of(nets);
    match listed.texts() {
        (v4, v6) if v4.is_empty() && v6.is_empty() => String::new(),
        (v4, v6) if v6.is_empty() => format!("ip saddr {{ {} }} ", v4.join(", ")),
        (_, v6) => format!("ip6 saddr {{ {} }} ", v6.join(", ")),
    }
}

fn port(port: &NetPort) -> String {
    match port {
        NetPort::Tcp(range) => format!("tcp dport {}", range.start()),
        NetPort::Udp(range) => format!("udp dport {}", range.start()),
        NetPort::Icmp => "meta l4proto icmp".to_owned(),
    }
}

/// A listener at every address is found by its port.
fn address_of(listener: SocketAddr) -> String {
    if listener.ip().is_unspecified() { format!(":{}", listener.port()) } else { listener.to_string() }
}
