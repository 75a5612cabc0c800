//! Why a definition cannot be loaded.

use kiln_llb::VertexDigest;
use kiln_llb::caps::Unsupported;

use crate::load::PolicyError;

/// What is wrong with one vertex. Shows as that.
#[derive(Debug)]
pub struct Located {
    /// The vertex, as loaded.
    pub vertex: VertexDigest,
    /// The vertex, as sent.
    pub sent: VertexDigest,
    /// What is wrong with it.
    pub error: LoadError,
}

impl std::fmt::Display for Located {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Located {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Why a definition cannot be loaded. Clients get it as `failed to load LLB: <text>`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There are no ops.
    #[error("invalid empty definition")]
    Empty,
    /// There are more ops than is sensible.
    #[error("invalid definition with {0} vertexes")]
    TooManyVertices(usize),
    /// The ops have more inputs than is sensible.
    #[error("invalid definition with {0} or more inputs")]
    TooManyInputs(usize),
    /// An entry is not an Op.
    #[error("failed to parse llb proto op")]
    Parse(#[source] kiln_llb::Error),
    /// An input asks for an output below zero.
    #[error("invalid input {position} output index {output}")]
    NegativeOutput {
        /// Position among the op's inputs.
        position: usize,
        /// What was asked for.
        output: i64,
    },
    /// An exec op has a network mode that the proxy network does not know.
    #[error("network mode {0} is not allowed when proxy network is enabled")]
    ProxyNetworkMode(i32),
    /// A source is denied, or could not be judged.
    #[error("error evaluating the source policy")]
    Policy(#[source] PolicyError),
    /// An input is not in the definition.
    #[error("invalid missing input digest {0}")]
    MissingInput(String),
    /// There is nothing besides the final vertex.
    #[error("invalid LLB with {0} vertexes")]
    TooFewVertices(usize),
    /// The final vertex asks for nothing.
    #[error("invalid LLB with no inputs on last vertex")]
    NoRequestedEdge,
    /// An op lacks something it cannot do without.
    #[error("{0}")]
    InvalidOp(String),
    /// A vertex needs something that was not granted.
    #[error("{0}")]
    NotAllowed(String),
    /// One vertex is to blame.
    #[error(transparent)]
    At(Box<Located>),
    /// A vertex needs something that this daemon cannot do.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}
