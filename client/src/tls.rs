//! TLS to a daemon, from files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use crate::error::{Error, Result};

/// Files for TLS. Only what a CA in `ca` has signed is trusted.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TlsFiles {
    /// Certificates of the CAs, PEM.
    pub ca: PathBuf,
    /// Our certificate and key, PEM; none for a daemon that asks for none.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name that the daemon's certificate must have; the host of the address if empty.
    pub server_name: String,
}

impl TlsFiles {
    /// Trusts these CAs.
    pub fn new(ca: impl Into<PathBuf>) -> Self {
        Self { ca: ca.into(), ..Self::default() }
    }
}

#[derive(Clone)]
pub(crate) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    pub(crate) fn load(files: &TlsFiles, host: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.ca)? {
            roots.add(certificate).map_err(|error| invalid(&files.ca, &error.to_string()))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| invalid(&files.ca, &error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &files.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let parsed =
                    PrivateKeyDer::from_pem_file(key).map_err(|error| invalid(key, &error.to_string()))?;
                builder
                    .with_client_auth_cert(certificates(certificate)?, parsed)
                    .map_err(|error| invalid(certificate, &error.to_string()))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = if files.server_name.is_empty() { host } else { &files.server_name };
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| invalid(&files.ca, &format!("`{name}` is no server name")))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    pub(crate) async fn connect(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), stream).await
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> =
        read.map_err(|error: tokio_rustls::rustls::pki_types::pem::Error| invalid(path, &error.to_string()))?;
    if found.is_empty() {
        return Err(invalid(path, "no certificate in it"));
    }
    Ok(found)
}

fn invalid(path: &Path, reason: &str) -> Error {
    Error::Tls { path: path.display().to_string(), reason: reason.to_owned() }
}
