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
fn lint_needs_no_daemon() -> Result<()> {
    let files: &[(&str, &str)] = &[
        ("good/Dockerfile", "FROM nowhere.invalid/base\nENV A=$FROM_THE_BASE\nRUN x\n"),
        ("bad/Dockerfile", "FROM scratch AS Up\nCOPY secret /\nMAINTAINER me\n"),
        ("bad/.dockerignore", "secret\n"),
        ("bad/broken", "FROM scratch\nLABLE x\n"),
        ("link/Dockerfile", "# check=skip=all\nFROM scratch AS Up\n"),
    ];
    let dir = tempfile::tempdir()?;
    kiln_tests::write_tree(dir.path(), files)?;
    let lint = |args: &[&str]| {
        let mut command = Binaries::from_env()?.command("kiln");
        command.env("XDG_DATA_HOME", dir.path()).env_remove("BUILDKIT_HOST").arg("lint").args(args);
        Finished::run(command.current_dir(dir.path()))
    };
    check_contains(&lint(&["good"])?.success()?.stdout, &["Check complete, no warnings found."]);
    check_contains(&lint(&["link"])?.success()?.stdout, &["Check complete, no warnings found."]);
    let found = lint(&["bad"])?.failure()?;
    let wanted = ["Check complete, 3 warnings", "StageNameCasing", "CopyIgnoredFile", ">>> MAINTAINER me"];
    check_contains(&found.stdout, &wanted);
    assert_eq!(found.stderr, "");
    let broken = lint(&["-f", "bad/broken", "bad"])?.failure()?;
    check_contains(&broken.stdout, &[">>> LABLE x", "unknown instruction: LABLE (did you mean LABEL?)"]);
    let json = lint(&["--format", "json", "bad"])?.failure()?;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&json.stdout)?["warnings"].as_array().unwrap().len(),
        3
    );
    check_contains(
        &lint(&["-f", "nowhere", "bad"])?.failure()?.stderr,
        &["there is no Dockerfile at `nowhere`"],
    );
    assert!(!dir.path().join("kiln").exists(), "no daemon was started");
    Ok(())
}

#[test]
fn questions_are_answered_by_the_daemon() -> Result<()> {
    let site = Site::new(&[(
        "Dockerfile",
        "# what WHO says\nARG WHO=me\nFROM scratch AS Up\nARG WHO\nCOPY Dockerfile /$WHO\n",
    )])?;
    let data = tempfile::tempdir()?;
    let address = site.daemon.address();
    let ask = |args: &[&str]| {
        let all = [&["build", "--addr", &address], args, &["."]].concat();
        Finished::run(&mut kiln(&site, data.path(), &all)?)
    };
    let checked = ask(&["--check"])?.failure()?;
    check_contains(&checked.stdout, &["Check complete, 1 warning has been found!", ">>> FROM scratch AS Up"]);
    check_contains(&ask(&["--call", "targets"])?.success()?.stdout, &["up (default)"]);
    check_contains(&ask(&["--call", "outline,format=json"])?.success()?.stdout, &["\"name\": \"WHO\""]);
    check_contains(&ask(&["--call=nonsense"])?.failure()?.stderr, &["unknown method `nonsense`"]);
    let wrong = ask(&["--call=outline", "--target=nowhere"])?.failure()?;
    check_contains(&wrong.stderr, &["target stage \"nowhere\" could not be found"]);
    // A build shows the warning with its line, and goes on.
    let built = ask(&["--progress=plain"])?.success()?;
    check_contains(&built.stderr, &["WARNING: StageNameCasing", ">>> FROM scratch AS Up"]);
    let foreign = ask(&["--build-arg", "BUILDKIT_SYNTAX=nowhere.invalid/other:1 x"])?.failure()?;
    let failed = "failed with build-arg:BUILDKIT_SYNTAX = nowhere.invalid/other:1 x";
    check_contains(
        &foreign.stderr,
        &[failed, "resolve image config for docker-image://nowhere.invalid/other:1"],
    );
    let request = ["--opt", "requestid=frontend.targets"];
    check_contains(&site.build(&request)?.success()?.stdout, &["up (default)"]);
    let unknown = site.build(&["--opt", "requestid=frontend.nonsense"])?.failure()?;
    check_contains(&unknown.stderr, &["unsupported request frontend.nonsense"]);
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
