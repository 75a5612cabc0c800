//! What an export can run into.

/// An error of whoever implements one of our ports.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an export ran into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no exporter of that type.
    #[error("exporter \"{0}\" could not be found")]
    UnknownType(String),
    /// An attribute, a metadata value or their combination is no good. Clients know these texts.
    #[error("{0}")]
    Invalid(String),
    /// Something that the reference can export and this crate cannot.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// Two platforms have the same path.
    #[error("cannot overwrite {path} from {first} with {second} when split option is disabled")]
    Overwrite {
        /// The path.
        path: String,
        /// The platform that had it first.
        first: String,
        /// The platform that has it too.
        second: String,
    },
    /// A registry did not take an image.
    #[error("failed to push {name}")]
    Push {
        /// The name as the user wrote it.
        name: String,
        /// Why.
        source: BoxError,
    },
    /// A layer's blob could not be fetched.
    #[error("cannot fetch layer `{digest}`")]
    Fetch {
        /// The blob.
        digest: kiln_digest::Digest,
        /// Why.
        source: BoxError,
    },
    /// A layer that was compressed differently is not the same layer any more.
    #[error("layer has diff id `{actual}`, expected `{expected}`")]
    DiffId {
        /// What the catalogue says.
        expected: kiln_digest::Digest,
        /// What its bytes say.
        actual: kiln_digest::Digest,
    },
    /// The cache that an image is to carry could not be made.
    #[error("cannot make the inline cache")]
    InlineCache(#[source] BoxError),
    /// The catalogue failed.
    #[error("cannot read the result")]
    Cache(#[from] kiln_cache::Error),
    /// The content store or a layer failed.
    #[error("cannot write image content")]
    Content(#[from] kiln_content::Error),
    /// The client failed.
    #[error("cannot send the result")]
    Session(#[from] kiln_session::Error),
    /// A result could not be mounted.
    #[error("cannot mount the result")]
    Snapshot(#[from] kiln_snapshot::Error),
    /// A result could not be read.
    #[error("cannot read the result")]
    Files(#[from] kiln_rootdir::Error),
    /// A tar could not be written.
    #[error("cannot write tar")]
    Tar(#[from] kiln_content::tar::TarError),
    /// A thread that did blocking work was cancelled or panicked.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }
}
