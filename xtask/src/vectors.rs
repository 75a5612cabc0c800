//! `cargo xtask vectors`: any folder of recorded answers, held against what is built here.

mod recorded;

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
    /// The folder, of the form of the crates' own recorded answers.
    dir: PathBuf,
}

/// The kinds of recorded answers.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Builds, and the cache records exported.
    CacheKeys,
    /// Definitions: digests, what loading makes of them, keys of ops.
    Llb,
    /// Trees and checksums of their content.
    Contenthash,
    /// Dockerfiles and what they are lowered to.
    Dockerfile,
    /// Words and what they expand to.
    ShellExpansion,
    /// Ignore files and what they leave.
    IgnorePatterns,
}

impl Kind {
    /// Package, target and name of the tests that run such cases.
    fn tests(self) -> &'static [[&'static str; 3]] {
        match self {
            Self::CacheKeys => &[],
            Self::Llb => &[
                ["kiln-llb", "--test=recorded", "ops_render_and_encode_as_recorded"],
                ["kiln-engine", "--lib", "load::tests::recorded_definitions_load_as_in_the_reference"],
            ],
            Self::Contenthash => &[["kiln-cache", "--lib", "contenthash::tests::recorded_answers"]],
            Self::Dockerfile => &[["kiln-frontend-dockerfile", "--test=recorded", "recorded_cases"]],
            Self::ShellExpansion => &[["kiln-frontend-dockerfile", "--lib", "shell::tests::recorded_words"]],
            Self::IgnorePatterns => &[
                ["kiln-patterns", "--test=recorded", "ignore_files"],
                ["kiln-patterns", "--test=recorded", "include_lists"],
            ],
        }
    }
}

/// Runs all cases of a folder and says how they went; an error if one failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let tally = match options.kind {
        Kind::CacheKeys => cache_keys::run(&binaries()?, &options.dir)?,
        kind => recorded::run(kind.tests(), &options.dir)?,
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
