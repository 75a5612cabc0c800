use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Directory of the binaries under test; unset means the workspace's debug build.
const BIN_DIR: &str = "KILN_BIN_DIR";

/// Where `buildkitd`, `buildctl` and `kiln` are.
#[derive(Clone, Debug)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// From the environment variable `KILN_BIN_DIR`, else `target/debug` of the workspace.
    pub fn from_env() -> Result<Self> {
        match std::env::var_os(BIN_DIR) {
            Some(dir) => Self::at(dir),
            None => Self::at(Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug")),
        }
    }

    /// Those in `dir`.
    pub fn at(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let dir =
            dir.canonicalize().with_context(|| format!("no directory of binaries at `{}`", dir.display()))?;
        Ok(Self { dir })
    }

    /// Path of the binary `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A command that starts the binary `name`.
    pub fn command(&self, name: &str) -> Command {
        Command::new(self.path(name))
    }
}

/// What a program left when it ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Wall time.
    pub took: Duration,
}

impl Finished {
    /// Runs `command` to its end, with no standard input.
    pub fn run(command: &mut Command) -> Result<Self> {
        let start = Instant::now();
        let output =
            command.stdin(Stdio::null()).output().with_context(|| format!("failed to start {command:?}"))?;
        Ok(Self::of(output, start.elapsed()))
    }

    /// Of a program that has ended.
    pub fn of(output: Output, took: Duration) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took,
        }
    }

    /// An error with all output unless the exit code is 0.
    pub fn success(self) -> Result<Self> {
        if self.code != 0 {
            bail!("exit code {}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.stdout, self.stderr);
        }
        Ok(self)
    }

    /// An error with all output if the exit code is 0.
    pub fn failure(self) -> Result<Self> {
        if self.code == 0 {
            bail!(
                "succeeded, but should have failed\n--- stdout\n{}\n--- stderr\n{}",
                self.stdout,
                self.stderr
            );
        }
        Ok(self)
    }
}

/// Waits until `condition` holds, asking every few milliseconds; an error after `limit`, or when `child` ends first.
pub fn wait_for(
    what: &str,
    limit: Duration,
    child: Option<&mut Child>,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    let start = Instant::now();
    let mut child = child;
    while !condition() {
        if let Some(status) = child.as_mut().map(|c| c.try_wait()).transpose()?.flatten() {
            bail!("waited for {what}, but the process ended: {status}");
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
