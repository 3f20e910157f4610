//! The servers that are asked: one pool by default, one for each zone.

use std::sync::Arc;
use std::time::Duration;

use hickory_net::runtime::TokioRuntimeProvider;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts, ServerOrderingStrategy};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::config::{DnsSettings, DnsTransport, DnsUpstream};
use crate::name::HostName;

pub(super) type Pool = NameServerPool<TokioRuntimeProvider>;

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
    default: Pool,
    zones: Vec<(HostName, Pool)>,
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
            settings.zones.iter().map(|(zone, servers)| (zone.clone(), pool(servers, &tls, deadline))).collect();
        Ok(Self { default: pool(&servers, &tls, deadline), zones, described: described.join(", ") })
    }

    pub(super) fn described(&self) -> String {
        self.described.clone()
    }

    /// The longest zone that the name is in, or the default.
    pub(super) fn pool_for(&self, name: &HostName) -> &Pool {
        name.suffixes()
            .find_map(|suffix| self.zones.iter().find(|(zone, _)| zone.as_str() == suffix))
            .map_or(&self.default, |(_, pool)| pool)
    }
}

fn pool(servers: &[DnsUpstream], tls: &rustls::ClientConfig, deadline: Duration) -> Pool {
    let mut options = ResolverOpts::default();
    // Two servers are asked at a time; each round must leave room for the next.
    let rounds = u32::try_from(servers.len().div_ceil(2)).unwrap_or(1).max(1);
    options.timeout = deadline / rounds;
    options.server_ordering_strategy = ServerOrderingStrategy::QueryStatistics;
    // RFC draft-vixie-dnsext-dns0x20: a forger must also guess the case.
    options.case_randomization = true;
    let servers = servers.iter().map(|server| {
        let mut connections = match &server.transport {
            DnsTransport::Plain => vec![ConnectionConfig::udp(), ConnectionConfig::tcp()],
            DnsTransport::Tls { name } => vec![ConnectionConfig::tls(Arc::clone(name))],
            DnsTransport::Https { name, path } => {
                vec![ConnectionConfig::https(Arc::clone(name), Some(Arc::clone(path)))]
            }
        };
        for connection in &mut connections {
            connection.port = server.port;
        }
        NameServerConfig::new(server.ip, true, connections)
    });
    let mut config = TlsConfig::new().unwrap_or_else(|_| unreachable!("the roots are built in"));
    config.config = tls.clone();
    NameServerPool::from_config(servers, Arc::new(PoolContext::new(options, config)), TokioRuntimeProvider::default())
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
        let place = std::net::SocketAddr::new(self.ip, self.port);
        match &self.transport {
            DnsTransport::Plain => write!(f, "{place}"),
            DnsTransport::Tls { name } => write!(f, "tls://{place}#{name}"),
            DnsTransport::Https { name, path } => write!(f, "https://{place}{path}#{name}"),
        }
    }
}
