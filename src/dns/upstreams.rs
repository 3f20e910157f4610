//! The servers that are asked: one pool by default, one for each zone.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::DnsResponse;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::sent::SentQuestions;
use super::server::{Asked, Server};
use super::settings::{DnsSettings, DnsTransport, DnsUpstream};
use super::trouble::Trouble;
use super::udp::Manner;
use crate::files::{FileFault, Files, Refreshed, read_regular};
use egret_core::name::HostName;

/// How long one server has before the next is asked beside it.
const HEAD_START: Duration = Duration::from_millis(100);

/// Servers that answer for the same names. Each is asked by itself: how they take over from each other is decided
/// here.
pub(super) struct Group {
    servers: Vec<Arc<Server>>,
    /// The one that answered last; it is asked first.
    best: AtomicUsize,
}

/// Why no server answered: the one that says most, and what it says.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) trouble: Trouble,
    /// The sentence for the log.
    pub(super) words: String,
}

impl Group {
    fn new(servers: &[DnsUpstream], context: &Context) -> Arc<Self> {
        let Context { manner, sent, tls, deadline } = context;
        let servers =
            servers.iter().map(|server| Server::new(server, *manner, Arc::clone(sent), tls, *deadline)).collect();
        Arc::new(Self { servers, best: AtomicUsize::new(0) })
    }

    /// Whether none of them answered when it was asked last.
    pub(super) fn is_failing(&self) -> bool {
        self.servers.iter().all(|server| server.is_failing())
    }

    /// The first answer or absence that any server gives. A failure starts the next server at once, silence
    /// after a head start; dropping the set ends the others. One that is failing is asked only where all are.
    pub(super) async fn lookup(&self, asked_for: Asked, until: Instant) -> Result<DnsResponse, Unanswered> {
        let best = self.best.load(Ordering::Relaxed);
        let in_turn = (0..self.servers.len()).map(|n| (best + n) % self.servers.len());
        let in_turn = in_turn.filter_map(|id| Some((id, Arc::clone(self.servers.get(id)?))));
        let (failing, mut serving): (Vec<_>, Vec<_>) = in_turn.partition(|(_, server)| server.is_failing());
        if serving.is_empty() {
            serving = failing;
        }
        let mut waiting = serving.into_iter();
        let mut asked = JoinSet::new();
        let mut unheard: Vec<usize> = Vec::new();
        let mut last: Option<(usize, Trouble)> = None;
        loop {
            let next = waiting.next();
            let is_another = next.is_some();
            if let Some((id, server)) = next {
                let asked_for = asked_for.clone();
                unheard.push(id);
                asked.spawn(async move { (id, server.ask(asked_for, until).await) });
            } else if asked.is_empty() {
                return Err(self.unanswered(last));
            }
            let wait = if is_another { until.min(Instant::now() + HEAD_START) } else { until };
            let ended = match tokio::time::timeout_at(wait, asked.join_next()).await {
                // What some server said before the time was over still says more than silence.
                Err(_) if Instant::now() >= until => return Err(self.unanswered(last)),
                Err(_) => continue,
                Ok(ended) => ended,
            };
            if let Some(Ok((id, _))) = &ended {
                unheard.retain(|other| other != id);
            }
            match ended {
                Some(Ok((id, Ok(response)))) => {
                    self.prefer(id, &unheard, &asked_for);
                    return Ok(response);
                }
                Some(Ok((id, Err(absence)))) if absence.is_absence() => {
                    self.prefer(id, &unheard, &asked_for);
                    return Err(self.unanswered(Some((id, absence))));
                }
                Some(Ok((id, Err(trouble)))) if last.as_ref().is_none_or(|(_, last)| trouble.says() >= last.says()) => {
                    last = Some((id, trouble));
                }
                _ => {}
            }
        }
    }

    /// Asks first from now on the one that has answered. Whether the others are slower or silent is found out on behalf of
    /// no request.
    fn prefer(&self, answered: usize, unheard: &[usize], asked: &Asked) {
        self.best.store(answered, Ordering::Relaxed);
        for server in unheard.iter().filter_map(|id| self.servers.get(*id)) {
            server.probe(asked.clone());
        }
    }

    fn unanswered(&self, said: Option<(usize, Trouble)>) -> Unanswered {
        let name = |server: &Arc<Server>| server.name().to_owned();
        let (server, trouble) = match said {
            Some((id, trouble)) if trouble != Trouble::Silent => (self.servers.get(id).map(name), trouble),
            _ => (None, Trouble::Silent),
        };
        let all = || self.servers.iter().map(name).collect::<Vec<_>>().join(", ");
        Unanswered { words: format!("{} {trouble}", server.unwrap_or_else(all)), trouble }
    }
}

/// What servers of one configuration have in common.
struct Context {
    manner: Manner,
    sent: Arc<SentQuestions>,
    tls: rustls::ClientConfig,
    deadline: Duration,
}

/// Why there is no server to ask.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("the system's resolver settings (/etc/resolv.conf) cannot be used: {0}; write dns.upstreams")]
    System(String),
    #[error("dns.ca_file holds no certificate: {0}")]
    Authorities(String),
}

/// The servers that resolv.conf(5) names.
struct ResolvConf;

impl Files for ResolvConf {
    type Made = Vec<DnsUpstream>;

    fn paths(&self) -> Vec<&Path> {
        vec![Path::new("/etc/resolv.conf")]
    }

    fn load(&self) -> Result<Self::Made, FileFault> {
        system_servers().map_err(|message| FileFault { key: "", message })
    }
}

/// Which servers a name belongs to.
pub(super) struct Upstreams {
    default: RwLock<Arc<Group>>,
    zones: Vec<(HostName, Arc<Group>)>,
    /// Where the configuration names none.
    system: Option<Refreshed<ResolvConf>>,
    context: Context,
    described: String,
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstreams").field("described", &self.described).finish_non_exhaustive()
    }
}

impl Upstreams {
    pub(super) fn build(settings: &DnsSettings, deadline: Duration) -> Result<Self, UpstreamError> {
        let manner = Manner { edns: settings.edns, mixes_case: settings.randomize_case, is_signed: false };
        let sent = Arc::default();
        let context = Context { manner, sent, tls: tls_config(settings.authorities.as_deref())?, deadline };
        let system = settings.upstreams.is_empty().then(|| Refreshed::load(ResolvConf)).transpose();
        let system = system.map_err(|fault| UpstreamError::System(fault.message))?;
        let servers = system.as_ref().map_or_else(|| settings.upstreams.clone(), |system| system.get().to_vec());
        let zones = settings.zones.iter().map(|(zone, servers)| (zone.clone(), Group::new(servers, &context)));
        Ok(Self {
            default: RwLock::new(Group::new(&servers, &context)),
            zones: zones.collect(),
            system,
            context,
            described: described(&servers),
        })
    }

    pub(super) fn described(&self) -> String {
        self.described.clone()
    }

    /// Whether a question, as a client wrote it, is egret's own, and on its way to a server.
    pub(super) fn have_sent(&self, question: &[u8]) -> bool {
        self.context.sent.have(question)
    }

    /// Whether some server is at this place in the clear.
    pub(super) fn are_at(&self, is_there: impl Fn(SocketAddr) -> bool) -> bool {
        let groups = self.zones.iter().map(|(_, group)| Arc::clone(group));
        let default = Arc::clone(&self.default.read().unwrap_or_else(PoisonError::into_inner));
        let mut groups = groups.chain([default]);
        groups.any(|group| group.servers.iter().any(|server| server.address().is_some_and(&is_there)))
    }

    /// Asks other servers from now on where the system's have changed.
    pub(super) fn refresh(&self) {
        let Some(system) = &self.system else { return };
        let before = system.get();
        system.refresh("dns");
        let now = system.get();
        if *before != *now {
            tracing::info!(servers = described(&now), "the system's DNS servers have changed");
            *self.default.write().unwrap_or_else(PoisonError::into_inner) = Group::new(&now, &self.context);
        }
    }

    /// The longest zone that the name is in, or the default.
    pub(super) fn group_for(&self, name: &HostName) -> Arc<Group> {
        let zone = name.suffixes().find_map(|suffix| self.zones.iter().find(|(zone, _)| zone.as_str() == suffix));
        let default = || Arc::clone(&self.default.read().unwrap_or_else(PoisonError::into_inner));
        zone.map_or_else(default, |(_, group)| Arc::clone(group))
    }
}

fn described(servers: &[DnsUpstream]) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn system_servers() -> Result<Vec<DnsUpstream>, String> {
    let text = read_regular(Path::new("/etc/resolv.conf"))?;
    let parsed = hickory_resolver::system_conf::parse_resolv_conf(text);
    let (config, _) = parsed.map_err(|e| e.to_string())?;
    let mut servers: Vec<DnsUpstream> = Vec::new();
    for server in config.name_servers() {
        let port = server.connections.first().map_or(53, |connection| connection.port);
        let upstream = DnsUpstream { ip: server.ip, port, transport: DnsTransport::Plain };
        if !servers.contains(&upstream) {
            servers.push(upstream);
        }
    }
    // There is one at least: none is an error of the parser's.
    Ok(servers)
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
    use hickory_proto::op::{Message, Query};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use tokio::net::UdpSocket;

    fn group(servers: &[SocketAddr]) -> Arc<Group> {
        let upstream = |at: &SocketAddr| DnsUpstream { ip: at.ip(), port: at.port(), transport: DnsTransport::Plain };
        let manner = Manner { edns: true, mixes_case: true, is_signed: false };
        let sent = Arc::default();
        let context = Context { manner, sent, tls: tls_config(None).unwrap(), deadline: Duration::from_secs(5) };
        Group::new(&servers.iter().map(upstream).collect::<Vec<_>>(), &context)
    }

    fn question() -> Asked {
        Query::query(Name::from_ascii("a.example.").unwrap(), RecordType::A).into()
    }

    #[tokio::test]
    async fn what_cannot_be_read_says_more_than_silence() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let group = group(&[address]);
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            let (_, from) = server.recv_from(&mut buffer).await.unwrap();
            let broken = [&buffer[..2], &[0xff; 40]].concat();
            server.send_to(&broken, from).await.unwrap();
            std::future::pending::<()>().await;
        });
        let failed = group.lookup(question(), Instant::now() + Duration::from_millis(600)).await.unwrap_err();
        assert!(matches!(failed.trouble, Trouble::Broken(_)), "{failed:?}");
        assert!(failed.words.starts_with(&format!("{address} sent what is not a DNS answer: ")), "{failed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_costs_a_head_start_once_and_is_probed() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let answering = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let [deaf, good] = [&silent, &answering].map(|socket| socket.local_addr().unwrap());
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (n, from) = answering.recv_from(&mut buffer).await.unwrap();
                let mut answer = Message::from_vec(&buffer[..n]).unwrap().into_response();
                let name = answer.queries[0].name.clone();
                answer.add_answer(Record::from_rdata(name, 60, RData::A(A([192, 0, 2, 1].into()))));
                answering.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        let begun = Instant::now();
        let both = group(&[deaf, good]);
        both.lookup(question(), begun + Duration::from_secs(5)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
        // No request waits for it, and that it is silent is found out all the same.
        while !both.servers[0].is_failing() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!both.is_failing() && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let mut buffer = [0; 1500];
        while silent.try_recv_from(&mut buffer).is_ok() {}
        both.lookup(question(), Instant::now() + Duration::from_secs(5)).await.unwrap();
        assert!(silent.try_recv_from(&mut buffer).is_err(), "it is not asked by a request");
        drop(both);

        let alone = group(&[deaf]);
        let begun = Instant::now();
        let failed = alone.lookup(question(), begun + Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(failed.words, format!("{deaf} did not answer in time"));
        assert!(alone.is_failing());
        // What was sent so far, and then one question each second, on behalf of no request.
        tokio::time::sleep(Duration::from_millis(100)).await;
        while silent.try_recv_from(&mut buffer).is_ok() {}
        for _ in 0..12 {
            let begun = Instant::now();
            silent.recv_from(&mut buffer).await.unwrap();
            assert!(begun.elapsed() <= Duration::from_millis(1050), "{:?}", begun.elapsed());
            // With an OPT record and without.
            tokio::time::sleep(Duration::from_millis(10)).await;
            while silent.try_recv_from(&mut buffer).is_ok() {}
        }
        let (n, from) = silent.recv_from(&mut buffer).await.unwrap();
        let answer = Message::from_vec(&buffer[..n]).unwrap().into_response();
        silent.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        while alone.is_failing() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
