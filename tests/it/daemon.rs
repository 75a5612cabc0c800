//! The daemon as a program: its settings, its start and its end.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use kiln_tests::{Binaries, Daemon, DaemonOptions, Finished, wait_for};

use crate::support::{LIMIT, Site, check_contains, mounts_below, processes_with, unique};

#[test]
fn bad_settings_are_clear_errors() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("root").display().to_string();
    let address = format!("unix://{}/s.sock", dir.path().display());
    let config = dir.path().join("buildkitd.toml");
    let cases: &[(&[&str], &str, &[&str])] = &[
        (&["--nonsense"], "", &["--nonsense"]),
        (&["--oci-max-parallelism=many"], "", &["many", "oci-max-parallelism"]),
        (&[], "[worker.oci]\nmax-paralelism = 3\n", &["max-paralelism", "line 2"]),
        (&[], "[worker.oci\n", &["line 1"]),
        (&[], "root = 5\n", &["root", "line 1"]),
        (&[], "[worker.oci]\nreservedSpace = \"lots\"\n", &["lots"]),
        (&["--log-level=loud"], "", &["unsupported log level", "loud"]),
        (&["--addr=nowhere"], "", &["address nowhere does not contain proto, you meant unix://nowhere ?"]),
        (&["--addr=ftp://x"], "", &["addr ftp://x not supported"]),
        (&["--tlscert=/x"], "", &["you must specify key and cert file if one is specified"]),
        (&["--allow-insecure-entitlement=everything"], "", &["invalid entitlement : everything"]),
        (&["--oci-worker-net=token-ring"], "", &["invalid network mode: \"token-ring\""]),
        (
            &["--oci-worker-net=cni", "--oci-cni-config-path=/no/such.json"],
            "",
            &["network mode cni needs a configuration", "/no/such.json"],
        ),
        (
            &["--oci-worker-net=bridge", "--oci-cni-binary-dir=/nowhere"],
            "",
            &["network mode bridge is not available", "CNI plugin `bridge` is not in `/nowhere`"],
        ),
        (&["--oci-worker-net=bridge"], "[worker.oci]\nbridgeSubnet = \"ten\"\n", &["bridgeSubnet \"ten\""]),
        (&["--oci-worker-snapshotter=tape"], "", &["unknown snapshotter name: \"tape\""]),
        (&["--oci-worker=false"], "", &["no worker found"]),
        (&["--oci-worker-binary=/no/such/runtime"], "", &["/no/such/runtime"]),
        (
            &[],
            "[system]\nmaxRegistryConcurrency = 0\n",
            &["maxRegistryConcurrency must be greater than zero"],
        ),
    ];
    for (args, text, want) in cases {
        std::fs::write(&config, text)?;
        let mut command = Binaries::from_env()?.command("buildkitd");
        command.args(["--root", &root, "--config", &config.display().to_string()]);
        if !args.iter().any(|a| a.starts_with("--addr")) {
            command.args(["--addr", &address]);
        }
        let failed =
            Finished::run(command.args(*args))?.failure().with_context(|| format!("{args:?} {text}"))?;
        check_contains(&failed.stderr, want);
        assert!(!failed.stderr.contains("panicked"), "{}", failed.stderr);
    }
    Ok(())
}

#[test]
fn settings_without_effect_are_named_once() -> Result<()> {
    let options = DaemonOptions {
        args: vec!["--containerd-cni-pool-size=3".into(), "--profile-cpu=/dev/null".into()],
        config: "[otel]\nsocketPath = \"/tmp/x\"\n[worker.oci]\nmax-parallelism = 2\n".into(),
        ..DaemonOptions::default()
    };
    let daemon = Daemon::start(&Binaries::from_env()?, options)?;
    let log = daemon.log();
    let warnings: Vec<_> = log.lines().filter(|l| l.contains("no effect")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    check_contains(warnings[0], &["containerd-cni-pool-size", "otel.socketPath", "profile-cpu"]);
    assert!(!warnings[0].contains("max-parallelism"), "{log}");
    Ok(())
}

#[test]
fn one_daemon_per_root() -> Result<()> {
    let daemon = Daemon::start(&Binaries::from_env()?, DaemonOptions::default())?;
    let dir = tempfile::tempdir()?;
    let second = |address: &str| {
        let mut command = Binaries::from_env()?.command("buildkitd");
        Finished::run(command.arg("--root").arg(daemon.root()).args(["--addr", address]))?.failure()
    };
    let failed = second(&format!("unix://{}/s.sock", dir.path().display()))?;
    check_contains(&failed.stderr, &["could not lock", "another instance running?"]);
    daemon.run(&["debug", "workers"])?.success()?;
    Ok(())
}

/// Directories of the control groups of a process that this one is not in.
fn cgroups(pid: u32) -> Result<Vec<std::path::PathBuf>> {
    let own = std::fs::read_to_string("/proc/self/cgroup")?;
    let mut dirs = Vec::new();
    for line in std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?.lines().filter(|l| !own.contains(l)) {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        dirs.push(std::path::Path::new("/sys/fs/cgroup").join(name).join(path.trim_start_matches('/')));
    }
    Ok(dirs)
}

#[test]
fn sigterm_ends_it_and_leaves_nothing_behind() -> Result<()> {
    let mark = unique()?;
    let mut site =
        Site::new(&[("Dockerfile", &format!("ARG BASE\nFROM $BASE\nRUN : {mark}; sleep 1000; :\n"))])?;
    let running = || processes_with(&format!(": {mark};"));
    let client = site.start(&[])?;
    wait_for("the step to run", LIMIT, None, || running().is_ok_and(|p| !p.is_empty()))?;
    let groups = cgroups(running()?.first().copied().context("no step")?)?;
    assert_eq!(site.daemon.stop()?, Some(0), "{}", site.daemon.log());
    client.finish()?.failure()?;
    assert_eq!(running()?, Vec::<u32>::new());
    assert_eq!(mounts_below(site.daemon.dir())?, Vec::<String>::new());
    assert!(!site.daemon.dir().join("buildkitd.sock").exists());
    let left: Vec<_> = groups.iter().filter(|group| group.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn a_killed_daemon_is_cleaned_up_after() -> Result<()> {
    let mark = unique()?;
    let mut site =
        Site::new(&[("Dockerfile", &format!("ARG BASE\nFROM $BASE\nRUN : {mark}; sleep 1000; :\n"))])?;
    let running = || processes_with(&format!(": {mark};"));
    let client = site.start(&[])?;
    wait_for("the step to run", LIMIT, None, || running().is_ok_and(|p| !p.is_empty()))?;
    site.daemon.kill()?;
    client.finish()?.failure()?;
    site.daemon.restart()?;
    wait_for("the step to be gone", LIMIT, None, || running().is_ok_and(|p| p.is_empty()))?;
    wait_for("its mounts to be gone", LIMIT, None, || {
        mounts_below(site.daemon.dir()).is_ok_and(|m| m.is_empty())
    })?;
    site.dockerfile("ARG BASE\nFROM $BASE\nRUN true\n", &[])?;
    Ok(())
}

#[test]
fn it_says_what_it_is() -> Result<()> {
    let version = Finished::run(Binaries::from_env()?.command("buildkitd").arg("--version"))?.success()?;
    check_contains(&version.stdout, &["buildkitd github.com/moby/buildkit v0."]);
    let options = DaemonOptions {
        args: vec!["--oci-worker-labels=colour=green".into()],
        config: "[worker.oci.labels]\nshape = \"round\"\n".into(),
        ..DaemonOptions::default()
    };
    let daemon = Daemon::start(&Binaries::from_env()?, options)?;
    let workers = daemon.run(&["debug", "workers", "--verbose"])?.success()?.stdout;
    check_contains(
        &workers,
        &[
            "linux/amd64",
            "org.mobyproject.buildkit.worker.executor",
            "org.mobyproject.buildkit.worker.snapshotter",
            "overlayfs",
            "colour",
            "green",
            "shape",
            "round",
        ],
    );
    check_contains(&daemon.run(&["debug", "info"])?.success()?.stdout, &["github.com/moby/buildkit", "v0."]);
    Ok(())
}

#[test]
fn usage_is_shown_and_pruned() -> Result<()> {
    let site = Site::new(&[("Dockerfile", "ARG BASE\nFROM $BASE\nRUN head -c 3000000 /dev/zero > /big\n")])?;
    site.build(&[])?.success()?;
    let used = site.daemon.run(&["du"])?.success()?.stdout;
    check_contains(&used, &["ID", "RECLAIMABLE", "Reclaimable:", "Total:"]);
    assert!(used.contains("3.0") && used.contains("MB"), "{used}");
    let verbose = site.daemon.run(&["du", "--verbose"])?.success()?.stdout;
    check_contains(&verbose, &["Description:", "pulled from", "local source for context"]);
    let pruned = site.daemon.run(&["prune", "--all"])?.success()?.stdout;
    check_contains(&pruned, &["Total:", "MB"]);
    let left = site.daemon.run(&["du"])?.success()?.stdout;
    check_contains(&left, &["Total:\t\t0B"]);
    let again = site.local(&[])?;
    assert_eq!(crate::support::outcome(&again.log, "RUN head"), "DONE");
    Ok(())
}

#[test]
fn dial_stdio_carries_a_connection() -> Result<()> {
    let site = Site::new(&[])?;
    let mut child = site
        .daemon
        .buildctl()
        .arg("dial-stdio")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut input = child.stdin.take().context("no pipe")?;
    // The client preface of HTTP/2 and an empty SETTINGS frame; the server answers with its own SETTINGS.
    input.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    input.flush()?;
    let mut answer = [0; 9];
    child.stdout.as_mut().context("no pipe")?.read_exact(&mut answer)?;
    assert_eq!(answer[3], 4, "{answer:?}");
    drop(input);
    drop(child.stdout.take());
    child.wait()?;
    Ok(())
}

#[test]
fn it_listens_on_several_addresses() -> Result<()> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let options =
        DaemonOptions { args: vec!["--addr".into(), format!("tcp://{port}")], ..DaemonOptions::default() };
    let site = Site::with_options(&[], options)?;
    for address in [site.daemon.address(), format!("tcp://{port}")] {
        let mut command = Binaries::from_env()?.command("buildctl");
        Finished::run(command.args(["--addr", &address, "debug", "workers"]))?.success()?;
        let mut command = Binaries::from_env()?.command("buildctl");
        Finished::run(command.env("BUILDKIT_HOST", &address).args(["debug", "workers"]))?.success()?;
    }
    Ok(())
}

#[test]
fn parallelism_is_bounded_as_configured() -> Result<()> {
    let options =
        DaemonOptions { config: "[worker.oci]\nmax-parallelism = 1\n".into(), ..DaemonOptions::default() };
    let site = Site::with_options(&[], options)?;
    let step = "RUN --mount=type=cache,target=/c mkdir /c/busy && sleep 0.2 && rmdir /c/busy && touch /done";
    site.dockerfile(
        &format!(
            "ARG BASE\nFROM $BASE AS a\n{step}\nFROM $BASE AS b\n{step} /b\nFROM $BASE AS c\n{step} /c\nFROM scratch\n\
             COPY --from=a /done /1\nCOPY --from=b /done /2\nCOPY --from=c /done /3\n"
        ),
        &[],
    )?;
    Ok(())
}
