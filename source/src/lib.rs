//! Where inputs come from: images, local directories, files from web servers and git repositories.
//!
//! - [`image`]: references are resolved to documents and lazy layers; [`image::ImageProvider`] fetches the layers.
//! - [`local`]: directories of a client, received as a difference to what the last build got.
//! - [`git`]: checkouts of repositories, over a bare repository that is kept for each.
//! - [`http`]: files, fetched again only when the server says that they have changed.
//! - [`platform`]: which manifest of an index suits a platform.
//!
//! A source gives cache maps and refs; it knows nothing of LLB vertices, and credentials and sessions are lent to it
//! for each call.
#![forbid(unsafe_code)]

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

mod error;
pub mod git;
pub mod http;
pub mod image;
mod key;
mod lent;
pub mod local;
pub mod platform;
mod progress;
mod redact;
mod turns;

pub use crate::error::{BoxError, Error, Result};
pub use crate::key::{cache_map, key_digest};
pub use crate::lent::{SessionCredentials, SessionLayouts};
pub use crate::redact::redacted;

/// Runs blocking work off the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The process ends.
            Err(_cancelled) => Err(Error::Cancelled),
        },
    }
}
