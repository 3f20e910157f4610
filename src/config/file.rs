//! The configuration file as it is written: the shape of the text, the defaults, and nothing checked.
//!
//! Doc comments here are what `egret schema` tells an editor.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

pub(super) use crate::bundle::Parameters as Bundle;

/// The whole file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// Where clients come in. At least one.
    pub(super) listeners: Vec<Lenient<Listener>>,
    /// How egret resolves names. Clients' own answers are never used.
    #[serde(default)]
    pub(super) dns: Dns,
    /// Which clients may go where. Nothing that is not allowed here gets out.
    #[serde(default)]
    pub(super) policy: Policy,
    /// Addresses or CIDRs that lead back to egret, such as a load balancer's frontend; never dialled.
    #[serde(default)]
    pub(super) own_addresses: Vec<String>,
    /// What the kernel does on a next hop, and what it leaves alone. `egret netfilter` applies it.
    #[serde(default)]
    pub(super) netfilter: Option<Lenient<Netfilter>>,
    /// How egret leaves the machine.
    #[serde(default)]
    pub(super) upstream: Upstream,
    /// Addresses that stand for the names of network rules.
    #[serde(default)]
    pub(super) learn: Learn,
    /// Whether this is one of several behind a load balancer. Default false.
    #[serde(default)]
    pub(super) fleet: bool,
    /// The bound of every wait, buffer and count.
    #[serde(default)]
    pub(super) limits: Limits,
    /// The access log.
    #[serde(default)]
    pub(super) log: Log,
    /// What refused clients read.
    #[serde(default)]
    pub(super) messages: Messages,
    /// Metrics and health, for the operator. Keep it private.
    #[serde(default)]
    pub(super) admin: Option<Lenient<Bind>>,
    /// `/healthz` and `/readyz` only, for probes from elsewhere.
    #[serde(default)]
    pub(super) health: Option<Lenient<Health>>,
    /// Where `egret reload` reaches the running egret. Absent: nowhere.
    #[serde(default)]
    pub(super) control: Option<Lenient<Control>>,
}

/// A part that may have the wrong shape, which the schema has reported already: what is around it can still be
/// checked, and its place in a list stays its own.
#[derive(Debug)]
pub(super) struct Lenient<T>(pub(super) Result<T, String>);

impl<'de, T: serde::de::DeserializeOwned> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Self(serde_json::from_value(value).map_err(|e| e.to_string())))
    }
}

impl<T: JsonSchema> JsonSchema for Lenient<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        generator.subschema_for::<T>()
    }

    fn inline_schema() -> bool {
        true
    }
}

/// A part, if it is there and could be read.
pub(super) fn present<T>(part: Option<&Lenient<T>>) -> Option<&T> {
    part?.0.as_ref().ok()
}

/// The parts of a list that could not be read, with their places and why.
pub(super) fn unreadable<T>(list: &[Lenient<T>]) -> impl Iterator<Item = (usize, &String)> {
    list.iter().enumerate().filter_map(|(at, part)| Some((at, part.0.as_ref().err()?)))
}

/// The parts of a list that could be read, with their places.
pub(super) fn readable<T>(list: &[Lenient<T>]) -> impl Iterator<Item = (usize, &T)> {
    list.iter().enumerate().filter_map(|(at, part)| Some((at, part.0.as_ref().ok()?)))
}

/// One place where clients come in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    /// How clients say where they want to go.
    pub(super) kind: ListenerKind,
    /// Address and port, such as `127.0.0.1:3128` or `[::]:443`.
    pub(super) bind: String,
    /// `sni` only: the port of the destination. Default 443; 80 with `protocol: http`.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(super) port: Option<u16>,
    /// `transparent` only: how the kernel hands connections over.
    #[serde(default)]
    pub(super) capture: Option<Capture>,
    /// `transparent` with `capture: tproxy` only: upstreams see the client's address. Default false.
    #[serde(default)]
    pub(super) preserve_source: Option<bool>,
    /// `sni` only: what clients must speak. Default: what the rules for the port allow.
    #[serde(default)]
    pub(super) protocol: Option<AppProtocol>,
    /// A load balancer says whose connection it is; then it must, and no other peer may.
    #[serde(default)]
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    /// `forward` only: clients speak TLS to the proxy itself.
    #[serde(default)]
    pub(super) tls: Option<Tls>,
    /// `forward` only: clients must be users.
    #[serde(default)]
    pub(super) auth: Option<Auth>,
    /// What is added to plain HTTP requests: `via` (to answers, too), `x-forwarded-for`. Default: nothing.
    #[serde(default)]
    pub(super) add_headers: Vec<Header>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum AppProtocol {
    /// TLS, and the name in its hello.
    Https,
    /// Plain HTTP, and the name in each request's Host.
    Http,
}

/// The PROXY protocol.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProxyProtocol {
    /// Version 2, the binary one; the only one there is here.
    pub(super) v2: bool,
    /// The load balancers, as CIDRs or addresses.
    pub(super) from: Vec<String>,
}

/// TLS to the proxy. Files are PEM, relative to this file, and read again when they change.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    /// The proxy's certificate, and those between it and its authority.
    pub(super) certificate: String,
    /// Its private key.
    pub(super) key: String,
    /// The authorities of clients' certificates, which are then demanded: rules name them in `clients`.
    #[serde(default)]
    pub(super) client_ca: Option<String>,
    /// PEM CRLs, one per authority in the chain. Default: no check.
    #[serde(default)]
    pub(super) crl: Option<String>,
}

/// Proxy authentication: HTTP's `Basic`, and names and passwords in SOCKS5.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Auth {
    /// `NAME:HASH` a line, with bcrypt (`htpasswd -B`) or argon2 hashes. Relative to this file, and read again when
    /// it changes.
    pub(super) users_file: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Header {
    /// RFC 9110 §7.6.3.
    Via,
    /// The client's address.
    XForwardedFor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ListenerKind {
    /// HTTP CONNECT, absolute-form HTTP and SOCKS5, distinguished by the first byte.
    Forward,
    /// Clients steered here by DNS or a load balancer: the name is in the bytes, the port is configured.
    Sni,
    /// Clients that the kernel hands over, where they wanted to go included.
    Transparent,
    /// DNS over UDP and TCP: answers what some rule lists for the client. See `dns`.
    Dns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Capture {
    /// Routed traffic, on a next hop.
    Tproxy,
    /// The machine's or pod's own traffic, in a sidecar.
    Redirect,
}

/// The kernel's part of a next hop.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Netfilter {
    /// Whose traffic is judged, as CIDRs: the subnets whose default route leads here.
    #[serde(default)]
    pub(super) clients: Vec<String>,
    /// Where clients come in. Default: every interface.
    #[serde(default)]
    pub(super) interfaces: Vec<String>,
    /// Destinations that clients reach unjudged and with their own address, such as peered networks.
    #[serde(default)]
    pub(super) bypass: Vec<String>,
    /// Whether what the kernel forwards bears the machine's address, or one of `upstream.sources`. Default
    /// `masquerade`.
    #[serde(default)]
    pub(super) snat: Option<Snat>,
    /// What comes to this machine from elsewhere and is led to a client.
    #[serde(default)]
    pub(super) dnat: Vec<Lenient<Dnat>>,
    /// Whether clients stay shut in when egret ends. Default `keep`.
    #[serde(default)]
    pub(super) on_exit: Option<OnExit>,
    /// In a sidecar: whether egret serves only while the pod's table stands, and watches it. Default true. False where
    /// other rules lead the pod's traffic to egret.
    #[serde(default)]
    pub(super) required: Option<bool>,
    /// Concurrent flows per client; four times as many for an IPv6 /64. Default 16384.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) flows_per_client: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Snat {
    Masquerade,
    /// The network behind routes answers back through this machine.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnExit {
    /// The rules stay: nothing gets out without egret.
    Keep,
    /// They go, and so does forwarding.
    Remove,
}

/// Ingress behind the same hop.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Dnat {
    /// `tcp:443` or `udp:5000`: the port on this machine.
    pub(super) protocol: String,
    /// A client's address and port.
    pub(super) to: String,
    /// Allowed sources, as CIDRs. Default: any.
    #[serde(default)]
    pub(super) sources: Option<Vec<String>>,
    /// Whether the client sees this machine's address, so that it answers this way. Default true.
    #[serde(default)]
    pub(super) snat: Option<bool>,
}

/// How egret leaves the machine.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Upstream {
    /// This machine's addresses to dial from, and for what the kernel forwards. Default: the system's choice.
    pub(super) sources: Vec<String>,
}

/// Addresses of names in network rules.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Learn {
    /// The least time between two look-ups of a name. Default `15s`.
    pub(super) refresh: Option<String>,
    /// How long an address counts after it was answered last. Default `24h`.
    pub(super) remember: Option<String>,
    /// How long an answer to a DNS client opens a wildcard of a network rule, however short its records live: caches between
    /// them and egret keep it for longer. Default `2h10m`.
    pub(super) floor: Option<String>,
    /// How much longer than that. Default `5m`.
    pub(super) grace: Option<String>,
    /// For whom an answer to a DNS client opens a wildcard of a network rule. Default `rule`.
    pub(super) key: Option<LearnKey>,
    /// Where addresses outlive a restart. Default `/var/lib/egret` with `netfilter`, else nowhere.
    pub(super) state_dir: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum LearnKey {
    /// For all clients that the rule is for.
    Rule,
    /// For the client that asked: where each asks for itself, and from the address that it connects from.
    Client,
}

/// Name resolution.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Dns {
    /// `10.0.0.53`, `10.0.0.53:5353`, `tls://9.9.9.9#dns.quad9.net`, `https://9.9.9.9/dns-query#dns.quad9.net`.
    /// Default: the system's (/etc/resolv.conf).
    pub(super) upstreams: Vec<String>,
    /// Upstreams for a domain and everything under it; the longest domain wins.
    pub(super) zones: BTreeMap<String, Vec<String>>,
    /// PEM file with the authorities that sign `tls://` and `https://` upstreams. Default: Mozilla's list.
    pub(super) ca_file: Option<String>,
    /// The least time an answer is kept. Default `1s`.
    pub(super) min_ttl: Option<String>,
    /// The most time an answer is kept. Default `1h`.
    pub(super) max_ttl: Option<String>,
    /// The most time a failure is kept. Default `10s`.
    pub(super) negative_ttl: Option<String>,
    /// How long an answer may be used after its time while no upstream answers, or all refuse (RFC 8767). Default `1h`;
    /// `0s`: not at all.
    pub(super) stale: Option<String>,
    /// Names with their addresses, asked before anything else: `db.example.com: ["10.1.0.4"]`. Default: none.
    pub(super) hosts: BTreeMap<String, Vec<String>>,
    /// A file such as `/etc/hosts`, asked before any upstream. Default: none.
    pub(super) hosts_file: Option<String>,
    /// Whether upstreams are asked with EDNS (RFC 6891), as long as they can be. Default true.
    pub(super) edns: Option<bool>,
    /// Whether plain questions are in random letter case (0x20), which a forger must guess. Default true.
    pub(super) randomize_case: Option<bool>,
    /// What `dns` listeners answer. Default `listed`.
    pub(super) filter: Option<DnsFilter>,
    /// How they answer for other names. Default `nxdomain`.
    pub(super) refused: Option<RefusedNames>,
    /// Names that are answered and that no rule lists: the cluster's own, search domains, reverse zones. Patterns as in
    /// rules. They are never dialled for it.
    pub(super) also: Vec<String>,
    /// Clients of `dns` listeners that ask on behalf of others, as CIDRs or addresses: CoreDNS, a node cache, a resolver of
    /// the network. Judged by every client's rules, and limited by name. Default: none.
    pub(super) forwarders: Vec<String>,
    /// Private ranges, as CIDRs, that answers may have for any listed name. Dialling stays with the rules' `addresses`.
    /// Default: none.
    pub(super) local_ranges: Vec<String>,
    /// What becomes of aliases (CNAME) in answers. Default `flatten`.
    pub(super) chain: Option<DnsChain>,
    /// What becomes of answers that servers signed (DNSSEC). Default `stripped`.
    pub(super) dnssec: Option<Dnssec>,
    /// Kinds of records that are answered beside A, AAAA, CNAME, HTTPS, SVCB, SRV, PTR, NS and SOA, such as `TXT`. Default:
    /// none.
    pub(super) types: Vec<String>,
    /// Whether listed names are answered with synthetic addresses, one for each name, and from which ranges; or with egret's
    /// own address, for its `sni` listeners. Default: no.
    pub(super) steer: Option<Steer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Dnssec {
    /// They are changed like others, and clients have them without signatures.
    Stripped,
    /// Clients that ask for signatures have them unchanged, and without synthetic addresses.
    Intact,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Steer {
    /// From the usual ranges, 198.18.0.0/16 and fd65:6772:6574::/112.
    Usual(bool),
    Own(SteerSelf),
    OwnAt(SteerSelfAt),
    From(SteerPool),
}

/// In place of synthetic addresses, those that `sni` listeners are bound to.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub(super) enum SteerSelf {
    #[serde(rename = "self")]
    Own,
}

/// In place of synthetic addresses, those at which clients reach the `sni` listeners.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SteerSelfAt {
    /// One address, or one of each family.
    #[serde(rename = "self")]
    pub(super) own: Vec<String>,
}

/// Ranges for synthetic addresses.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SteerPool {
    /// A CIDR. Default `198.18.0.0/16`.
    pub(super) pool: Option<String>,
    /// A CIDR. Default `fd65:6772:6574::/112`.
    pub(super) pool6: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum DnsFilter {
    /// Names that some rule lists for the client.
    Listed,
    /// Every name that no rule denies.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum RefusedNames {
    /// They do not exist.
    Nxdomain,
    /// They are refused, and many clients ask their next server.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum DnsChain {
    /// Addresses stand under the name that was asked for.
    Flatten,
    /// Aliases are passed on.
    Keep,
}

/// Rules and how they are applied.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Policy {
    pub(super) mode: Mode,
    /// What becomes of open tunnels, and of flows through the kernel, that a reload's policy would not let begin. Default
    /// `keep`.
    pub(super) on_change: Option<OnChange>,
    /// Whether the policy is read again when this file, or one that the policy names, has changed. Default false.
    pub(super) watch: Option<bool>,
    /// The network's NAT64 prefix (RFC 6052): addresses under it are judged by the IPv4 address they carry.
    pub nat64_prefix: Option<String>,
    /// Microsoft's file "Azure IP Ranges and Service Tags" (JSON), relative to this file: fills the tags in
    /// `destinations` and in bundles.
    pub(super) service_tags: Option<String>,
    /// Rule sets that come with egret.
    pub(super) bundles: Vec<Lenient<Bundle>>,
    /// Judged by the name in the bytes.
    pub(super) application_rules: Vec<Lenient<ApplicationRule>>,
    /// Judged by address, without looking at the bytes.
    pub(super) network_rules: Vec<Lenient<NetworkRule>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// What is not allowed is refused.
    #[default]
    Enforce,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnChange {
    /// They go on until they end.
    Keep,
    /// They end.
    Cut,
}

/// An application rule.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ApplicationRule {
    /// What the log calls it. Default: its place in the file.
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) action: Action,
    /// The clients it is for, as CIDRs or addresses. Default: every client.
    #[serde(default)]
    pub(super) sources: Option<Vec<String>>,
    /// And the clients it is for, by what they show on listeners with `tls.client_ca` or `auth`: a name of a certificate,
    /// or `user:NAME`. Default: everyone.
    #[serde(default)]
    pub(super) clients: Option<Vec<String>>,
    /// Names and patterns: `a.example`, `*.a.example`, `.a.example`, `md-*.a.example`.
    #[serde(default)]
    pub(super) fqdns: Vec<String>,
    /// A text file with one pattern a line; `#` begins a comment. Relative to this file.
    #[serde(default)]
    pub(super) fqdns_file: Option<String>,
    /// `https:443`, `http:80`, or `tcp:22`: whatever the bytes are, for the names that clients claim (CONNECT, SOCKS5). A deny rule without any denies all of them.
    #[serde(default)]
    pub(super) protocols: Vec<String>,
    /// Every ALPN protocol that the client offers must be in this list. Default: not asked.
    #[serde(default)]
    pub(super) alpn: Option<Vec<String>>,
    /// What an encrypted client hello means. Default `outer`.
    #[serde(default)]
    pub(super) ech: Option<Ech>,
    /// Methods of plain HTTP requests, such as `[GET, HEAD]`. Default: every one.
    #[serde(default)]
    pub(super) methods: Option<Vec<String>>,
    /// Paths of plain HTTP requests: `/dists` is it and all under it, `/pool/*/x.deb` a glob. Default: every one.
    #[serde(default)]
    pub(super) paths: Option<Vec<String>>,
    /// Protocols that a plain HTTP connection may change to: `[websocket]`. Default: none.
    #[serde(default)]
    pub(super) upgrade: Vec<Upgrade>,
    /// How the SNI relates to the name given in CONNECT or SOCKS. Default `same`.
    #[serde(default)]
    pub(super) sni: Option<Sni>,
    /// Where the names may lead: `public`, and CIDRs inside private or special ranges. Default `[public]`.
    #[serde(default)]
    pub(super) addresses: Option<Vec<String>>,
    /// Which address is dialled. Default `redial`.
    #[serde(default)]
    pub(super) destination: Option<Destination>,
    /// With `dns.steer`: whether DNS clients are answered with synthetic addresses for its names. Default true.
    #[serde(default)]
    pub(super) steer: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    #[default]
    Allow,
    /// Wins over every allow rule of its kind.
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ech {
    /// The outer name is judged like any other.
    Outer,
    /// A hello with an ECH extension is refused.
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Upgrade {
    /// RFC 6455; afterwards both sides are relayed unseen.
    WebSocket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Sni {
    /// They are equal.
    Same,
    /// The SNI is allowed by itself for the same client and port.
    AnyListed,
    /// They are equal, or the hello shows none and the name given in CONNECT or SOCKS stands alone.
    Optional,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Destination {
    /// egret's own answer for the name.
    Redial,
    /// The client's address, where egret finds it behind the name too.
    Verify,
}

/// A network rule.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NetworkRule {
    /// What the log calls it. Default: its place in the file.
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) action: Action,
    /// The clients it is for, as CIDRs or addresses. Default: every client.
    #[serde(default)]
    pub(super) sources: Option<Vec<String>>,
    /// And the clients it is for, by what they show on listeners with `tls.client_ca` or `auth`: a name of a certificate,
    /// or `user:NAME`. Default: everyone.
    #[serde(default)]
    pub(super) clients: Option<Vec<String>>,
    /// CIDRs, addresses, and service tags such as `AzureCloud.westeurope`.
    #[serde(default)]
    pub(super) destinations: Vec<String>,
    /// Names that egret resolves itself.
    #[serde(default)]
    pub(super) fqdns: Vec<String>,
    /// `tcp:8443`, `tcp:9000-9010`, `udp:123`, `icmp`.
    pub(super) protocols: Vec<String>,
    /// With `dns.steer`: whether DNS clients are answered with synthetic addresses for its `fqdns`. Default true.
    #[serde(default)]
    pub(super) steer: Option<bool>,
    /// Where the `fqdns` may lead. Default `[public]`.
    #[serde(default)]
    pub(super) addresses: Option<Vec<String>>,
}

/// Bounds. Sizes are written `64KiB`, times `5s`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    /// The largest TLS client hello. Default `64KiB`.
    pub(super) hello: Option<String>,
    /// The time until a client has shown what it wants. Default `5s`.
    pub(super) peek: Option<String>,
    /// The largest HTTP head. Default `64KiB`.
    pub(super) head: Option<String>,
    /// The most fields of an HTTP head. Default 128.
    #[schemars(range(min = 16, max = 4096))]
    pub(super) fields: Option<u16>,
    /// The time for one name look-up. Default `5s`.
    pub(super) dns: Option<String>,
    /// The time to reach any of a name's addresses. Default `10s`.
    pub(super) dial: Option<String>,
    /// How long a connection may stay without a byte. Default `4h`.
    pub(super) idle: Option<String>,
    /// Time between TCP keepalives towards both sides. Default `60s`.
    pub(super) keepalive: Option<String>,
    /// How long connections may go on after SIGTERM. Default `30s`.
    pub(super) drain: Option<String>,
    /// Connections at once; `auto` is what descriptors and memory allow. Default `auto`.
    pub(super) connections: Option<Count>,
    /// Connections at once from one client: a number, `unlimited`, or `auto`, which is a quarter of `connections`, and no
    /// limit on loopback and redirect listeners. Default `auto`.
    pub(super) connections_per_client: Option<Count>,
    /// Memory that all peeks together may hold. Default `256MiB`.
    pub(super) peek_memory: Option<String>,
    /// How long a connection may wait between two plain HTTP requests. Default `65s`.
    pub(super) next_request: Option<String>,
    /// Names looked up at once; `auto` is what descriptors allow, at most 256. Default `auto`.
    pub(super) lookups: Option<Count>,
    /// Memory for DNS answers. Default `32MiB`.
    pub(super) dns_cache: Option<String>,
    /// Questions of DNS clients that are answered at once. Default 4096.
    #[schemars(range(min = 16, max = 65_535))]
    pub(super) dns_questions: Option<u16>,
    /// What one client may say in names that are new under a wildcard, in characters a minute: data can be sent by such names.
    /// Default 1200.
    #[schemars(range(min = 64))]
    pub(super) dns_new_names: Option<u32>,
    /// Addresses of one name that are tried in turn. Default 16.
    #[schemars(range(min = 1, max = 256))]
    pub(super) dial_addresses: Option<u16>,
}

/// A number, or a word.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Count {
    Number(u32),
    Word(String),
}

/// The access log.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    /// Default `json`.
    pub(super) format: Option<LogFormat>,
    /// `stdout`, `stderr` or a path. Default `stdout`.
    pub(super) output: Option<String>,
    /// Which lines are written. Default `all`.
    pub(super) access: Option<LogAccess>,
    /// Which flows through the kernel have a line. Default `refused`.
    pub(super) net: Option<LogNet>,
    /// What lasts longer has a line while it is open, and another one each hour. Default `10s`; `0s`: none.
    pub(super) open: Option<String>,
    /// Whether a connection that closes without a byte has a line. Default false.
    pub(super) empty: Option<bool>,
    /// What happens where lines come faster than they can be written. Default `drop`.
    pub(super) overflow: Option<LogOverflow>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogFormat {
    /// One object a line.
    Json,
    /// For people.
    Text,
    /// `text` where a terminal reads it, else `json`.
    Auto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogAccess {
    /// One for everything.
    All,
    /// Only those of refusals.
    Refused,
    /// Metrics alone.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogNet {
    /// Those that were let out too, once they have ended.
    All,
    /// Only those that were refused.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogOverflow {
    /// Lines are lost, and counted.
    Drop,
    /// New connections and requests wait until there is room; no line is lost.
    Block,
}

/// An address to listen on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Bind {
    /// Address and port.
    pub(super) bind: String,
}

/// The control socket.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Control {
    /// Its path, in a folder that only egret's user may enter, such as `/run/egret/control.sock`.
    pub(super) socket: String,
}

/// What refused clients read.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Messages {
    /// A contact for refused clients, such as an address or a page; stands in HTTP refusals. Default: none.
    pub(super) contact: Option<String>,
}

/// Where probes ask.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Health {
    /// Address and port.
    pub(super) bind: String,
    /// Sources allowed besides this machine, as CIDRs. Default: with `netfilter.clients` Azure's probes (168.63.129.16),
    /// else everyone.
    #[serde(default)]
    pub(super) from: Option<Vec<String>>,
}
