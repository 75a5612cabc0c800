//! One fresh daemon, and what is measured on it.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kiln_tests::{Binaries, Daemon, DaemonOptions, Finished};
use serde_json::Value;

use super::lab::Lab;

/// Longest time for one build. Past it the scenario has failed.
const BUILD_LIMIT: Duration = Duration::from_secs(300);
/// What the helper is called.
const HELPER: &str = "kiln-runtime\0";
/// How long a daemon has had nothing to do when its memory is read.
const IDLE: Duration = Duration::from_secs(1);
/// Solves between looks whether something else has ended.
const AT_ONCE: usize = 25;
/// When the collector has looked for the first time, which it does a second after the start.
const FIRST_COLLECTION: Duration = Duration::from_secs(3);

/// A daemon with an empty root, and a directory for what it exports. Dropped, both are gone.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) lab: &'a Lab,
    /// Seconds from the start of the process until its socket accepted.
    pub(super) startup: f64,
    binaries: &'a Binaries,
    daemon: Daemon,
    out: tempfile::TempDir,
    noted: Cell<Disk>,
    costs: Cell<Option<[f64; 3]>>,
}

/// What a directory takes on its disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Disk {
    pub(super) bytes: i64,
    pub(super) inodes: i64,
}

impl Disk {
    pub(super) fn mebibytes(self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20)
    }

    /// Of all that is below a directory; what is linked twice counts once.
    fn of(dir: &Path) -> Result<Self> {
        let (mut disk, mut seen, mut dirs) = (Self::default(), HashSet::new(), vec![dir.to_owned()]);
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).with_context(|| format!("no directory `{}`", dir.display()))? {
                let entry = entry?;
                let meta = entry.metadata()?;
                if seen.insert((meta.dev(), meta.ino())) {
                    disk.bytes += meta.blocks() as i64 * 512;
                    disk.inodes += 1;
                }
                if meta.is_dir() {
                    dirs.push(entry.path());
                }
            }
        }
        Ok(disk)
    }
}

impl<'a> Stage<'a> {
    /// Starts a daemon of `binaries`.
    pub(super) fn start(lab: &'a Lab, binaries: &'a Binaries) -> Result<Self> {
        let out = tempfile::Builder::new().prefix("kiln-bench-out-").tempdir()?;
        // Only the worker that the scenarios are about, also where a containerd runs.
        let args = ["--oci-worker=true", "--containerd-worker=false"].map(String::from).to_vec();
        let start = Instant::now();
        let daemon = Daemon::start(binaries, DaemonOptions { args, ..DaemonOptions::default() })?;
        let startup = start.elapsed().as_secs_f64();
        Ok(Self { lab, startup, binaries, daemon, out, noted: Cell::default(), costs: Cell::default() })
    }

    /// Solves the lab's definition `name` so many times over one connection; the seconds of each.
    pub(super) fn solve(&self, name: &str, times: usize) -> Result<Vec<f64>> {
        self.measure(&["--times", &times.to_string()], &[self.lab.definition(name).as_os_str()])
    }

    /// The same, and the middle one of the seconds.
    pub(super) fn median_solve(&self, name: &str, times: usize) -> Result<f64> {
        self.solve(name, times).and_then(middle)
    }

    /// The same, and what all but one in a hundred of the seconds are below.
    pub(super) fn p99_solve(&self, name: &str, times: usize) -> Result<f64> {
        self.solve(name, times).and_then(p99)
    }

    /// The same, for solves beside a removal of all records that `filter` is about.
    pub(super) fn p99_solve_while_pruning(&self, name: &str, filter: &str) -> Result<f64> {
        let removed = self.out.path().join("removed");
        let mut prune = self.daemon.buildctl();
        prune.args(["prune", "--all", "--format={{json .}}", "--filter", filter]);
        let mut prune = prune.stdout(std::fs::File::create(&removed)?).spawn()?;
        let mut all = Vec::new();
        while prune.try_wait()?.is_none() {
            all.extend(self.solve(name, AT_ONCE)?);
        }
        let status = prune.wait()?;
        let count = std::fs::read_to_string(removed)?.lines().count();
        eprintln!("{count} records pruned beside {} builds", all.len());
        if !status.success() || count == 0 {
            bail!("nothing was pruned: {status}");
        }
        p99(all)
    }

    /// Builds the lab's context `name` so many times over one connection; the middle one of the seconds of each.
    pub(super) fn median_dockerfile(&self, name: &str, times: usize) -> Result<f64> {
        let context = self.lab.context(name);
        self.measure(&["--times", &times.to_string()], &["--dockerfile".as_ref(), context.as_os_str()])
            .and_then(middle)
    }

    /// Seconds from sending the lab's definition `name` until the daemon starts its first step, as the daemon says.
    pub(super) fn plan(&self, name: &str) -> Result<f64> {
        self.measure(&["--until-started"], &[self.lab.definition(name).as_os_str()]).and_then(middle)
    }

    /// Runs `true` in a container of the built-in runtime, without a daemon; the middle one of the seconds.
    pub(super) fn bare_step(&self) -> Result<f64> {
        self.numbers(&Command::new(self.lab.program("bare_step"))).and_then(middle)
    }

    /// Builds the lab's context `name`, a chain of steps, from nothing; the middle one of the seconds from the end of a step
    /// to the end of the next, by the daemon's clock: all that a step costs, with what is written down of it.
    pub(super) fn median_step(&self, name: &str) -> Result<f64> {
        let mut build = self.daemon.build_command(&self.lab.context(name));
        build.args(["--no-cache", "--progress=rawjson"]);
        self.bounded(&build, Stdio::null())?;
        let mut ends = BTreeMap::new();
        for line in fs::read_to_string(self.out.path().join("stderr"))?.lines() {
            let status: Value = serde_json::from_str(line).unwrap_or_default();
            for vertex in status["vertexes"].as_array().into_iter().flatten() {
                if let (Some(digest), Some(end)) = (vertex["digest"].as_str(), vertex["completed"].as_str())
                    && vertex["name"].as_str().is_some_and(|name| name.contains("RUN "))
                {
                    ends.insert(digest.to_owned(), seconds_of_day(end).context("an odd time of day")?);
                }
            }
        }
        let mut ends: Vec<f64> = ends.into_values().collect();
        ends.sort_by(f64::total_cmp);
        middle(ends.windows(2).map(|pair| pair[1] - pair[0]).collect())
    }

    /// Resident memory of the built-in runtime's helper, in MiB: of the largest process that bears its name.
    pub(super) fn helper_memory(&self) -> Result<f64> {
        let daemon = self.daemon.pid().context("the daemon is gone")?;
        let is_helper = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(HELPER.as_bytes()))
        };
        let largest =
            children(daemon).into_iter().filter(is_helper).map(|pid| status_kib(pid, "VmRSS:")).max();
        Ok(largest.context("the daemon has no helper")? as f64 / 1024.0)
    }

    fn measure(&self, options: &[&str], what: &[&OsStr]) -> Result<Vec<f64>> {
        let mut client = Command::new(self.lab.program("measure"));
        client.arg(self.daemon.address()).args(options).args(what);
        self.numbers(&client)
    }

    /// The numbers that a program prints, one a line.
    fn numbers(&self, program: &Command) -> Result<Vec<f64>> {
        let stdout = self.out.path().join("stdout");
        self.bounded(program, std::fs::File::create(&stdout)?)?;
        let text = std::fs::read_to_string(stdout)?;
        text.lines().map(|line| line.parse().with_context(|| format!("`{line}` is no number"))).collect()
    }

    /// Builds the lab's context `name`; the seconds from the start of the client to its end.
    pub(super) fn build(&self, context: &str, args: &[&str]) -> Result<f64> {
        let mut build = self.daemon.build_command(&self.lab.context(context));
        build.args(args);
        self.bounded(&build, Stdio::null())
    }

    /// Runs a client within the limit; the seconds it took.
    fn bounded(&self, client: &Command, stdout: impl Into<Stdio>) -> Result<f64> {
        let stderr = self.out.path().join("stderr");
        let mut bounded = Command::new("timeout");
        bounded
            .arg("--kill-after=5")
            .arg(BUILD_LIMIT.as_secs().to_string())
            .arg(client.get_program())
            .args(client.get_args())
            .stdin(Stdio::null())
            .stdout(stdout)
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

    /// Starts a daemon on a catalogue of so many records: seconds until its socket accepts, and its resident memory in
    /// MiB after the collector has looked for the first time.
    pub(super) fn start_filled(&self, records: u32) -> Result<(f64, f64)> {
        let root = Some(self.lab.filled(records));
        let start = Instant::now();
        let daemon = Daemon::start(self.binaries, DaemonOptions { root, ..DaemonOptions::default() })?;
        let took = start.elapsed().as_secs_f64();
        std::thread::sleep(FIRST_COLLECTION);
        let pid = daemon.pid().context("the daemon is gone")?;
        Ok((took, status_kib(pid, "VmRSS:") as f64 / 1024.0))
    }

    /// Seconds that one look-up, one insert and one removal take in a catalogue of so many records; measured once.
    pub(super) fn catalogue_costs(&self, records: u32) -> Result<[f64; 3]> {
        if let Some(costs) = self.costs.get() {
            return Ok(costs);
        }
        let mut cost = Command::new(self.lab.program("catalogue"));
        let out = Finished::run(cost.arg("cost").arg(self.lab.filled(records).join("kiln")))?.success()?;
        let numbers: Vec<f64> = out.stdout.lines().map(str::parse).collect::<Result<_, _>>()?;
        let costs = numbers.try_into().map_err(|_| anyhow::anyhow!("not three numbers:\n{}", out.stdout))?;
        self.costs.set(Some(costs));
        Ok(costs)
    }

    /// Removes every record; the seconds it took.
    pub(super) fn prune(&self) -> Result<f64> {
        let start = Instant::now();
        let pruned = self.daemon.run(&["prune", "--all", "--format={{json .}}"])?.success()?;
        let took = start.elapsed().as_secs_f64();
        eprintln!("{} records pruned", pruned.stdout.lines().count());
        Ok(took)
    }

    /// Resident memory of the daemon and its helpers after a moment without work, in MiB.
    pub(super) fn idle_memory(&self) -> Result<f64> {
        std::thread::sleep(IDLE);
        let mut tree = vec![self.daemon.pid().context("the daemon is gone")?];
        let mut kib = 0;
        while let Some(pid) = tree.pop() {
            kib += status_kib(pid, "VmRSS:");
            tree.extend(children(pid));
        }
        Ok(kib as f64 / 1024.0)
    }

    /// Notes what the daemon's root takes on its disk, for [`Stage::written`].
    pub(super) fn note_disk(&self) -> Result<()> {
        self.noted.set(Disk::of(&self.daemon.root())?);
        Ok(())
    }

    /// What it takes more than when it was noted.
    pub(super) fn written(&self) -> Result<Disk> {
        let (now, before) = (Disk::of(&self.daemon.root())?, self.noted.get());
        Ok(Disk { bytes: now.bytes - before.bytes, inodes: now.inodes - before.inodes })
    }

    /// The most resident memory that the daemon ever had, in MiB.
    pub(super) fn peak_memory(&self) -> Result<f64> {
        Ok(status_kib(self.daemon.pid().context("the daemon is gone")?, "VmHWM:") as f64 / 1024.0)
    }

    /// A text that no other call in this process returns.
    pub(super) fn unique() -> String {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        format!("change {}\n", NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Seconds since midnight of a time such as `2026-01-02T03:04:05.678Z`.
fn seconds_of_day(time: &str) -> Option<f64> {
    let (_, clock) = time.split_once('T')?;
    let mut fields = clock.trim_end_matches('Z').splitn(3, ':').map(|field| field.parse::<f64>().ok());
    Some(fields.next()?? * 3600.0 + fields.next()?? * 60.0 + fields.next()??)
}

/// A number of a process's status; zero for one that has just ended.
fn status_kib(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

fn middle(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("the client measured nothing")
}

fn p99(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * 99 / 100).copied().context("the client measured nothing")
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
