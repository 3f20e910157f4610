//! Building everything, binding everything, and only then serving.
//!
//! Contains no decision about a connection.

mod capacity;
pub mod plan;
mod screen;
mod watchers;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::admin::{self, Access, Pages};
use crate::budget::Budget;
use crate::config::Settings;
use crate::control;
use crate::dns::{DnsLimits, Resolver, UpstreamError};
use crate::drain::Drain;
use crate::learn::refresh::{self, Refresh};
use crate::learn::state_file;
use crate::learn::steering::{Steering, SteeringError};
use crate::local;
use crate::metrics::Metrics;
use crate::netfilter::LiveTable;
use crate::netfilter::sidecar::{self, PodTable, TableFault};
use crate::netlog::{self, Counted};
use crate::privileges::Kept;
use crate::proxy::listen::settings::{Capture, ListenerKind, ListenerSettings};
use crate::proxy::listen::{self, ConnectionLimit, Listener};
use crate::proxy::nameserver::{self, Nameserver, tcp, udp};
use crate::proxy::services::{Current, Services};
use crate::proxy::session::{self, Arrival};
use crate::record::{AccessLog, LogSender, LogState, LogThread};
use crate::reload::{self, Source};
use crate::socket;
use capacity::{Room, raise_descriptors};
use egret_core::claim::ClientAddr;
use egret_core::learned::{Known, Learned};
use egret_core::name::HostName;
use egret_core::policy::OwnAddresses;
use egret_core::policy::Policy;
use screen::Screen;
use watchers::{follow_local, watch_files, watch_kernel, watch_local, watch_table};

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
    #[error("cannot listen to what the kernel refuses: {0}; does another egret run in this network namespace?")]
    Told(#[source] io::Error),
    #[error(
        "egret would ask itself: a DNS server of `dns.upstreams`, `dns.zones` or /etc/resolv.conf is its own listener {0}; write other servers"
    )]
    AsksItself(SocketAddr),
    #[error("upstream.sources: {0} is not an address of this machine's interfaces; add it to one, or remove it")]
    Source(IpAddr),
    #[error(transparent)]
    Steering(#[from] SteeringError),
    #[error("which names synthetic addresses stand for cannot be written down: {0}; make learn.state_dir writable")]
    Steered(#[source] io::Error),
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] io::Error),
}

/// Every socket that clients and operators come to. Bound before rights are given up, and so before there is a runtime.
#[derive(Debug)]
pub struct Bound {
    listeners: Vec<std::net::TcpListener>,
    /// Of each `dns` listener, where its questions over UDP come to.
    questions: Vec<std::net::UdpSocket>,
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
        let listeners = listeners.collect::<Result<_, _>>()?;
        let questions = settings.nameservers().map(|listener| {
            udp::bind(listener.bind).map_err(|source| bind_error(listener.bind, &listener.name(), false, source))
        });
        Ok(Self {
            listeners,
            questions: questions.collect::<Result<_, _>>()?,
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
    services: Arc<Services>,
    listeners: Vec<(TcpListener, Arc<Listener>)>,
    questions: Vec<std::net::UdpSocket>,
    admin: Option<TcpListener>,
    health: Option<TcpListener>,
    control: Option<UnixListener>,
    /// Which sources may ask for health.
    probes: Access,
    log: Arc<LogState>,
    metrics: Arc<Metrics>,
    own: Arc<OwnAddresses>,
    /// Of the machine's addresses, since they were read.
    changes: local::Changes,
    source: Source,
    writer: LogThread,
    screen: String,
    /// What the kernel had counted before.
    counted: Counted,
    /// In a sidecar.
    pod_table: Option<Arc<PodTable>>,
}

impl App {
    /// Builds all rooms around what was bound. Must run inside a runtime. `config` is the file, which a reload reads
    /// again; `kept` is what was not given up, where anything was; `learned` holds what an earlier egret has learned.
    ///
    /// # Errors
    /// [`StartError`]; nothing has been served then.
    pub fn build(
        mut settings: Settings,
        bound: Bound,
        kept: Option<&Kept>,
        config: Option<&Path>,
        learned: Arc<Learned>,
    ) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::default());
        let limits = settings.limits;
        raise_descriptors();
        let room = Room::measure(&settings);
        let listen = |socket| TcpListener::from_std(socket).map_err(StartError::Runtime);
        let of = |of| Arc::new(Listener::new(of, settings.contact.clone()));
        let listeners = bound.listeners.into_iter().zip(&settings.listeners);
        let listeners = listeners.map(|(socket, settings)| Ok((listen(socket)?, of(settings))));
        let listeners = listeners.collect::<Result<Vec<_>, StartError>>()?;
        let control = bound.control.map(UnixListener::from_std).transpose().map_err(StartError::Runtime)?;
        let (admin, health) = (bound.admin.map(listen).transpose()?, bound.health.map(listen).transpose()?);
        let binds = settings.listeners.iter().map(|l| l.bind).chain(settings.admin).chain(settings.health).collect();
        let pool = settings.nameserver.steer.iter().flat_map(|steer| steer.pool.nets());
        // Synthetic addresses are reached by nothing but egret's clients.
        let never_dialled = settings.own_addresses.iter().copied().chain(pool).collect();
        let own = Arc::new(OwnAddresses::new(binds, never_dialled));
        // First, so that no change falls between the reading and the hearing.
        let changes = local::Changes::listen().map_err(StartError::Interfaces)?;
        own.set_local(local::addresses().map_err(StartError::Interfaces)?);
        let foreign = settings.sources.iter().find(|ip| !ip.is_loopback() && !own.is_local(**ip));
        foreign.map_or(Ok(()), |ip| Err(StartError::Source(*ip)))?;
        let steering = settings.nameserver.steer.as_ref().map(Steering::open).transpose()?.map(Arc::new);
        let now = Instant::now().into_std();
        if let Some(steering) = &steering {
            // The file of their names says what they stand for.
            let stands =
                |name: &HostName, ip| !steering.pool().contains(ip) || steering.name(ip).as_ref() == Some(name);
            learned.retain(stands, now);
        }
        let known = Known::at(&learned, now);
        let table = plan::next_hop(&settings, known).map(|plan| LiveTable::new(plan, Arc::clone(&learned)));
        let table = table.transpose().map_err(StartError::Kernel)?.map(Arc::new);
        let counters = table.as_ref().map(|table| table.inspect()).transpose().map_err(StartError::Table)?;
        let counted = Counted::from(counters.unwrap_or_default());
        let redirected = settings.listeners.iter().any(|listener| listener.kind.captures(Capture::Redirect));
        let pod_table = plan::pod_table(&settings)?.map(Arc::new);
        pod_table.as_ref().map_or(Ok(()), |table| table.look())?;
        let leads_questions = settings.pod_nameserver().is_some();
        let sidecar = redirected.then(|| sidecar::others(&settings.rules.nets, settings.rules.nat64, leads_questions));
        let connections = ConnectionLimit::new(room.connections, limits.connections_per_client);
        let screen_parts = Screen::of(&settings, config, room.connections, connections.per_client());
        let watches = settings.rules.watches;
        let policy = Policy::of(std::mem::take(&mut settings.rules), Arc::clone(&own));
        if settings.nameservers().next().is_some() {
            policy.prepare_for_questions();
        }
        if let Some(steering) = &steering {
            steering.review(|name| policy.is_claimed(name)).map_err(StartError::Steered)?;
        }
        let dns_limits = DnsLimits { deadline: limits.dns, lookups: room.lookups, cache: limits.dns_cache };
        let dns = Resolver::new(settings.dns.clone(), dns_limits, Arc::clone(&metrics))?;
        let is_local = |ip: IpAddr| ip.is_loopback() || own.is_local(ip);
        let asks_itself = |listener: &&ListenerSettings| dns.asks(|server| listener.answers_at(server, is_local));
        let own_server = settings.nameservers().find(asks_itself);
        own_server.map_or(Ok(()), |listener| Err(StartError::AsksItself(listener.bind)))?;
        let (sender, writer) = LogSender::start(&settings.log, Arc::clone(&metrics))
            .map_err(|source| StartError::Log { output: settings.log.output.to_string(), source })?;
        let probes = match &settings.health_from {
            None => Access::Everyone,
            Some(from) => Access::From(from.clone(), Arc::clone(&own)),
        };
        let log = sender.state();
        let screen = screen_parts.text(&policy, &dns, kept);
        let services = Arc::new(Services {
            policy: Current::new(policy),
            dns: Arc::new(dns),
            limits,
            peek_memory: Budget::new(room.peek_memory),
            connections,
            parallel_dials: Budget::new(room.parallel_dials),
            access_log: Arc::new(AccessLog::new(sender, Arc::clone(&metrics))),
            sources: settings.sources.clone(),
            learned,
            steering,
            table,
            own_dials: redirected.then(Arc::default),
        });
        let tells_flows = settings.log.net_all;
        if services.table.is_some() {
            netlog::listen(&services, tells_flows).map_err(StartError::Told)?;
        }
        let source =
            Source { file: config.map(Path::to_owned), began: settings, own: Arc::clone(&own), sidecar, watches };
        Ok(Self {
            services,
            listeners,
            questions: bound.questions,
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
            pod_table,
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
        let shown = Pages {
            metrics: Arc::clone(&self.metrics),
            peek_memory: Arc::clone(&self.services.peek_memory),
            watcher: drain.watcher(),
            table: self.services.table.clone(),
            pod_table: self.pod_table.clone(),
            log: self.log,
        };
        // The pages answer until every connection has ended.
        let pages = Drain::new();
        if let Some(listener) = self.admin {
            tokio::spawn(admin::serve(listener, Access::Everyone, admin::admin_pages(&shown), pages.guard()));
        }
        if let Some(listener) = self.health {
            tokio::spawn(admin::serve(listener, self.probes, admin::health_pages(&shown), pages.guard()));
        }
        let listeners = self.listeners.iter().map(|(_, listener)| Arc::clone(listener)).collect();
        let files = tokio::spawn(watch_files(listeners, Arc::downgrade(&self.services)));
        let mut questions = self.questions.into_iter();
        let mut keeps_steered = false;
        for (socket, listener) in self.listeners {
            let (services, of) = (Arc::clone(&self.services), Arc::clone(&listener));
            let (limit, access_log) = (Arc::clone(&services.connections), Arc::clone(&services.access_log));
            if listener.kind == ListenerKind::Dns {
                let settings = self.source.began.nameserver.clone();
                let nameserver = Arc::new(Nameserver::new(Arc::clone(&listener.name), services, settings));
                if !std::mem::replace(&mut keeps_steered, true) {
                    tokio::spawn(nameserver::keep_steered(Arc::downgrade(&nameserver)));
                }
                if let Some(questions) = questions.next() {
                    udp::start(questions, &nameserver, drain.guard())?;
                }
                let handle = move |stream, peer, slot, guard| {
                    tokio::spawn(tcp::serve(stream, peer, slot, Arc::clone(&nameserver), guard));
                };
                tokio::spawn(listen::serve(socket, listener, limit, access_log, drain.guard(), handle));
                continue;
            }
            let handle = move |stream, peer, slot, guard| {
                let arrival = Arrival { stream, peer: ClientAddr(peer), listener: Arc::clone(&of), slot };
                tokio::spawn(session::serve(arrival, Arc::clone(&services), guard));
            };
            tokio::spawn(listen::serve(socket, listener, limit, access_log, drain.guard(), handle));
        }
        let watch = tokio::spawn(watch_local(Arc::clone(&self.own), changed));
        let table = self.services.table.clone().map(|table| {
            tokio::spawn(watch_kernel(table, Arc::downgrade(&self.services), self.counted, Arc::clone(&self.own)))
        });
        let pod_table = self.pod_table.map(|table| tokio::spawn(watch_table(table, Arc::clone(&self.metrics))));
        let (ask, requests) = mpsc::channel(1);
        let control = self.control.map(|listener| tokio::spawn(control::serve(listener, ask)));
        let control_path = self.source.began.control.clone();
        let learn = self.source.began.learn.clone();
        let state_dir = learn.state_dir.clone();
        if let Some(dir) = state_dir.clone() {
            tokio::spawn(state_file::keep_writing(dir, Arc::clone(&self.services.learned)));
        }
        let policies = watch::Sender::new(self.services.policy.get());
        let Services { dns, learned, steering, table: live_table, .. } = &*self.services;
        let (dns, learned, table_to_follow) = (Arc::clone(dns), Arc::clone(learned), live_table.clone());
        let steering = steering.clone();
        let turns = Semaphore::new(refresh::AT_ONCE);
        let refresh = Refresh { dns, learned, steering, table: table_to_follow, settings: learn, turns };
        tokio::spawn(refresh::run(refresh, policies.subscribe()));
        let services = Arc::downgrade(&self.services);
        let reloads =
            tokio::spawn(reload::run(hangup, requests, self.source, services, policies, drain.reauthorizer()));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let grace = self.services.limits.drain;
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
        table.iter().chain(&pod_table).chain(&control).for_each(JoinHandle::abort);
        files.abort();
        reloads.abort();
        if let Some(dir) = state_dir
            && let Err(error) = state_file::save(&dir, &self.services.learned)
        {
            tracing::warn!(%error, dir = %dir.display(), "what was learned last is not known after a restart");
        }
        // The watch holds no access_log; the last sender goes with the services, and the writer ends.
        drop(self.services);
        self.writer.finish().await;
        Ok(())
    }
}

fn bind_to(
    address: SocketAddr,
    keepalive: Duration,
    listener: &str,
    is_tproxy: bool,
) -> Result<std::net::TcpListener, StartError> {
    socket::listen(address, keepalive, is_tproxy).map_err(|source| bind_error(address, listener, is_tproxy, source))
}

fn bind_error(address: SocketAddr, listener: &str, is_tproxy: bool, source: io::Error) -> StartError {
    let cure = match source.kind() {
        io::ErrorKind::PermissionDenied if is_tproxy => {
            "taking routed traffic needs a right; run as root, or add CAP_NET_ADMIN".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need a right; run as root, add CAP_NET_BIND_SERVICE, or use a higher port".to_owned()
        }
        io::ErrorKind::AddrInUse => {
            let holder = socket::holder(address);
            let is_stub = holder.as_ref().is_some_and(|holder| holder.starts_with("systemd-resolve"));
            let holder = holder.unwrap_or_else(|| "another process".to_owned());
            if is_stub {
                format!(
                    "{holder} has it; write `DNSStubListener=no` in /etc/systemd/resolved.conf, or bind an address of an interface instead of all"
                )
            } else {
                format!("{holder} has it; stop that one, or use another port")
            }
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has the address; use one of its own".to_owned()
        }
        _ => source.to_string(),
    };
    StartError::Bind { listener: listener.to_owned(), address, cure, source }
}
