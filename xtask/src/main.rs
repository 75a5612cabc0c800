//! Development tasks. Run `cargo xtask` for the list.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a command-line program")]

mod bench;
mod fuzz;
mod integration;
mod layers;
mod packages;
mod quickstart;
mod shell;
mod simulate;
mod test;
mod vectors;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of Kiln")]
enum Task {
    /// Build an example image from nothing: the first thing to run.
    Quickstart,
    /// Everything CI runs: format, lints, docs, layers, unit tests, integration tests.
    Test,
    /// Integration tests through the real binaries.
    Integration {
        /// Only tests whose name contains one of these.
        filters: Vec<String>,
    },
    /// Run simulations of the scheduler: one seed with all its steps, or many.
    Simulate(simulate::Options),
    /// Run the fuzz targets, each for a while.
    Fuzz(fuzz::Options),
    /// Measure named scenarios, alone or in turn with a peer of the same API.
    Bench(bench::Options),
    /// Hold the binaries against a folder of recorded answers.
    Vectors(vectors::Options),
    /// Check the crates' dependencies against the written table.
    Layers,
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Quickstart => quickstart::run(),
        Task::Test => test::run(),
        Task::Integration { filters } => integration::run(&filters),
        Task::Simulate(options) => simulate::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Vectors(options) => vectors::run(&options),
        Task::Layers => layers::check(),
    }
}
