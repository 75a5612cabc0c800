//! What can go wrong with a graph.

use kiln_digest::Digest;

/// Why a definition could not be read, written or built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes end in the middle of a value.
    #[error("unexpected EOF")]
    UnexpectedEnd,
    /// The bytes are not a message of the expected type.
    #[error("invalid message: {0}")]
    Malformed(&'static str),
    /// Messages are nested deeper than is sensible.
    #[error("exceeded maximum recursion depth")]
    TooDeep,
    /// A typed message does not decode.
    #[error(transparent)]
    Decode(#[from] prost::DecodeError),
    /// The message descriptors lack something.
    #[error("invalid schema: {0}")]
    Schema(String),
    /// A graph names an input that it does not contain.
    #[error("invalid missing input digest {0}")]
    MissingInput(String),
    /// A graph is built in a way that has no meaning.
    #[error("{0}")]
    Build(String),
    /// A vertex contains itself.
    #[error("vertex `{0}` is its own input")]
    Cycle(Digest),
}

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
