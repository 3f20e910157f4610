//! TLS to the proxy itself: its certificate, and who signs its clients'.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use super::refreshed::{FileFault, Files};
use crate::files::read_regular;

/// The files of a listener that speaks TLS, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who must have signed a client's certificate; without it none is asked for.
    pub client_ca: Option<PathBuf>,
}

impl Files for TlsFiles {
    type Made = ServerConfig;

    fn paths(&self) -> Vec<&Path> {
        [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()]
            .into_iter()
            .flatten()
            .map(|p| &**p)
            .collect()
    }

    fn load(&self) -> Result<ServerConfig, FileFault> {
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
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates("client_ca", path)? {
                    roots.add(certificate).map_err(|e| fault("client_ca", path, &format!("cannot be used: {e}")))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|e| fault("client_ca", path, &e.to_string()))?)
            }
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
        Ok(config)
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
