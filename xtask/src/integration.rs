//! `cargo xtask integration`.

use anyhow::Result;

use crate::{packages, shell};

/// Builds the binaries and runs the integration tests whose names contain one of `filters` (all without any).
pub(crate) fn run(filters: &[String]) -> Result<()> {
    packages::ensure(&[packages::BASIC, packages::TESTS])?;
    // Selected in the whole workspace and together with a test, so that cargo settles on the features that the unit
    // tests have too; else every dependency of note would be compiled a second time.
    let mut args = vec!["build", "--quiet", "--workspace", "--test", "integration"];
    args.extend(shell::PROGRAMS);
    shell::run("cargo", &args)?;
    // Each test starts its own daemon: two at a time keep a small machine busy without starving any of them.
    let mut args = vec!["test", "--workspace", "--test", "integration", "--", "--test-threads", "2"];
    args.extend(filters.iter().map(String::as_str));
    shell::run("cargo", &args)
}
