//! `cargo xtask fuzz`: the targets in `fuzz`, with the stable toolchain.
//!
//! What `cargo fuzz` passes to the compiler for coverage is stable; only its address sanitizer needs a nightly
//! toolchain, and the targets are free of unsafe code. libFuzzer itself comes with the crate `libfuzzer-sys`, which
//! compiles it with the machine's C++ compiler.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell;

const TARGETS: [&str; 4] = ["parser", "shell", "ignore_patterns", "lowering"];
/// Tells libFuzzer which edges a run takes and what it compares.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1";
/// Everything is kept below this, so that the ordinary build does not see it.
const DIR: &str = "target/fuzz";
/// Recorded Dockerfiles, which are the first inputs.
const CASES: &str = "frontend-dockerfile/testdata/cases";
/// A longer run of one input, in seconds, is a finding, and so is more memory, in MiB.
const MAX_SECONDS: u32 = 20;
const MAX_MEMORY: u32 = 2048;
const MAX_INPUT: u32 = 65_536;

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Targets; all of them without any.
    targets: Vec<String>,
    /// How long each runs, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Builds the targets and runs each for a while. A finding ends it; its input is kept.
pub(crate) fn run(options: &Options) -> Result<()> {
    let targets: Vec<&str> = match options.targets.as_slice() {
        [] => TARGETS.to_vec(),
        named => named.iter().map(String::as_str).collect(),
    };
    if let Some(unknown) = targets.iter().find(|target| !TARGETS.contains(target)) {
        bail!("no fuzz target `{unknown}`: there are {}", TARGETS.join(", "));
    }
    if !shell::has("c++") {
        bail!("libFuzzer needs a C++ compiler: install the package g++");
    }
    let host = host()?;
    let build =
        ["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", &host, "--target-dir", DIR];
    shell::run_with("cargo", &build, &[("RUSTFLAGS", COVERAGE)])?;
    let seeds = seeds()?;
    for target in targets {
        eprintln!("== {target}, {} s", options.seconds);
        let corpus = Path::new(DIR).join("corpus").join(target);
        let findings = Path::new(DIR).join("findings").join(target);
        for dir in [&corpus, &findings] {
            std::fs::create_dir_all(dir).with_context(|| format!("failed to make `{}`", dir.display()))?;
        }
        let program = Path::new(DIR).join(&host).join("release").join(target);
        let program =
            program.canonicalize().with_context(|| format!("no program `{}`", program.display()))?;
        let args = [
            corpus.display().to_string(),
            seeds.display().to_string(),
            format!("-max_total_time={}", options.seconds),
            format!("-timeout={MAX_SECONDS}"),
            format!("-rss_limit_mb={MAX_MEMORY}"),
            format!("-max_len={MAX_INPUT}"),
            format!("-artifact_prefix={}/", findings.display()),
            "-print_final_stats=1".to_owned(),
            "-verbosity=0".to_owned(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        shell::run(&program.display().to_string(), &args).with_context(|| {
            format!("`{target}` found something: its input is in `{}`", findings.display())
        })?;
    }
    Ok(())
}

/// The recorded Dockerfiles, each in a file of its own in one directory, as libFuzzer wants them.
fn seeds() -> Result<PathBuf> {
    let dir = Path::new(DIR).join("seeds");
    std::fs::create_dir_all(&dir)?;
    for topic in std::fs::read_dir(CASES).with_context(|| format!("no cases in `{CASES}`"))? {
        let topic = topic?.path();
        if !topic.is_dir() {
            continue;
        }
        for case in std::fs::read_dir(&topic)? {
            let case = case?.path();
            let file = case.join("Dockerfile");
            if file.is_file() {
                let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                std::fs::copy(&file, dir.join(format!("{}-{}", name(&topic), name(&case))))?;
            }
        }
    }
    Ok(dir)
}

/// The machine's target, as the compiler names it. Named, it keeps the flags away from build scripts.
fn host() -> Result<String> {
    let version = shell::capture("rustc", &["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("the compiler does not say what its host is")
}
