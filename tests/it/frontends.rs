//! Images that run as frontends: the Dockerfile language as one, and some that are broken or mean harm.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result};
use kiln_tests::{Binaries, Daemon, DaemonOptions, Finished, write_script, write_tree};

use crate::support::{LIMIT, Site, check_contains, hub, mounts_below, processes_with, run, unique};

/// The image of the Dockerfile frontend; made by the first test that asks.
pub(crate) fn dockerfile_frontend() -> Result<&'static str> {
    static IMAGE: OnceLock<String> = OnceLock::new();
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(image) = IMAGE.get() {
        return Ok(image);
    }
    let context = tempfile::tempdir()?;
    stage_program(context.path())?;
    let dockerfile = "FROM scratch\nCOPY root /\n\
        LABEL moby.buildkit.frontend.caps=moby.buildkit.frontend.inputs,moby.buildkit.frontend.subrequests,moby.buildkit.frontend.contexts \
        moby.buildkit.frontend.network.none=true\nENTRYPOINT [\"/bin/dockerfile-frontend\"]\n";
    let image = push(context.path(), "dockerfile-frontend", dockerfile)?;
    Ok(IMAGE.get_or_init(|| image))
}

/// Puts the program and the libraries that it is linked with into `root` below `context`.
fn stage_program(context: &Path) -> Result<()> {
    let program = Binaries::from_env()?.path("dockerfile-frontend");
    let text = program.display().to_string();
    let libraries = run("ldd", &[&text])?;
    let paths = libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    let mut copies: Vec<(PathBuf, PathBuf)> = paths.map(|path| (path.clone(), path)).collect();
    copies.push((program, "/bin/dockerfile-frontend".into()));
    for (from, to) in copies {
        let to = context.join("root").join(to.strip_prefix("/")?);
        std::fs::create_dir_all(to.parent().context("a file without a directory")?)?;
        std::fs::copy(from, to)?;
    }
    Ok(())
}

/// Builds a context with a daemon of its own and pushes what comes out; its reference.
fn push(context: &Path, name: &str, dockerfile: &str) -> Result<String> {
    let daemon = Daemon::start(&Binaries::from_env()?, DaemonOptions::default())?;
    push_with(&daemon, context, name, dockerfile)
}

fn push_with(daemon: &Daemon, context: &Path, name: &str, dockerfile: &str) -> Result<String> {
    write_tree(context, &[("Dockerfile", dockerfile)])?;
    let reference = format!("{}/{name}:latest", hub()?.registry.address());
    let output = format!("--output=type=image,name={reference},push=true,compression=zstd");
    let base = format!("--opt=build-arg:BASE={}", hub()?.base);
    daemon.build(context, &[&output, &base])?.success()?;
    Ok(reference)
}

/// Pushes an image that runs a script as its frontend.
fn push_script(daemon: &Daemon, name: &str, script: &str, more: &str) -> Result<String> {
    let context = tempfile::tempdir()?;
    write_script(&context.path().join("frontend"), &format!("#!/bin/sh\n{script}\n"))?;
    let dockerfile = format!("ARG BASE\nFROM $BASE\nCOPY frontend /\n{more}\nENTRYPOINT [\"/frontend\"]\n");
    push_with(daemon, context.path(), name, &dockerfile)
}

#[test]
fn a_dockerfile_builds_through_a_frontend_image() -> Result<()> {
    let image = dockerfile_frontend()?;
    let site = Site::new(&[
        ("file", "from the context\n"),
        (
            "Dockerfile",
            &format!(
                "# syntax={image}\nARG BASE\nFROM $BASE AS build\nCOPY file /file\n\
                 RUN tr a-z A-Z < /file > /out\nFROM scratch\nCOPY --from=build /out /\nMAINTAINER me\n"
            ),
        ),
    ])?;
    let built = site.local(&[])?;
    assert_eq!(built.read("out")?, "FROM THE CONTEXT\n");
    let vertex = format!("resolve image config for docker-image://{image}");
    check_contains(&built.log, &[&vertex, "MaintainerDeprecated"]);

    // The same through the frontend that a client names.
    let named = Finished::run(
        site.daemon.buildctl().args(["build", "--progress=plain", "--frontend=gateway.v0"]).args([
            &format!("--opt=source={image}"),
            &format!("--opt=build-arg:BASE={}", hub()?.base),
            &format!("--local=context={}", site.context().display()),
            &format!("--local=dockerfile={}", site.context().display()),
        ]),
    )?;
    check_contains(&named.success()?.stderr, &["CACHED"]);

    // Errors have the places that the frontend found, and those of steps too.
    for (line, wanted) in [
        ("RUNN x", vec!["unknown instruction: RUNN", ">>> RUNN x"]),
        ("FROM nowhere.invalid/x", vec![">>> FROM nowhere.invalid/x"]),
        ("ARG BASE\nFROM $BASE\nRUN exit 7", vec!["exit code: 7", ">>> RUN exit 7"]),
    ] {
        site.write(&[("Dockerfile", &format!("# syntax={image}\n{line}\n"))])?;
        let failed = site.build(&[])?;
        assert_ne!(failed.code, 0);
        check_contains(&failed.stderr, &wanted);
    }
    let answer = site.build(&["--opt=requestid=frontend.targets"])?;
    check_contains(&answer.success()?.stdout, &["TARGET"]);
    nothing_is_left(&site.daemon)
}

#[test]
fn inputs_and_contexts_reach_a_frontend_image() -> Result<()> {
    let image = dockerfile_frontend()?;
    let site = Site::new(&[("Dockerfile", "# syntax=stand-in\nFROM scratch\nCOPY Dockerfile /d\n")])?;
    // An option stands for the image, and one for a stage of it.
    let context = format!("--opt=context:stand-in=docker-image://{image}");
    assert!(site.local(&[&context])?.read("d")?.starts_with("# syntax=stand-in"));
    let failed = site.build(&[&context, "--opt=frontend.caps=moby.buildkit.frontend.magic+forward"])?;
    check_contains(&failed.stderr, &["unsupported frontend capability moby.buildkit.frontend.magic"]);
    Ok(())
}

#[test]
fn broken_frontends_say_what_is_wrong() -> Result<()> {
    let site = Site::new(&[])?;
    let build = |image: &str| -> Result<Finished> {
        site.write(&[("Dockerfile", &format!("# syntax={image}\nFROM scratch\n"))])?;
        site.build(&[])
    };
    for (name, script, wanted) in [
        (
            "crash",
            "echo no way on >&2; exit 3",
            vec!["did not complete successfully: exit code: 3", "it said last: no way on"],
        ),
        ("silent", "exit 0", vec!["no result for incomplete build", "ended without returning one"]),
        (
            "garbage",
            "while :; do echo garbage; done",
            vec!["frontend grpc server closed unexpectedly", "gRPC"],
        ),
        (
            "metadata",
            "cd /run/config/buildkit/metadata && test -s frontend.bin && ! touch x && echo $BUILDKIT_WORKERS >&2; exit 6",
            vec!["exit code: 6", "\"platforms\":[{\"architecture\":"],
        ),
        ("fork", "(while :; do sleep 1; done) & exit 5", vec!["exit code: 5"]),
    ] {
        let image = push_script(&site.daemon, &format!("broken-{name}"), script, "")?;
        let failed = build(&image)?;
        assert_ne!(failed.code, 0, "{name}");
        check_contains(&failed.stderr, &wanted);
        check_contains(&failed.stderr, &[&image, ">>> # syntax="]);
    }
    let image = push_script(&site.daemon, "broken-program", "exit 0", "RUN rm /frontend")?;
    check_contains(&build(&image)?.stderr, &["could not be run", "/frontend"]);
    check_contains(&build("nowhere.invalid/frontend:1")?.stderr, &["nowhere.invalid/frontend:1"]);
    nothing_is_left(&site.daemon)
}

#[test]
fn a_frontend_that_asks_for_itself_is_stopped() -> Result<()> {
    // Without the option that says where it comes from, the frontend follows the file's first line again and again.
    let context = tempfile::tempdir()?;
    stage_program(context.path())?;
    write_script(
        &context.path().join("frontend"),
        "#!/bin/sh\nfor name in $(env | sed -n 's/^\\(BUILDKIT_FRONTEND_OPT_[0-9]*\\)=cmdline=.*/\\1/p'); do unset $name; done\n\
         exec /bin/dockerfile-frontend\n",
    )?;
    let dockerfile = "ARG BASE\nFROM $BASE\nCOPY root /\nCOPY frontend /\nENTRYPOINT [\"/frontend\"]\n";
    let image = push(context.path(), "endless", dockerfile)?;
    let site = Site::new(&[("Dockerfile", &format!("# syntax={image}\nFROM scratch\n"))])?;
    let failed = site.build(&[])?;
    assert_ne!(failed.code, 0);
    check_contains(&failed.stderr, &["frontends are nested deeper than 16"]);
    nothing_is_left(&site.daemon)
}

#[test]
fn a_frontend_ends_with_the_client() -> Result<()> {
    let mark = unique()?;
    let site = Site::new(&[])?;
    let image =
        push_script(&site.daemon, "endless-sleep", &format!("exec sh -c 'sleep 1000; : {mark}'"), "")?;
    site.write(&[("Dockerfile", &format!("# syntax={image}\nFROM scratch\n"))])?;
    let client = site.start(&[])?;
    let runs = || processes_with(&mark).is_ok_and(|found| !found.is_empty());
    kiln_tests::wait_for("the frontend", LIMIT, None, runs)?;
    client.kill()?;
    kiln_tests::wait_for("the frontend's end", LIMIT, None, || !runs())?;
    nothing_is_left(&site.daemon)
}

#[test]
fn only_repositories_that_are_allowed_run_as_frontends() -> Result<()> {
    let image = dockerfile_frontend()?;
    let repository = image.strip_suffix(":latest").context("no tag")?;
    let config = format!("[frontend.\"gateway.v0\"]\nallowedRepositories = [\"{repository}\"]\n");
    let site = Site::with_options(&[], DaemonOptions { config, ..DaemonOptions::default() })?;
    for (source, refused) in [(image, false), ("docker/dockerfile:1", true), (&hub()?.base, true)] {
        site.write(&[("Dockerfile", &format!("# syntax={source}\nFROM scratch\n"))])?;
        let finished = site.build(&[])?;
        let wanted = format!("'{source}' is not an allowed gateway source");
        assert_eq!(
            (finished.code != 0, finished.stderr.contains(&wanted)),
            (refused, refused),
            "{}",
            finished.stderr
        );
    }
    let config = "[frontend.\"gateway.v0\"]\nenabled = false\n".to_owned();
    let site = Site::with_options(
        &[("Dockerfile", &format!("# syntax={image}\nFROM scratch\n"))],
        DaemonOptions { config, ..DaemonOptions::default() },
    )?;
    check_contains(&site.build(&[])?.stderr, &["invalid frontend: gateway.v0"]);
    Ok(())
}

/// No container, no mount and no file of a frontend is there any more.
fn nothing_is_left(daemon: &Daemon) -> Result<()> {
    let state = daemon.root().join("kiln");
    let gone = || {
        let empty = |dir: &str, prefix: &str| {
            let entries = std::fs::read_dir(state.join(dir)).into_iter().flatten().flatten();
            entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count() == 0
        };
        // A container's directory has a random name of 25 letters and digits.
        let containers = std::fs::read_dir(state.join("executor")).into_iter().flatten().flatten();
        let containers = containers.filter(|entry| entry.file_name().len() == 25).count();
        empty("scratch", "frontend-") && containers == 0 && mounts_below(&state).is_ok_and(|m| m.is_empty())
    };
    let found = kiln_tests::wait_for("the frontends' remains to go", LIMIT, None, gone);
    found.with_context(|| {
        let list = Command::new("find").arg(&state).args(["-maxdepth", "2"]).output();
        format!(
            "{:?}\n{}",
            mounts_below(&state),
            String::from_utf8_lossy(&list.map(|o| o.stdout).unwrap_or_default())
        )
    })
}
