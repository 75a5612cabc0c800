//! Cancelled steps: their processes end soon, all of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kiln_tests::{DaemonOptions, wait_for};

use crate::support::{Client, LIMIT, Site, processes_with, signal, unique};

/// How long processes may outlive their client.
const PROMISED: Duration = Duration::from_secs(2);

/// Does what it can not to be found: ignores signals, leaves its session, and has parents that are gone.
const STUBBORN: &str = r#"trap '' TERM INT HUP QUIT;
  (trap '' TERM INT HUP; setsid sh -c 'trap "" TERM HUP; setsid sleep 1000 & sleep 1000; :' &);
  ( ( sh -c 'trap "" TERM; while :; do sleep 1; done' & ) & );
  sh -c 'nohup sleep 1000 >/dev/null 2>&1 & exit 0';
  echo ready; sleep 1000; :"#;

/// Processes that share a PID namespace with `link`, as `/proc/<pid>/ns/pid` reads.
fn inside(link: &std::path::Path) -> Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir("/proc")? {
        // A process may end while it is looked at.
        found +=
            usize::from(std::fs::read_link(entry?.path().join("ns/pid")).is_ok_and(|other| other == link));
    }
    Ok(found)
}

/// Ends a build whose step has a tree of stubborn processes; they are gone in time.
#[track_caller]
fn check(options: DaemonOptions, args: &[&str], end: impl FnOnce(Client) -> Result<()>) -> Result<()> {
    let mark = unique()?;
    let script = STUBBORN.replace('\n', " ");
    let site = Site::with_options(
        &[("Dockerfile", &format!("ARG BASE\nFROM $BASE\nRUN : {mark}; {script}\n"))],
        options,
    )?;
    let client = site.start(args)?;
    let running = || processes_with(&format!(": {mark};"));
    wait_for("the step to run", LIMIT, None, || running().is_ok_and(|found| !found.is_empty()))?;
    let mut pids = running()?;
    pids.sort_unstable();
    // The runtime's own process may be seen for a moment; the step's is the last one.
    let pid = pids.last().context("no step")?;
    let namespace = std::fs::read_link(format!("/proc/{pid}/ns/pid"))?;
    ensure!(namespace != std::fs::read_link("/proc/self/ns/pid")?, "the step has a namespace of its own");
    wait_for("all its processes", LIMIT, None, || inside(&namespace).is_ok_and(|count| count >= 6))?;
    end(client)?;
    let since = Instant::now();
    wait_for("the step to be gone", LIMIT, None, || inside(&namespace).is_ok_and(|count| count == 0))?;
    let took = since.elapsed();
    assert!(took < PROMISED, "the last process was gone after {took:?}");
    site.dockerfile("ARG BASE\nFROM $BASE\nRUN true\n", &[])?;
    Ok(())
}

#[test]
fn nothing_outlives_a_client_that_is_killed() -> Result<()> {
    check(DaemonOptions::default(), &[], Client::kill)
}

#[test]
fn nothing_outlives_a_client_that_is_interrupted() -> Result<()> {
    check(DaemonOptions::default(), &[], |client| signal("INT", client.id()).map(|()| drop(client)))
}

#[test]
fn nothing_outlives_a_time_limit() -> Result<()> {
    check(DaemonOptions::default(), &["--opt=kiln.step-timeout=4s"], |client| {
        client.finish()?.failure().map(drop)
    })
}
