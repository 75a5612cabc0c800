//! A real registry process for tests.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Error, Reference};

/// How long the process may take to answer.
const START: Duration = Duration::from_secs(20);
/// The port is free when it is chosen and may be taken a moment later.
const ATTEMPTS: usize = 5;

/// A `docker-registry` on a loopback port with storage of its own; it ends with this value.
#[derive(Debug)]
pub struct RegistryProcess {
    child: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl RegistryProcess {
    /// Starts one that anybody may use. `None`, with a notice, where it is not installed.
    ///
    /// # Errors
    /// What kept it from starting; with `CI` set also that it is not installed.
    pub fn start() -> io::Result<Option<Self>> {
        Self::start_with(|_| Ok(String::new()))
    }

    /// Starts one with more lines of configuration, made for its directory.
    ///
    /// # Errors
    /// As [`RegistryProcess::start`].
    pub fn start_with(more: impl Fn(&Path) -> io::Result<String>) -> io::Result<Option<Self>> {
        let dir = tempfile::tempdir()?;
        let more = more(dir.path())?;
        for _ in 0..ATTEMPTS {
            let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
            let file = dir.path().join("config.yml");
            let storage = dir.path().join("storage");
            let config = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  \
                 addr: {address}\n{more}",
                storage.display()
            );
            std::fs::write(&file, config)?;
            let mut command = Command::new("docker-registry");
            command.arg("serve").arg(&file);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) if error.kind() == io::ErrorKind::NotFound && std::env::var_os("CI").is_none() => {
                    skip();
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            let deadline = Instant::now() + START;
            while child.try_wait()?.is_none() && Instant::now() < deadline {
                if TcpStream::connect(&address).is_ok() {
                    return Ok(Some(Self { child, address, _dir: dir }));
                }
                std::thread::yield_now();
            }
            child.kill().ok();
            child.wait().ok();
        }
        Err(io::Error::other("docker-registry does not come up"))
    }

    /// Returns `127.0.0.1:<port>`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the reference of `rest` (`a/b:t`) there.
    ///
    /// # Errors
    /// [`Error::InvalidReference`].
    pub fn reference(&self, rest: &str) -> Result<Reference, Error> {
        Reference::parse(&format!("{}/{rest}", self.address))
    }
}

impl Drop for RegistryProcess {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[expect(clippy::print_stderr, reason = "whoever runs the tests is to see what they did not try")]
fn skip() {
    eprintln!("skipped: docker-registry is not installed");
}
