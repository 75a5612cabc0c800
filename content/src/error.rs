//! What a caller's request can run into.

use std::io;
use std::path::PathBuf;

use kiln_digest::Digest;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller's request ran into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The filesystem refused an operation.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A stream broke off or was refused.
    #[error("cannot {action}")]
    Stream {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The bytes are not those that were announced.
    #[error("content has digest `{actual}`, expected `{expected}`")]
    DigestMismatch {
        /// What was announced.
        expected: Digest,
        /// What the bytes have.
        actual: Digest,
    },
    /// The content has another length than announced.
    #[error("content has {actual} bytes, expected {expected}")]
    SizeMismatch {
        /// The announced length in bytes.
        expected: u64,
        /// The length in bytes; only a lower bound when the writer stopped early.
        actual: u64,
    },
    /// The blob is larger than the caller allows.
    #[error("blob `{digest}` has {size} bytes, more than the allowed {max}")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
        /// The allowed length in bytes.
        max: u64,
    },
    /// The blob is not in the store.
    #[error("blob `{0}` not found")]
    NotFound(Digest),
    /// A tar stream is malformed or goes beyond a limit.
    #[error("invalid layer: {0}")]
    InvalidLayer(String),
    /// One entry of a layer cannot be applied.
    #[error("cannot apply layer entry `{name}`")]
    Entry {
        /// The entry's name as the layer has it.
        name: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An upper directory uses a feature whose difference cannot be computed.
    #[error("redirect_dir is used but it's not supported in overlayfs differ")]
    Redirect,
    /// A name or level of compression is not known.
    #[error("unsupported compression type `{0}`")]
    UnknownCompression(String),
    /// A text is no platform.
    #[error("invalid platform `{0}`")]
    InvalidPlatform(String),
    /// A document is not valid JSON of its kind.
    #[error("cannot parse {document}")]
    Json {
        /// What kind of document.
        document: &'static str,
        /// Why it failed.
        source: serde_json::Error,
    },
    /// The work was interrupted because its task was cancelled or panicked.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// Makes an [`Error::Io`] of an error at `path`.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Makes an [`Error::Stream`].
    pub(crate) fn stream(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Stream { action, source }
    }
}
