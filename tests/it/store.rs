//! The stores under a live daemon: what they lose is a miss, what they hold is counted, what kills them is survived.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use kiln_tests::{Binaries, DaemonOptions, Finished};

use crate::support::{Site, check_contains};

/// Steps, copies, a context, a cache mount, and stages that stand on each other.
const MIXED: &str = "ARG BASE
FROM $BASE AS a
RUN --mount=type=cache,target=/c mkdir /d; for i in 1 2 3 4 5 6 7 8; do echo $i > /d/$i; echo $i > /c/$i; done
RUN cat /d/* > /all && echo more > /d/9
FROM $BASE AS b
COPY files /files
RUN cat /files/[wxy] /files/z/z > /sum
FROM scratch
COPY --from=a /d /d
COPY --from=a /all /all
COPY --from=b /sum /sum
";

const FILES: &[(&str, &str)] = &[
    ("Dockerfile", MIXED),
    ("files/x", "x\n"),
    ("files/y", "yy\n"),
    ("files/z/z", "zzz\n"),
    ("files/w", "w\n"),
];

fn snapshots(site: &Site) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for kind in ["committed", "active"] {
        let dir = site.daemon.root().join("kiln/snapshots").join(kind);
        for entry in std::fs::read_dir(&dir)? {
            all.push(entry?.path().join("fs"));
        }
    }
    // One that was lost leaves what was around it.
    all.retain(|dir| dir.is_dir());
    all.sort();
    Ok(all)
}

fn blobs(site: &Site) -> Result<Vec<PathBuf>> {
    let dir = site.daemon.root().join("kiln/content/blobs/sha256");
    let mut all: Vec<_> = std::fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    all.sort();
    Ok(all)
}

/// Every file below a directory.
fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = path.symlink_metadata()?;
        if meta.is_dir() {
            walk(&path, found)?;
        } else if meta.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// Removes every second file of a tree, and cuts one of the others in half.
fn halve(dir: &Path) -> Result<()> {
    let mut files = Vec::new();
    walk(dir, &mut files)?;
    files.sort();
    for (index, file) in files.iter().enumerate() {
        if index % 2 == 0 {
            std::fs::remove_file(file)?;
        } else if index == 1 {
            truncate(file)?;
        }
    }
    Ok(())
}

fn truncate(file: &Path) -> Result<()> {
    let file = std::fs::File::options().write(true).open(file)?;
    Ok(file.set_len(file.metadata()?.len() / 2)?)
}

fn fsck(site: &Site, args: &[&str]) -> Result<Finished> {
    let mut all = vec!["debug", "fsck"];
    all.extend(args);
    site.daemon.run(&all)
}

#[test]
fn what_the_stores_lose_is_a_miss() -> Result<()> {
    let site = Site::new(FILES)?;
    let first = site.local(&[])?;
    let tree = first.tree()?;
    // Blobs of its layers lie beside them from now on.
    site.image(&[])?;
    let kinds = site.daemon.run(&["du", "--verbose"])?.success()?.stdout;
    check_contains(&kinds, &["exec.cachemount", "source.local", "regular"]);
    let count = (snapshots(&site)?.len(), blobs(&site)?.len());
    ensure!(count.0 >= 8 && count.1 >= 4, "too little to lose: {count:?}");

    let again = |what: &str| -> Result<()> {
        let built = site.local(&[]).with_context(|| what.to_owned())?;
        ensure!(built.tree()? == tree, "{what}:\n{}\n---\n{}", built.tree()?, built.log);
        Ok(())
    };
    for place in 0..count.0 {
        // What was made again has another name, so that all are met in time.
        if let Some(lost) = snapshots(&site)?.get(place) {
            halve(lost)?;
            again(&format!("half of {}", lost.display()))?;
        }
        if let Some(lost) = snapshots(&site)?.get(place) {
            std::fs::remove_dir_all(lost)?;
            again(&lost.display().to_string())?;
        }
    }
    for place in 0..count.1 {
        if let Some(lost) = blobs(&site)?.get(place) {
            truncate(lost)?;
            site.image(&[]).with_context(|| format!("half of {}", lost.display()))?;
        }
        if let Some(lost) = blobs(&site)?.get(place) {
            std::fs::remove_file(lost)?;
            site.image(&[]).with_context(|| lost.display().to_string())?;
        }
    }
    // All of it at once.
    for lost in snapshots(&site)? {
        std::fs::remove_dir_all(lost)?;
    }
    for lost in blobs(&site)? {
        std::fs::remove_file(lost)?;
    }
    again("everything")?;
    let info = site.daemon.run(&["debug", "info"])?.success()?.stdout;
    check_contains(&info, &["Lost: ", " snapshots, ", " records"]);
    assert!(!site.daemon.log().contains("panicked"), "{}", site.daemon.log());
    Ok(())
}

#[test]
fn native_snapshots_are_as_good() -> Result<()> {
    let overlay = Site::new(FILES)?;
    let args = vec!["--oci-worker-snapshotter=native".to_owned()];
    let mut native = Site::with_options(FILES, DaemonOptions { args, ..DaemonOptions::default() })?;
    for (site, name) in [(&overlay, "overlayfs"), (&native, "native")] {
        let workers = site.daemon.run(&["debug", "workers", "--verbose"])?.success()?.stdout;
        check_contains(&workers, &["worker.snapshotter:", name]);
    }
    let tree = native.local(&[])?.tree()?;
    assert_eq!(tree, overlay.local(&[])?.tree()?);
    let layers = |site: &Site| -> Result<Vec<String>> {
        let config = site.image(&["--opt=build-arg:SOURCE_DATE_EPOCH=0"])?.config()?;
        let ids = config["rootfs"]["diff_ids"].as_array().context("no layers")?.clone();
        Ok(ids.iter().map(ToString::to_string).collect())
    };
    assert_eq!(layers(&native)?.len(), layers(&overlay)?.len());
    for lost in snapshots(&native)?.iter().step_by(2) {
        std::fs::remove_dir_all(lost)?;
    }
    assert_eq!(native.local(&[])?.tree()?, tree);
    native.daemon.stop()?;
    native.daemon.restart()?;
    let again = native.local(&[])?;
    assert_eq!(again.tree()?, tree);
    crate::support::check_outcomes(&again.log, &[("RUN cat /d/*", "CACHED")]);
    fsck(&native, &["--repair", "--digests"])?.success()?;
    assert!(!native.daemon.log().contains("panicked"), "{}", native.daemon.log());
    Ok(())
}

#[test]
fn a_check_reports_and_repairs() -> Result<()> {
    let mut site = Site::new(FILES)?;
    let tree = site.local(&[])?.tree()?;
    check_contains(&fsck(&site, &["--digests"])?.success()?.stdout, &[" records, ", ": 0 findings"]);
    // Not that of the context, which is compared with what the client has each time.
    let all = snapshots(&site)?;
    let with = |file: &str| all.iter().find(|dir| dir.join(file).exists()).context("no such snapshot");
    halve(with("all")?)?;
    std::fs::remove_dir_all(with("files/z/z")?)?;
    std::fs::create_dir_all(site.daemon.root().join("kiln/snapshots/committed/nobody/fs"))?;
    let found = fsck(&site, &[])?.failure()?;
    check_contains(&found.stdout, &["snapshot-damaged", "snapshot-missing", "snapshot-orphaned", "false"]);
    check_contains(&found.stderr, &["findings are not mended: run again with --repair"]);
    let json = fsck(&site, &["--format=json"])?.failure()?.stdout;
    check_contains(&json, &["\"fault\":\"snapshot-missing\",\"gravity\":\"miss\"", "\"mended\":false"]);
    check_contains(&fsck(&site, &["--repair"])?.success()?.stdout, &["snapshot-missing", "true"]);
    check_contains(&fsck(&site, &[])?.success()?.stdout, &[": 0 findings"]);
    assert!(!site.daemon.root().join("kiln/snapshots/committed/nobody").exists());
    assert_eq!(site.local(&[])?.tree()?, tree);

    let root = site.daemon.root();
    let offline = |how: &str| {
        let mut check = Binaries::from_env()?.command("buildkitd");
        Finished::run(check.arg(format!("--fsck={how}")).arg("--root").arg(&root))
    };
    check_contains(&offline("look")?.failure()?.stderr, &["another instance running?"]);
    site.daemon.stop()?;
    std::fs::remove_dir_all(&snapshots(&site)?[0])?;
    let found = offline("look")?.failure()?;
    check_contains(&found.stdout, &["snapshot-missing (miss): ", ": 1 findings"]);
    check_contains(&found.stderr, &["1 findings are not mended: run again with --fsck=repair"]);
    check_contains(&offline("repair")?.success()?.stdout, &["snapshot-missing (miss, mended): "]);
    check_contains(&offline("look")?.success()?.stdout, &[": 0 findings"]);
    site.daemon.restart()?;
    assert_eq!(site.local(&[])?.tree()?, tree);
    Ok(())
}

/// Allocated bytes below a directory, as `du -x` counts them.
fn allocated(dir: &Path) -> Result<u64> {
    let out =
        Finished::run(std::process::Command::new("du").args(["-x", "-s", "-B1"]).arg(dir))?.success()?;
    out.stdout.split_whitespace().next().context("no number")?.parse().context("no number")
}

#[test]
fn usage_equals_what_is_on_disk() -> Result<()> {
    let step = "RUN --mount=type=cache,target=/c for i in $(seq 300); do head -c $((i * 137)) /dev/zero > /c/$i; \
         mkdir -p /t/$((i % 9)); head -c $((i * 311)) /dev/urandom > /t/$((i % 9))/$i; done; ln /t/1/1 /t/hard";
    let dockerfile = format!("ARG BASE\nFROM $BASE\nCOPY . /in\n{step}\nRUN cp -r /t /u && rm -r /t/3\n");
    let mut site = Site::new(&[("Dockerfile", &dockerfile), ("some/file", &"text ".repeat(100_000))])?;
    site.image(&[])?;
    site.image(&["--opt=build-arg:X=1"])?;
    // Nothing is in use, and what has gone is gone, once the daemon has begun anew.
    site.daemon.stop()?;
    site.daemon.restart()?;
    let json = site.daemon.run(&["du", "--format=json"])?.success()?.stdout;
    let records: Vec<serde_json::Value> = serde_json::from_str(&json)?;
    let told: u64 = records.iter().filter_map(|record| record["size"].as_u64()).sum();
    let kiln = site.daemon.root().join("kiln");
    let real = allocated(&kiln.join("snapshots"))? + allocated(&kiln.join("content"))?;
    ensure!(told.abs_diff(real) * 100 <= real, "du says {told}, the disk {real}\n{json}");
    ensure!(std::fs::metadata(kiln.join("catalogue.db"))?.size() < real / 20);
    let mut left = site.daemon.run(&["prune", "--all"])?.success()?.stdout;
    left.push_str(&site.daemon.run(&["du"])?.success()?.stdout);
    check_contains(&left, &["Total:\t\t0B"]);
    let empty = allocated(&kiln.join("snapshots"))? + allocated(&kiln.join("content"))?;
    ensure!(empty < 100_000, "{empty} bytes left after everything was pruned");
    Ok(())
}

#[test]
fn a_disk_that_fills_up_costs_old_records_and_then_one_build() -> Result<()> {
    // More stays free than the step below writes between two looks at the disk.
    let config = "[kiln]\nhardMinFreeSpace = \"48MB\"\n".to_owned();
    let options = DaemonOptions { disk: Some(160), config, ..DaemonOptions::default() };
    let site = Site::with_options(&[], options)?;
    // More than fits: the older ones go.
    for round in 0..8 {
        let built = site.dockerfile(
            &format!(
                "ARG BASE\nFROM $BASE AS b\nRUN head -c 30000000 /dev/zero > /big && echo {round} > /made\n\
                 FROM scratch\nCOPY --from=b /made /\n"
            ),
            &[],
        )?;
        assert_eq!(built.read("made")?, format!("{round}\n"));
    }
    // A step that does not end until it is stopped, beside one that needs little.
    site.write(&[("Dockerfile", "ARG BASE\nFROM $BASE\nRUN sleep 3 && echo small > /made\n")])?;
    let out = tempfile::tempdir()?;
    let small = site.start(&[&format!("--output=type=local,dest={}", out.path().display())])?;
    small.wait_for("RUN sleep 3")?;
    let fill = "ARG BASE\nFROM $BASE\nRUN while head -c 4000000 /dev/zero >> /big; do sleep 0.02; done\n";
    site.write(&[("Dockerfile", fill)])?;
    let failed = site.build(&[])?.failure()?;
    check_contains(
        &failed.stderr,
        &["no space left on device for builds", "have to stay free", "kiln.hardMinFreeSpace"],
    );
    small.finish()?.success()?;
    assert_eq!(std::fs::read_to_string(out.path().join("made"))?, "small\n");
    // The next one has room, and the daemon is well.
    let next = site.dockerfile("ARG BASE\nFROM $BASE\nRUN head -c 20000000 /dev/zero > /big\n", &[])?;
    ensure!(next.path().join("big").exists());
    fsck(&site, &[])?.success()?;
    assert!(!site.daemon.log().contains("panicked"), "{}", site.daemon.log());
    Ok(())
}
