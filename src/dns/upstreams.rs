//! The servers that are asked: one pool by default, one for each zone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::xfer::{DnsHandle, FirstAnswer};
use hickory_net::{DnsError, NetError, NoRecords};
use hickory_proto::op::{DnsRequestOptions, DnsResponse, Query, ResponseCode};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::udp;
use crate::config::{DnsSettings, DnsTransport, DnsUpstream};
use crate::name::HostName;

type Pool = NameServerPool<TokioRuntimeProvider>;

/// How long one server has before the next is asked beside it.
const HEAD_START: Duration = Duration::from_millis(800);

/// How long before the end the wait for a better answer over UDP than an ill one ends: later nothing would hear of it.
const LAST_WORD: Duration = Duration::from_millis(50);

/// One server, as it is asked.
#[derive(Clone)]
enum Server {
    /// By UDP, and by TCP where the answer was cut.
    Plain {
        udp: SocketAddr,
        tcp: Pool,
    },
    Encrypted(Pool),
}

impl Server {
    async fn ask(self, query: Query, until: Instant) -> Result<DnsResponse, NetError> {
        let pool = match self {
            Self::Plain { udp: address, tcp } => match udp::ask(address, query.clone(), last_word(until)).await {
                Err(NetError::Truncated) => tcp,
                answer => return answer,
            },
            Self::Encrypted(pool) => pool,
        };
        pool.lookup(query, DnsRequestOptions::default()).first_answer().await
    }
}

fn last_word(until: Instant) -> Instant {
    let left = until.saturating_duration_since(Instant::now());
    until - LAST_WORD.min(left / 4)
}

/// Servers that answer for the same names. Each is asked by itself: how they take over from each other is decided
/// here.
pub(super) struct Group {
    servers: Vec<Server>,
    /// The one that answered last; it is asked first.
    best: AtomicUsize,
}

impl Group {
    fn new(servers: &[DnsUpstream], tls: &rustls::ClientConfig, deadline: Duration) -> Self {
        let server = |server: &DnsUpstream| {
            let pool = pool(server, tls, deadline);
            match server.transport {
                DnsTransport::Plain => Server::Plain { udp: SocketAddr::new(server.ip, server.port), tcp: pool },
                DnsTransport::Tls { .. } | DnsTransport::Https { .. } => Server::Encrypted(pool),
            }
        };
        let servers = servers.iter().map(server).collect();
        Self { servers, best: AtomicUsize::new(0) }
    }

    /// The first answer or absence that any server gives. A failure starts the next server at once, silence
    /// after a head start; dropping the set ends the others.
    pub(super) async fn lookup(&self, query: Query, until: Instant) -> Result<DnsResponse, NetError> {
        let best = self.best.load(Ordering::Relaxed);
        let mut waiting = (0..self.servers.len()).map(|n| (best + n) % self.servers.len());
        let mut asked = JoinSet::new();
        let mut last = NetError::NoConnections;
        loop {
            let next = waiting.next();
            if let Some((id, server)) = next.and_then(|id| Some((id, self.servers.get(id)?.clone()))) {
                let query = query.clone();
                asked.spawn(async move { (id, server.ask(query, until).await) });
            } else if asked.is_empty() {
                return Err(last);
            }
            let wait = if next.is_some() { until.min(Instant::now() + HEAD_START) } else { until };
            let ended = match tokio::time::timeout_at(wait, asked.join_next()).await {
                // What some server said before the time was over still says more than silence.
                Err(_) if Instant::now() >= until => return Err(last),
                Err(_) => continue,
                Ok(ended) => ended,
            };
            match ended {
                Some(Ok((id, Ok(response)))) => {
                    self.best.store(id, Ordering::Relaxed);
                    return Ok(response);
                }
                Some(Ok((id, Err(absence)))) if is_absence(&absence) => {
                    self.best.store(id, Ordering::Relaxed);
                    return Err(absence);
                }
                // A server that says no says more than one that says nothing.
                Some(Ok((_, Err(error)))) if matches!(error, NetError::Dns(_)) => last = error,
                Some(Ok((_, Err(error)))) if !matches!(last, NetError::Dns(_)) => last = error,
                _ => {}
            }
        }
    }
}

/// The name is known not to be there, which is as good an answer as any.
pub(super) fn is_absence(error: &NetError) -> bool {
    let NetError::Dns(DnsError::NoRecordsFound(NoRecords { response_code, .. })) = error else { return false };
    matches!(response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// Why there is nobody to ask.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("the system's resolver settings (/etc/resolv.conf) cannot be used: {0}; write dns.upstreams")]
    System(String),
    #[error("/etc/resolv.conf names no server; write dns.upstreams")]
    NoServer,
    #[error("dns.ca_file holds no certificate: {0}")]
    Authorities(String),
}

/// Which pool a name belongs to.
pub(super) struct Upstreams {
    default: Group,
    zones: Vec<(HostName, Group)>,
    described: String,
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstreams").field("described", &self.described).finish_non_exhaustive()
    }
}

impl Upstreams {
    pub(super) fn build(settings: &DnsSettings, deadline: Duration) -> Result<Self, UpstreamError> {
        let tls = tls_config(settings.authorities.as_deref())?;
        let servers: Vec<DnsUpstream> =
            if settings.upstreams.is_empty() { system_servers()? } else { settings.upstreams.clone() };
        let described: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let zones =
            settings.zones.iter().map(|(zone, servers)| (zone.clone(), Group::new(servers, &tls, deadline))).collect();
        Ok(Self { default: Group::new(&servers, &tls, deadline), zones, described: described.join(", ") })
    }

    pub(super) fn described(&self) -> String {
        self.described.clone()
    }

    /// The longest zone that the name is in, or the default.
    pub(super) fn group_for(&self, name: &HostName) -> &Group {
        name.suffixes()
            .find_map(|suffix| self.zones.iter().find(|(zone, _)| zone.as_str() == suffix))
            .map_or(&self.default, |(_, group)| group)
    }
}

fn pool(server: &DnsUpstream, tls: &rustls::ClientConfig, deadline: Duration) -> Pool {
    let mut options = ResolverOpts::default();
    options.timeout = deadline;
    // draft-vixie-dnsext-dns0x20: a forger must also guess the case.
    options.case_randomization = true;
    let mut connections = match &server.transport {
        DnsTransport::Plain => vec![ConnectionConfig::tcp()],
        DnsTransport::Tls { name } => vec![ConnectionConfig::tls(Arc::clone(name))],
        DnsTransport::Https { name, path } => {
            vec![ConnectionConfig::https(Arc::clone(name), Some(Arc::clone(path)))]
        }
    };
    for connection in &mut connections {
        connection.port = server.port;
    }
    let server = NameServerConfig::new(server.ip, true, connections);
    let mut config = TlsConfig::new().unwrap_or_else(|_| unreachable!("the roots are built in"));
    config.config = tls.clone();
    let context = Arc::new(PoolContext::new(options, config));
    NameServerPool::from_config([server], context, TokioRuntimeProvider::default())
}

fn system_servers() -> Result<Vec<DnsUpstream>, UpstreamError> {
    let (config, _) =
        hickory_resolver::system_conf::read_system_conf().map_err(|e| UpstreamError::System(e.to_string()))?;
    let mut servers: Vec<DnsUpstream> = Vec::new();
    for server in config.name_servers() {
        let port = server.connections.first().map_or(53, |connection| connection.port);
        let upstream = DnsUpstream { ip: server.ip, port, transport: DnsTransport::Plain };
        if !servers.contains(&upstream) {
            servers.push(upstream);
        }
    }
    if servers.is_empty() { Err(UpstreamError::NoServer) } else { Ok(servers) }
}

fn tls_config(authorities: Option<&str>) -> Result<rustls::ClientConfig, UpstreamError> {
    let mut roots = rustls::RootCertStore::empty();
    match authorities {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|e| UpstreamError::Authorities(e.to_string()))?;
                roots.add(certificate).map_err(|e| UpstreamError::Authorities(e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(UpstreamError::Authorities("no PEM block in it".to_owned()));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| UpstreamError::Authorities(e.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

impl std::fmt::Display for DnsUpstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = SocketAddr::new(self.ip, self.port);
        match &self.transport {
            DnsTransport::Plain => write!(f, "{place}"),
            DnsTransport::Tls { name } => write!(f, "tls://{place}#{name}"),
            DnsTransport::Https { name, path } => write!(f, "https://{place}{path}#{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{Name, RecordType};
    use tokio::net::UdpSocket;

    #[tokio::test]
    async fn what_cannot_be_read_says_more_than_silence() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = server.local_addr().unwrap() else { unreachable!() };
        let upstream = DnsUpstream { ip: (*address.ip()).into(), port: address.port(), transport: DnsTransport::Plain };
        let tls = tls_config(None).unwrap();
        let group = Group::new(&[upstream], &tls, Duration::from_secs(5));
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            let (_, from) = server.recv_from(&mut buffer).await.unwrap();
            let broken = [&buffer[..2], &[0xff; 40]].concat();
            server.send_to(&broken, from).await.unwrap();
            std::future::pending::<()>().await;
        });
        let query = Query::query(Name::from_ascii("a.example.").unwrap(), RecordType::A);
        let failed = group.lookup(query, Instant::now() + Duration::from_millis(600)).await.unwrap_err();
        assert!(!matches!(failed, NetError::Timeout | NetError::NoConnections), "{failed:?}");
    }
}
