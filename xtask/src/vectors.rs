//! `cargo xtask vectors`: any folder of recorded answers, held against what is built here.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use kiln_tests::Binaries;
use kiln_tests::vectors::{Tally, cache_keys};

use crate::shell;

/// Which recorded answers, and where they are.
#[derive(Args)]
pub(crate) struct Options {
    /// The kind of answers.
    kind: Kind,
    /// The folder with one folder for each case.
    dir: PathBuf,
}

/// The kinds of recorded answers.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Builds, and the cache records exported.
    CacheKeys,
}

/// Runs all cases of a folder and says how they went; an error if one failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let tally = match options.kind {
        Kind::CacheKeys => cache_keys::run(&binaries()?, &options.dir)?,
    };
    report(&tally)
}

/// The binaries under test, built first unless they are elsewhere.
fn binaries() -> Result<Binaries> {
    if std::env::var_os("KILN_BIN_DIR").is_none() {
        shell::run("cargo", &["build", "--quiet", "--package", "buildkitd", "--package", "buildctl"])?;
    }
    Binaries::from_env()
}

fn report(tally: &Tally) -> Result<()> {
    println!("{tally}");
    ensure!(tally.failed.is_empty(), "{} cases failed", tally.failed.len());
    Ok(())
}
