//! From a text that has the right shape to settings that mean something. Every fault is kept, none stops
//! the next check.

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::document::{self, Node};
use super::{
    Adds, Capture, DnsSettings, DnsTransport, DnsUpstream, Fault, Limits, ListenerKind, ListenerSettings, LogAccess,
    LogFormat, LogOutput, LogOverflow, LogSettings, PerClient, Settings, file, lint, netfilter, rules, schema,
};
use crate::dns::HostsFile;
use crate::files::{Files, Refreshed, StampedFile, read_bounded, stamp};
use crate::identity::{TlsFiles, UsersFile};
use egret_core::name::HostName;
use egret_core::rule::AppProtocol;
use egret_core::rule::guard;
use egret_core::rule::pattern::Pattern;
use egret_core::rule::prefixes::prefix;
use egret_core::wire::http::{HeadLimits, USUAL_FIELDS};

/// How much is asked of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// What it takes to run.
    Load,
    /// And what is probably not meant.
    Lint,
}

/// Where faults and warnings are gathered; knows where each key path stands.
pub(super) struct Findings<'a> {
    tree: &'a Node,
    pub(super) folder: &'a Path,
    /// Files that the policy names.
    files: &'a mut Vec<StampedFile>,
    /// Whether the kernel carries what egret itself does not.
    pub(super) has_kernel: bool,
    /// Whether its rules are made once, by somebody else.
    pub(super) is_sidecar: bool,
    faults: Vec<Fault>,
    /// The first so many are about the shape.
    shape_faults: usize,
    warnings: Vec<Fault>,
    notes: Vec<Fault>,
}

impl Findings<'_> {
    pub(super) fn fault(&mut self, path: &str, message: impl Into<String>) {
        // A part with a wrong key in it has been told of; what is missing there may be that very key.
        let below = |told: &Fault| told.path.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '[']));
        if self.faults.iter().take(self.shape_faults).any(below) {
            return;
        }
        let place = self.tree.place_of(path);
        self.faults.push(Fault { place, path: path.to_owned(), message: message.into() });
    }

    pub(super) fn warn(&mut self, path: &str, message: impl Into<String>) {
        let place = self.tree.place_of(path);
        self.warnings.push(Fault { place, path: path.to_owned(), message: message.into() });
    }

    pub(super) fn note(&mut self, path: &str, message: impl Into<String>) {
        let place = self.tree.place_of(path);
        self.notes.push(Fault { place, path: path.to_owned(), message: message.into() });
    }

    /// The value, or its fault noted.
    pub(super) fn keep<T>(&mut self, path: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|message| self.fault(path, message)).ok()
    }

    /// A file that the policy names.
    pub(super) fn policy_file(&mut self, name: &str) -> PathBuf {
        let file = self.folder.join(name);
        // Before it is read: what changes meanwhile is seen as a change.
        self.files.push((file.clone(), stamp(&file)));
        file
    }

    pub(super) fn nets(&mut self, path: &str, texts: &[String]) -> Vec<IpNet> {
        let read = |(at, text): (usize, &String)| self.keep(&format!("{path}[{at}]"), prefix(text));
        texts.iter().enumerate().filter_map(read).collect()
    }
}

pub(super) fn settings(
    text: &str,
    folder: &Path,
    depth: Depth,
    files: &mut Vec<StampedFile>,
) -> Result<Settings, Vec<Fault>> {
    let tree = document::parse(text).map_err(|fault| vec![fault])?;
    let shape = schema::check(&tree);
    let written: file::File = match serde_json::from_value(tree.json_without(&shape, "")) {
        Ok(written) => written,
        Err(e) if shape.is_empty() => {
            return Err(vec![Fault { place: tree.place, path: String::new(), message: e.to_string() }]);
        }
        // What was left out is needed to understand the rest.
        Err(_) => return Err(shape),
    };
    let redirects = file::readable(&written.listeners).any(|(_, l)| l.capture == Some(file::Capture::Redirect));
    let kernel = written.netfilter.as_ref().and_then(|part| part.0.as_ref().ok());
    let has_clients = kernel.is_some_and(|part| !part.clients.is_empty());
    let mut findings = Findings {
        tree: &tree,
        folder,
        files,
        has_kernel: written.netfilter.is_some() || redirects,
        is_sidecar: redirects && !has_clients,
        shape_faults: shape.len(),
        faults: shape,
        warnings: Vec::new(),
        notes: Vec::new(),
    };
    let out = &mut findings;
    if out.faults.is_empty() {
        nothing_left_out(out, &written);
    }
    let listeners = listeners(out, &written);
    let admin = file::present(written.admin.as_ref());
    let admin = admin.and_then(|part| out.keep("admin.bind", socket(&part.bind)));
    let (health, health_from) = health(out, written.health.as_ref(), has_clients);
    let dns = dns(out, &written.dns);
    let rules = rules::rules(out, &written.policy);
    let own_addresses = out.nets("own_addresses", &written.own_addresses);
    let binds = one_socket_each(out, &listeners, admin, health);
    let kernel = netfilter::netfilter(out, &written, &listeners, &binds);
    let sources = netfilter::upstream_sources(out, &written.upstream.sources);
    let learn = netfilter::learn(out, &written.learn, kernel.is_some());
    netfilter::what_goes_together(out, &written, kernel.as_ref(), &listeners);
    let limits = limits(out, &written.limits);
    let control = file::present(written.control.as_ref());
    let control_text = control.map(|part| part.socket.clone());
    let control = control.and_then(|part| out.keep("control.socket", control_socket(out.folder, &part.socket)));
    let log = log(out, &written.log);
    let paths = [("log.output", written.log.output.as_deref()), ("dns.hosts_file", written.dns.hosts_file.as_deref())];
    for (key, text) in paths.into_iter().chain([("control.socket", control_text.as_deref())]) {
        if text.is_some_and(|text| text.contains("${") || text.contains("{{")) {
            out.fault(key, "has a variable that is not filled in, and egret fills none; write the path itself");
        }
    }
    let contact = contact(out, written.messages.contact.as_deref());
    let listeners: Vec<ListenerSettings> = listeners.into_iter().map(|(listener, _)| listener).collect();
    if depth == Depth::Lint && out.faults.is_empty() {
        let services = lint::Services { listeners: &listeners, netfilter: kernel.as_ref(), admin };
        lint::lint(out, &rules, services);
    }
    let Findings { faults, mut warnings, mut notes, .. } = findings;
    warnings.sort_by_key(|warning| warning.place);
    notes.sort_by_key(|note| note.place);
    match (faults.is_empty(), limits) {
        (true, Some(limits)) => Ok(Settings {
            listeners,
            dns,
            rules,
            own_addresses,
            netfilter: kernel,
            sources,
            learn,
            limits,
            log,
            admin,
            health,
            health_from,
            control,
            files: Vec::new(),
            contact,
            warnings,
            notes,
        }),
        _ => Err(faults),
    }
}

/// The schema has told of every part that cannot be read. Should it ever miss one, the part must not vanish.
fn nothing_left_out(out: &mut Findings<'_>, written: &file::File) {
    let policy = &written.policy;
    let listeners = file::unreadable(&written.listeners).map(|(at, why)| (format!("listeners[{at}]"), why));
    let bundles = file::unreadable(&policy.bundles).map(|(at, why)| (format!("policy.bundles[{at}]"), why));
    let apps = file::unreadable(&policy.application_rules);
    let apps = apps.map(|(at, why)| (format!("policy.application_rules[{at}]"), why));
    let nets = file::unreadable(&policy.network_rules);
    let nets = nets.map(|(at, why)| (format!("policy.network_rules[{at}]"), why));
    let admin = written.admin.as_ref().and_then(|part| part.0.as_ref().err()).map(|why| ("admin".to_owned(), why));
    let health = written.health.as_ref().and_then(|part| part.0.as_ref().err()).map(|why| ("health".to_owned(), why));
    let control =
        written.control.as_ref().and_then(|part| part.0.as_ref().err()).map(|why| ("control".to_owned(), why));
    let services = admin.into_iter().chain(health).chain(control);
    let kernel = written.netfilter.as_ref().map(|part| part.0.as_ref());
    let dnat = kernel.and_then(Result::ok).map(|part| file::unreadable(&part.dnat));
    let dnat = dnat.into_iter().flatten().map(|(at, why)| (format!("netfilter.dnat[{at}]"), why));
    let kernel = kernel.and_then(Result::err).map(|why| ("netfilter".to_owned(), why));
    for (path, why) in listeners.chain(bundles).chain(apps).chain(nets).chain(services).chain(kernel).chain(dnat) {
        out.fault(&path, format!("cannot be read: {why}"));
    }
}

fn listeners(out: &mut Findings<'_>, written: &file::File) -> Vec<(ListenerSettings, String)> {
    if written.listeners.is_empty() {
        out.fault("listeners", "there is no listener; write one, such as { kind: forward, bind: \"127.0.0.1:3128\" }");
    }
    let mut kept = Vec::new();
    for (at, listener) in file::readable(&written.listeners) {
        let path = format!("listeners[{at}]");
        let bind = out.keep(&format!("{path}.bind"), socket(&listener.bind));
        let kind = match listener.kind {
            file::ListenerKind::Forward => ListenerKind::Forward,
            file::ListenerKind::Sni => {
                let protocol = listener.protocol.map(|protocol| match protocol {
                    file::AppProtocol::Https => AppProtocol::Https,
                    file::AppProtocol::Http => AppProtocol::Http,
                });
                let usual = if protocol == Some(AppProtocol::Http) { 80 } else { 443 };
                ListenerKind::Sni { port: listener.port.unwrap_or(usual), protocol }
            }
            file::ListenerKind::Transparent => transparent(out, &path, listener, written.netfilter.is_some()),
        };
        let is_forward = listener.kind == file::ListenerKind::Forward;
        let is_transparent = listener.kind == file::ListenerKind::Transparent;
        let only_transparent =
            [("capture", listener.capture.is_some()), ("preserve_source", listener.preserve_source.is_some())];
        for (key, _) in only_transparent.iter().filter(|(_, is_there)| *is_there && !is_transparent) {
            out.fault(&format!("{path}.{key}"), "only a transparent listener is handed connections; remove it");
        }
        let only_sni = [("port", listener.port.is_some()), ("protocol", listener.protocol.is_some())];
        for (key, _) in only_sni.iter().filter(|(_, is_there)| *is_there) {
            let message = match listener.kind {
                file::ListenerKind::Forward => {
                    format!("a forward listener learns the {key} from its clients; remove it")
                }
                file::ListenerKind::Transparent => {
                    format!("a transparent listener learns the {key} from the connection; remove it")
                }
                file::ListenerKind::Sni => continue,
            };
            out.fault(&format!("{path}.{key}"), message);
        }
        let only_forward = [("tls", listener.tls.is_some()), ("auth", listener.auth.is_some())];
        for (key, _) in only_forward.iter().filter(|(_, is_there)| *is_there && !is_forward) {
            let message = "clients of this listener do not know of it and could not answer; remove it";
            out.fault(&format!("{path}.{key}"), message);
        }
        let proxies = listener.proxy_protocol.as_ref().map(|written| proxies(out, &path, written));
        let tls = listener.tls.as_ref().filter(|_| is_forward).map(|written| TlsFiles {
            certificate: out.folder.join(&written.certificate),
            key: out.folder.join(&written.key),
            client_ca: written.client_ca.as_ref().map(|name| out.folder.join(name)),
            crl: written.crl.as_ref().map(|name| out.folder.join(name)),
        });
        if tls.as_ref().is_some_and(|files| files.crl.is_some() && files.client_ca.is_none()) {
            let message = "crl needs tls.client_ca; add it, or remove crl";
            out.fault(&format!("{path}.tls.crl"), message);
        }
        let users = listener
            .auth
            .as_ref()
            .filter(|_| is_forward)
            .map(|written| UsersFile(out.folder.join(&written.users_file)));
        let tls = tls.and_then(|files| loaded(out, &format!("{path}.tls"), files));
        let users = users.and_then(|file| loaded(out, &format!("{path}.auth"), file));
        let adds = |header| listener.add_headers.contains(&header);
        let adds = Adds { via: adds(file::Header::Via), forwarded_for: adds(file::Header::XForwardedFor) };
        if let Some(bind) = bind {
            kept.push((ListenerSettings { bind, kind, proxies, tls, users, adds }, format!("{path}.bind")));
        }
    }
    kept
}

fn transparent(out: &mut Findings<'_>, path: &str, listener: &file::Listener, has_netfilter: bool) -> ListenerKind {
    let capture = match listener.capture {
        Some(file::Capture::Redirect) => Capture::Redirect,
        Some(file::Capture::Tproxy) => {
            if !has_netfilter {
                let message = "nothing leads here without `netfilter`, and what is routed to this machine passes it unjudged; write netfilter: { clients: [\"10.224.0.0/16\"] }";
                out.fault(&format!("{path}.capture"), message);
            }
            Capture::Tproxy
        }
        None => {
            let message = "how does the kernel hand connections over? write `capture: tproxy` on a next hop, `capture: redirect` in a sidecar";
            out.fault(path, message);
            Capture::Tproxy
        }
    };
    let preserve_source = listener.preserve_source == Some(true);
    if preserve_source && capture == Capture::Redirect {
        let message = "the clients are on this machine: their address is its own; remove it";
        out.fault(&format!("{path}.preserve_source"), message);
    }
    ListenerKind::Transparent { capture, preserve_source }
}

fn proxies(out: &mut Findings<'_>, path: &str, written: &file::ProxyProtocol) -> Vec<IpNet> {
    let path = format!("{path}.proxy_protocol");
    if !written.v2 {
        out.fault(&format!("{path}.v2"), "version 2 is the only one there is; write true, or remove proxy_protocol");
    }
    if written.from.is_empty() {
        out.fault(
            &format!("{path}.from"),
            "the list is empty, so everybody would be refused; write the load balancer's CIDR",
        );
    }
    let from = out.nets(&format!("{path}.from"), &written.from);
    for (at, _) in from.iter().enumerate().filter(|(_, net)| net.prefix_len() == 0) {
        let message = "lets anybody say to be anybody; write the load balancer's own CIDR";
        out.fault(&format!("{path}.from[{at}]"), message);
    }
    from
}

/// The files that a listener needs, or their fault noted.
fn loaded<F: Files>(out: &mut Findings<'_>, path: &str, files: F) -> Option<Arc<Refreshed<F>>> {
    let loaded = Refreshed::load(files).map_err(|fault| {
        let key = if fault.key.is_empty() { path.to_owned() } else { format!("{path}.{}", fault.key) };
        out.fault(&key, fault.message);
    });
    loaded.ok().map(Arc::new)
}

fn contact(out: &mut Findings<'_>, text: Option<&str>) -> Option<Arc<str>> {
    /// It goes into every refusal.
    const MAX_CONTACT: usize = 256;
    let fits = |text: &str| !text.is_empty() && text.len() <= MAX_CONTACT && !text.chars().any(char::is_control);
    let read = |text: &str| {
        let wrong = || format!("write one line of 1 to {MAX_CONTACT} bytes, such as network-team@example.com");
        fits(text).then(|| text.into()).ok_or_else(wrong)
    };
    text.and_then(|text| out.keep("messages.contact", read(text)))
}

/// unix(7): a path of at most 107 bytes. Containers of a pod share the names that have none.
fn control_socket(folder: &Path, text: &str) -> Result<PathBuf, String> {
    const MAX_PATH: usize = 107;
    let path = folder.join(text);
    if text.is_empty() || text.starts_with(['@', '~']) || text.contains('\0') || text.ends_with('/') {
        return Err(format!("`{}` is not a file's path; write such as /run/egret/control.sock", text.escape_debug()));
    }
    if path.as_os_str().len() > MAX_PATH {
        return Err(format!("is longer than {MAX_PATH} bytes, which sockets may have at most; write a shorter path"));
    }
    Ok(path)
}

/// Where probes ask, and who may, besides this machine.
fn health(
    out: &mut Findings<'_>,
    written: Option<&file::Lenient<file::Health>>,
    is_next_hop: bool,
) -> (Option<SocketAddr>, Option<Vec<IpNet>>) {
    let Some(written) = file::present(written) else { return (None, None) };
    let bind = out.keep("health.bind", socket(&written.bind));
    let from = match &written.from {
        Some(from) => Some(out.nets("health.from", from)),
        // By default clients of a next hop have no access: they could exhaust the listener.
        None => is_next_hop.then(|| vec![IpNet::from(IpAddr::V4(guard::PLATFORM))]),
    };
    (bind, from)
}

/// Two binds on one port clash where their addresses are equal or one of them is "all". Returns all of them, each with
/// its key path.
fn one_socket_each(
    out: &mut Findings<'_>,
    listeners: &[(ListenerSettings, String)],
    admin: Option<SocketAddr>,
    health: Option<SocketAddr>,
) -> Vec<(SocketAddr, String)> {
    let services = [(admin, "admin.bind"), (health, "health.bind")];
    let services = services.iter().filter_map(|(bind, path)| bind.map(|bind| (bind, (*path).to_owned())));
    let binds: Vec<(SocketAddr, String)> =
        listeners.iter().map(|(listener, path)| (listener.bind, path.clone())).chain(services).collect();
    for (at, (bind, path)) in binds.iter().enumerate() {
        let clash = binds.iter().take(at).find(|(other, _)| {
            other.port() == bind.port() && (covers(other.ip(), bind.ip()) || covers(bind.ip(), other.ip()))
        });
        if let Some((other, other_path)) = clash {
            out.fault(path, format!("{bind} is taken by {other_path} ({other}); give each its own address or port"));
        }
    }
    binds
}

/// Whether a bind to one address takes the other too: `[::]` takes IPv4 as well.
fn covers(bind: IpAddr, other: IpAddr) -> bool {
    bind == other || (bind.is_unspecified() && (bind.is_ipv6() || other.is_ipv4()))
}

fn dns(out: &mut Findings<'_>, written: &file::Dns) -> DnsSettings {
    let authorities = written.ca_file.as_ref().and_then(|name| {
        let text = read_bounded(&out.folder.join(name));
        out.keep("dns.ca_file", text).map(Into::into)
    });
    let upstreams = upstreams(out, "dns.upstreams", &written.upstreams);
    let mut zones: Vec<(HostName, Vec<DnsUpstream>)> = Vec::new();
    for (zone, servers) in &written.zones {
        let path = format!("dns.zones.{zone}");
        let servers_kept = upstreams_of_zone(out, &path, servers);
        let pattern = Pattern::parse(zone).map_err(|fault| fault.to_string());
        let plain = pattern.and_then(|p| {
            p.exact().ok_or_else(|| {
                "a zone is a plain domain and all under it; write it without `*` and leading dot".to_owned()
            })
        });
        let Some(name) = out.keep(&path, plain) else { continue };
        if zones.iter().any(|(other, _)| *other == name) {
            out.fault(&path, "the domain stands here twice; write it once");
        }
        zones.push((name, servers_kept));
    }
    let min_ttl = duration(out, "dns.min_ttl", written.min_ttl.as_deref(), 1, Bounds::Zero);
    let max_ttl = duration(out, "dns.max_ttl", written.max_ttl.as_deref(), 3600, Bounds::Positive);
    let negative_ttl = duration(out, "dns.negative_ttl", written.negative_ttl.as_deref(), 10, Bounds::Zero);
    if min_ttl > max_ttl {
        out.fault("dns.min_ttl", "is longer than `dns.max_ttl`; write a shorter time");
    }
    let stale = duration(out, "dns.stale", written.stale.as_deref(), 3600, Bounds::Zero);
    let hosts = written.hosts_file.as_ref().map(|name| HostsFile(out.folder.join(name)));
    let hosts = hosts.and_then(|file| loaded(out, "dns.hosts_file", file));
    let (edns, randomize_case) = (written.edns != Some(false), written.randomize_case != Some(false));
    DnsSettings { upstreams, zones, authorities, min_ttl, max_ttl, negative_ttl, stale, hosts, edns, randomize_case }
}

fn upstreams(out: &mut Findings<'_>, path: &str, texts: &[String]) -> Vec<DnsUpstream> {
    let read = |(at, text): (usize, &String)| out.keep(&format!("{path}[{at}]"), upstream(text));
    texts.iter().enumerate().filter_map(read).collect()
}

fn upstreams_of_zone(out: &mut Findings<'_>, path: &str, texts: &[String]) -> Vec<DnsUpstream> {
    if texts.is_empty() {
        out.fault(path, "there is no upstream for this zone; write at least one address");
    }
    upstreams(out, path, texts)
}

/// Reads one `dns.upstreams` entry.
fn upstream(text: &str) -> Result<DnsUpstream, String> {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    let (rest, name) = rest.split_once('#').map_or((rest, None), |(rest, name)| (rest, Some(name)));
    let (place, path) = rest.split_once('/').map_or((rest, None), |(place, path)| (place, Some(format!("/{path}"))));
    let named = |example: &str| match name.map(|n| HostName::from_wire(n.as_bytes())) {
        Some(Ok(name)) => Ok(name.as_str().into()),
        _ => Err(format!("an encrypted upstream needs the name of its certificate; write {example}")),
    };
    let (default_port, transport) = match scheme {
        "" if name.is_none() && path.is_none() => (53, DnsTransport::Plain),
        "tls" if path.is_none() => (853, DnsTransport::Tls { name: named("tls://9.9.9.9#dns.quad9.net")? }),
        "https" => (
            443,
            DnsTransport::Https {
                name: named("https://9.9.9.9/dns-query#dns.quad9.net")?,
                path: path.unwrap_or_else(|| "/dns-query".to_owned()).into(),
            },
        ),
        _ => {
            return Err(format!(
                "`{text}` is not an upstream; write 10.0.0.53, 10.0.0.53:5353, tls://ADDRESS#NAME or https://ADDRESS/PATH#NAME"
            ));
        }
    };
    let bare = place.trim_start_matches('[').trim_end_matches(']');
    let (ip, port) = match (bare.parse::<IpAddr>(), place.parse::<SocketAddr>()) {
        (Ok(ip), _) => (ip, default_port),
        (_, Ok(socket)) if socket.port() > 0 => (socket.ip(), socket.port()),
        (_, Ok(_)) => return Err("0 is not a port; write a number from 1 to 65535".to_owned()),
        _ if place.rsplit_once(':').is_some_and(|(ip, _)| ip.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()) => {
            return Err(format!("`{place}` has no port from 1 to 65535; write such as 10.0.0.53:5353"));
        }
        _ => return Err(format!("`{place}` is not an address; an upstream is reached by address, not by name")),
    };
    Ok(DnsUpstream { ip, port, transport })
}

fn limits(out: &mut Findings<'_>, written: &file::Limits) -> Option<Limits> {
    let time = |out: &mut Findings<'_>, key: &str, text: &Option<String>, default: u64| {
        duration(out, &format!("limits.{key}"), text.as_deref(), default, Bounds::Positive)
    };
    let peek = time(out, "peek", &written.peek, 5);
    let dns = time(out, "dns", &written.dns, 5);
    let dial = time(out, "dial", &written.dial, 10);
    let idle = time(out, "idle", &written.idle, 4 * 3600);
    let keepalive = time(out, "keepalive", &written.keepalive, 60);
    let next_request = time(out, "next_request", &written.next_request, 65);
    let drain = duration(out, "limits.drain", written.drain.as_deref(), 30, Bounds::Zero);
    // tcp(7): seconds, in fifteen bits.
    if !(Duration::from_secs(1)..=Duration::from_secs(32_767)).contains(&keepalive) {
        out.fault("limits.keepalive", "the kernel takes 1s to 32767s; write a time between");
    }
    // A hello's record header alone is five bytes, and no head is shorter than a request line.
    let hello = size(out, "limits.hello", written.hello.as_deref(), 64 << 10, 512);
    let head = size(out, "limits.head", written.head.as_deref(), 64 << 10, 512);
    let peek_memory = size(out, "limits.peek_memory", written.peek_memory.as_deref(), 256 << 20, 64 << 10);
    for (key, size) in [("hello", hello), ("head", head)] {
        if size.zip(peek_memory).is_some_and(|(size, memory)| size > memory) {
            out.fault(
                &format!("limits.{key}"),
                "is larger than `limits.peek_memory`, so it could never be read; write less",
            );
        }
    }
    let connections = count(out, "limits.connections", written.connections.as_ref(), "auto");
    let per_client = match written.connections_per_client.as_ref() {
        Some(file::Count::Word(word)) if word == "unlimited" => Some(PerClient::Unlimited),
        count_or_auto => count(out, "limits.connections_per_client", count_or_auto, "auto or unlimited")
            .map(|most| most.map_or(PerClient::Auto, PerClient::Most)),
    };
    if let (Some(Some(most)), Some(PerClient::Most(of_one))) = (connections, per_client)
        && of_one > most
    {
        let message = format!("is larger than `limits.connections`, which is {most}; write less, or unlimited");
        out.fault("limits.connections_per_client", message);
    }
    let lookups = count(out, "limits.lookups", written.lookups.as_ref(), "auto");
    if lookups.flatten().is_some_and(|lookups| lookups > MAX_LOOKUPS) {
        let message = format!("each takes descriptors from connections; write {MAX_LOOKUPS} or less, or auto");
        out.fault("limits.lookups", message);
    }
    let dns_cache = size(out, "limits.dns_cache", written.dns_cache.as_deref(), 32 << 20, 64 << 10);
    let dial_addresses = usize::from(written.dial_addresses.unwrap_or(16));
    Some(Limits {
        hello: hello?,
        peek,
        head: HeadLimits { bytes: head?, fields: written.fields.map_or(USUAL_FIELDS, usize::from) },
        dns,
        dial,
        idle,
        keepalive,
        drain,
        connections: connections?,
        connections_per_client: per_client?,
        peek_memory: peek_memory?,
        next_request,
        lookups: lookups?,
        dns_cache: dns_cache?,
        dial_addresses,
    })
}

fn log(out: &mut Findings<'_>, written: &file::Log) -> LogSettings {
    let output = match written.output.as_deref() {
        None | Some("stdout") => LogOutput::Stdout,
        Some("stderr") => LogOutput::Stderr,
        Some(path) => LogOutput::File(PathBuf::from(path)),
    };
    let read_by_a_person = match output {
        LogOutput::Stdout => std::io::stdout().is_terminal(),
        LogOutput::Stderr => std::io::stderr().is_terminal(),
        LogOutput::File(_) => false,
    };
    let format = match written.format {
        Some(file::LogFormat::Text) => LogFormat::Text,
        Some(file::LogFormat::Auto) if read_by_a_person => LogFormat::Text,
        None | Some(file::LogFormat::Json | file::LogFormat::Auto) => LogFormat::Json,
    };
    let access = match written.access {
        None | Some(file::LogAccess::All) => LogAccess::All,
        Some(file::LogAccess::Refused) => LogAccess::Refused,
        Some(file::LogAccess::None) => LogAccess::None,
    };
    let overflow = match written.overflow {
        None | Some(file::LogOverflow::Drop) => LogOverflow::Drop,
        Some(file::LogOverflow::Block) => LogOverflow::Block,
    };
    let open = duration(out, "log.open", written.open.as_deref(), 10, Bounds::Zero);
    LogSettings {
        format,
        output,
        access,
        overflow,
        net_all: written.net == Some(file::LogNet::All),
        open: Some(open).filter(|open| !open.is_zero()),
        empty: written.empty == Some(true),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bounds {
    Zero,
    Positive,
}

/// A duration such as `5s`; a fault leaves the default, for the checks after it.
pub(super) fn duration(
    out: &mut Findings<'_>,
    path: &str,
    text: Option<&str>,
    default: u64,
    bounds: Bounds,
) -> Duration {
    /// Past this a timer means "never", which no limit may.
    const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
    let default = Duration::from_secs(default);
    let Some(text) = text else { return default };
    let read = match humantime::parse_duration(text) {
        Ok(time) if time > LONGEST => Err(format!("`{text}` is longer than a year; write a shorter time")),
        Ok(Duration::ZERO) if bounds == Bounds::Positive => {
            Err("a limit of zero lets nothing through; write 1ms or more".to_owned())
        }
        Ok(time) => Ok(time),
        Err(_) => Err(format!("`{text}` is not a duration; write a number and its unit, such as 5s, 2m or 4h")),
    };
    out.keep(path, read).unwrap_or(default)
}

fn size(out: &mut Findings<'_>, path: &str, text: Option<&str>, default: usize, least: usize) -> Option<usize> {
    /// A gigabyte for a hello is a mistake, and a terabyte for everything too.
    const MOST: u64 = 1 << 40;
    let Some(text) = text else { return Some(default) };
    let read = match text.parse::<bytesize::ByteSize>() {
        Ok(size) if size.as_u64() < least as u64 => {
            Err(format!("`{text}` is too small to work; write {least}B or more"))
        }
        Ok(size) if size.as_u64() > MOST => Err(format!("`{text}` is more than a machine has; write less")),
        Ok(size) => usize::try_from(size.as_u64()).map_err(|_| "does not fit this machine".to_owned()),
        Err(_) => Err(format!("`{text}` is not a size; write a number and its unit, such as 64KiB or 256MiB")),
    };
    out.keep(path, read)
}

/// Names looked up at once: more would leave no descriptors for what the names are for.
const MAX_LOOKUPS: usize = 4096;

/// `Some(None)` is the first of the words.
#[allow(clippy::option_option, reason = "outer: was it readable; inner: was it a number")]
fn count(out: &mut Findings<'_>, path: &str, written: Option<&file::Count>, word: &str) -> Option<Option<usize>> {
    let read = match written {
        None => Ok(None),
        Some(file::Count::Word(given)) if word.split(" or ").next() == Some(given) => Ok(None),
        Some(file::Count::Number(0)) => Err(format!("0 would refuse everybody; write 1 or more, or {word}")),
        Some(file::Count::Number(n)) => Ok(Some(*n as usize)),
        Some(file::Count::Word(given)) => Err(format!("`{given}` is not a number; write one, or {word}")),
    };
    out.keep(path, read)
}

/// An address and port to listen on.
fn socket(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(socket) if socket.port() == 0 => Err("0 is not a port; write a number from 1 to 65535".to_owned()),
        Ok(socket) => Ok(socket),
        Err(_) => Err(format!("`{text}` is not an address with a port; write 127.0.0.1:3128 or [::]:3128")),
    }
}
