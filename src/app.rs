//! Building everything, binding everything, and only then serving.
//!
//! Contains no decision about a connection.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::{self, Told};
use crate::config::{ListenerKind, ListenerSettings, Settings};
use crate::dns::{Resolver, UpstreamError};
use crate::drain::Drain;
use crate::listen::{self, Door};
use crate::metrics::Metrics;
use crate::peek::PeekBudget;
use crate::policy::{OwnAddresses, Policy};
use crate::record::{Book, LogWriter, Scribe};
use crate::session::{self, House};

/// Descriptors for everything but connections: listeners, log, DNS, admin.
const SPARE_DESCRIPTORS: u64 = 128;
/// What one relayed connection may cost: two copying buffers, two sockets' own, the session.
const BYTES_PER_CONNECTION: u64 = 160 << 10;
/// How often the machine's own addresses are read again.
const INTERFACES_EVERY: Duration = Duration::from_secs(10);

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
    #[error(transparent)]
    Dns(#[from] UpstreamError),
    #[error("cannot write the access log: {0}")]
    Log(#[source] io::Error),
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] io::Error),
}

/// Everything bound and built, not yet serving.
#[derive(Debug)]
pub struct App {
    house: Arc<House>,
    listeners: Vec<(TcpListener, Arc<str>, ListenerKind)>,
    admin: Option<TcpListener>,
    health: Option<TcpListener>,
    metrics: Arc<Metrics>,
    own: Arc<OwnAddresses>,
    writer: LogWriter,
    screen: String,
}

impl App {
    /// Binds all sockets and builds all rooms. Must run inside a runtime.
    ///
    /// # Errors
    /// [`StartError`]; nothing has been served then.
    pub fn build(settings: Settings, source: &str) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::default());
        let limits = settings.limits;
        let most = limits.connections.unwrap_or_else(|| connections_auto(settings.limits.peek_memory as u64));
        raise_descriptors();
        let listeners = settings
            .listeners
            .iter()
            .map(|ListenerSettings { bind, kind }| {
                let name: Arc<str> = format!("{}:{bind}", kind.as_str()).into();
                Ok((bind_to(*bind, &name)?, name, *kind))
            })
            .collect::<Result<Vec<_>, StartError>>()?;
        let admin = settings.admin.map(|bind| bind_to(bind, "admin")).transpose()?;
        let health = settings.health.map(|bind| bind_to(bind, "health")).transpose()?;
        let binds = settings.listeners.iter().map(|l| l.bind).chain(settings.admin).chain(settings.health).collect();
        let own = Arc::new(OwnAddresses::new(binds, settings.own_addresses.clone()));
        own.set_interfaces(interfaces());
        let screen_parts = Screen::of(&settings, source, most);
        let policy = Policy::compile(settings.rules.apps, settings.rules.nets, settings.rules.nat64, Arc::clone(&own));
        let dns = Resolver::new(settings.dns, limits.dns, Arc::clone(&metrics))?;
        let (scribe, writer) = Scribe::start(&settings.log, Arc::clone(&metrics)).map_err(StartError::Log)?;
        let screen = screen_parts.text(&policy, &dns);
        let house = Arc::new(House {
            policy,
            dns,
            limits,
            budget: PeekBudget::new(limits.peek_memory),
            door: Door::new(most, limits.connections_per_client),
            book: Arc::new(Book::new(scribe, Arc::clone(&metrics))),
        });
        Ok(Self { house, listeners, admin, health, metrics, own, writer, screen })
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
        let drain = Drain::new();
        let told = Told {
            metrics: Arc::clone(&self.metrics),
            budget: Arc::clone(&self.house.budget),
            watcher: drain.watcher(),
        };
        // The pages are no guests: they answer until everybody else has left.
        let pages = Drain::new();
        if let Some(listener) = self.admin {
            tokio::spawn(admin::serve(listener, admin::admin_pages(&told), pages.guest()));
        }
        if let Some(listener) = self.health {
            tokio::spawn(admin::serve(listener, admin::health_pages(&told), pages.guest()));
        }
        for (listener, name, kind) in self.listeners {
            let house = Arc::clone(&self.house);
            let handle = move |stream, address, guest| {
                let listener = (Arc::clone(&name), kind);
                tokio::spawn(session::serve(stream, address, listener, Arc::clone(&house), guest));
            };
            tokio::spawn(listen::serve(listener, drain.guest(), handle));
        }
        let watch = tokio::spawn(watch_interfaces(self.own));
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
        pages.stop(Duration::ZERO, std::future::ready(())).await;
        watch.abort();
        // The watch holds no book; the last scribe goes with the house, and the writer ends.
        drop(self.house);
        let writer = self.writer;
        tokio::task::spawn_blocking(move || writer.finish()).await.map_err(io::Error::other)
    }
}

/// The start-up screen's facts that go into other hands while building.
struct Screen {
    source: String,
    listeners: Vec<String>,
    admin: Option<SocketAddr>,
    most: usize,
    per_client: Option<usize>,
    forward: Option<SocketAddr>,
    warnings: usize,
}

impl Screen {
    fn of(settings: &Settings, source: &str, most: usize) -> Self {
        let listeners = settings.listeners.iter().map(|l| match l.kind {
            ListenerKind::Forward => format!("forward      {}  (HTTP CONNECT, HTTP, SOCKS5)", l.bind),
            ListenerKind::Sni { port } => format!("sni          {}  (to port {port})", l.bind),
        });
        let forward = settings.listeners.iter().find(|l| l.kind == ListenerKind::Forward).map(|l| l.bind);
        Self {
            source: source.to_owned(),
            listeners: listeners.collect(),
            admin: settings.admin,
            most,
            per_client: settings.limits.connections_per_client,
            forward,
            warnings: settings.warnings.len(),
        }
    }

    fn text(&self, policy: &Policy, dns: &Resolver) -> String {
        use std::fmt::Write as _;
        let (rules, patterns) = policy.size();
        let mut out = format!("egret {} lets out only what is named\n\n", env!("CARGO_PKG_VERSION"));
        let _ = writeln!(out, "  configuration  {}", self.source);
        for listener in &self.listeners {
            let _ = writeln!(out, "  {listener}");
        }
        if let Some(admin) = self.admin {
            let _ = writeln!(out, "  admin        {admin}  (/metrics, /healthz, /readyz)");
        }
        let _ = writeln!(out, "  policy       {rules} rules with {patterns} names and patterns; all else is refused");
        let _ = writeln!(out, "  dns          {}", dns.described());
        let per_client = self.per_client.map_or_else(String::new, |n| format!(", {n} from one client"));
        let _ = writeln!(out, "  limits       {} connections{per_client}", self.most);
        if self.warnings > 0 {
            let _ = writeln!(out, "  warnings     {}; `egret check` shows them", self.warnings);
        }
        if let Some(forward) = self.forward {
            let host =
                if forward.ip().is_unspecified() { IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) } else { forward.ip() };
            let proxy = SocketAddr::new(host, forward.port());
            let _ = write!(
                out,
                "\nTry it from another shell:\n  \
                 curl -x http://{proxy} https://mcr.microsoft.com/v2/      a listed name goes through\n  \
                 curl -ix http://{proxy} https://example.com/              any other gets 403 and the reason\n  \
                 egret explain https://example.com                            says why, without a connection\n"
            );
        }
        out
    }
}

fn bind_to(address: SocketAddr, listener: &str) -> Result<TcpListener, StartError> {
    listen::bind(address).map_err(|source| {
        let cure = match source.kind() {
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

/// As many connections as descriptors (two each) and half the memory allow.
fn connections_auto(peek_memory: u64) -> usize {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
    let by_descriptors = descriptors.saturating_sub(SPARE_DESCRIPTORS) / 2;
    let by_memory = (memory_limit() / 2).saturating_sub(peek_memory) / BYTES_PER_CONNECTION;
    usize::try_from(by_descriptors.min(by_memory)).unwrap_or(usize::MAX).max(16)
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

async fn watch_interfaces(own: Arc<OwnAddresses>) {
    loop {
        tokio::time::sleep(INTERFACES_EVERY).await;
        own.set_interfaces(interfaces());
    }
}

/// The addresses of this machine's interfaces.
fn interfaces() -> Vec<IpAddr> {
    let found = match nix::ifaddrs::getifaddrs() {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "cannot read this machine's addresses; a name may lead to one of them");
            return Vec::new();
        }
    };
    found
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .collect()
}
