//! From a text that has the right shape to settings that mean something. Every fault is kept, none stops
//! the next check.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::consistency::{one_socket_each, what_goes_together};
use super::dns::{dns, nameserver};
use super::fault::Fault;
use super::findings::Findings;
use super::limits::limits;
use super::listeners::listeners;
use super::log::{contact, log};
use super::read::socket;
use super::settings::Settings;
use super::{document, file, lint, netfilter, rules, schema};
use crate::files::StampedFile;
use crate::proxy::listen::settings::ListenerSettings;
use egret_core::rule::guard;

/// How much is asked of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// What it takes to run.
    Load,
    /// And what is probably not meant.
    Lint,
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
            return Err(vec![Fault { position: tree.position, path: String::new(), message: e.to_string() }]);
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
        is_fleet: written.fleet,
        answers_dns: file::readable(&written.listeners).any(|(_, l)| l.kind == file::ListenerKind::Dns),
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
    let mut rules = rules::rules(out, &written.policy, &written.dns);
    let own_addresses = out.nets("own_addresses", &written.own_addresses);
    let binds = one_socket_each(out, &listeners, admin, health);
    let kernel = netfilter::netfilter(out, &written, &listeners, &binds);
    let sources = netfilter::upstream_sources(out, &written.upstream.sources);
    let learn = netfilter::learn(out, &written.learn, kernel.is_some());
    let nameserver = nameserver(out, &written, &listeners, &dns, &learn);
    rules.pool = nameserver.steer.as_ref().map(|steer| steer.pool);
    what_goes_together(out, &written, kernel.as_ref(), &listeners);
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
        let services = lint::Services {
            listeners: &listeners,
            netfilter: kernel.as_ref(),
            admin,
            steers: nameserver.steer.is_some(),
        };
        lint::lint(out, &rules, services);
    }
    let Findings { faults, mut warnings, mut notes, .. } = findings;
    warnings.sort_by_key(|warning| warning.position);
    notes.sort_by_key(|note| note.position);
    match (faults.is_empty(), limits) {
        (true, Some(limits)) => Ok(Settings {
            listeners,
            dns,
            nameserver,
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

/// The schema has reported every part that cannot be read. Should it ever miss one, the part must not vanish.
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

/// Where probes ask, and their sources, besides this machine.
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
