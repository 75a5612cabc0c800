//! Registries: mirrors, plain HTTP, passwords, and what is not fetched.

use std::path::Path;

use anyhow::{Context as _, Result};
use kiln_tests::{DaemonOptions, Finished, Registry};
use serde_json::{Value, json};

use crate::support::{Image, Site, check_contains, hub, inspect, metadata, run};

/// The password `secret`, as the registry's file has it.
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

fn copy(from: &str, to: &str, args: &[&str]) -> Result<()> {
    let mut all =
        vec!["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false"];
    all.extend(args);
    all.extend([from, to]);
    run("skopeo", &all).map(drop)
}

#[test]
fn a_mirror_serves_what_its_host_does_not() -> Result<()> {
    let address = hub()?.registry.address();
    let config = format!(
        "[registry.\"mirrored.invalid\"]\nmirrors = [\"127.0.0.1:1\", \"{address}\"]\n[registry.\"{address}\"]\nhttp = true\n"
    );
    let site = Site::with_options(&[], DaemonOptions { config, ..DaemonOptions::default() })?;
    let built = site.dockerfile(
        "FROM mirrored.invalid/base AS b\nRUN echo mirrored > /out\nFROM scratch\nCOPY --from=b /out /\n",
        &[],
    )?;
    assert_eq!(built.read("out")?, "mirrored\n");
    check_contains(&built.log, &["load metadata for mirrored.invalid/base:latest"]);
    Ok(())
}

#[test]
fn a_registry_with_a_password() -> Result<()> {
    let registry = Registry::with_password("user", HASH)?;
    let address = registry.address();
    let name = format!("{address}/private/base:latest");
    copy(&format!("docker://{}", hub()?.base), &format!("docker://{name}"), &["--dest-creds=user:secret"])?;
    let site = Site::new(&[("Dockerfile", &format!("FROM {name}\nRUN echo private > /out\n"))])?;
    let with = |auth: Option<&str>| -> Result<Finished> {
        let dir = tempfile::tempdir()?;
        if let Some(auth) = auth {
            let config = json!({ "auths": { address: { "auth": auth } } });
            std::fs::write(dir.path().join("config.json"), config.to_string())?;
        }
        let output = format!("--output=type=image,name={address}/private/made:v1,push=true");
        Finished::run(site.command(&[&output])?.env("DOCKER_CONFIG", dir.path()))
    };
    let failed = with(None)?.failure()?;
    check_contains(&failed.stderr, &["error: failed to solve", &name, "authorization"]);
    // user:wrong
    let failed = with(Some("dXNlcjp3cm9uZw=="))?.failure()?;
    check_contains(&failed.stderr, &["error: failed to solve", &name]);
    assert!(!failed.stderr.contains("wrong"), "{}", failed.stderr);
    // user:secret
    with(Some("dXNlcjpzZWNyZXQ="))?.success()?;
    let log = site.daemon.log();
    assert!(!log.contains("secret") && !log.contains("dXNlcjpzZWNyZXQ="), "{log}");
    let made = inspect(&["--creds=user:secret", &format!("docker://{address}/private/made:v1")])?;
    assert!(made["Digest"].is_string());
    // What one client could fetch is not given to another that may not.
    with(None)?.failure()?;
    Ok(())
}

/// Whether the daemon has the blob.
fn has_blob(site: &Site, digest: &str) -> Result<bool> {
    let hex = digest.split(':').next_back().context("no digest")?;
    let found = run(
        "find",
        &[&site.daemon.root().display().to_string(), "-name", &format!("*{hex}*"), "-type", "f"],
    )?;
    Ok(!found.is_empty())
}

#[test]
fn layers_that_nobody_reads_are_not_fetched() -> Result<()> {
    let hub = hub()?;
    let name = format!("{}/lazy/labelled:v1", hub.registry.address());
    let site = Site::new(&[("Dockerfile", "ARG BASE\nFROM $BASE\nLABEL lazy=yes\n")])?;
    site.build(&[&format!("--output=type=image,name={name},push=true")])?.success()?;
    let base = inspect(&["--raw", &format!("docker://{}", hub.base)])?;
    for layer in base["layers"].as_array().into_iter().flatten() {
        let digest = layer["digest"].as_str().unwrap_or_default();
        assert!(!has_blob(&site, digest)?, "{digest} was fetched");
    }
    let image = Image::pull(&format!("docker://{name}"))?;
    assert_eq!(image.config()?["config"]["Labels"]["lazy"], "yes");
    assert!(image.unpack()?.join("bin/busybox").is_file());
    // The layers of the base are the same blobs.
    let made = image.manifest()?;
    let layers = |manifest: &Value| -> Vec<String> {
        manifest["layers"].as_array().into_iter().flatten().map(|l| l["digest"].to_string()).collect()
    };
    assert!(layers(&made).starts_with(&layers(&base)));
    Ok(())
}

/// Puts an index of two platforms into the registry; its reference.
fn push_index(site: &Site, address: &str, dir: &Path) -> Result<String> {
    let mut manifests = Vec::new();
    for arch in ["amd64", "arm64"] {
        let name = format!("{address}/multi:{arch}");
        let file = dir.join(arch);
        site.write(&[("arch", arch), ("Dockerfile", "FROM scratch\nCOPY arch /arch\n")])?;
        let output = format!("--output=type=image,name={name},push=true");
        site.build(&[
            &format!("--opt=platform=linux/{arch}"),
            &output,
            &format!("--metadata-file={}", file.display()),
        ])?
        .success()?;
        let descriptor = &metadata(&file)?["containerimage.descriptor"];
        manifests.push(json!({
            "mediaType": descriptor["mediaType"], "digest": descriptor["digest"], "size": descriptor["size"],
            "platform": { "architecture": arch, "os": "linux" },
        }));
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = dir.join("index.json");
    let text = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests }).to_string();
    std::fs::write(&index, text)?;
    let (header, data) = (format!("Content-Type: {media_type}"), format!("@{}", index.display()));
    let to = format!("http://{address}/v2/multi/manifests/latest");
    run("curl", &["-sSf", "-X", "PUT", "-H", &header, "--data-binary", &data, &to])?;
    Ok(format!("{address}/multi:latest"))
}

#[test]
fn an_index_gives_the_image_of_the_platform() -> Result<()> {
    let site = Site::new(&[])?;
    let dir = tempfile::tempdir()?;
    let image = push_index(&site, hub()?.registry.address(), dir.path())?;
    for (flags, args, want) in [
        ("", &[][..], "amd64"),
        ("--platform=linux/arm64 ", &[], "arm64"),
        ("", &["--opt=platform=linux/arm64"], "arm64"),
        ("--platform=$BUILDPLATFORM ", &["--opt=platform=linux/arm64"], "amd64"),
    ] {
        let built = site
            .dockerfile(&format!("FROM {flags}{image} AS i\nFROM scratch\nCOPY --from=i /arch /\n"), args)?;
        assert_eq!(built.read("arch")?, want, "{flags}{args:?}");
    }
    site.write(&[("Dockerfile", &format!("FROM --platform=linux/s390x {image}\nCOPY arch /\n"))])?;
    let failed = site.build(&[])?.failure()?;
    check_contains(&failed.stderr, &["no match for platform in manifest", "Dockerfile:1"]);
    Ok(())
}

#[test]
fn a_push_that_is_refused() -> Result<()> {
    let registry = Registry::start()?;
    let name = format!("{}/gone:v1", registry.address());
    drop(registry);
    let site = Site::new(&[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")])?;
    let failed = site.build(&[&format!("--output=type=image,name={name},push=true")])?.failure()?;
    check_contains(&failed.stderr, &["error: failed to solve", "failed to push"]);
    site.local(&[])?;
    Ok(())
}

#[test]
fn a_blob_lost_from_the_store_is_fetched_again() -> Result<()> {
    let site = Site::new(&[("Dockerfile", "ARG BASE\nFROM $BASE\nRUN echo one > /one\n")])?;
    let first = site.image(&[])?.manifest()?;
    let base = inspect(&["--raw", &format!("docker://{}", hub()?.base)])?;
    let digest = base["layers"][0]["digest"].as_str().unwrap_or_default().replace("sha256:", "");
    let found = run("find", &[&site.daemon.root().display().to_string(), "-name", &digest, "-type", "f"])?;
    assert!(!found.trim().is_empty(), "no blob {digest}");
    for path in found.lines() {
        std::fs::remove_file(path)?;
    }
    assert_eq!(site.image(&[])?.manifest()?, first);
    Ok(())
}
