use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::wait_for;

/// Runs the registry until standard input ends, so that it ends with this process, however that ends. A registry in a
/// static, which nobody drops, is cleaned up too.
const KEEPER: &str = r#"
exec 3<&0 </dev/null
docker-registry serve "$0" & registry=$!
(cat <&3 >/dev/null; kill $registry 2>/dev/null) &
wait $registry
code=$?
exec 3<&-
rm -rf "$1/storage"
exit $code
"#;

/// A `docker-registry` on a free loopback port, with storage of its own.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: String,
    dir: tempfile::TempDir,
}

impl Registry {
    /// Starts one that anybody may use.
    pub fn start() -> Result<Self> {
        Self::with_config("")
    }

    /// Starts one that wants user and password (basic authentication).
    pub fn with_password(user: &str, bcrypt_hash: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("kiln-htpasswd-").tempdir()?.keep();
        let file = dir.join("htpasswd");
        std::fs::write(&file, format!("{user}:{bcrypt_hash}\n"))?;
        Self::with_config(&format!("auth:\n  htpasswd:\n    realm: kiln\n    path: {}\n", file.display()))
    }

    /// Starts one with more lines of configuration.
    pub fn with_config(extra: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("kiln-registry-").tempdir()?;
        // The port is free when it is chosen; the loop covers the moment until the registry takes it.
        let mut last = None;
        for _ in 0..5 {
            match Self::try_start(&dir, extra) {
                Ok((child, address)) => return Ok(Self { child, address, dir }),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no free port")))
            .context("failed to start docker-registry")
    }

    fn try_start(dir: &tempfile::TempDir, extra: &str) -> Result<(Child, String)> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = dir.path().join("config.yml");
        let storage = dir.path().join("storage");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n{extra}",
                storage.display()
            ),
        )?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let mut child = Command::new("sh")
            .args(["-c", KEEPER])
            .arg(&config)
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("failed to start a shell")?;
        let up = wait_for("the registry", Duration::from_secs(10), Some(&mut child), || {
            TcpStream::connect(&address).is_ok()
        });
        if let Err(error) = up {
            drop(child.stdin.take());
            child.wait().ok();
            return Err(error).context("`docker-registry` does not start (Debian package docker-registry)");
        }
        Ok((child, address))
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Directory of its blobs.
    pub fn storage(&self) -> std::path::PathBuf {
        self.dir.path().join("storage/docker/registry/v2")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().ok();
    }
}
