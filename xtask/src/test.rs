//! `cargo xtask test`.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::{integration, layers, packages, shell};

/// One named step.
type Step = (&'static str, fn() -> Result<()>);

/// Runs every check in turn, the cheap ones first.
pub(crate) fn run() -> Result<()> {
    let steps: &[Step] = &[
        ("packages", || packages::ensure(&[packages::BASIC, packages::TESTS])),
        ("layers", layers::check),
        ("format", || shell::run("cargo", &["fmt", "--all", "--check"])),
        ("lints", || {
            shell::run(
                "cargo",
                &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
            )
        }),
        ("docs", || {
            shell::run_with(
                "cargo",
                &["doc", "--workspace", "--no-deps", "--quiet"],
                &[("RUSTDOCFLAGS", "-D warnings")],
            )
        }),
        ("unit tests", || shell::run("cargo", &["test", "--workspace", "--quiet"])),
        ("integration tests", || integration::run(&[])),
    ];
    for (name, step) in steps {
        eprintln!("== {name}");
        let start = Instant::now();
        step().with_context(|| format!("{name} failed"))?;
        eprintln!("== {name}: ok, {:.0} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}
