//! `cargo xtask quickstart`: from nothing to an image.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use kiln_tests::{Binaries, Daemon, DaemonOptions, Registry, push_base_image};

use crate::{packages, shell};

const IMAGE: &str = "target/quickstart/hello.tar";

/// Builds the release binaries, a base image and `examples/hello`, and says what to try next.
pub(crate) fn run() -> Result<()> {
    packages::ensure(&[packages::BASIC])?;
    shell::build_release()?;
    let start = Instant::now();
    let binaries = Binaries::at("target/release")?;
    let registry = Registry::start()?;
    let daemon = Daemon::start(&binaries, DaemonOptions::default())?;
    eprintln!("a daemon and a registry are up; making a base image from /bin/busybox");
    let base = push_base_image(&daemon, &registry, "busybox")?;

    std::fs::create_dir_all(Path::new(IMAGE).parent().unwrap_or(Path::new(".")))?;
    let metadata = tempfile::NamedTempFile::new()?;
    let status = Command::new(binaries.path("buildctl"))
        .args(["--addr", &daemon.address(), "build", "--frontend=dockerfile.v0"])
        .args(["--local=context=examples/hello", "--local=dockerfile=examples/hello"])
        .arg(format!("--opt=build-arg:BASE={base}"))
        .arg(format!("--output=type=oci,dest={IMAGE}"))
        .arg("--metadata-file")
        .arg(metadata.path())
        .status()
        .context("failed to start buildctl")?;
    anyhow::ensure!(status.success(), "the build of examples/hello failed: {status}");

    let metadata: serde_json::Value = serde_json::from_slice(&std::fs::read(metadata.path())?)?;
    let digest = metadata["containerimage.digest"].as_str().unwrap_or("(no digest)");
    let size = std::fs::metadata(IMAGE)?.len();
    println!("\nMade {IMAGE}: an OCI archive of {:.1} MB", size as f64 / 1e6);
    println!("  image digest  {digest}");
    println!("  took          {:.1} s after compilation\n", start.elapsed().as_secs_f64());
    println!("Next:");
    println!("  skopeo inspect --config oci-archive:{IMAGE}");
    println!(
        "  sudo target/release/kiln build -t hello -o type=docker,dest=hello.tar DIR      # any directory with a Dockerfile"
    );
    println!(
        "  sudo target/release/buildkitd &                                                 # a daemon for buildctl and docker buildx"
    );
    Ok(())
}
