//! One run of `git`: in a clean environment, within bounds, ended when nobody wants it any more.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use kiln_solver::{Stream, VertexProgress};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::redact::redacted_text;

/// The mask of new files is set by a shell: it belongs to the whole process here, and only to the program there.
const SHELL: &str = "umask 022 && exec git \"$@\"";
/// What a shell says of a program that is not there.
const NOT_FOUND: i32 = 127;
/// How long a program may take to end once it is told to.
const GRACE: Duration = Duration::from_secs(10);
/// The most that is read of its output.
const MAX_OUTPUT: usize = 16 << 20;
/// How much of what it complains of is kept: the end counts.
const MAX_ERRORS: usize = 32 << 10;
/// What the program gets of the daemon's environment.
const INHERITED: [&str; 11] = [
    "PATH",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "FTP_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "ftp_proxy",
];

/// How `git` is run for one request.
#[derive(Clone)]
pub(crate) struct Runner<'a> {
    /// Options that no file sets.
    pub(crate) config: Vec<(String, String)>,
    /// More variables.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cancel: &'a CancellationToken,
    pub(crate) progress: &'a VertexProgress,
    /// How long one that speaks with a server may be silent.
    pub(crate) stall: Duration,
}

/// What a run may speak with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Nobody, or repositories on this machine.
    Local,
    /// Servers.
    Network,
}

/// A run that ended by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) output: Vec<u8>,
    /// The end of what it said, without passwords.
    pub(crate) errors: String,
    what: String,
}

impl Ended {
    /// Its output, if it succeeded.
    pub(crate) fn success(self) -> Result<String> {
        if self.status.success() {
            return Ok(String::from_utf8_lossy(&self.output).into_owned());
        }
        Err(self.failure())
    }

    pub(crate) fn failure(self) -> Error {
        if self.status.code() == Some(NOT_FOUND) {
            return Error::NoGit;
        }
        Error::Git { what: self.what, status: self.status.to_string(), errors: self.errors.trim().to_owned() }
    }
}

impl Runner<'_> {
    /// Runs `git` with `args` in `dir`; what it says is shown.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Stalled`], [`Error::GitOutput`]; none for one that fails by itself.
    ///
    /// # Cancel safety
    /// Dropped, it kills what it runs.
    pub(crate) async fn run(&self, reach: Reach, dir: &Path, args: &[&str]) -> Result<Ended> {
        let what = format!("git {}", args.iter().find(|arg| !arg.starts_with('-')).unwrap_or(&""));
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let mut command = self.command(reach, dir, args);
        let mut child = command.spawn().map_err(|source| Error::Start { what: what.clone(), source })?;
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let (mut output, mut errors) = (Pipe::new(child.stdout.take()), Pipe::new(child.stderr.take()));
        let mut kept = Vec::new();
        let mut said = Vec::new();
        while output.is_open() || errors.is_open() {
            let silence = async {
                match reach {
                    Reach::Network => tokio::time::sleep(self.stall).await,
                    Reach::Local => std::future::pending().await,
                }
            };
            tokio::select! {
                piece = output.next(), if output.is_open() => {
                    kept.extend_from_slice(piece);
                    if kept.len() > MAX_OUTPUT {
                        return Err(Error::GitOutput { what, limit: MAX_OUTPUT });
                    }
                }
                piece = errors.next(), if errors.is_open() => {
                    self.progress.log(Stream::Stderr, redacted_text(&String::from_utf8_lossy(piece)).as_bytes());
                    said.extend_from_slice(piece);
                    let over = said.len().saturating_sub(MAX_ERRORS);
                    said.drain(..over);
                }
                () = silence => {
                    group.end(&mut child).await;
                    return Err(Error::Stalled { url: what, seconds: self.stall.as_secs() });
                }
                () = self.cancel.cancelled() => {
                    group.end(&mut child).await;
                    return Err(Error::Cancelled);
                }
            }
        }
        let status = tokio::select! {
            status = child.wait() => status.map_err(|source| Error::Start { what: what.clone(), source })?,
            () = self.cancel.cancelled() => {
                group.end(&mut child).await;
                return Err(Error::Cancelled);
            }
        };
        // Its number may be somebody else's from now on.
        group.0 = None;
        let errors = redacted_text(&String::from_utf8_lossy(&said));
        Ok(Ended { status, output: kept, errors, what })
    }

    fn command(&self, reach: Reach, dir: &Path, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", SHELL, "git"]).args(args).current_dir(dir);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true).process_group(0).env_clear();
        for name in INHERITED {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("LC_ALL", "C").env("HOME", "/dev/null").env("GIT_TERMINAL_PROMPT", "0");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.env(
            "GIT_ALLOW_PROTOCOL",
            match reach {
                Reach::Local => "file",
                Reach::Network => "http:https:ssh:git",
            },
        );
        // Not as arguments, which everybody on the machine can read.
        command.env("GIT_CONFIG_COUNT", self.config.len().to_string());
        for (index, (key, value)) in self.config.iter().enumerate() {
            command
                .env(format!("GIT_CONFIG_KEY_{index}"), key)
                .env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        for (name, value) in &self.env {
            command.env(name, value);
        }
        command
    }
}

/// A pipe that is read until its end.
struct Pipe<R> {
    reader: Option<R>,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Pipe<R> {
    fn new(reader: Option<R>) -> Self {
        Self { reader, buffer: vec![0; 16 << 10] }
    }

    fn is_open(&self) -> bool {
        self.reader.is_some()
    }

    /// What came next; nothing at its end, after which it is closed.
    async fn next(&mut self) -> &[u8] {
        let Some(reader) = &mut self.reader else { return &[] };
        match reader.read(&mut self.buffer).await {
            Ok(length) if length > 0 => self.buffer.get(..length).unwrap_or_default(),
            _ => {
                self.reader = None;
                &[]
            }
        }
    }
}

/// The program with all that it started. Dropped, what is left of it is killed.
struct Group(Option<Pid>);

impl Group {
    /// Asks it to end, waits, and kills what is still there.
    async fn end(&self, child: &mut Child) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
            self.signal(Signal::KILL);
            // Killed, it ends; nothing more can be done if not.
            let _ended = child.wait().await;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // It may have ended already.
            let _sent = kill_process_group(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
