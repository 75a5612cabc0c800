//! `buildctl`: the command-line client of the build daemon.
#![forbid(unsafe_code)]

mod build;
mod cache;
mod check;
mod commands;
mod connection;
mod debug;
mod dial;
mod flags;
mod help;
mod monitor;

use std::io::Write as _;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::commands::{Invocation, Parse};

/// The line of `--version`, without the program's name.
const VERSION: &str = concat!("github.com/moby/buildkit v0.32.2+kiln.", env!("CARGO_PKG_VERSION"), " kiln");

fn main() -> ExitCode {
    let invocation = match commands::parse(std::env::args().skip(1).collect()) {
        Parse::Run(invocation) => invocation,
        Parse::Answer { stdout, stderr, code } => {
            // Nobody is left to tell about a closed output.
            let _written = std::io::stdout().write_all(stdout.as_bytes());
            let _written = std::io::stderr().write_all(stderr.as_bytes());
            return ExitCode::from(code);
        }
    };
    match start(&invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _written = kiln_cli::report(&mut std::io::stderr(), &error);
            ExitCode::FAILURE
        }
    }
}

fn start(invocation: &Invocation) -> kiln_cli::Result<()> {
    connection::start_logging(&invocation.global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| kiln_cli::Error::option(error.to_string()))?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::select! {
            outcome = commands::run(invocation, &stop) => outcome,
            never = signals(&stop) => match never {},
        }
    });
    // A read of standard input may never end.
    runtime.shutdown_background();
    outcome
}

/// The first SIGINT or SIGTERM asks the command to stop, the third one ends the process.
async fn signals(stop: &CancellationToken) -> std::convert::Infallible {
    use tokio::signal::unix::{SignalKind, signal};
    if let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    {
        for count in 1.. {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            stop.cancel();
            if count == 3 {
                let _written = writeln!(std::io::stderr(), "got 3 SIGTERM/SIGINTs, forcibly terminating");
                std::process::exit(1);
            }
        }
    }
    std::future::pending().await
}
