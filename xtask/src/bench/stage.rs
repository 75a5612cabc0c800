//! One fresh daemon, and what is measured on it.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kiln_tests::{Binaries, Daemon, DaemonOptions};

use super::lab::Lab;

/// Longest time for one build. Past it the scenario has failed.
const BUILD_LIMIT: Duration = Duration::from_secs(300);
/// How long a daemon has had nothing to do when its memory is read.
const IDLE: Duration = Duration::from_secs(1);

/// A daemon with an empty root, and a directory for what it exports. Dropped, both are gone.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) lab: &'a Lab,
    /// Seconds from the start of the process until its socket accepted.
    pub(super) startup: f64,
    daemon: Daemon,
    out: tempfile::TempDir,
}

impl<'a> Stage<'a> {
    /// Starts a daemon of `binaries`.
    pub(super) fn start(lab: &'a Lab, binaries: &Binaries) -> Result<Self> {
        let out = tempfile::Builder::new().prefix("kiln-bench-out-").tempdir()?;
        // Only the worker that the scenarios are about, also where a containerd runs.
        let args = ["--oci-worker=true", "--containerd-worker=false"].map(String::from).to_vec();
        let start = Instant::now();
        let daemon = Daemon::start(binaries, DaemonOptions { args, ..DaemonOptions::default() })?;
        Ok(Self { lab, startup: start.elapsed().as_secs_f64(), daemon, out })
    }

    /// Builds the lab's context `name`; the seconds from the start of the client to its end.
    pub(super) fn build(&self, context: &str, args: &[&str]) -> Result<f64> {
        let mut build = self.daemon.build_command(&self.lab.context(context));
        build.args(args);
        let stderr = self.out.path().join("stderr");
        let mut bounded = Command::new("timeout");
        bounded
            .arg("--kill-after=5")
            .arg(BUILD_LIMIT.as_secs().to_string())
            .arg(build.get_program())
            .args(build.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&stderr)?);
        let start = Instant::now();
        let status = bounded.status().context("failed to start `timeout` (Debian package coreutils)")?;
        let took = start.elapsed().as_secs_f64();
        match status.code() {
            Some(0) => Ok(took),
            Some(124) => bail!("the build took longer than {} s", BUILD_LIMIT.as_secs()),
            _ => bail!("the build failed: {status}\n{}", tail(&std::fs::read_to_string(stderr)?)),
        }
    }

    /// Builds a context to an OCI archive.
    pub(super) fn export(&self, context: &str, compression: &str) -> Result<f64> {
        let dest: PathBuf = self.out.path().join("image.tar");
        let output = format!("--output=type=oci,dest={},compression={compression}", dest.display());
        self.build(context, &[&output])
    }

    /// Resident memory of the daemon and its helpers after a moment without work, in MiB.
    pub(super) fn idle_memory(&self) -> Result<f64> {
        std::thread::sleep(IDLE);
        let mut tree = vec![self.daemon.pid().context("the daemon is gone")?];
        let mut kib = 0;
        while let Some(pid) = tree.pop() {
            kib += resident_kib(pid);
            tree.extend(children(pid));
        }
        Ok(kib as f64 / 1024.0)
    }

    /// A text that no other call in this process returns.
    pub(super) fn unique() -> String {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        format!("change {}\n", NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Zero for a process that has just ended.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
