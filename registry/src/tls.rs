//! One HTTP client for each set of certificates.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Client, Identity};

use crate::error::{Error, Result};
use crate::hosts::{Config, HostConfig, KeyPair, Target, is_local};

const DIAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(120);
const IDLE_PER_HOST: usize = 4;

/// Names the client that a target uses: targets without an entry of their own share one.
pub(crate) fn client_key(config: &Config, target: &Target) -> String {
    let local = is_local(&target.host);
    let entry = config
        .hosts
        .get(&target.entry)
        .filter(|entry| has_certificates(entry))
        .map(|_| target.entry.as_str())
        .unwrap_or_default();
    format!("{entry} {} {local}", target.insecure)
}

/// Builds the client of a target.
///
/// HTTP/2 stays off: its flow control limits uploads.
pub(crate) fn client(config: &Config, target: &Target) -> Result<Client> {
    let host = &target.entry;
    let mut builder = Client::builder()
        .user_agent(config.user_agent.as_str())
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .http1_only()
        .connect_timeout(DIAL)
        .tcp_keepalive(KEEP_ALIVE)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .danger_accept_invalid_certs(target.insecure);
    // A proxy cannot reach what only this machine can.
    if is_local(&target.host) {
        builder = builder.no_proxy();
    }
    if let Some(entry) = config.hosts.get(host) {
        let entry = with_directories(host, entry)?;
        for path in &entry.ca {
            let pem = read(host, path)?;
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|e| unusable(host, path, &e))?;
            for certificate in certificates {
                builder = builder.add_root_certificate(certificate);
            }
        }
        if entry.keypairs.len() > 1 {
            tracing::warn!(host, "only the first client certificate of a registry is used");
        }
        if let Some(pair) = entry.keypairs.first() {
            let mut pem = read(host, &pair.cert)?;
            pem.push(b'\n');
            pem.extend(read(host, &pair.key)?);
            let identity = Identity::from_pem(&pem).map_err(|e| unusable(host, &pair.cert, &e))?;
            builder = builder.identity(identity);
        }
    }
    builder.build().map_err(|e| unusable(host, Path::new(""), &e))
}

fn has_certificates(entry: &HostConfig) -> bool {
    !entry.ca.is_empty() || !entry.keypairs.is_empty() || !entry.tls_config_dirs.is_empty()
}

/// Adds the files of the entry's directories; a directory that is not there or not readable is empty.
fn with_directories(host: &str, entry: &HostConfig) -> Result<HostConfig> {
    let mut entry = entry.clone();
    for dir in std::mem::take(&mut entry.tls_config_dirs) {
        let listing = match std::fs::read_dir(&dir) {
            Ok(listing) => listing,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied
                ) =>
            {
                continue;
            }
            Err(error) => return Err(unusable(host, &dir, &error)),
        };
        let mut files: Vec<PathBuf> = listing.flatten().map(|file| file.path()).collect();
        files.sort();
        for file in files {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => entry.ca.push(file),
                Some("cert") => entry.keypairs.push(KeyPair { key: file.with_extension("key"), cert: file }),
                _ => {}
            }
        }
    }
    Ok(entry)
}

fn read(host: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| unusable(host, path, &error))
}

fn unusable(host: &str, path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Tls { host: host.to_owned(), path: path.to_owned(), reason: error.to_string() }
}
