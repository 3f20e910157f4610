//! A DNS server on hickory-server whose answers a test controls, and which remembers what it was asked.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use hickory_proto::op::{Metadata, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::own_ip;

/// What the server does with a name.
#[derive(Clone, Debug)]
pub enum Does {
    Answer(Vec<IpAddr>),
    /// First an alias, then the addresses under it.
    Alias(String, Vec<IpAddr>),
    AliasLoop,
    /// Addresses of some other name in the answer section, and none of the question's.
    Stray(Vec<IpAddr>),
    NoSuchName,
    Fail,
    Silence,
    /// A is answered, AAAA is dropped, as some load balancers do.
    OnlyA(Vec<IpAddr>),
    /// Cut over UDP, whole over TCP.
    TooLong(Vec<IpAddr>),
    /// Another answer each time.
    Rebind(Vec<IpAddr>),
    /// These, of the kind that was asked for, and every alias.
    Records(Vec<Record>),
}

type Book = Arc<Mutex<HashMap<String, Does>>>;
type Asked = Arc<Mutex<Vec<(String, Protocol)>>>;

/// A running server.
pub struct Dns {
    pub address: SocketAddr,
    names: Book,
    asked: Asked,
    /// Ends with the server.
    _runtime: tokio::runtime::Runtime,
}

impl Dns {
    pub fn start() -> Self {
        Self::at(SocketAddr::new(own_ip(), 5353))
    }

    pub fn at(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (names, asked) = (Book::default(), Asked::default());
        let answering = Answering { names: Arc::clone(&names), asked: Arc::clone(&asked) };
        runtime.block_on(async {
            let mut server = Server::new(answering);
            server.register_socket(tokio::net::UdpSocket::bind(address).await.unwrap());
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            server.register_listener(listener, std::time::Duration::from_secs(5), 64);
            tokio::spawn(async move { server.block_until_done().await });
        });
        Self { address, names, asked, _runtime: runtime }
    }

    /// Sets a name; `*` is for every name not set.
    pub fn set(&self, name: &str, does: Does) -> &Self {
        self.names.lock().unwrap().insert(name.to_owned(), does);
        self
    }

    pub fn answer(&self, name: &str, ips: &[&str]) -> &Self {
        self.set(name, Does::Answer(ips.iter().map(|ip| ip.parse().unwrap()).collect()))
    }

    /// How often a name was asked for, in any type.
    pub fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|(asked, _)| asked == name).count()
    }

    pub fn asked_over(&self, name: &str, protocol: Protocol) -> usize {
        self.asked.lock().unwrap().iter().filter(|(asked, over)| asked == name && *over == protocol).count()
    }
}

struct Answering {
    names: Book,
    asked: Asked,
}

#[async_trait]
impl RequestHandler for Answering {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut handle: R) -> ResponseInfo {
        let info = request.request_info().unwrap();
        let kind = info.query.query_type();
        let question = Name::from(info.query.name().clone()).to_ascii().to_lowercase();
        let name = question.trim_end_matches('.').to_owned();
        self.asked.lock().unwrap().push((name.clone(), request.protocol()));
        let does = {
            let mut names = self.names.lock().unwrap();
            let key = if names.contains_key(&name) { name } else { "*".to_owned() };
            let does = names.get(&key).cloned().unwrap_or(Does::NoSuchName);
            if let Some(Does::Rebind(ips)) = names.get_mut(&key)
                && kind == RecordType::A
            {
                ips.rotate_left(1);
            }
            does
        };
        let owner = Name::from_ascii(&question).unwrap();
        let mut meta = Metadata::response_from_request(&request.metadata);
        let mut answers = Vec::new();
        match does {
            Does::Answer(ips) => answers = records(&owner, kind, &ips),
            Does::Alias(target, ips) => {
                let target = Name::from_ascii(format!("{target}.")).unwrap();
                answers.push(Record::from_rdata(owner, 60, RData::CNAME(CNAME(target.clone()))));
                answers.extend(records(&target, kind, &ips));
            }
            Does::AliasLoop => {
                let other = Name::from_ascii("loop.elsewhere.test.").unwrap();
                answers.push(Record::from_rdata(owner.clone(), 60, RData::CNAME(CNAME(other.clone()))));
                answers.push(Record::from_rdata(other, 60, RData::CNAME(CNAME(owner))));
            }
            Does::Stray(ips) => answers = records(&Name::from_ascii("stray.test.").unwrap(), kind, &ips),
            Does::Records(all) => {
                let fits = |record: &Record| [kind, RecordType::CNAME].contains(&record.record_type());
                answers = all.into_iter().filter(fits).collect();
            }
            Does::Rebind(ips) => answers = records(&owner, kind, &ips[..1]),
            Does::NoSuchName => meta.response_code = ResponseCode::NXDomain,
            Does::Fail => meta.response_code = ResponseCode::ServFail,
            Does::OnlyA(ips) if kind == RecordType::A => answers = records(&owner, kind, &ips),
            Does::Silence | Does::OnlyA(_) => std::future::pending().await,
            Does::TooLong(ips) => {
                if request.protocol() == Protocol::Udp {
                    meta.truncation = true;
                } else {
                    answers = records(&owner, kind, &ips);
                }
            }
        }
        let builder = MessageResponseBuilder::from_message_request(request);
        let response = builder.build(meta, answers.iter(), [].iter(), [].iter(), [].iter());
        handle.send_response(response).await.unwrap()
    }
}

fn records(owner: &Name, kind: RecordType, ips: &[IpAddr]) -> Vec<Record> {
    let data = |ip: &IpAddr| match (ip, kind) {
        (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(*ip))),
        (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(*ip))),
        _ => None,
    };
    ips.iter().filter_map(data).map(|data| Record::from_rdata(owner.clone(), 60, data)).collect()
}

pub const TLS_PORT: u16 = 10853;
pub const HTTPS_PORT: u16 = 10443;

/// Serves the same answers over TLS and HTTPS at another address.
pub fn over_tls(dns: &Dns, stem: &std::path::Path, ip: IpAddr) -> IpAddr {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificate = CertificateDer::from_pem_file(stem.with_extension("crt")).unwrap();
    let answering = Answering { names: Arc::clone(&dns.names), asked: Arc::clone(&dns.asked) };
    dns._runtime.block_on(async {
        let mut server = Server::new(answering);
        let resolver = |alpn: &[&[u8]]| {
            let key = PrivateKeyDer::from_pem_file(stem.with_extension("key")).unwrap();
            let mut config =
                rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_no_client_auth()
                    .with_single_cert(vec![certificate.clone()], key)
                    .unwrap();
            config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
            Arc::new(config)
        };
        let patience = std::time::Duration::from_secs(5);
        let listener = tokio::net::TcpListener::bind((ip, TLS_PORT)).await.unwrap();
        server.register_tls_listener_with_tls_config(listener, patience, resolver(&[])).unwrap();
        let listener = tokio::net::TcpListener::bind((ip, HTTPS_PORT)).await.unwrap();
        server
            .register_https_listener_with_tls_config(
                listener,
                patience,
                resolver(&[b"h2"]),
                None,
                "/dns-query".to_owned(),
            )
            .unwrap();
        tokio::spawn(async move { server.block_until_done().await });
    });
    ip
}
