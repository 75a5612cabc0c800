//! Builds of several clients at once: what they share runs once, each gets its turns, and none disturbs another.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use kiln_tests::{DaemonOptions, Finished, wait_for};

use crate::support::{Client, LIMIT, Site, outcome, signal, unique};

/// Clients that build at once.
const CLIENTS: usize = 20;
/// Steps of each, half of them shared with all others.
const STEPS: usize = 8;
/// Environment variable: rounds of builds, two unless given.
const ROUNDS: &str = "KILN_ROUNDS";

/// A step that leaves a line in a file that outlives it: what runs twice is seen twice.
fn counted(line: &str) -> String {
    format!("RUN --mount=type=cache,target=/c,id=count echo {line} >> /c/lines; echo {line} >> /made\n")
}

/// The lines that counted steps have left, and how often each.
fn counts(site: &Site) -> Result<BTreeMap<String, usize>> {
    let built = site.dockerfile(
        "ARG BASE\nFROM $BASE AS b\nARG NOW\nRUN --mount=type=cache,target=/c,id=count cat /c/lines > /out\nFROM scratch\nCOPY --from=b /out /\n",
        &[&format!("--opt=build-arg:NOW={}", unique()?)],
    )?;
    let mut counts = BTreeMap::new();
    for line in built.read("out")?.lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

#[test]
fn what_twenty_clients_share_runs_once() -> Result<()> {
    let rounds: usize = std::env::var(ROUNDS).map_or(Ok(2), |text| text.parse())?;
    let mut dockerfile = "ARG BASE\nFROM $BASE AS shared\nARG ROUND\n".to_owned();
    (0..STEPS / 2).for_each(|step| dockerfile.push_str(&counted(&format!("shared-$ROUND-{step}"))));
    dockerfile.push_str("FROM $BASE AS own\nARG ROUND\nARG CLIENT\n");
    (0..STEPS / 2).for_each(|step| dockerfile.push_str(&counted(&format!("own-$ROUND-{step}-$CLIENT"))));
    dockerfile.push_str("FROM scratch\nCOPY --from=shared /made /shared\nCOPY --from=own /made /own\n");
    let site = Site::new(&[("Dockerfile", &dockerfile)])?;
    let mut want = BTreeMap::new();
    for round in 0..rounds {
        let start = |client: usize| {
            let (round, client) = (format!("build-arg:ROUND={round}"), format!("build-arg:CLIENT={client}"));
            site.start(&["--opt", &round, "--opt", &client])
        };
        let clients = (0..CLIENTS).map(start).collect::<Result<Vec<Client>>>()?;
        for client in clients {
            client.finish()?.success().with_context(|| format!("in round {round}"))?;
        }
        for step in 0..STEPS / 2 {
            want.insert(format!("shared-{round}-{step}"), 1);
            want.extend((0..CLIENTS).map(|client| (format!("own-{round}-{step}-{client}"), 1)));
        }
    }
    let got = counts(&site)?;
    let wrong: Vec<_> = want.iter().filter(|(line, times)| got.get(*line) != Some(times)).collect();
    assert!(got == want, "wanted {wrong:?}, counted {got:?}");
    Ok(())
}

#[test]
fn a_small_build_does_not_wait_behind_anothers_hundred_steps() -> Result<()> {
    const MANY: usize = 60;
    let options =
        DaemonOptions { config: "[worker.oci]\nmax-parallelism = 1\n".into(), ..DaemonOptions::default() };
    let mount = "--mount=type=cache,target=/c,id=count";
    let mut dockerfile = "ARG BASE\n".to_owned();
    for step in 0..MANY {
        write!(
            dockerfile,
            "FROM $BASE AS s{step}\nRUN {mount} sleep 0.2; echo {step} >> /c/lines; : > /made\n"
        )?;
    }
    dockerfile.push_str("FROM scratch\n");
    (0..MANY).for_each(|step| dockerfile.push_str(&format!("COPY --from=s{step} /made /{step}\n")));
    let site = Site::with_options(&[("Dockerfile", &dockerfile)], options)?;
    let large = site.start(&[])?;
    large.wait_for("sleep 0.2")?;
    let small = counts(&site)?.len();
    assert!(small < MANY / 2, "{small} of {MANY} steps of the other build ran first");
    large.finish()?.success()?;
    assert_eq!(counts(&site)?.len(), MANY);
    Ok(())
}

/// Two clients wait for one long step; one of them is ended in some way while it runs. The other does not notice.
#[track_caller]
fn check_partner(end: impl FnOnce(Client) -> Result<Option<Client>>) -> Result<()> {
    let mark = unique()?;
    // It goes on when a file appears, which no client's end makes.
    let step = format!(
        "RUN --mount=type=cache,target=/c,id=gate echo {mark} >> /c/runs; until [ -e /c/{mark} ]; do yes | head -c 20000; done; cat /c/runs > /out"
    );
    let site = Site::new(&[(
        "Dockerfile",
        &format!("ARG BASE\nFROM $BASE AS b\n{step}\nFROM scratch\nCOPY --from=b /out /\n"),
    )])?;
    let victim = site.start(&[])?;
    victim.wait_for("y\n")?;
    let dir = tempfile::tempdir()?;
    let output = format!("--output=type=local,dest={}", dir.path().display());
    let partner = site.start(&[&output])?;
    partner.wait_for("y\n")?;
    let stopped = end(victim)?;
    let context = tempfile::tempdir()?;
    std::fs::write(
        context.path().join("Dockerfile"),
        format!("ARG BASE\nFROM $BASE\nRUN --mount=type=cache,target=/c,id=gate : > /c/{mark}\n"),
    )?;
    let mut command = site.daemon.build_command(context.path());
    command.arg(format!("--opt=build-arg:BASE={}", crate::support::hub()?.base));
    Finished::run(&mut command)?.success()?;
    let log = partner.finish()?.success()?.stderr;
    assert_eq!(outcome(&log, "RUN --mount"), "DONE", "{log}");
    assert_eq!(std::fs::read_to_string(dir.path().join("out"))?, format!("{mark}\n"), "it ran once");
    drop(stopped);
    Ok(())
}

#[test]
fn a_client_that_is_killed_disturbs_nobody() -> Result<()> {
    check_partner(|victim| victim.kill().map(|()| None))
}

#[test]
fn a_client_that_is_interrupted_disturbs_nobody() -> Result<()> {
    check_partner(|victim| {
        signal("INT", victim.id())?;
        victim.finish()?.failure().map(|_| None)
    })
}

/// A stopped process reads nothing and answers nothing, as one whose network is gone.
#[test]
fn a_client_that_stalls_disturbs_nobody() -> Result<()> {
    check_partner(|victim| {
        signal("STOP", victim.id())?;
        Ok(Some(victim))
    })
}

#[test]
fn a_stalled_client_does_not_keep_the_daemon_from_working() -> Result<()> {
    let site = Site::new(&[("Dockerfile", "ARG BASE\nFROM $BASE\nRUN echo begun; sleep 1000\n")])?;
    let stalled = site.start(&[])?;
    stalled.wait_for("begun")?;
    signal("STOP", stalled.id())?;
    for step in 0..3 {
        site.dockerfile(&format!("ARG BASE\nFROM $BASE\nRUN echo {step}\n"), &[])?;
    }
    signal("CONT", stalled.id())?;
    stalled.kill()?;
    wait_for("its step to end", LIMIT, None, || {
        crate::support::processes_with("echo begun; sleep 1000").is_ok_and(|left| left.is_empty())
    })
}
