//! A world of its own on loopback: a DNS server, a TLS origin and an egret between them and curl.
//!
//! `cargo run --release --example demo` shows both outcomes and then waits, so that you can try more.

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use egret::app::{App, Bound};
use egret::config::Settings;
use egret_core::learned::Learned;
use hickory_proto::op::{Header, HeaderCounts, Metadata};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server};
use hickory_server::zone_handler::MessageResponseBuilder;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio_rustls::TlsAcceptor;

const PROXY: &str = "127.0.0.1:13128";
const PAGE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 33\r\nConnection: close\r\n\r\nhello from an allowed TLS origin\n";

/// Answers every name with loopback: what is not on the list must be stopped by egret, not by DNS.
struct EveryName;

#[async_trait]
impl RequestHandler for EveryName {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut handle: R) -> ResponseInfo {
        let meta = Metadata::response_from_request(&request.metadata);
        let mut answers = Vec::new();
        if let Ok(info) = request.request_info()
            && info.query.query_type() == RecordType::A
        {
            let owner = info.query.name().into();
            answers.push(Record::from_rdata(owner, 5, RData::A(A(std::net::Ipv4Addr::LOCALHOST))));
        }
        let builder = MessageResponseBuilder::from_message_request(request);
        let response = builder.build(meta, answers.iter(), [].iter(), [].iter(), [].iter());
        // A question whose source is gone needs no answer.
        handle.send_response(response).await.unwrap_or_else(|_| {
            ResponseInfo::from(Header { metadata: request.metadata, counts: HeaderCounts::default() })
        })
    }
}

async fn dns() -> Result<SocketAddr, Box<dyn Error>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    let address = socket.local_addr()?;
    let mut server = Server::new(EveryName);
    server.register_socket(socket);
    tokio::spawn(async move { server.block_until_done().await });
    Ok(address)
}

/// A TLS server for `allowed.test`; its certificate goes to a file for curl.
async fn origin(certificate_file: &Path) -> Result<SocketAddr, Box<dyn Error>> {
    let made = rcgen::generate_simple_self_signed(vec!["allowed.test".to_owned()])?;
    std::fs::write(certificate_file, made.cert.pem())?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await?);
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                let _request = stream.read(&mut [0; 4096]).await?;
                stream.write_all(PAGE).await?;
                stream.shutdown().await
            });
        }
    });
    Ok(address)
}

fn main() -> std::process::ExitCode {
    let runtime = tokio::runtime::Runtime::new().map_err(Into::into);
    match runtime.and_then(|runtime| runtime.block_on(demo())) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let certificate = folder.path().join("origin.pem");
    let (dns, origin) = (dns().await?, origin(&certificate).await?);
    let port = origin.port();
    let text = format!(
        "listeners: [{{ kind: forward, bind: \"{PROXY}\" }}]\n\
         dns: {{ upstreams: [\"{dns}\"] }}\n\
         policy:\n  application_rules:\n    - name: demo\n      fqdns: [\"allowed.test\"]\n      \
         protocols: [\"https:{port}\"]\n      addresses: [\"127.0.0.0/8\"]\nlog: {{ format: text }}\n"
    );
    println!("{text}");
    let settings = Settings::parse(&text, "demo", Path::new("."))?;
    let bound = Bound::bind(&settings)?;
    let learned = Arc::new(Learned::new(settings.learn.remember));
    let app = App::build(settings, bound, None, None, learned)?;
    let serving = tokio::spawn(app.serve());
    for name in ["allowed.test", "other.test"] {
        let url = format!("https://{name}:{port}/");
        let certificate = certificate.display().to_string();
        println!("\n$ curl -sSi --cacert {certificate} -x http://{PROXY} {url}");
        let args = ["-sSi", "--cacert", &certificate, "-x", &format!("http://{PROXY}"), "--noproxy", "", &url];
        match tokio::process::Command::new("curl").args(args).status().await {
            Ok(_) => println!(),
            Err(error) => println!("(curl cannot be run here: {error})"),
        }
    }
    if std::env::args().any(|arg| arg == "--once") {
        return Ok(());
    }
    println!("\nStill serving; try more from another shell, and end it with Ctrl-C.");
    serving.await??;
    Ok(())
}
