//! `cargo xtask integration`.

use anyhow::Result;

use crate::{packages, shell};

/// Builds the binaries and runs the integration tests whose names contain one of `filters` (all without any).
pub(crate) fn run(filters: &[String]) -> Result<()> {
    packages::ensure(&[packages::BASIC, packages::TESTS])?;
    shell::run(
        "cargo",
        &["build", "--quiet", "--package", "buildkitd", "--package", "buildctl", "--package", "kiln"],
    )?;
    // Each test starts its own daemon: two at a time keep a small machine busy without starving any of them.
    let mut args = vec!["test", "--package", "kiln-tests", "--test", "it", "--", "--test-threads", "2"];
    args.extend(filters.iter().map(String::as_str));
    shell::run("cargo", &args)
}
