use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Binaries, Finished, wait_for};

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// How a daemon is started.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// More command-line arguments.
    pub args: Vec<String>,
    /// Content of its configuration file.
    pub config: String,
    /// A program, with arguments, that becomes the daemon: it runs what follows in its own place.
    pub through: Vec<String>,
    /// More environment variables.
    pub env: Vec<(String, String)>,
    /// Its root is here, and stays.
    pub root: Option<PathBuf>,
    /// Its root is a filesystem of its own with this many MiB.
    pub disk: Option<u32>,
}

/// A daemon with a root directory and a socket of its own. Dropped, it is killed and its root removed.
#[derive(Debug)]
pub struct Daemon {
    binaries: Binaries,
    options: DaemonOptions,
    dir: Option<tempfile::TempDir>,
    child: Option<Child>,
}

impl Daemon {
    /// Starts one with an empty root and waits until it answers.
    pub fn start(binaries: &Binaries, options: DaemonOptions) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("kiln-it-").tempdir()?;
        std::fs::write(dir.path().join("buildkitd.toml"), &options.config)?;
        let mut daemon = Self { binaries: binaries.clone(), options, dir: Some(dir), child: None };
        if let Some(size) = daemon.options.disk {
            std::fs::create_dir(daemon.root())?;
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &format!("size={size}m"), "kiln-it"]).arg(daemon.root());
            Finished::run(&mut mount)?.success()?;
        }
        daemon.spawn()?;
        Ok(daemon)
    }

    /// The directory that holds the root, the socket and the log.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new("/nonexistent"), |d| d.path())
    }

    /// Its root directory.
    pub fn root(&self) -> PathBuf {
        self.options.root.clone().unwrap_or_else(|| self.dir().join("root"))
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("unix://{}/buildkitd.sock", self.dir().display())
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// All it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    /// A command of the client under test, addressed to this daemon.
    pub fn buildctl(&self) -> Command {
        let mut command = self.binaries.command("buildctl");
        command.arg("--addr").arg(self.address());
        command
    }

    /// Runs `buildctl` with `args`.
    pub fn run(&self, args: &[&str]) -> Result<Finished> {
        Finished::run(self.buildctl().args(args))
    }

    /// Builds the Dockerfile in `context` with plain progress and more arguments.
    pub fn build(&self, context: &Path, args: &[&str]) -> Result<Finished> {
        Finished::run(self.build_command(context).args(args))
    }

    /// The command that [`Daemon::build`] runs, without the extra arguments.
    pub fn build_command(&self, context: &Path) -> Command {
        let mut command = self.buildctl();
        let context = context.display();
        command.args(["build", "--progress=plain", "--frontend=dockerfile.v0"]);
        command.arg(format!("--local=context={context}")).arg(format!("--local=dockerfile={context}"));
        command
    }

    /// Kills it at once, as `kill -9` does, and reaps it.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks it to stop and waits for it; its exit code.
    pub fn stop(&mut self) -> Result<Option<i32>> {
        let Some(mut child) = self.child.take() else { return Ok(None) };
        Finished::run(Command::new("kill").arg(child.id().to_string()))?.success()?;
        let mut status = None;
        wait_for("the daemon to stop", STOP_LIMIT, None, || {
            status = child.try_wait().ok().flatten();
            status.is_some()
        })
        .inspect_err(|_| drop(child.kill()))?;
        Ok(status.and_then(|s| s.code()))
    }

    /// Starts it again on the same root.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.spawn()
    }

    fn spawn(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.dir().join("log"))?;
        let daemon = self.binaries.command("buildkitd");
        let mut command = match self.options.through.split_first() {
            None => daemon,
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(daemon.get_program()).args(daemon.get_args());
                command.envs(daemon.get_envs().filter_map(|(name, value)| Some((name, value?))));
                command
            }
        };
        command
            .arg("--config")
            .arg(self.dir().join("buildkitd.toml"))
            .arg("--root")
            .arg(self.root())
            .arg("--addr")
            .arg(self.address())
            .args(&self.options.args)
            .envs(self.options.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
        let socket = self.dir().join("buildkitd.sock");
        let started = wait_for("the daemon's socket", START_LIMIT, Some(&mut child), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        self.child = Some(child);
        started.with_context(|| format!("the daemon's log:\n{}", self.log()))
    }
}

impl Drop for Daemon {
    #[expect(clippy::print_stderr, reason = "the log of a daemon explains a test that failed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the daemon\n{}", self.log());
        }
        // A graceful stop unmounts what steps left; a daemon that hangs is killed.
        if self.stop().is_err() {
            drop(self.kill());
        }
        if self.options.disk.is_some() {
            drop(Finished::run(Command::new("umount").arg("--lazy").arg(self.root())));
        }
    }
}
