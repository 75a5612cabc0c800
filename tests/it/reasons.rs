//! Why a step was not cached: of each kind of change, the one component that changed is named.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use kiln_tests::{Binaries, Finished};

use crate::support::{Site, check_contains, hub, unique};

const DOCKERFILE: &str = "ARG BASE\nFROM $BASE AS build\nARG WHO=you\nENV GREETING=hello API_TOKEN=first\nCOPY case /case\nWORKDIR /work\n\
     RUN --mount=type=cache,target=/cache echo one > /one\nCOPY used other /files/\nCOPY dir /copied/\n\
     RUN cat /files/used > /two\nFROM scratch\nCOPY --from=build /one /two /\n";

const FILES: &[(&str, &str)] = &[
    ("Dockerfile", DOCKERFILE),
    ("case", "none\n"),
    ("used", "1\n"),
    ("other", "2\n"),
    ("dir/sub/deep", "3\n"),
    ("dir/stays", "4\n"),
];

/// What is done to the build that all others are compared with.
enum Mutation {
    /// Part of the Dockerfile is replaced.
    Dockerfile(&'static str, &'static str),
    /// Something happens to the context.
    Context(fn(&Path) -> std::io::Result<()>),
    /// The build has one more argument.
    Argument(&'static str),
}

/// What it is called, what is done, and of which step which sentence has to be said then.
type Case = (&'static str, Mutation, &'static str, String);

/// The sentence about the step whose name contains `step`; what it is compared with is left out.
fn reason<'a>(text: &'a str, step: &str) -> Option<&'a str> {
    let (_, explained) =
        text.split_once("Why steps ran:").or_else(|| text.split_once("What became of each step:"))?;
    let mut lines = explained.lines();
    lines.find(|line| line.starts_with("  ") && !line.starts_with("    ") && line.contains(step))?;
    lines.next().map(str::trim)
}

#[test]
fn each_kind_of_change_is_named() -> Result<()> {
    use Mutation::{Argument, Context as InContext, Dockerfile};
    let echo = "echo one";
    let context = "`[internal] load build context`";
    let cases: &[Case] = &[
        (
            "variable removed",
            Dockerfile("ENV GREETING=hello ", "ENV "),
            echo,
            "env GREETING is gone; it was `hello`".into(),
        ),
        (
            "argument",
            Dockerfile("echo one", "echo 1"),
            "echo 1",
            "argument 2 was `echo one > /one`, is `echo 1 > /one`".into(),
        ),
        (
            "value of a variable",
            Dockerfile("hello", "bye"),
            echo,
            "env GREETING was `hello`, is `bye`".into(),
        ),
        ("variable added", Dockerfile("ENV ", "ENV MORE=x "), echo, "env MORE is new: `x`".into()),
        (
            "variable that is not shown",
            Dockerfile("API_TOKEN=first", "API_TOKEN=second"),
            echo,
            "env API_TOKEN is not what it was (not shown)".into(),
        ),
        ("build argument", Argument("--opt=build-arg:WHO=me"), echo, "env WHO was `you`, is `me`".into()),
        (
            "working directory",
            Dockerfile("WORKDIR /work", "WORKDIR /other"),
            echo,
            "workdir was `/work`, is `/other`; also, input 0 was `[build 3/7] WORKDIR /work`, is `[build 3/7] WORKDIR /other`"
                .into(),
        ),
        (
            "path of a made directory",
            Dockerfile("WORKDIR /work", "WORKDIR /elsewhere"),
            "WORKDIR",
            "name of a mkdir was `/work`, is `/elsewhere`".into(),
        ),
        ("user", Dockerfile("RUN --mount", "USER root\nRUN --mount"), echo, "user was ``, is `root`".into()),
        (
            "network",
            Dockerfile("RUN --mount", "RUN --network=none --mount"),
            echo,
            "network was `sandbox`, is `none`".into(),
        ),
        (
            "target of a mount",
            Dockerfile("target=/cache", "target=/store"),
            echo,
            "name of a mount was `/cache`, is `/store`".into(),
        ),
        (
            "type of a mount",
            Dockerfile("type=cache,target=/cache", "type=cache,target=/cache --mount=type=tmpfs,target=/t"),
            echo,
            "mount /t is new".into(),
        ),
        (
            "id of a cache mount",
            Dockerfile("target=/cache", "target=/cache,id=mine"),
            echo,
            "cache id of mount /cache was `(its target)`, is `of its own`".into(),
        ),
        (
            "content of a file",
            InContext(|dir| std::fs::write(dir.join("used"), "other\n")),
            "COPY used",
            format!("content of /used in {context} differs"),
        ),
        (
            "content of a file deep down",
            InContext(|dir| std::fs::write(dir.join("dir/sub/deep"), "5\n")),
            "COPY dir /copied",
            format!("content of /dir/sub/deep in {context} differs"),
        ),
        (
            "mode of a file",
            InContext(|dir| std::fs::set_permissions(dir.join("used"), Permissions::from_mode(0o755))),
            "COPY used",
            format!("mode of /used in {context} was 0644, is 0755"),
        ),
        (
            "file added",
            InContext(|dir| std::fs::write(dir.join("dir/sub/new"), "")),
            "COPY dir /copied",
            format!("/dir/sub/new in {context} is new"),
        ),
        (
            "file removed",
            InContext(|dir| std::fs::remove_file(dir.join("dir/sub/deep"))),
            "COPY dir /copied",
            format!("/dir/sub/deep in {context} is gone"),
        ),
        (
            "step below",
            InContext(|dir| std::fs::write(dir.join("used"), "below\n")),
            "RUN cat",
            "input 0, `[build 6/7] COPY dir /copied/`, has another result".into(),
        ),
        (
            "destination of a copy",
            Dockerfile("COPY dir /copied/", "COPY dir /placed/"),
            "COPY dir",
            "destination of copy /dir was `/copied/`, is `/placed/`".into(),
        ),
        (
            "owner of a copy",
            Dockerfile("COPY dir", "COPY --chown=7:8 dir"),
            "COPY --chown",
            "owner of copy /dir was `kept`, is `7:8`".into(),
        ),
        (
            "mode of a copy",
            Dockerfile("COPY dir", "COPY --chmod=600 dir"),
            "COPY --chmod",
            "mode of copy /dir was `kept`, is `0600`".into(),
        ),
        (
            "source of a copy",
            Dockerfile("COPY used other", "COPY used"),
            "COPY used /files",
            format!("copy /other is gone; also, /other in {context} is gone"),
        ),
        (
            "cache not wanted",
            Argument("--no-cache"),
            echo,
            "ran because it was asked to ignore the cache".into(),
        ),
    ];
    let mut wrong = Vec::new();
    let site = Site::new(FILES)?;
    for case in cases {
        wrong.extend(check(&site, case)?);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Makes a change, and says what is wrong with the reason given for it.
fn check(site: &Site, (what, mutation, step, want): &Case) -> Result<Option<String>> {
    use Mutation::{Argument, Context as InContext, Dockerfile};
    std::fs::remove_dir_all(site.context().join("dir"))?;
    site.write(FILES)?;
    std::fs::set_permissions(site.context().join("used"), Permissions::from_mode(0o644))?;
    // Steps of other cases are further away than those of this build.
    site.write(&[("case", what)])?;
    site.local(&[])?;
    let mut arguments = vec!["--explain"];
    match mutation {
        Dockerfile(from, to) => {
            assert!(DOCKERFILE.contains(from), "{what}");
            site.write(&[("Dockerfile", &DOCKERFILE.replacen(from, to, 1))])?;
        }
        InContext(change) => change(site.context())?,
        Argument(argument) => arguments.push(argument),
    }
    let log = site.local(&arguments).with_context(|| (*what).to_owned())?.log;
    assert!(!log.contains("`second`") && !log.contains("`first`"), "{what}: a value is shown\n{log}");
    let got = reason(&log, step).unwrap_or("no reason at all");
    Ok((got != want).then(|| format!("{what}: {got}\n  wanted: {want}\n{log}")))
}

#[test]
fn what_is_new_pruned_or_based_on_another_image() -> Result<()> {
    let site = Site::new(FILES)?;
    let image = format!("{}/moving-{}:latest", hub()?.registry.address(), unique()?);
    let base = format!("--opt=build-arg:BASE={image}");
    let push = |text: &str| {
        let dir = tempfile::tempdir()?;
        let dockerfile = format!("FROM {}\nRUN echo {text} > /text\n", hub()?.base);
        std::fs::write(dir.path().join("Dockerfile"), dockerfile)?;
        let output = format!("--output=type=image,name={image},push=true");
        site.daemon.build(dir.path(), &[&output])?.success()
    };
    push("one")?;
    let explained = || site.local(&[&base, "--explain"]);
    let first = explained()?.log;
    assert_eq!(reason(&first, "RUN cat"), Some("nothing like it was recorded yet"), "{first}");
    check_contains(&explained()?.log, &["Every step was cached."]);

    site.daemon.run(&["prune"])?.success()?;
    let pruned = explained()?.log;
    for step in ["FROM", "COPY case", "WORKDIR", "echo one", "COPY used", "RUN cat", "COPY --from"] {
        let got = reason(&pruned, step).unwrap_or_default();
        let told =
            got.starts_with("ran because the result of this very step, made") && got.contains("was pruned");
        assert!(told, "{step}: {got}\n{pruned}");
    }
    check_contains(&explained()?.log, &["Every step was cached."]);

    push("two")?;
    let moved = explained()?.log;
    let digest = reason(&moved, "FROM").unwrap_or_default();
    assert!(digest.starts_with("digest of the image was `sha256:"), "{digest}\n{moved}");
    let above = reason(&moved, "COPY case").unwrap_or_default();
    assert!(above.starts_with("input 0, `[build 1/7] FROM "), "{above}\n{moved}");
    Ok(())
}

#[test]
fn another_platform_is_named() -> Result<()> {
    let site = Site::new(&[("Dockerfile", "FROM scratch\nCOPY used /used\n"), ("used", "1\n")])?;
    let dir = tempfile::tempdir()?;
    for platform in ["linux/amd64", "linux/arm64"] {
        let output = format!("--output=type=local,dest={}", dir.path().display());
        site.build(&[&output, &format!("--opt=platform={platform}")])?.success()?;
    }
    // A copy is the same on every platform; what runs is not.
    let args = ["--opt=build-arg:WHO=x", "--explain"];
    site.dockerfile(DOCKERFILE_OF_ONE_STEP, &["--opt=platform=linux/amd64"])?;
    let other = site.build(&["--opt=platform=linux/arm64", args[0], args[1]])?;
    let got = reason(&other.stderr, "RUN").unwrap_or_default();
    assert!(got.starts_with("platform was `linux/amd64`, is `linux/arm64`"), "{got}\n{}", other.stderr);
    Ok(())
}

const DOCKERFILE_OF_ONE_STEP: &str = "ARG BASE\nFROM $BASE\nRUN true\n";

#[test]
fn owners_in_an_image_are_named() -> Result<()> {
    let dockerfile = |owner: &str| {
        format!(
            "ARG BASE\nFROM $BASE AS a\nRUN mkdir /d && echo x > /d/f && chown {owner} /d/f\nFROM scratch\nCOPY --from=a /d /d\n"
        )
    };
    let site = Site::new(&[])?;
    site.dockerfile(&dockerfile("1:1"), &[])?;
    let log = site.dockerfile(&dockerfile("2:3"), &["--explain"])?.log;
    let got = reason(&log, "COPY --from").unwrap_or_default();
    assert!(got.starts_with("owner of /d/f in ") && got.ends_with(" was 1:1, is 2:3"), "{got}\n{log}");
    Ok(())
}

#[test]
fn reasons_outlive_the_daemon() -> Result<()> {
    let mut site = Site::new(FILES)?;
    site.local(&[])?;
    site.daemon.kill()?;
    site.daemon.restart()?;
    site.write(&[("used", "other\n")])?;
    let log = site.local(&["--explain"])?.log;
    let got = reason(&log, "COPY used").unwrap_or_default();
    assert_eq!(got, "content of /used in `[internal] load build context` differs", "{log}");
    Ok(())
}

#[test]
fn clients_of_all_kinds_are_told() -> Result<()> {
    let site = Site::new(FILES)?;
    let data = tempfile::tempdir()?;
    let (address, base) = (site.daemon.address(), format!("BASE={}", hub()?.base));
    let kiln = |words: &[&str]| {
        let mut command = Binaries::from_env()?.command("kiln");
        command.env("XDG_DATA_HOME", data.path()).env_remove("BUILDKIT_HOST").current_dir(site.context());
        command.arg(words[0]).args(["--addr", &address, "--build-arg", &base]).args(&words[1..]).arg(".");
        Finished::run(&mut command)?.success()
    };
    let first = kiln(&["explain"])?;
    assert_eq!(
        reason(&first.stdout, "echo one"),
        Some("nothing like it was recorded yet"),
        "{}",
        first.stdout
    );
    let again = kiln(&["explain"])?;
    let hit = reason(&again.stdout, "COPY --from").unwrap_or_default();
    assert!(hit.starts_with("cached: found by "), "{hit}\n{}", again.stdout);
    site.write(&[("Dockerfile", &DOCKERFILE.replace("echo one", "echo 1"))])?;
    let shown = kiln(&["build", "--explain"])?.stderr;
    check_contains(&shown, &["argument 2 was `echo one > /one`, is `echo 1 > /one`"]);
    // In JSON the reason is one more field, which others pass over.
    site.write(FILES)?;
    site.write(&[("used", "other\n")])?;
    let json = site.build(&["--progress=rawjson"])?.success()?.stderr;
    let mut reasons = Vec::new();
    for line in json.lines() {
        let update: serde_json::Value = serde_json::from_str(line)?;
        let vertexes = update["vertexes"].as_array().cloned().unwrap_or_default();
        reasons.extend(
            vertexes.into_iter().filter(|v| v["reason"]["miss"] == "differs").map(|v| v["reason"].clone()),
        );
    }
    assert!(reasons.iter().any(|r| r["differences"][0]["path"] == "/used"), "{json}");
    Ok(())
}

#[test]
fn an_imported_cache_is_named() -> Result<()> {
    let cache = tempfile::tempdir()?;
    let dir = cache.path().display();
    let site = Site::new(FILES)?;
    site.local(&[&format!("--export-cache=type=local,dest={dir},mode=max")])?;
    let import = format!("--import-cache=type=local,src={dir}");
    let other = Site::new(FILES)?;
    let json = other.build(&["--progress=rawjson", &import])?.success()?.stderr;
    let copy = json
        .lines()
        .flat_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .flat_map(|update| update["vertexes"].as_array().cloned().unwrap_or_default())
        .find(|vertex| {
            vertex["name"].as_str().is_some_and(|n| n.contains("COPY --from")) && !vertex["reason"].is_null()
        })
        .context("no reason")?;
    let origin = copy["reason"]["origin"].as_str().unwrap_or_default();
    assert!(copy["reason"]["outcome"] == "hit" && origin.starts_with("local:"), "{copy}");
    Ok(())
}

#[test]
fn a_step_that_no_import_has_is_not_compared() -> Result<()> {
    let cache = tempfile::tempdir()?;
    let dir = cache.path().display();
    let site = Site::new(FILES)?;
    site.local(&[&format!("--export-cache=type=local,dest={dir},mode=max")])?;
    let other = Site::new(FILES)?;
    other.write(&[("Dockerfile", &DOCKERFILE.replace("echo one", "echo 1"))])?;
    let log = other.local(&["--explain", &format!("--import-cache=type=local,src={dir}")])?.log;
    let got = reason(&log, "echo 1").unwrap_or_default();
    assert!(got.starts_with("is in none of the imported caches"), "{got}\n{log}");
    // What was made here is compared with, imports or not.
    other.write(&[("Dockerfile", &DOCKERFILE.replace("echo one", "echo 2"))])?;
    let log = other.local(&["--explain", &format!("--import-cache=type=local,src={dir}")])?.log;
    let got = reason(&log, "echo 2").unwrap_or_default();
    assert_eq!(got, "argument 2 was `echo 1 > /one`, is `echo 2 > /one`", "{log}");
    Ok(())
}

#[test]
fn a_step_is_recognised_by_its_place() -> Result<()> {
    let dockerfile =
        |first: &str, second: &str| format!("ARG BASE\nFROM $BASE AS build\nRUN {first}\nRUN {second}\n");
    let site = Site::new(&[])?;
    site.dockerfile(&dockerfile("echo one > /one", "echo two > /two"), &[])?;
    // Its text and what it stands on are both others now.
    let log = site.dockerfile(&dockerfile("echo 1 > /one", "echo 2 > /two"), &["--explain"])?.log;
    let got = reason(&log, "echo 2").unwrap_or_default();
    assert!(
        got.starts_with("argument 2 was `echo two > /two`, is `echo 2 > /two`; also, input 0"),
        "{got}\n{log}"
    );
    Ok(())
}
