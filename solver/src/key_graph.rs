//! The keys of a result with everything below them, for cache exports.

use kiln_digest::Digest;

use crate::key::{KeyDigest, KeyId};
use crate::op::ResultRef;
use crate::outcome::Outcome;
use crate::scheduler::NodeId;
use crate::vertex::{OutputIndex, VertexDigest};

/// The keys of results and of all edges below them, inputs before their users.
///
/// Flat on purpose: chains are as long as definitions make them.
#[derive(Clone, Debug, Default)]
pub struct KeyGraph {
    /// The nodes; see [`KeyNodeIndex`].
    pub nodes: Vec<KeyNode>,
    /// The places of the results that were asked about, in that order.
    pub results: Vec<KeyNodeIndex>,
}

/// Position of a node in its [`KeyGraph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyNodeIndex(pub u32);

/// What is known of one edge.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KeyNode {
    /// The vertex, comparable in its job.
    pub vertex: VertexDigest,
    /// The output.
    pub output: OutputIndex,
    /// The op digests known; several for sources, none if the vertex was never asked.
    pub digests: Vec<KeyDigest>,
    /// The names of its keys in the store, as far as known.
    pub ids: Vec<KeyId>,
    /// Per input, the alternatives known.
    pub inputs: Vec<Vec<KeyInput>>,
    /// The result, if this solve needed it; the inner `None` is a nil result.
    pub result: Option<Option<ResultRef>>,
    /// The vertex's wish about exports.
    pub export_cache: Option<bool>,
    /// How the result came to be.
    pub outcome: Option<Outcome>,
}

/// One alternative of a key's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInput {
    /// Which part of the input matters.
    pub selector: Option<Digest>,
    /// What stands for the input.
    pub from: KeyOrigin,
}

/// What stands for an input in a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyOrigin {
    /// The keys of the edge that makes it.
    Node(KeyNodeIndex),
    /// The digest of its content.
    Content(Digest),
}

/// Names the key of a result in its job, which can write it down: see [`Job::key_graph`](crate::Job::key_graph).
#[derive(Clone, Copy, Debug)]
pub struct ResultKey {
    pub(crate) node: NodeId,
    pub(crate) output: OutputIndex,
}
