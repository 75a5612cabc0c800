//! Running other programs.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Arguments that make cargo build the programs, with the features that a plain `cargo build` in this workspace gives.
pub(crate) const PROGRAMS: [&str; 8] =
    ["--bin", "buildkitd", "--bin", "buildctl", "--bin", "kiln", "--bin", "dockerfile-frontend"];

/// Builds the programs into `target/release`.
pub(crate) fn build_release() -> Result<()> {
    eprintln!("building the release binaries (the first time takes a few minutes)");
    let mut args = vec!["build", "--release", "--workspace"];
    args.extend(PROGRAMS);
    run("cargo", &args)
}

/// Runs a program with our stdio; anything but exit code 0 is an error that names the command.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<()> {
    run_with(program, args, &[])
}

/// As [`run`], with more environment variables.
pub(crate) fn run_with(program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let status = command(program)
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("failed to start `{program}`"))?;
    if !status.success() {
        bail!("`{program} {}` failed: {status}", args.join(" "));
    }
    Ok(())
}

/// Runs a program and returns its standard output.
pub(crate) fn capture(program: &str, args: &[&str]) -> Result<String> {
    let output = command(program)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("failed to start `{program}`"))?;
    if !output.status.success() {
        bail!("`{program} {}` failed: {}", args.join(" "), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of `{program}` is not UTF-8"))
}

/// A command without what cargo told this program about itself. Build scripts that look at it (that of `ring` does) would
/// take it for a change, and everything above them would be compiled again each time one changes between
/// `cargo xtask` and plain `cargo`.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let told =
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"];
        if name.to_str().is_some_and(|name| told.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether a program of that name is in `PATH`.
pub(crate) fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
