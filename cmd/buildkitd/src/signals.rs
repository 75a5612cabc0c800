//! SIGTERM and SIGINT: the first stops gracefully, the third at once.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Fires `stop` at the first signal.
pub(crate) fn watch(tasks: &TaskTracker, stop: &CancellationToken) -> Result<()> {
    let terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    tasks.spawn(count(terminate, interrupt, stop.clone()));
    Ok(())
}

async fn count(mut terminate: Signal, mut interrupt: Signal, stop: CancellationToken) {
    for seen in 1u32.. {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        match seen {
            1 => {
                tracing::info!("got SIGTERM/SIGINT, stopping server");
                stop.cancel();
            }
            2 => tracing::warn!("got 2 SIGTERM/SIGINTs, still stopping; the third ends the process at once"),
            _ => {
                tracing::error!("got 3 SIGTERM/SIGINTs, forcibly terminating");
                std::process::exit(1);
            }
        }
    }
}
