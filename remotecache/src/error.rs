//! What exports and imports of caches run into.

use kiln_digest::Digest;

/// An error of whoever implements one of our ports.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an export or import ran into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An attribute, or a combination of some, is no good. Clients know these texts.
    #[error("{0}")]
    Invalid(String),
    /// A document is larger than any honest one.
    #[error("blob {digest} is too large ({size} > {limit})")]
    TooLarge {
        /// The document.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// How large it may be.
        limit: u64,
    },
    /// A document does not have the digest it is named by.
    #[error("blob {expected} has digest {actual}")]
    Digest {
        /// Its name.
        expected: Digest,
        /// What its bytes say.
        actual: Digest,
    },
    /// A document is not there.
    #[error("blob {0}: not found")]
    NotFound(Digest),
    /// A document does not parse.
    #[error("invalid {what}: {reason}")]
    Document {
        /// Which.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// The records do not fit together. Clients know these texts.
    #[error("{0}")]
    Records(String),
    /// The solver's store failed.
    #[error("cannot read cache keys")]
    Keys(#[from] kiln_solver::Error),
    /// A layer could not be made or brought here.
    #[error("cannot export layers")]
    Layers(#[from] kiln_exporter::Error),
    /// The catalogue failed.
    #[error("cannot keep an imported layer")]
    Cache(#[from] kiln_cache::Error),
    /// The content store failed.
    #[error("cannot store cache content")]
    Content(#[from] kiln_content::Error),
    /// The client failed.
    #[error("cannot reach the client's cache")]
    Session(#[from] kiln_session::Error),
    /// The registry failed.
    #[error("cannot reach the registry's cache")]
    Registry(#[from] kiln_registry::Error),
}

impl Error {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }
}
