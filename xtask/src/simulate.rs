//! `cargo xtask simulate`.

use anyhow::Result;

use crate::shell;

/// Which simulations of the scheduler are run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The first seed; it decides everything, what goes wrong included.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds. A single one is printed step by step.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Threads; as many as there are processors unless given.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1024))]
    jobs: Option<u64>,
}

/// Runs them in an optimised build of the solver alone, so that this program does not depend on it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let processors = std::thread::available_parallelism().map_or(2, |n| n.get() as u64);
    let jobs = options.jobs.unwrap_or(processors);
    let numbers = [options.seed, options.count, jobs].map(|number| number.to_string());
    let mut args = vec!["run", "--release", "--quiet", "--package", "kiln-solver", "--features", "testing"];
    args.extend(["--example", "simulate", "--"]);
    args.extend(numbers.iter().map(String::as_str));
    shell::run("cargo", &args)
}
