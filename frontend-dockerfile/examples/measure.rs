//! How long lowering and linting of a big Dockerfile take, at 1×, 10× and 100× of 100 stages:
//! `cargo run --release -p kiln-frontend-dockerfile --features testing --example measure`.
#![expect(clippy::print_stdout, reason = "the figures are what is asked for")]

use std::time::{Duration, Instant};

use kiln_frontend_dockerfile::testing::{big_file, lower};

/// The processor time of this thread, which says more than a clock on a busy machine.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default())
}

/// The best of several runs, in which others disturb the least: by the clock, and of the processor.
fn best(runs: usize, mut what: impl FnMut()) -> (Duration, Duration) {
    let mut best = (Duration::MAX, Duration::MAX);
    for _ in 0..runs {
        let (clock, processor) = (Instant::now(), processor_time());
        what();
        best = (best.0.min(clock.elapsed()), best.1.min(processor_time() - processor));
    }
    best
}

fn main() -> Result<(), String> {
    println!(
        "{:>7} {:>8} {:>10} {:>12} {:>12} {:>12} {:>12}",
        "stages", "lines", "bytes", "lowering", "processor", "lint", "processor"
    );
    for (stages, runs) in [(100, 20), (1_000, 5), (10_000, 1)] {
        let file = big_file(stages);
        let opts = [("cmdline", "given")];
        let lint = [("cmdline", "given"), ("requestid", "frontend.lint")];
        lower(file.as_bytes(), &opts).map_err(|error| error.chain())?;
        let lowering = best(runs, || drop(lower(file.as_bytes(), &opts)));
        let linting = best(runs, || drop(lower(file.as_bytes(), &lint)));
        let (lines, bytes) = (file.lines().count(), file.len());
        println!(
            "{stages:>7} {lines:>8} {bytes:>10} {:>12.2?} {:>12.2?} {:>12.2?} {:>12.2?}",
            lowering.0, lowering.1, linting.0, linting.1
        );
    }
    Ok(())
}
