//! Trying again after failures that may pass.

use crate::access::Observer;
use crate::error::{Error, Kind, Result};
use crate::hosts::Config;

/// Runs `attempt` until it succeeds, fails for good, or the pauses are used up (1, 2 and 4 s unless the
/// configuration says otherwise). Whoever waits reads of it in the log.
///
/// # Cancel safety
/// As safe as one attempt.
pub(crate) async fn with_retries<T, F: Future<Output = Result<T>>>(
    config: &Config,
    observer: &dyn Observer,
    mut attempt: impl FnMut() -> F,
) -> Result<T> {
    let mut pause = config.retry_pause;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if error.kind() != Kind::Temporary {
            return Err(error);
        }
        observer.log(&format!("error: {}\n", chain(&error)));
        if pause >= config.retry_limit {
            return Err(error);
        }
        observer.log(&format!("retrying in {pause:?}\n"));
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// Returns the message of an error and of its causes.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(current) = cause {
        text.push_str(": ");
        text.push_str(&current.to_string());
        cause = current.source();
    }
    text
}
