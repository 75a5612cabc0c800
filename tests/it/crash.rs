//! A daemon that is killed at any moment of a mixed load. `KILN_KILLS` says how often (30 times without it).

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kiln_tests::{Binaries, Daemon, DaemonOptions, Finished, wait_for};

use crate::support::{LIMIT, check_outcomes, hub, push_layers, run, signal, unique};

const KILLS: &str = "KILN_KILLS";
/// Kills of a short run.
const FEW: u32 = 30;
/// The longest time from a start to a kill, in builds that nothing else goes on beside.
const LONGEST: f64 = 1.5;
/// A start may take this long; on a machine with nothing else to do it is a small part of it.
const START: Duration = Duration::from_secs(1);
/// Completed builds that are looked for after each kill.
const LOOKED_FOR: usize = 3;

const STEPS: &str = "ARG BASE
FROM $BASE AS made
ARG MARK
COPY file /file
RUN --mount=type=cache,target=/c echo $MARK > /mark && cp /mark /c && cat /proc/sys/kernel/random/uuid > /once
RUN cat /mark /file /once > /all
FROM scratch
COPY --from=made /mark /file /once /all /
";

/// A build whose client was told that it is done.
#[derive(Clone, Debug)]
struct Done {
    client: usize,
    mark: String,
    once: String,
}

struct Load<'a> {
    daemon: &'a Daemon,
    base: &'a str,
    pulled: &'a str,
    contexts: &'a [tempfile::TempDir],
    next: &'a AtomicU32,
    done: &'a Mutex<Vec<Done>>,
}

impl Load<'_> {
    /// Eight characters, so that contexts differ in content alone.
    fn mark(&self) -> String {
        format!("m{:07}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn build(&self, client: usize, mark: &str) -> Result<(Finished, tempfile::TempDir)> {
        let context = self.contexts[client].path();
        std::fs::write(context.join("file"), mark)?;
        let out = tempfile::tempdir()?;
        let mut command = self.daemon.build_command(context);
        command
            .arg(format!("--opt=build-arg:BASE={}", self.base))
            .arg(format!("--opt=build-arg:MARK={mark}"))
            .arg(format!("--output=type=local,dest={}", out.path().display()));
        Ok((Finished::run(&mut command)?, out))
    }

    /// Builds one thing after another until the daemon has gone.
    fn builds(&self, client: usize) -> Result<()> {
        loop {
            let mark = self.mark();
            let (finished, out) = self.build(client, &mark)?;
            if finished.code != 0 {
                return gone(&finished);
            }
            let once = right(out.path(), &mark)?;
            lock(self.done).push(Done { client, mark, once });
        }
    }

    /// Pulls an image again and again that another client prunes, and exports what comes of it.
    fn pulls(&self) -> Result<()> {
        let context = tempfile::tempdir()?;
        let dockerfile = format!("FROM {}\nCOPY --from={} /one /again\n", self.pulled, self.pulled);
        std::fs::write(context.path().join("Dockerfile"), dockerfile)?;
        loop {
            let out = tempfile::tempdir()?;
            let archive = out.path().join("image.tar");
            let mut command = self.daemon.build_command(context.path());
            command.arg(format!("--output=type=oci,dest={},compression=zstd", archive.display()));
            let finished = Finished::run(&mut command)?;
            if finished.code != 0 {
                return gone(&finished);
            }
            run("tar", &["-tf", &archive.display().to_string()])?;
        }
    }

    fn prunes(&self) -> Result<()> {
        loop {
            let pruned = self.daemon.run(&[
                "prune",
                "--filter=description~=/kills",
                "--filter=type==exec.cachemount",
            ])?;
            if pruned.code != 0 {
                return Ok(());
            }
        }
    }
}

/// A build ends with an error only because there is no daemon any more.
fn gone(finished: &Finished) -> Result<()> {
    let because = [
        "transport error",
        "connection",
        "closed",
        "refused",
        "broken pipe",
        "EOF",
        "unavailable",
        "canceled",
    ];
    let text = finished.stderr.to_lowercase();
    let known = because.iter().any(|one| text.contains(&one.to_lowercase()));
    ensure!(known, "failed for another reason:\n{}", finished.stderr);
    Ok(())
}

/// Fails unless a build's output is that of its mark; what it has made once.
fn right(out: &Path, mark: &str) -> Result<String> {
    let read = |name: &str| std::fs::read_to_string(out.join(name)).with_context(|| format!("no `{name}`"));
    let (made, file, once, all) = (read("mark")?, read("file")?, read("once")?, read("all")?);
    ensure!(made == format!("{mark}\n"), "the mark of `{mark}` is `{made}`");
    ensure!(file == mark, "the file of `{mark}` is `{file}`");
    ensure!(all == format!("{made}{file}{once}"), "the sum of `{mark}` is `{all}`");
    Ok(once)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An image of two layers that only this test knows.
fn image() -> Result<String> {
    let dir = tempfile::tempdir()?;
    let mut layers = Vec::new();
    for name in ["one", "two"] {
        let tree = dir.path().join(name);
        std::fs::create_dir(&tree)?;
        std::fs::write(tree.join(name), unique()?.repeat(20_000))?;
        let tar = dir.path().join(format!("{name}.tar"));
        run("tar", &["-C", &tree.display().to_string(), "-cf", &tar.display().to_string(), name])?;
        layers.push(tar);
    }
    push_layers(&hub()?.registry, "kills", &layers)
}

/// How long a build takes here, once the base image is there.
fn one_build(daemon: &Daemon, base: &str, contexts: &[tempfile::TempDir]) -> Result<Duration> {
    let (next, done) = (AtomicU32::new(9_000_000), Mutex::default());
    let load = Load { daemon, base, pulled: base, contexts, next: &next, done: &done };
    load.build(0, &load.mark())?.0.success()?;
    Ok(load.build(0, &load.mark())?.0.success()?.took)
}

#[test]
#[expect(clippy::print_stderr, reason = "the figures of a run by hand")]
fn a_daemon_killed_at_any_moment_loses_nothing() -> Result<()> {
    let kills = match std::env::var(KILLS) {
        Ok(text) => text.parse().with_context(|| format!("{KILLS}={text}"))?,
        Err(_) => FEW,
    };
    let pulled = image()?;
    let base = hub()?.base.clone();
    let contexts = [tempfile::tempdir()?, tempfile::tempdir()?];
    for context in &contexts {
        std::fs::write(context.path().join("Dockerfile"), STEPS)?;
    }
    let mut daemon = Daemon::start(&Binaries::from_env()?, DaemonOptions::default())?;
    let (next, done) = (AtomicU32::new(0), Mutex::new(Vec::new()));
    let longest = LONGEST * one_build(&daemon, &base, &contexts)?.as_secs_f64();
    let mut random = std::process::id().into();
    let mut starts = Vec::new();
    for kill in 0..kills {
        let pid = daemon.pid().context("no daemon")?;
        let load = Load {
            daemon: &daemon,
            base: &base,
            pulled: &pulled,
            contexts: &contexts,
            next: &next,
            done: &done,
        };
        let before = lock(&done).len();
        std::thread::scope(|scope| -> Result<()> {
            let clients = [
                scope.spawn(|| load.builds(0)),
                scope.spawn(|| load.builds(1)),
                scope.spawn(|| load.pulls()),
                scope.spawn(|| load.prunes()),
            ];
            // Any moment is right; what has happened until then differs from kill to kill.
            let part = below(&mut random, 1 << 32) as f64 / f64::from(u32::MAX);
            // Every second time some build is completed first, however slow the machine is now.
            let completed = match kill % 2 {
                0 => Ok(()),
                _ => wait_for("a build", LIMIT, None, || lock(&done).len() > before),
            };
            std::thread::sleep(Duration::from_secs_f64(longest * part));
            signal("KILL", pid)?;
            completed?;
            for client in clients {
                client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            Ok(())
        })
        .with_context(|| format!("kill {kill}\n{}", daemon.log()))?;

        daemon.kill()?;
        let start = Instant::now();
        daemon.restart()?;
        starts.push(start.elapsed());
        let check = daemon.run(&["debug", "fsck", "--digests", "--format=json"])?;
        let worse: Vec<_> =
            check.stdout.lines().filter(|line| !line.contains(r#""gravity":"litter""#)).collect();
        ensure!(worse.is_empty() && check.code == 0, "kill {kill}: {check:?}");
        // What was completed is cached, and is what it was.
        let load = Load {
            daemon: &daemon,
            base: &base,
            pulled: &pulled,
            contexts: &contexts,
            next: &next,
            done: &done,
        };
        let completed: Vec<Done> = lock(&done).clone();
        let newest = completed.iter().rev().take(LOOKED_FOR.min(completed.len() - before));
        let any = (!completed.is_empty()).then(|| {
            &completed[usize::try_from(below(&mut random, completed.len() as u64)).unwrap_or_default()]
        });
        for Done { client, mark, once } in newest.chain(any) {
            let (finished, out) = load.build(*client, mark)?;
            let log = finished.success().with_context(|| format!("kill {kill}, {mark}"))?.stderr;
            check_outcomes(&log, &[("RUN cat /mark", "CACHED")]);
            ensure!(right(out.path(), mark)? == *once, "kill {kill}: {mark} was made again\n{log}");
        }
    }
    starts.sort();
    let median = starts[starts.len() / 2];
    if std::env::var_os(KILLS).is_some() {
        let (completed, slowest) = (lock(&done).len(), starts[starts.len() - 1]);
        eprintln!(
            "{kills} kills, {completed} builds completed; starts: median {median:?}, slowest {slowest:?}"
        );
    }
    ensure!(median < START, "half of the starts took longer than {median:?}: {starts:?}");
    ensure!(lock(&done).len() > kills as usize / 4, "hardly anything was completed");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    Ok(())
}

/// A number below `limit`, of a xorshift generator.
fn below(state: &mut u64, limit: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % limit.max(1)
}
