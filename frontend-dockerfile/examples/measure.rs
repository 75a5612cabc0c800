//! How long lowering and linting of a big Dockerfile take, at 1×, 10× and 100× of 100 stages:
//! `cargo run --release -p kiln-frontend-dockerfile --features testing --example measure`.
#![expect(clippy::print_stdout, reason = "the figures are what is asked for")]

use std::time::{Duration, Instant};

use kiln_frontend_dockerfile::testing::{big_file, lower};

/// The best of several runs, in which others disturb the least.
fn best(runs: usize, mut what: impl FnMut()) -> Duration {
    let mut times = (0..runs).map(|_| {
        let start = Instant::now();
        what();
        start.elapsed()
    });
    let first = times.next().unwrap_or_default();
    times.fold(first, Duration::min)
}

fn main() -> Result<(), kiln_frontend::Error> {
    println!("{:>7} {:>8} {:>10} {:>12} {:>12}", "stages", "lines", "bytes", "lowering", "lint");
    for (stages, runs) in [(100, 20), (1_000, 5), (10_000, 1)] {
        let file = big_file(stages);
        let opts = [("cmdline", "given")];
        let lint = [("cmdline", "given"), ("requestid", "frontend.lint")];
        lower(file.as_bytes(), &opts)?;
        let lowering = best(runs, || drop(lower(file.as_bytes(), &opts)));
        let linting = best(runs, || drop(lower(file.as_bytes(), &lint)));
        let (lines, bytes) = (file.lines().count(), file.len());
        println!("{stages:>7} {lines:>8} {bytes:>10} {lowering:>12.2?} {linting:>12.2?}");
    }
    Ok(())
}
