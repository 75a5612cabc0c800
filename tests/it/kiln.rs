//! The front door: `kiln build`.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use kiln_tests::{Binaries, Finished};

use crate::support::{Image, Site, check_contains, hub, mounts_below};

const FILES: &[(&str, &str)] = &[
    (
        "Dockerfile",
        "ARG BASE\nFROM $BASE AS b\nARG WHO=nobody\nRUN echo hello $WHO > /out\nFROM scratch\nCOPY --from=b /out /\n",
    ),
    ("Other", "FROM scratch\nCOPY Other /other\n"),
];

fn kiln(site: &Site, data: &Path, args: &[&str]) -> Result<Command> {
    let mut command = Binaries::from_env()?.command("kiln");
    command.env("XDG_DATA_HOME", data).env_remove("BUILDKIT_HOST").args(args).current_dir(site.context());
    Ok(command)
}

#[test]
fn a_build_against_a_daemon() -> Result<()> {
    let site = Site::new(FILES)?;
    let data = tempfile::tempdir()?;
    let archive = data.path().join("x.tar");
    let output = format!("type=oci,dest={}", archive.display());
    let base = format!("BASE={}", hub()?.base);
    let address = site.daemon.address();
    let args = [
        "build",
        "--addr",
        &address,
        "-t",
        "made:v1",
        "--build-arg",
        &base,
        "--build-arg=WHO=you",
        "-o",
        &output,
        ".",
    ];
    Finished::run(&mut kiln(&site, data.path(), &args)?)?.success()?;
    let image = Image::pull(&format!("oci-archive:{}", archive.display()))?;
    assert_eq!(std::fs::read_to_string(image.unpack()?.join("out"))?, "hello you\n");
    assert!(!data.path().join("kiln").exists(), "no daemon of its own is needed");
    Ok(())
}

#[test]
fn a_build_without_a_daemon_starts_one() -> Result<()> {
    let site = Site::new(FILES)?;
    let data = tempfile::tempdir()?;
    let dest = data.path().join("out");
    let output = format!("type=local,dest={}", dest.display());
    let build =
        || Finished::run(&mut kiln(&site, data.path(), &["build", "-f", "Other", "-o", &output, "."])?);
    let first = build();
    let second = build();
    let stopped = Finished::run(&mut kiln(&site, data.path(), &["stop"])?);
    first?.success()?;
    check_contains(&second?.success()?.stderr, &["CACHED"]);
    stopped?.success()?;
    assert!(dest.join("other").is_file());
    assert_eq!(mounts_below(data.path())?, Vec::<String>::new());
    Ok(())
}

#[test]
fn mistakes_are_explained() -> Result<()> {
    let site = Site::new(FILES)?;
    let data = tempfile::tempdir()?;
    let address = site.daemon.address();
    for (args, want) in [
        (vec!["build", "--nonsense", "."], "--nonsense"),
        (vec!["build", "--addr", &address, "no-such-dir"], "no-such-dir"),
        (vec!["build", "--addr", &address, "-f", "Nowhere", "."], "Nowhere"),
        (vec!["build", "--addr", "unix:///no/such/socket", "."], "/no/such/socket"),
        (vec!["build", "--addr", &address, "-f", "Other", "--target", "nowhere", "."], "nowhere"),
    ] {
        let failed = Finished::run(&mut kiln(&site, data.path(), &args)?)?.failure()?;
        check_contains(&failed.stderr, &[want]);
        assert!(!failed.stderr.contains("panicked"), "{}", failed.stderr);
    }
    Ok(())
}
