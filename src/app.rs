//! Building everything, binding everything, and only then serving.
//!
//! Contains no decision about a connection.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::admin::{self, Access, Told};
use crate::budget::Budget;
use crate::config::{Capture, Limits, ListenerKind, ListenerSettings, PerClient, Settings};
use crate::control;
use crate::dns::{DnsLimits, Resolver, UpstreamError};
use crate::drain::Drain;
use crate::listen::{self, ConnectionLimit, Entrance};
use crate::local;
use crate::metrics::{Fault, Metrics};
use crate::netfilter::sidecar::{PodTable, TableFault};
use crate::netfilter::told::Counted;
use crate::netfilter::{self, Kernel, Plan};
use crate::netfilter::{flows, sidecar};
use crate::privileges::Kept;
use crate::record::{Book, LogState, LogWriter, Scribe};
use crate::relay;
use crate::reload::{self, Current, Source};
use crate::session::{self, House};
use egret_core::policy::{OwnAddresses, Policy};

/// Descriptors for everything but connections and what they wait for: listeners, log, pages, and the relay's pipes.
const SPARE_DESCRIPTORS: u64 = 128 + 2 * admin::MAX_VISITORS as u64 + 2 * relay::MOST_PIPES as u64;
/// Names looked up at once, where descriptors allow: at ten milliseconds each, 25,000 a second.
const MAX_LOOKUPS: usize = 256;
/// Addresses tried at once beyond the first of their names, where descriptors allow.
const MAX_PARALLEL_DIALS: usize = 256;
/// What one relayed connection may cost: two sockets' own buffers, the session, and where clients speak TLS its state
/// and two copying buffers.
const BYTES_PER_CONNECTION: u64 = 160 << 10;
/// How often the machine's own addresses are read again, whatever the kernel tells of them.
const LOCAL_EVERY: Duration = Duration::from_secs(10);
/// How often the files of users and certificates are looked at: somebody waits for the change.
const FILES_EVERY: Duration = Duration::from_secs(1);

/// How often it is seen whether the kernel's rules stand.
const KERNEL_EVERY: Duration = Duration::from_secs(1);

/// How often the ports in use are counted, which is a look at every flow.
const PORTS_EVERY: Duration = Duration::from_secs(15);

/// For pods whose traffic is redirected without egret's table.
const OTHER_RULES: &str = ", or write `netfilter: { required: false }` where other rules lead the pod's traffic here";

/// Why egret cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address} ({listener}): {cure}")]
    Bind {
        listener: String,
        address: SocketAddr,
        cure: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on control.socket {}: {source}", path.display())]
    Control {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Dns(#[from] UpstreamError),
    #[error("cannot write the access log to {output}: {source}; use a place that exists and may be written")]
    Log {
        output: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot read this machine's own addresses, which no name may lead to: {0}")]
    Interfaces(#[source] io::Error),
    #[error("cannot reach the kernel's rules, which `netfilter` asks for: {0}; run as root, or add CAP_NET_ADMIN")]
    Kernel(#[source] io::Error),
    #[error("{0}; start egret with --netfilter, which makes it anew")]
    Table(String),
    #[error("{fault}{}", if *fault == TableFault::Missing { OTHER_RULES } else { "" })]
    Sidecar {
        #[from]
        fault: TableFault,
    },
    #[error("cannot hear what the kernel refuses: {0}; does another egret run in this network namespace?")]
    Told(#[source] io::Error),
    #[error("upstream.sources: {0} is not an address of this machine's interfaces; add it to one, or remove it")]
    Source(IpAddr),
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] io::Error),
}

/// Every socket that clients and operators come to. Bound before rights are given up, and so before there is a runtime.
#[derive(Debug)]
pub struct Bound {
    listeners: Vec<std::net::TcpListener>,
    admin: Option<std::net::TcpListener>,
    health: Option<std::net::TcpListener>,
    control: Option<std::os::unix::net::UnixListener>,
}

impl Bound {
    /// Binds them all.
    ///
    /// # Errors
    /// [`StartError::Bind`], with the cure.
    pub fn bind(settings: &Settings) -> Result<Self, StartError> {
        let keepalive = settings.limits.keepalive;
        let listeners = settings.listeners.iter().map(|listener| {
            bind_to(listener.bind, keepalive, &listener.name(), listener.kind.captures(Capture::Tproxy))
        });
        Ok(Self {
            listeners: listeners.collect::<Result<_, _>>()?,
            admin: settings.admin.map(|bind| bind_to(bind, keepalive, "admin", false)).transpose()?,
            health: settings.health.map(|bind| bind_to(bind, keepalive, "health", false)).transpose()?,
            control: settings
                .control
                .as_ref()
                .map(|path| control::bind(path).map_err(|source| StartError::Control { path: path.clone(), source }))
                .transpose()?,
        })
    }
}

/// Everything bound and built, not yet serving.
#[derive(Debug)]
pub struct App {
    house: Arc<House>,
    listeners: Vec<(TcpListener, Arc<Entrance>)>,
    admin: Option<TcpListener>,
    health: Option<TcpListener>,
    control: Option<UnixListener>,
    /// Who may ask for health.
    probes: Access,
    log: Arc<LogState>,
    metrics: Arc<Metrics>,
    own: Arc<OwnAddresses>,
    /// Of the machine's addresses, since they were read.
    changes: local::Changes,
    source: Source,
    writer: LogWriter,
    screen: String,
    /// What the kernel had counted before.
    counted: Counted,
    /// In a sidecar.
    table: Option<Arc<PodTable>>,
}

impl App {
    /// Builds all rooms around what was bound. Must run inside a runtime. `config` is the file, which a reload reads
    /// again; `kept` is what was not given up, where anything was.
    ///
    /// # Errors
    /// [`StartError`]; nothing has been served then.
    pub fn build(
        mut settings: Settings,
        bound: Bound,
        kept: Option<&Kept>,
        config: Option<&Path>,
    ) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::default());
        let limits = settings.limits;
        raise_descriptors();
        let room = Room::measure(&settings);
        let listen = |socket| TcpListener::from_std(socket).map_err(StartError::Runtime);
        let entrances = settings.listeners.iter();
        let entrances = entrances.map(|listener| Arc::new(Entrance::new(listener, settings.contact.clone())));
        let listeners =
            bound.listeners.into_iter().zip(entrances).map(|(socket, entrance)| Ok((listen(socket)?, entrance)));
        let listeners = listeners.collect::<Result<Vec<_>, StartError>>()?;
        let control = bound.control.map(UnixListener::from_std).transpose().map_err(StartError::Runtime)?;
        let (admin, health) = (bound.admin.map(listen).transpose()?, bound.health.map(listen).transpose()?);
        let binds = settings.listeners.iter().map(|l| l.bind).chain(settings.admin).chain(settings.health).collect();
        let own = Arc::new(OwnAddresses::new(binds, settings.own_addresses.clone()));
        // First, so that no change falls between the reading and the hearing.
        let changes = local::Changes::listen().map_err(StartError::Interfaces)?;
        own.set_local(local::addresses().map_err(StartError::Interfaces)?);
        let foreign = settings.sources.iter().find(|ip| !ip.is_loopback() && !own.is_local(**ip));
        foreign.map_or(Ok(()), |ip| Err(StartError::Source(*ip)))?;
        let kernel = Plan::of(&settings).map(Kernel::new).transpose().map_err(StartError::Kernel)?.map(Arc::new);
        let counters = kernel.as_ref().map(|kernel| kernel.inspect()).transpose().map_err(StartError::Table)?;
        let counted = Counted::from(counters.unwrap_or_default());
        let redirected = settings.listeners.iter().any(|listener| listener.kind.captures(Capture::Redirect));
        let table = PodTable::of(&settings)?.map(Arc::new);
        table.as_ref().map_or(Ok(()), |table| table.look())?;
        let sidecar = redirected.then(|| sidecar::others(&settings.rules.nets, settings.rules.nat64));
        let connections = ConnectionLimit::new(room.connections, limits.connections_per_client);
        let screen_parts = Screen::of(&settings, config, room.connections, connections.per_client());
        let watches = settings.rules.watches;
        let policy = std::mem::take(&mut settings.rules).compile(Arc::clone(&own));
        let dns_limits = DnsLimits {
            deadline: limits.dns,
            remember: settings.learn.remember,
            lookups: room.lookups,
            cache: limits.dns_cache,
        };
        let dns = Resolver::new(settings.dns.clone(), dns_limits, Arc::clone(&metrics))?;
        let (scribe, writer) = Scribe::start(&settings.log, Arc::clone(&metrics))
            .map_err(|source| StartError::Log { output: settings.log.output.to_string(), source })?;
        let probes = match &settings.health_from {
            None => Access::Everyone,
            Some(from) => Access::From(from.clone(), Arc::clone(&own)),
        };
        let log = scribe.state();
        let screen = screen_parts.text(&policy, &dns, kept);
        let house = Arc::new(House {
            policy: Current::new(policy),
            dns,
            limits,
            peek_memory: Budget::new(room.peek_memory),
            connections,
            parallel_dials: Budget::new(room.parallel_dials),
            book: Arc::new(Book::new(scribe, Arc::clone(&metrics))),
            sources: settings.sources.clone(),
            learn: settings.learn.clone(),
            kernel,
            own_dials: redirected.then(Arc::default),
        });
        let tells_flows = settings.log.net_all;
        if house.kernel.is_some() {
            netfilter::told::listen(&house, tells_flows).map_err(StartError::Told)?;
        }
        let source =
            Source { file: config.map(Path::to_owned), began: settings, own: Arc::clone(&own), sidecar, watches };
        Ok(Self {
            house,
            listeners,
            admin,
            health,
            control,
            probes,
            log,
            metrics,
            own,
            changes,
            source,
            writer,
            screen,
            counted,
            table,
        })
    }

    /// What egret does, on one screen.
    #[must_use]
    pub fn screen(&self) -> &str {
        &self.screen
    }

    /// Serves until SIGTERM or SIGINT, then drains. A second signal ends the drain.
    ///
    /// # Errors
    /// Where signals cannot be received.
    pub async fn serve(self) -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let hangup = reload::listen()?;
        let changed = Arc::new(Notify::new());
        follow_local(self.changes, &changed)?;
        let drain = Drain::new();
        let told = Told {
            metrics: Arc::clone(&self.metrics),
            peek_memory: Arc::clone(&self.house.peek_memory),
            watcher: drain.watcher(),
            kernel: self.house.kernel.clone(),
            table: self.table.clone(),
            log: self.log,
        };
        // The pages are not guests: they answer until everybody else has left.
        let pages = Drain::new();
        if let Some(listener) = self.admin {
            tokio::spawn(admin::serve(listener, Access::Everyone, admin::admin_pages(&told), pages.guest()));
        }
        if let Some(listener) = self.health {
            tokio::spawn(admin::serve(listener, self.probes, admin::health_pages(&told), pages.guest()));
        }
        let entrances = self.listeners.iter().map(|(_, entrance)| Arc::clone(entrance)).collect();
        let files = tokio::spawn(watch_files(entrances, Arc::downgrade(&self.house)));
        for (listener, entrance) in self.listeners {
            let (house, of) = (Arc::clone(&self.house), Arc::clone(&entrance));
            let handle = move |stream, address, slot, guest| {
                let (entrance, house) = (Arc::clone(&of), Arc::clone(&house));
                tokio::spawn(session::serve(stream, address, slot, entrance, house, guest));
            };
            let (limit, book) = (Arc::clone(&self.house.connections), Arc::clone(&self.house.book));
            tokio::spawn(listen::serve(listener, entrance, limit, book, drain.guest(), handle));
        }
        let watch = tokio::spawn(watch_local(Arc::clone(&self.own), changed));
        let kernel = self.house.kernel.clone().map(|kernel| {
            tokio::spawn(watch_kernel(kernel, Arc::downgrade(&self.house), self.counted, Arc::clone(&self.own)))
        });
        let table = self.table.map(|table| tokio::spawn(watch_table(table, Arc::clone(&self.metrics))));
        let (reloads, requests) = mpsc::channel(1);
        let control = self.control.map(|listener| tokio::spawn(control::serve(listener, reloads)));
        let control_path = self.source.began.control.clone();
        let policies =
            tokio::spawn(reload::run(hangup, requests, self.source, Arc::downgrade(&self.house), drain.reviewer()));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let grace = self.house.limits.drain;
        tracing::info!(?grace, "stopping: no new connections; waiting for those that are open");
        let hurry = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        drain.stop(grace, hurry).await;
        tracing::info!("stopped");
        pages.stop(Duration::ZERO, std::future::ready(())).await;
        watch.abort();
        // While it is bound, it cannot be a successor's. Should it stay, the next egret takes it for one that was left.
        control_path.iter().for_each(|path| drop(std::fs::remove_file(path)));
        kernel.iter().chain(&table).chain(&control).for_each(JoinHandle::abort);
        files.abort();
        policies.abort();
        // The watch holds no book; the last scribe goes with the house, and the writer ends.
        drop(self.house);
        self.writer.finish().await;
        Ok(())
    }
}

/// The start-up screen's facts that go into other hands while building.
struct Screen {
    source: String,
    /// The file, where there is one.
    config: Option<String>,
    listeners: Vec<String>,
    admin: Option<SocketAddr>,
    health: Option<SocketAddr>,
    most: usize,
    per_client: Option<usize>,
    /// Where to try it, and what curl must show besides.
    forward: Option<(&'static str, SocketAddr, String)>,
    warnings: usize,
}

impl Screen {
    fn of(settings: &Settings, config: Option<&Path>, most: usize, per_client: Option<usize>) -> Self {
        let config = config.map(|file| file.display().to_string());
        let behind =
            |l: &ListenerSettings| l.proxies.as_ref().map(|_| ", behind the PROXY protocol").unwrap_or_default();
        let listeners = settings.listeners.iter().map(|l| match l.kind {
            ListenerKind::Forward => {
                let tls = if l.tls.is_some() { ", inside TLS" } else { "" };
                let who = if l.identifies() { ", for clients that show who they are" } else { "" };
                format!("forward      {}  (HTTP CONNECT, HTTP, SOCKS5{tls}{who}{})", l.bind, behind(l))
            }
            ListenerKind::Sni { port, protocol } => {
                let only = protocol.map_or_else(String::new, |protocol| format!(", {} only", protocol.as_str()));
                format!("sni          {}  (to port {port}{only}{})", l.bind, behind(l))
            }
            ListenerKind::Transparent { capture, .. } => {
                let how = match capture {
                    Capture::Tproxy => "routed traffic, by TPROXY",
                    Capture::Redirect => "this machine's own traffic, by REDIRECT",
                };
                format!("transparent  {}  ({how}{})", l.bind, behind(l))
            }
        });
        let open = |l: &&ListenerSettings| l.kind == ListenerKind::Forward && l.proxies.is_none();
        let forward = settings.listeners.iter().find(open).map(|l| {
            let scheme = if l.tls.is_some() { "https" } else { "http" };
            let user = l.users.as_ref().map(|_| " -U NAME:PASSWORD").unwrap_or_default();
            let certificate = if l.certifies() { " --proxy-cert FILE --proxy-key FILE" } else { "" };
            (scheme, l.bind, format!("{user}{certificate}"))
        });
        Self {
            source: config.clone().unwrap_or_else(|| "built in (config/default.yaml)".to_owned()),
            listeners: listeners.collect(),
            admin: settings.admin,
            health: settings.health,
            most,
            per_client: per_client.filter(|_| {
                let is_number = settings.limits.connections_per_client != PerClient::Auto;
                is_number || settings.listeners.iter().any(|l| !Entrance::new(l, None).has_shared_address())
            }),
            forward,
            // The built-in file is what it is meant to be.
            warnings: config.as_ref().map_or(0, |_| settings.warnings.len()),
            config,
        }
    }

    fn text(&self, policy: &Policy, dns: &Resolver, kept: Option<&Kept>) -> String {
        use std::fmt::Write as _;
        let (rules, patterns) = policy.size();
        let mut out = format!("egret {} lets out only what is named\n\n", env!("CARGO_PKG_VERSION"));
        let _ = writeln!(out, "  settings     {}", self.source);
        for listener in &self.listeners {
            let _ = writeln!(out, "  {listener}");
        }
        if let Some(admin) = self.admin {
            let _ = writeln!(out, "  admin        {admin}  (/metrics, /healthz, /readyz)");
        }
        if let Some(health) = self.health {
            let _ = writeln!(out, "  health       {health}  (/healthz, /readyz)");
        }
        let _ = writeln!(out, "  policy       {rules} rules with {patterns} names and patterns; all else is refused");
        let _ = writeln!(out, "  dns          {}", dns.described());
        let per_client = self.per_client.map_or_else(String::new, |n| format!(", {n} from one client"));
        let _ = writeln!(out, "  limits       {} connections{per_client}", self.most);
        if let Some(kept) = kept {
            let _ = writeln!(out, "  kept         {kept}");
        }
        if self.warnings > 0 {
            let _ = writeln!(out, "  warnings     {}; `egret check` shows them", self.warnings);
        }
        if let Some((scheme, forward, shows)) = &self.forward {
            let host =
                if forward.ip().is_unspecified() { IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) } else { forward.ip() };
            let proxy = SocketAddr::new(host, forward.port());
            let option = self.config.as_ref().map(|path| format!("--config {path} ")).unwrap_or_default();
            out.push_str("\nTry it from another shell:\n");
            if let Some((name, port)) = policy.example() {
                let port = if port == 443 { String::new() } else { format!(":{port}") };
                let _ = writeln!(
                    out,
                    "  curl -x {scheme}://{proxy}{shows} https://{name}{port}/    # a listed name goes through"
                );
            }
            let _ = writeln!(
                out,
                "  curl -ix {scheme}://{proxy}{shows} https://not-listed.example/    # any other gets 403 and the reason"
            );
            let _ =
                writeln!(out, "  egret explain {option}https://not-listed.example    # says why, without a connection");
        }
        out
    }
}

fn bind_to(
    address: SocketAddr,
    keepalive: Duration,
    listener: &str,
    is_tproxy: bool,
) -> Result<std::net::TcpListener, StartError> {
    listen::bind(address, keepalive, is_tproxy).map_err(|source| {
        let cure = match source.kind() {
            io::ErrorKind::PermissionDenied if is_tproxy => {
                "taking routed traffic needs a right; run as root, or add CAP_NET_ADMIN".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need a right; run as root, add CAP_NET_BIND_SERVICE, or use a higher port".to_owned()
            }
            io::ErrorKind::AddrInUse => "another process has it; stop that one, or use another port".to_owned(),
            io::ErrorKind::AddrNotAvailable => {
                "no interface of this machine has the address; use one of its own".to_owned()
            }
            _ => source.to_string(),
        };
        StartError::Bind { listener: listener.to_owned(), address, cure, source }
    })
}

/// The soft limit on descriptors goes up to the hard one: nothing here uses `select(2)`.
fn raise_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, "cannot raise the limit on descriptors");
    }
}

/// What the machine's memory and descriptors leave for connections, for peeking, and for what connections wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    connections: usize,
    peek_memory: usize,
    /// Names looked up at once.
    lookups: usize,
    /// Addresses tried at once beyond the first of their names.
    parallel_dials: usize,
}

impl Room {
    fn measure(settings: &Settings) -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
        let servers = settings.dns.most_servers();
        let room = Self::within(memory_limit(), descriptors, &settings.limits, servers);
        let needed = room.descriptors_beside(servers) + 2 * room.connections as u64;
        if needed > descriptors {
            tracing::warn!(
                needed,
                descriptors,
                "limits.connections and limits.lookups need more descriptors than there are; raise LimitNOFILE (ulimit -n), or write less"
            );
        }
        room
    }

    /// Descriptors for all but connections.
    const fn descriptors_beside(&self, servers: usize) -> u64 {
        // A look-up asks every server for both families, each over a socket of its own.
        SPARE_DESCRIPTORS + (2 * servers * self.lookups + self.parallel_dials) as u64
    }

    /// Peeking gets an eighth of the memory at most, connections (two descriptors each) half of it.
    fn within(memory: u64, descriptors: u64, limits: &Limits, servers: usize) -> Self {
        let fit = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let mut room = Self {
            connections: 0,
            peek_memory: limits.peek_memory.min(fit(memory / 8)),
            lookups: limits.lookups.unwrap_or_else(|| fit(descriptors / 64).clamp(8, MAX_LOOKUPS)),
            parallel_dials: fit(descriptors / 16).clamp(8, MAX_PARALLEL_DIALS),
        };
        let by_descriptors = descriptors.saturating_sub(room.descriptors_beside(servers)) / 2;
        let by_memory = memory / 2 / BYTES_PER_CONNECTION;
        room.connections = limits.connections.unwrap_or_else(|| fit(by_descriptors.min(by_memory)).max(16));
        room
    }
}

/// Bytes this process may use: the container's limit (cgroup v2) or the machine's memory.
fn memory_limit() -> u64 {
    /// Where neither can be read, as on a machine without /proc.
    const UNKNOWN: u64 = 1 << 30;
    let cgroup = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib << 10)
    });
    match (cgroup, machine) {
        (Some(cgroup), Some(machine)) => u64::min(cgroup, machine),
        (one, other) => one.or(other).unwrap_or(UNKNOWN),
    }
}

/// Notifies of changes to this machine's addresses, from a detached thread.
fn follow_local(changes: local::Changes, changed: &Arc<Notify>) -> io::Result<()> {
    let changed = Arc::downgrade(changed);
    let follow = move || {
        loop {
            if let Err(error) = changes.next() {
                tracing::error!(%error, "the kernel tells no more of this machine's addresses; they are read now and then");
                return;
            }
            let Some(changed) = changed.upgrade() else { return };
            changed.notify_one();
        }
    };
    std::thread::Builder::new().name("local-addresses".to_owned()).spawn(follow)?;
    Ok(())
}

/// Reads this machine's addresses again when they have changed, and now and then. Nobody else does while egret serves:
/// what was read last is what holds.
async fn watch_local(own: Arc<OwnAddresses>, changed: Arc<Notify>) {
    loop {
        let _ = tokio::time::timeout(LOCAL_EVERY, changed.notified()).await;
        match tokio::task::block_in_place(local::addresses) {
            Ok(addresses) => own.set_local(addresses),
            // The last ones known still hold.
            Err(error) => tracing::warn!(%error, "cannot read this machine's addresses again"),
        }
    }
}

/// Sees whether the kernel's rules stand. Whoever took them away is found out within a second; meanwhile nothing gets
/// out, for the routes or the table alone are enough.
async fn watch_kernel(kernel: Arc<Kernel>, house: Weak<House>, mut counted: Counted, own: Arc<OwnAddresses>) {
    let mut ports_at = Instant::now();
    let mut standing = Standing::default();
    loop {
        let looking = Arc::clone(&kernel);
        let looked = tokio::task::spawn_blocking(move || looking.look()).await;
        let Some(house) = house.upgrade() else { return };
        let looked = looked.unwrap_or_else(|join| Err(join.to_string()));
        house.book.metrics().fault(Fault::Kernel, looked.is_err());
        let now = looked.map(|counters| counted.count(&house, counters)).err();
        standing.tell(now);
        if ports_at <= Instant::now() {
            let own = Arc::clone(&own);
            let used = tokio::task::spawn_blocking(move || flows::ports_in_use(|ip| own.is_local(ip))).await;
            house.book.metrics().source_ports(used.unwrap_or_else(|_| Ok(HashMap::new())).unwrap_or_default());
            ports_at = Instant::now() + PORTS_EVERY;
        }
        drop(house);
        tokio::time::sleep(KERNEL_EVERY).await;
    }
}

/// Sees whether the pod's table stands, and is the one for this process.
async fn watch_table(table: Arc<PodTable>, metrics: Arc<Metrics>) {
    let mut standing = Standing::default();
    loop {
        tokio::time::sleep(KERNEL_EVERY).await;
        let looking = Arc::clone(&table);
        let looked = tokio::task::spawn_blocking(move || looking.look().map_err(|fault| fault.to_string())).await;
        let looked = looked.unwrap_or_else(|join| Err(join.to_string()));
        metrics.fault(Fault::Kernel, looked.is_err());
        standing.tell(looked.err().map(|fault| format!("{fault}: not ready until then")));
    }
}

/// What was last found of the kernel's rules, of which each change is logged once.
#[derive(Default)]
struct Standing(Option<String>);

impl Standing {
    fn tell(&mut self, fault: Option<String>) {
        match (std::mem::replace(&mut self.0, fault), &self.0) {
            (before, Some(now)) if before.as_ref() != Some(now) => tracing::error!("{now}"),
            (Some(_), None) => tracing::info!("the kernel's rules are in place again"),
            _ => {}
        }
    }
}

/// Looks after the files of listeners and of the resolver.
async fn watch_files(entrances: Vec<Arc<Entrance>>, house: Weak<House>) {
    loop {
        tokio::time::sleep(FILES_EVERY).await;
        let (entrances, house) = (entrances.clone(), Weak::clone(&house));
        let looking = tokio::task::spawn_blocking(move || {
            entrances.iter().for_each(|entrance| entrance.refresh());
            house.upgrade().iter().for_each(|house| house.dns.refresh());
        });
        if let Err(error) = looking.await {
            tracing::error!(%error, "cannot look whether files have changed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_small_machine_still_serves_and_bounds_its_peeks() {
        let settings = Settings::parse(crate::config::DEFAULT, "t", Path::new(".")).unwrap();
        let room = |mebibytes: u64, descriptors| {
            let room = Room::within(mebibytes << 20, descriptors, &settings.limits, 2);
            (room.connections, room.peek_memory >> 20, room.lookups)
        };
        assert_eq!(room(64, 1 << 20), (204, 8, 256));
        assert_eq!(room(128, 1 << 20), (409, 16, 256));
        assert_eq!(room(512, 1 << 20), (1638, 64, 256));
        assert_eq!(room(8192, 1 << 20), (26_214, 256, 256));
        // 20,000 less 448, 1,024 for look-ups and 256 for dials.
        assert_eq!(room(8192, 20_000), (9136, 256, 256));
        assert_eq!(room(8192, 1024), (224, 256, 16));
        assert_eq!(room(1, 64), (16, 0, 8));
    }
}
