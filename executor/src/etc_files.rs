use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::process::{DEFAULT_HOSTNAME, ProcessSpec};
use crate::resolv_conf::{self, DnsConfig};

const HOST_FILE: &str = "/etc/resolv.conf";
/// Where systemd-resolved names the servers behind its stub.
const RESOLVED_FILE: &str = "/run/systemd/resolve/resolv.conf";

/// Makes the files that are mounted over `/etc/hosts` and `/etc/resolv.conf` of steps. Those that all steps
/// share are written once, beside and renamed; `resolv.conf` again when the host's is newer. Blocks.
#[derive(Debug)]
pub struct EtcFiles {
    dir: PathBuf,
    dns: DnsConfig,
    /// What was written by this process: the time of the host's file that each was made from.
    written: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    hosts: bool,
    sandbox: Option<Option<SystemTime>>,
    host: Option<Option<SystemTime>>,
}

impl EtcFiles {
    /// Keeps the shared files in `dir`, which must be there.
    pub fn new(dir: impl Into<PathBuf>, dns: DnsConfig) -> Self {
        Self { dir: dir.into(), dns, written: Mutex::default() }
    }

    /// The hosts file for a step: the shared one, or one written into `own_dir` if the step asks for a name or
    /// hosts of its own.
    pub fn hosts(&self, process: &ProcessSpec, own_dir: &Path) -> Result<PathBuf> {
        let hostname = process.hostname.as_deref().unwrap_or(DEFAULT_HOSTNAME);
        let text = hosts_text(hostname, &process.extra_hosts);
        if hostname != DEFAULT_HOSTNAME || !process.extra_hosts.is_empty() {
            let path = own_dir.join("etc-hosts");
            write_beside(&path, &text)?;
            return Ok(path);
        }
        let path = self.dir.join("etc-hosts");
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if !written.hosts {
            write_beside(&path, &text)?;
            written.hosts = true;
        }
        Ok(path)
    }

    /// The `resolv.conf` for steps with the host's network, or without it.
    pub fn resolv_conf(&self, host_network: bool) -> Result<PathBuf> {
        let path = self.dir.join(if host_network { "resolv-host.conf" } else { "resolv.conf" });
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let known = if host_network { &mut written.host } else { &mut written.sandbox };
        let newest = modified(Path::new(HOST_FILE)).max(modified(Path::new(RESOLVED_FILE)));
        if *known == Some(newest) {
            return Ok(path);
        }
        let mut host = read_or_empty(Path::new(HOST_FILE))?;
        if !host_network && resolv_conf::is_resolved_stub(&host) {
            host = read_or_empty(Path::new(RESOLVED_FILE))?;
        }
        write_beside(&path, &resolv_conf::make(&host, &self.dns, host_network)?)?;
        *known = Some(newest);
        Ok(path)
    }
}

fn hosts_text(hostname: &str, extra: &[(String, String)]) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in extra {
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn read_or_empty(path: &Path) -> Result<String> {
    match std::fs::read(path) {
        Ok(content) => Ok(String::from_utf8_lossy(&content).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

fn write_beside(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).map_err(|source| Error::io("write", &beside, source))?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o644))
        .map_err(|source| Error::io("change mode of", &beside, source))?;
    std::fs::rename(&beside, path).map_err(|source| Error::io("rename", &beside, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_and_own_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        std::fs::create_dir(&own).unwrap();
        let files = EtcFiles::new(dir.path(), DnsConfig::default());
        let shared = files.hosts(&ProcessSpec::default(), &own).unwrap();
        assert_eq!(shared, dir.path().join("etc-hosts"));
        let want = "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        assert_eq!(std::fs::read_to_string(shared).unwrap(), want);
        let process = ProcessSpec {
            hostname: Some("me".into()),
            extra_hosts: vec![("db".into(), "10.0.0.9".into())],
            ..ProcessSpec::default()
        };
        let path = files.hosts(&process, &own).unwrap();
        let want = "127.0.0.1\tlocalhost me\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.9\tdb\n";
        assert_eq!(path, own.join("etc-hosts"));
        assert_eq!(std::fs::read_to_string(path).unwrap(), want);
        assert!(files.resolv_conf(false).unwrap().exists());
        assert!(files.resolv_conf(true).unwrap().ends_with("resolv-host.conf"));
    }
}
