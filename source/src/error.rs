//! What making a source available can run into.

use kiln_digest::Digest;

/// An error of a caller's port.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a source is not available. The texts are the reference's where clients look for them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An attribute of the source op cannot be understood.
    #[error("invalid {what} {value}")]
    Attribute {
        /// What the attribute is for.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// A list attribute is not a JSON list of strings.
    #[error("invalid {what} {value}")]
    List {
        /// What the attribute is for.
        what: &'static str,
        /// Its value.
        value: String,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// An image has neither tag nor digest.
    #[error("{reference}: object required")]
    ObjectRequired {
        /// The reference.
        reference: String,
    },
    /// An OCI layout is read by digest only.
    #[error("reference {reference:?} must have digest")]
    DigestRequired {
        /// The reference.
        reference: String,
    },
    /// The image is not the one that was asked for.
    #[error("image digest {actual} for {reference} does not match expected checksum {expected}")]
    Checksum {
        /// The reference.
        reference: String,
        /// What it resolved to.
        actual: Digest,
        /// What was asked for.
        expected: Digest,
    },
    /// The image is not there for the platform.
    #[error(
        "{reference}: no match for platform in manifest {root}: not found (wanted {platform}, it has {offered})"
    )]
    NoPlatform {
        /// The reference.
        reference: String,
        /// The index.
        root: Digest,
        /// What was wanted.
        platform: String,
        /// What the index has, shortened.
        offered: String,
    },
    /// The image's documents contradict each other or the request.
    #[error("invalid image {reference}: {reason}")]
    InvalidImage {
        /// The reference.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image has fewer layers than the limit asks for.
    #[error("layer limit {limit} is greater than the number of layers in the image {layers}")]
    LayerLimit {
        /// The limit.
        limit: usize,
        /// How many layers there are.
        layers: usize,
    },
    /// A build without a session has no local files.
    #[error("could not access local files without session")]
    NoSession,
    /// The text does not name an origin of blobs.
    #[error("`{0}` names no place to fetch from")]
    InvalidOrigin(String),
    /// Content of a client's OCI layout is asked for where nobody can provide it.
    #[error("no client provides the OCI layout `{0}`")]
    NoLayout(String),
    /// The registry did not provide it.
    #[error(transparent)]
    Registry(#[from] kiln_registry::Error),
    /// The client did not provide it.
    #[error(transparent)]
    Client(#[from] kiln_session::Error),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] kiln_cache::Error),
    /// The content store failed.
    #[error(transparent)]
    Content(#[from] kiln_content::Error),
    /// The directory to receive into cannot be mounted.
    #[error(transparent)]
    Mount(#[from] kiln_snapshot::Error),
    /// The directory to receive into cannot be opened.
    #[error(transparent)]
    Directory(#[from] kiln_rootdir::Error),
}

impl Error {
    /// Whether it was for want of something that another client may be able to lend.
    pub fn is_of_lender(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_of_holder(),
            Self::Client(_) | Self::NoLayout(_) | Self::NoSession => true,
            _ => false,
        }
    }
}
