//! TLS to the proxy itself: its certificate, and the authorities of its clients'.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::files::{FileFault, Files, read_regular};

/// The files of a listener that speaks TLS, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The authorities that must have signed a client's certificate; without it none is asked for.
    pub client_ca: Option<PathBuf>,
    /// Which of those certificates are revoked (RFC 5280 §5).
    pub crl: Option<PathBuf>,
}

/// What a listener speaks TLS with.
#[derive(Debug)]
pub struct ProxyTls {
    pub config: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl ProxyTls {
    /// Whether a client that showed these certificates would be let in now.
    #[must_use]
    pub fn admits(&self, shown: &[CertificateDer<'_>]) -> bool {
        let Some(verifier) = &self.verifier else { return true };
        let Some((own, others)) = shown.split_first() else { return false };
        verifier.verify_client_cert(own, others, UnixTime::now()).is_ok()
    }
}

impl Files for TlsFiles {
    type Made = ProxyTls;

    fn paths(&self) -> Vec<&Path> {
        [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref(), self.crl.as_ref()]
            .into_iter()
            .flatten()
            .map(|p| &**p)
            .collect()
    }

    fn load(&self) -> Result<ProxyTls, FileFault> {
        let chain = certificates("certificate", &self.certificate)?;
        let key = read("key", &self.key).and_then(|pem| {
            PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
                fault("key", &self.key, "holds no private key that can be read; write one in PEM, not encrypted")
            })
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let cannot = |e: &dyn std::fmt::Display| FileFault { key: "", message: format!("cannot be used: {e}") };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| cannot(&e))?;
        let verifier = self.client_ca.as_deref().map(|path| self.verifier(path, provider)).transpose()?;
        let builder = match &verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => FileFault {
                key: "key",
                message: format!("{} is not the key of {}", self.key.display(), self.certificate.display()),
            },
            other => cannot(&other),
        })?;
        if self.client_ca.is_some() {
            // A session taken up again would bring the certificate of its first handshake, however long ago that was
            // and whatever has become of it.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        // The only protocol of proxies that is spoken here; SOCKS clients offer none.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(ProxyTls { config: Arc::new(config), verifier })
    }
}

impl TlsFiles {
    fn verifier(&self, ca: &Path, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, FileFault> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("client_ca", ca)? {
            roots.add(certificate).map_err(|e| fault("client_ca", ca, &format!("cannot be used: {e}")))?;
        }
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        if let Some(path) = &self.crl {
            // Where a list is asked for, every authority on the way needs one, and one that is past its next update
            // says nothing of today.
            builder = builder.with_crls(revoked("crl", path)?).enforce_revocation_expiration();
        }
        let key = if self.crl.is_some() { "crl" } else { "client_ca" };
        builder.build().map_err(|e| fault(key, self.crl.as_deref().unwrap_or(ca), &e.to_string()))
    }
}

fn revoked(key: &'static str, path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, FileFault> {
    let pem = read(key, path)?;
    let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(fault(key, path, "holds no revocation list; write one in PEM (`X509 CRL`)")),
        Err(e) => Err(fault(key, path, &format!("is broken PEM: {e}"))),
    }
}

fn read(key: &'static str, path: &Path) -> Result<String, FileFault> {
    read_regular(path).map_err(|message| FileFault { key, message: format!("{message}; write a file in PEM") })
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, FileFault> {
    let pem = read(key, path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(fault(key, path, "holds no certificate; write one in PEM")),
        Err(e) => Err(fault(key, path, &format!("is broken PEM: {e}"))),
    }
}

fn fault(key: &'static str, path: &Path, what: &str) -> FileFault {
    FileFault { key, message: format!("{} {what}", path.display()) }
}
