//! Where allowed connections end: a recorder of raw bytes, certificates, and openssl and nginx servers.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, ExtendedKeyUsagePurpose,
    IsCa, KeyIdMethod, KeyPair, RevokedCertParams,
};
use tempfile::TempDir;

use super::{PATIENCE, Server, eventually};

/// Keeps every connection's bytes, and answers each chunk with nothing or with an echo.
pub struct Recorder {
    pub address: SocketAddr,
    streams: Arc<(Mutex<Vec<Vec<u8>>>, Condvar)>,
}

impl Recorder {
    /// A recorder at an address; `answer` is sent as soon as a client connects has sent something.
    pub fn start(ip: IpAddr, port: u16, answer: &'static [u8]) -> Self {
        Self::forward_to(ip, port, move |mut stream, keep| {
            let mut chunk = [0; 65536];
            let mut answered = answer.is_empty();
            while let Ok(n) = stream.read(&mut chunk) {
                if n == 0 {
                    break;
                }
                keep(&chunk[..n]);
                if !answered {
                    answered = true;
                    let _ = stream.write_all(answer);
                }
            }
        })
    }

    /// A recorder that answers what comes first and closes, as a server told `Connection: close` does.
    pub fn closing(ip: IpAddr, port: u16, answer: &'static [u8]) -> Self {
        Self::forward_to(ip, port, move |mut stream, keep| {
            let mut chunk = [0; 65536];
            if let Ok(n) = stream.read(&mut chunk) {
                keep(&chunk[..n]);
                let _ = stream.write_all(answer);
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
            while let Ok(n) = stream.read(&mut chunk) {
                if n == 0 {
                    break;
                }
                keep(&chunk[..n]);
            }
        })
    }

    /// A server that answers the first head and then sends back what it hears.
    pub fn echoing(ip: IpAddr, port: u16, answer: &'static [u8]) -> Self {
        Self::forward_to(ip, port, move |mut stream, keep| {
            let (mut held, mut chunk) = (Vec::new(), [0; 65536]);
            let mut answered = false;
            while let Ok(n) = stream.read(&mut chunk) {
                if n == 0 {
                    break;
                }
                keep(&chunk[..n]);
                held.extend_from_slice(&chunk[..n]);
                if !answered {
                    let Some(end) = held.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                    held.drain(..end + 4);
                    answered = true;
                    let _ = stream.write_all(answer);
                }
                let _ = stream.write_all(&held);
                held.clear();
            }
        })
    }

    /// A server of plain HTTP that answers every request of a connection with its path, until it is told to close.
    pub fn serving(ip: IpAddr, port: u16) -> Self {
        Self::answering(ip, port, |path| {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()).into_bytes()
        })
    }

    /// A server of plain HTTP whose answers follow from the path.
    pub fn answering(ip: IpAddr, port: u16, says: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::forward_to(ip, port, move |mut stream, keep| {
            let (mut held, mut chunk) = (Vec::new(), [0; 65536]);
            while let Ok(n) = stream.read(&mut chunk) {
                if n == 0 {
                    break;
                }
                keep(&chunk[..n]);
                held.extend_from_slice(&chunk[..n]);
                while let Some(len) = whole_request(&held) {
                    let text = String::from_utf8_lossy(&held[..len]).into_owned();
                    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
                    held.drain(..len);
                    let mut answer = says(&path);
                    if text.starts_with("HEAD ") {
                        let head = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
                        answer.truncate(head + 4);
                    }
                    if stream.write_all(&answer).is_err() || text.contains("Connection: close\r\n") {
                        return;
                    }
                }
            }
        })
    }

    /// A recorder in front of another server: what passes towards it is kept.
    pub fn in_front_of(ip: IpAddr, port: u16, server: SocketAddr) -> Self {
        Self::forward_to(ip, port, move |mut stream, keep| {
            let Ok(mut behind) = TcpStream::connect(server) else { return };
            let (mut back, mut front) = (behind.try_clone().unwrap(), stream.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut back, &mut front);
                let _ = front.shutdown(std::net::Shutdown::Write);
            });
            let mut chunk = [0; 65536];
            while let Ok(n) = stream.read(&mut chunk) {
                if n == 0 {
                    break;
                }
                keep(&chunk[..n]);
                if behind.write_all(&chunk[..n]).is_err() {
                    break;
                }
            }
            let _ = behind.shutdown(std::net::Shutdown::Write);
        })
    }

    fn forward_to(ip: IpAddr, port: u16, serve: impl Fn(TcpStream, &dyn Fn(&[u8])) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((ip, port)).unwrap();
        let streams: Arc<(Mutex<Vec<Vec<u8>>>, Condvar)> = Arc::default();
        let (kept, serve) = (Arc::clone(&streams), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (kept, serve) = (Arc::clone(&kept), Arc::clone(&serve));
                let id = {
                    let mut all = kept.0.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                std::thread::spawn(move || {
                    serve(stream, &|bytes| {
                        kept.0.lock().unwrap()[id].extend_from_slice(bytes);
                        kept.1.notify_all();
                    });
                });
            }
        });
        Self { address: SocketAddr::new(ip, port), streams }
    }

    /// Connections so far.
    pub fn count(&self) -> usize {
        self.streams.0.lock().unwrap().len()
    }

    /// The bytes of every connection so far.
    pub fn streams(&self) -> Vec<Vec<u8>> {
        self.streams.0.lock().unwrap().clone()
    }

    /// Waits until some connection brought exactly these bytes.
    pub fn received(&self, bytes: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        let mut all = self.streams.0.lock().unwrap();
        while !all.iter().any(|stream| stream == bytes) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "never received; connections brought {:?}",
                all.iter().map(Vec::len).collect::<Vec<_>>()
            );
            all = self.streams.1.wait_timeout(all, left).unwrap().0;
        }
    }
}

/// A certificate authority and what it signed, as PEM files.
pub struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "the test's own authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { folder, issuer }
    }

    pub fn ca(&self) -> String {
        self.path("ca.pem")
    }

    pub fn path(&self, file: &str) -> String {
        self.folder.path().join(file).display().to_string()
    }

    /// Signs a certificate for some names; the files' paths without `.crt` and `.key`.
    pub fn sign(&self, file: &str, names: &[&str]) -> PathBuf {
        self.sign_as(file, CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap())
    }

    /// As [`Authority::sign`], for whatever the parameters say.
    pub fn sign_as(&self, file: &str, mut params: CertificateParams) -> PathBuf {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.folder.path().join(format!("{file}.crt")), cert.pem()).unwrap();
        std::fs::write(self.folder.path().join(format!("{file}.key")), key.serialize_pem()).unwrap();
        self.folder.path().join(file)
    }
}

impl Authority {
    /// A list of certificates that it has taken back, by their numbers, as PEM.
    pub fn revoke(&self, serials: &[u64], next_update: SystemTime) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: SystemTime::now().into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: (SystemTime::now() - Duration::from_secs(7200)).into(),
            next_update: next_update.into(),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// `openssl s_server` with a certificate for the names.
pub fn openssl_server(authority: &Authority, address: SocketAddr, names: &[&str], more: &[&str]) -> Server {
    let stem = authority.sign(&format!("server-{}", address.port()), names);
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", &address.to_string(), "-quiet"]);
    command.arg("-cert").arg(stem.with_extension("crt")).arg("-key").arg(stem.with_extension("key")).args(more);
    Server::start(&mut command, address)
}

/// nginx with a configuration of the caller's, which must say `daemon off`.
pub fn nginx(config: &Path, listens: SocketAddr) -> Server {
    let program = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
    Server::start(Command::new(program).arg("-c").arg(config), listens)
}

/// nginx with TLS (HTTP/1.1 and h2) at `https`, plain at `http`, and a folder of files.
pub struct Nginx {
    pub root: TempDir,
    _server: Server,
}

impl Nginx {
    pub fn start(authority: &Authority, ip: IpAddr, https: u16, http: u16, names: &[&str], more: &str) -> Self {
        let stem = authority.sign("nginx", names);
        let root = tempfile::tempdir().unwrap();
        let (dir, stem) = (root.path().display(), stem.display());
        let (plain, tls) = (SocketAddr::new(ip, http), SocketAddr::new(ip, https));
        let config = format!(
            "daemon off; user root; pid {dir}/pid; error_log {dir}/error.log; worker_processes 1;\n\
             events {{ worker_connections 512; }}\n\
             http {{ access_log {dir}/access.log; client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2;\n\
             fastcgi_temp_path {dir}/t3; uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5; client_max_body_size 0;\n\
             server {{ listen {plain}; listen {tls} ssl http2; root {dir};\n\
             ssl_certificate {stem}.crt; ssl_certificate_key {stem}.key; ssl_protocols TLSv1.2 TLSv1.3; {more}\n\
             location /who {{ return 200 \"$host $server_protocol $ssl_protocol\\n\"; }} }} }}\n"
        );
        let file = root.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        std::fs::write(root.path().join("hello"), "hello\n").unwrap();
        let server = nginx(&file, SocketAddr::new(ip, http));
        eventually("nginx serves TLS", || TcpStream::connect((ip, https)).is_ok());
        Self { root, _server: server }
    }
}

/// The length of the first request, if all of it is here. For what egret sends: it is well formed.
fn whole_request(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    if text.contains("transfer-encoding: chunked") {
        let mut at = head;
        loop {
            let line = bytes[at..].windows(2).position(|w| w == b"\r\n")?;
            let digits = String::from_utf8_lossy(&bytes[at..at + line]).split(';').next().unwrap().to_owned();
            let size = usize::from_str_radix(&digits, 16).unwrap();
            at += line + 2;
            if size == 0 {
                // Trailers, and the empty line.
                while !bytes[at..].starts_with(b"\r\n") {
                    at += bytes[at..].windows(2).position(|w| w == b"\r\n")? + 2;
                }
                return Some(at + 2);
            }
            at += size + 2;
            if at > bytes.len() {
                return None;
            }
        }
    }
    let length = text.split("content-length:").nth(1).and_then(|rest| rest.lines().next()?.trim().parse().ok());
    let whole = head + length.unwrap_or(0);
    (bytes.len() >= whole).then_some(whole)
}
