//! What is not done twice.

use anyhow::Result;
use kiln_tests::wait_for;

use crate::support::{LIMIT, Site, check_outcomes, mounts_below, processes_with, unique};

/// Two steps with an answer that differs each time they run, one of which depends on `used`.
const UNIQUE: &str = "ARG BASE\nFROM $BASE AS build\nRUN cat /proc/sys/kernel/random/uuid > /first\nCOPY used /used\n\
     RUN cat /used /proc/sys/kernel/random/uuid > /second\nFROM scratch\nCOPY --from=build /first /second /\n";

#[test]
fn the_same_build_again_runs_nothing() -> Result<()> {
    let mut site = Site::new(&[("Dockerfile", UNIQUE), ("used", "1\n")])?;
    let first = site.local(&[])?;
    let all_cached = [
        ("RUN cat /proc", "CACHED"),
        ("COPY used", "CACHED"),
        ("RUN cat /used", "CACHED"),
        ("COPY --from", "CACHED"),
    ];
    let again = site.local(&[])?;
    check_outcomes(&again.log, &all_cached);
    assert_eq!(again.tree()?, first.tree()?);

    assert_eq!(site.daemon.stop()?, Some(0), "{}", site.daemon.log());
    site.daemon.restart()?;
    let restarted = site.local(&[])?;
    check_outcomes(&restarted.log, &all_cached);
    assert_eq!(restarted.tree()?, first.tree()?);

    site.daemon.kill()?;
    site.daemon.restart()?;
    let killed = site.local(&[])?;
    check_outcomes(&killed.log, &all_cached);
    assert_eq!(killed.tree()?, first.tree()?);
    Ok(())
}

#[test]
fn a_touched_file_runs_what_depends_on_it() -> Result<()> {
    let site = Site::new(&[("Dockerfile", UNIQUE), ("used", "1\n"), ("unused", "1\n")])?;
    let first = site.local(&[])?;
    site.write(&[("unused", "other\n")])?;
    let same = site.local(&[])?;
    check_outcomes(&same.log, &[("COPY used", "CACHED"), ("RUN cat /used", "CACHED")]);
    site.write(&[("used", "2\n")])?;
    let changed = site.local(&[])?;
    check_outcomes(
        &changed.log,
        &[
            ("RUN cat /proc", "CACHED"),
            ("COPY used", "DONE"),
            ("RUN cat /used", "DONE"),
            ("COPY --from", "DONE"),
        ],
    );
    assert_eq!(changed.read("first")?, first.read("first")?);
    assert!(changed.read("second")?.starts_with("2\n"));
    // Back to the first content: its result is still known.
    site.write(&[("used", "1\n")])?;
    assert_eq!(site.local(&[])?.tree()?, first.tree()?);
    Ok(())
}

#[test]
fn a_changed_instruction_runs_what_follows() -> Result<()> {
    let site = Site::new(&[("Dockerfile", UNIQUE), ("used", "1\n")])?;
    let first = site.local(&[])?;
    let changed = site.dockerfile(&UNIQUE.replace("cat /used /proc", "cat  /used /proc"), &[])?;
    check_outcomes(
        &changed.log,
        &[("RUN cat /proc", "CACHED"), ("COPY used", "CACHED"), ("RUN cat  /used", "DONE")],
    );
    assert_eq!(changed.read("first")?, first.read("first")?);
    assert_ne!(changed.read("second")?, first.read("second")?);
    Ok(())
}

#[test]
fn no_cache_runs_all_or_the_named_stages() -> Result<()> {
    let site = Site::new(&[("Dockerfile", UNIQUE), ("used", "1\n")])?;
    let first = site.local(&[])?;
    for option in ["--no-cache", "--opt=no-cache=build"] {
        let again = site.local(&[option])?;
        check_outcomes(&again.log, &[("RUN cat /proc", "DONE"), ("RUN cat /used", "DONE")]);
        assert_ne!(again.read("first")?, first.read("first")?, "{option}");
    }
    Ok(())
}

#[test]
fn contents_count_and_not_times() -> Result<()> {
    let site = Site::new(&[("Dockerfile", UNIQUE), ("used", "1\n")])?;
    site.local(&[])?;
    std::fs::remove_file(site.context().join("used"))?;
    site.write(&[("used", "1\n")])?;
    check_outcomes(&site.local(&[])?.log, &[("COPY used", "CACHED"), ("RUN cat /used", "CACHED")]);
    Ok(())
}

/// Waits in a shell for a file in the shared mount, for at most `LIMIT`.
fn until(file: &str) -> String {
    format!("i=0; while [ ! -e /sync/{file} ]; do i=$((i+1)); [ $i -gt 600 ] && exit 9; sleep 0.05; done")
}

#[test]
fn independent_stages_run_at_the_same_time() -> Result<()> {
    let mount = "--mount=type=cache,target=/sync";
    let site = Site::new(&[(
        "Dockerfile",
        &format!(
            "ARG BASE\nFROM $BASE AS a\nRUN {mount} touch /sync/a; {}; touch /a\nFROM $BASE AS b\nRUN {mount} touch /sync/b; {}; touch /b\n\
             FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n",
            until("b"),
            until("a"),
        ),
    )])?;
    site.local(&[])?;
    Ok(())
}

/// A step that says in the shared mount that it runs, and then waits for leave. `mark` tells it from those of other tests.
/// Its output is not its text, so that a client that shows `it waits` has seen it run.
fn waiting_step(mark: &str) -> String {
    format!(
        "ARG BASE\nFROM $BASE AS slow\nRUN --mount=type=cache,target=/sync : {mark}; echo run >> /sync/runs; echo it' 'waits; {}; cat /sync/runs > /runs\n\
         FROM $BASE AS go\nARG NOW\nRUN --mount=type=cache,target=/sync touch /sync/go\n\
         FROM scratch\nCOPY --from=slow /runs /\n",
        until("go"),
    )
}

fn wait_for_end(mark: &str) -> Result<()> {
    wait_for("the step to be gone", LIMIT, None, || {
        processes_with(&format!(": {mark};")).is_ok_and(|p| p.is_empty())
    })
}

#[test]
fn two_clients_that_want_the_same_step_run_it_once() -> Result<()> {
    let mark = unique()?;
    let site = Site::new(&[("Dockerfile", &waiting_step(&mark))])?;
    let dirs = [tempfile::tempdir()?, tempfile::tempdir()?];
    let outputs = dirs.each_ref().map(|d| format!("--output=type=local,dest={}", d.path().display()));
    let one = site.start(&[&outputs[0]])?;
    one.wait_for("it waits")?;
    let two = site.start(&[&outputs[1]])?;
    two.wait_for("RUN --mount")?;
    site.build(&["--opt=target=go"])?.success()?;
    one.finish()?.success()?;
    two.finish()?.success()?;
    for dir in dirs {
        assert_eq!(std::fs::read_to_string(dir.path().join("runs"))?, "run\n");
    }
    Ok(())
}

#[test]
fn a_killed_client_stops_its_own_step() -> Result<()> {
    let mark = unique()?;
    let site = Site::new(&[("Dockerfile", &waiting_step(&mark))])?;
    let client = site.start(&[])?;
    client.wait_for("it waits")?;
    client.kill()?;
    wait_for_end(&mark)?;
    wait_for("its mounts to be gone", LIMIT, None, || {
        mounts_below(site.daemon.dir()).is_ok_and(|mounts| mounts.is_empty())
    })?;
    // The step was not finished, so it is not cached: it runs again, and this time to its end.
    site.build(&["--opt=target=go"])?.success()?;
    let built = site.local(&[])?;
    assert_eq!(built.read("runs")?, "run\nrun\n");
    Ok(())
}

#[test]
fn an_interrupted_client_ends_with_an_error() -> Result<()> {
    let mark = unique()?;
    let site = Site::new(&[("Dockerfile", &waiting_step(&mark))])?;
    let client = site.start(&[])?;
    client.wait_for("it waits")?;
    crate::support::run("kill", &["-INT", &client.id().to_string()])?;
    client.finish()?.failure()?;
    wait_for_end(&mark)
}

#[test]
fn a_killed_client_does_not_disturb_another() -> Result<()> {
    let mark = unique()?;
    let site = Site::new(&[("Dockerfile", &waiting_step(&mark))])?;
    let dir = tempfile::tempdir()?;
    let first = site.start(&[])?;
    first.wait_for("it waits")?;
    let second = site.start(&[&format!("--output=type=local,dest={}", dir.path().display())])?;
    second.wait_for("RUN --mount")?;
    first.kill()?;
    site.build(&["--opt=target=go"])?.success()?;
    second.finish()?.success()?;
    assert_eq!(std::fs::read_to_string(dir.path().join("runs"))?, "run\n");
    Ok(())
}

#[test]
fn a_killed_daemon_forgets_only_what_was_not_finished() -> Result<()> {
    let mark = unique()?;
    let mut site = Site::new(&[("Dockerfile", UNIQUE), ("used", "1\n")])?;
    let first = site.local(&[])?;
    site.write(&[("Dockerfile", &waiting_step(&mark))])?;
    let client = site.start(&[])?;
    client.wait_for("it waits")?;
    site.daemon.kill()?;
    client.finish()?.failure()?;
    site.daemon.restart()?;
    wait_for_end(&mark)?;
    let again = site.dockerfile(UNIQUE, &[])?;
    check_outcomes(&again.log, &[("RUN cat /proc", "CACHED"), ("RUN cat /used", "CACHED")]);
    assert_eq!(again.tree()?, first.tree()?);
    Ok(())
}
