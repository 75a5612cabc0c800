//! `kiln`: builds a directory into an image, with a daemon of the user's own.
#![forbid(unsafe_code)]

mod args;
mod build;
mod cache;
mod daemon;
mod lint;
mod place;
mod result;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use kiln_cli::{Error, Result};
use tokio_util::sync::CancellationToken;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let args = Args::parse();
    match start(args) {
        Ok(code) => code,
        Err(error) => {
            // Nobody is left to tell about a closed output.
            let _written = kiln_cli::report(&mut std::io::stderr(), &error);
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> Result<ExitCode> {
    let logging = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN);
    logging.with_ansi(false).try_init().map_err(|error| Error::option(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::option(error.to_string()))?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::select! {
            outcome = run(args, &stop) => outcome,
            never = signals(&stop) => match never {},
        }
    });
    runtime.shutdown_background();
    outcome
}

async fn run(args: Args, stop: &CancellationToken) -> Result<ExitCode> {
    match args.command {
        // This one stops by itself, and says goodbye.
        Command::Build(build) => return build::run(build, stop).await,
        Command::Explain(build) => return build::explain(build, stop).await,
        Command::Lint(lint) => return lint::run(lint).await,
        Command::Du(du) => cache::disk_usage(du).await?,
        Command::Prune(prune) => cache::prune(prune).await?,
        Command::Stop => daemon::stop().await?,
        Command::Version => print(&format!("kiln {}\n", env!("CARGO_PKG_VERSION")))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The first SIGINT or SIGTERM asks the command to stop, the second one ends the process.
async fn signals(stop: &CancellationToken) -> std::convert::Infallible {
    use tokio::signal::unix::{SignalKind, signal};
    if let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.is_cancelled() {
                std::process::exit(1);
            }
            stop.cancel();
        }
    }
    std::future::pending().await
}

/// Writes to standard output.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| {
        Error::option(format!("cannot write to standard output: {}", kiln_cli::io_text(&error)))
    })
}
