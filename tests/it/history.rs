//! The history of builds: what has run is on record, with its log, its result and its error.

use anyhow::{Context as _, Result, ensure};
use kiln_tests::{DaemonOptions, Finished, wait_for};

use crate::support::{Client, LIMIT, Site, check_contains};

const HELLO: &str = "ARG BASE\nFROM $BASE\nRUN echo said by the step > /made && cat /made\n";
const FAILS: &str = "ARG BASE\nFROM $BASE\nRUN echo said by the failing step && exit 7\n";

/// A line of `debug histories`.
#[derive(Debug)]
struct Line {
    kind: String,
    id: String,
    pinned: bool,
}

fn histories(site: &Site) -> Result<Vec<Line>> {
    let table = site.daemon.run(&["debug", "histories"])?.success()?.stdout;
    let mut lines = table.lines();
    check_contains(lines.next().unwrap_or_default(), &["TYPE", "REF", "CREATED", "COMPLETED", "PINNED"]);
    let line = |line: &str| {
        let mut cells = line.split_whitespace().map(str::to_owned);
        let kind = cells.next().context("no type")?;
        let id = cells.next().with_context(|| format!("no ref in `{line}`"))?;
        Ok(Line { kind, id, pinned: cells.last().as_deref() == Some("*") })
    };
    lines.map(line).collect()
}

/// Builds this Dockerfile; returns the id of the build, and how it went.
fn build(site: &Site, dockerfile: &str, args: &[&str]) -> Result<(String, Finished)> {
    site.write(&[("Dockerfile", dockerfile)])?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("ref");
    let mut command = site.command(args)?;
    command.arg(format!("--ref-file={}", file.display()));
    let finished = Finished::run(&mut command)?;
    let id = std::fs::read_to_string(&file).context("no ref")?;
    Ok((id.trim().to_owned(), finished))
}

fn logs(site: &Site, id: &str) -> Result<String> {
    Ok(site.daemon.run(&["debug", "logs", "--progress=plain", id])?.success()?.stdout)
}

/// What a client that follows all builds is told, up to where all of `texts` have come.
fn monitor(site: &Site, texts: &[&str]) -> Result<String> {
    let out = tempfile::NamedTempFile::new()?;
    let mut command = site.daemon.buildctl();
    command.args(["debug", "monitor", "--completed"]).stdout(out.reopen()?);
    let mut child = command.spawn()?;
    let read = || std::fs::read_to_string(out.path()).unwrap_or_default();
    let told = || texts.iter().all(|text| read().contains(text));
    let waited = wait_for(&texts.join(", "), LIMIT, None, told);
    child.kill()?;
    child.wait()?;
    waited.with_context(read)?;
    Ok(read())
}

#[test]
fn builds_are_on_record_whatever_becomes_of_them() -> Result<()> {
    let mut site = Site::new(&[])?;
    ensure!(histories(&site)?.is_empty());
    let out = tempfile::tempdir()?;
    let output = format!("--output=type=oci,dest={}", out.path().join("image.tar").display());
    let (done, finished) = build(&site, HELLO, &[&output])?;
    finished.success()?;
    let (failed, finished) = build(&site, FAILS, &[])?;
    check_contains(&finished.failure()?.stderr, &["exit code: 7"]);
    // A client that goes in the middle of a step.
    site.write(&[("Dockerfile", "ARG BASE\nFROM $BASE\nRUN echo begun && sleep 600\n")])?;
    let client = site.start(&[])?;
    client.wait_for("begun")?;
    monitor(&site, &["event: COMPLETE ref:", "event: STARTED ref:", "  cache: "])?;
    client.kill()?;
    wait_for("three records", LIMIT, None, || histories(&site).is_ok_and(|all| all.len() == 3))?;

    for restarted in [false, true] {
        if restarted {
            site.daemon.stop()?;
            site.daemon.restart()?;
        }
        let all = histories(&site)?;
        ensure!(all.len() == 3 && all.iter().all(|line| line.kind == "COMPLETE" && !line.pinned), "{all:?}");
        ensure!(all.iter().any(|line| line.id == done) && all.iter().any(|line| line.id == failed));
        check_contains(&logs(&site, &done)?, &["said by the step", "RUN echo said by the step", "DONE"]);
        check_contains(&logs(&site, &failed)?, &["said by the failing step", "exit code: 7"]);
        let cancelled = all.iter().find(|line| line.id != done && line.id != failed).context("no third")?;
        check_contains(&logs(&site, &cancelled.id)?, &["begun", "CANCELED"]);
    }
    let told = monitor(&site, &["descriptor: "])?;
    let digest = told
        .lines()
        .find(|line| line.contains("descriptor: ") && line.contains("vnd.oci.image"))
        .and_then(|line| line.split("digest:\"").nth(1)?.split('"').next())
        .with_context(|| told.clone())?;
    let manifest = site.daemon.run(&["debug", "get", digest])?.success()?.stdout;
    check_contains(&manifest, &["\"schemaVersion\": 2"]);
    // What a record has stays, also when all of the cache goes.
    site.daemon.run(&["prune", "--all"])?.success()?;
    check_contains(&logs(&site, &done)?, &["said by the step"]);
    site.daemon.run(&["debug", "fsck"])?.success()?;
    let nobody = format!("sha256:{}", "0".repeat(64));
    check_contains(&site.daemon.run(&["debug", "get", &nobody])?.failure()?.stderr, &["not found"]);
    assert!(!site.daemon.log().contains("panicked"), "{}", site.daemon.log());
    Ok(())
}

#[test]
fn records_are_pinned_and_removed() -> Result<()> {
    let site = Site::new(&[])?;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let (id, finished) = build(&site, HELLO, &[])?;
        finished.success()?;
        ids.push(id);
    }
    let control = |id: &str, what: &str| site.daemon.run(&["debug", "ctl", what, id]);
    control(&ids[0], "--pin")?.success()?;
    let pinned: Vec<_> = histories(&site)?.into_iter().filter(|line| line.pinned).map(|l| l.id).collect();
    assert_eq!(pinned, [ids[0].as_str()]);
    control(&ids[1], "--delete")?.success()?;
    check_contains(&control(&ids[1], "--delete")?.failure()?.stderr, &["failed to retrieve ref", &ids[1]]);
    let removed = site.daemon.run(&["prune-histories"])?.success()?.stdout;
    check_contains(&removed, &[&ids[2]]);
    let left = histories(&site)?;
    assert!(left.len() == 1 && left[0].id == ids[0], "{left:?}");
    control(&ids[0], "--unpin")?.success()?;
    site.daemon.run(&["prune-histories"])?.success()?;
    assert!(histories(&site)?.is_empty());
    // Nothing of them is left among the blobs.
    site.daemon.run(&["prune", "--all"])?.success()?;
    let blobs =
        || std::fs::read_dir(site.daemon.root().join("kiln/content/blobs/sha256")).map(Iterator::count);
    wait_for("no log", LIMIT, None, || {
        let text = |entry: std::io::Result<std::fs::DirEntry>| {
            std::fs::read(entry.ok()?.path()).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let dir = std::fs::read_dir(site.daemon.root().join("kiln/content/blobs/sha256"));
        dir.is_ok_and(|dir| dir.filter_map(text).all(|text| !text.contains("said by the step")))
    })
    .with_context(|| format!("{:?} blobs", blobs()))?;
    Ok(())
}

#[test]
fn old_records_go() -> Result<()> {
    let config = "[history]\nmaxAge = 0\nmaxEntries = 2\n".to_owned();
    let mut site = Site::with_options(&[], DaemonOptions { config, ..DaemonOptions::default() })?;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(build(&site, HELLO, &[])?.0);
        // Before it may be one too many.
        site.daemon.run(&["debug", "ctl", "--pin", &ids[0]])?.success()?;
    }
    site.daemon.stop()?;
    site.daemon.restart()?;
    let wanted = [&ids[0], &ids[2], &ids[3]];
    wait_for("the older ones to go", LIMIT, None, || {
        histories(&site).is_ok_and(|left| {
            left.len() == wanted.len() && left.iter().all(|line| wanted.contains(&&line.id))
        })
    })?;
    Ok(())
}

#[test]
fn a_lost_log_is_said_to_be_lost() -> Result<()> {
    let site = Site::new(&[])?;
    let (id, finished) = build(&site, HELLO, &[])?;
    finished.success()?;
    check_contains(&logs(&site, &id)?, &["said by the step"]);
    for entry in std::fs::read_dir(site.daemon.root().join("kiln/content/blobs/sha256"))? {
        std::fs::remove_file(entry?.path())?;
    }
    let lost = site.daemon.run(&["debug", "logs", "--progress=plain", &id])?.failure()?;
    check_contains(&lost.stderr, &["the log of build", "is lost"]);
    assert_eq!(histories(&site)?.len(), 1);
    let (_, finished) = build(&site, HELLO, &[])?;
    finished.success()?;
    let client = Client::start(&mut site.command(&[])?)?;
    client.finish()?.success()?;
    assert_eq!(histories(&site)?.len(), 3);
    Ok(())
}
