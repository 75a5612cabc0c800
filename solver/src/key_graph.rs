//! The keys of a result with everything below them, for cache exports.

use std::sync::Arc;

use kiln_digest::Digest;

use crate::key::{KeyDigest, KeyId};
use crate::op::ResultRef;
use crate::outcome::Outcome;
use crate::vertex::{OutputIndex, VertexDigest};

/// The keys of all edges below a build's results, inputs before their users.
///
/// Flat on purpose: chains are as long as definitions make them.
#[derive(Clone, Debug, Default)]
pub struct KeyGraph {
    /// The nodes; see [`KeyNodeIndex`].
    pub nodes: Vec<KeyNode>,
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

/// The keys of one result.
#[derive(Clone, Debug)]
pub struct ResultKey {
    /// All keys of the build.
    pub graph: Arc<KeyGraph>,
    /// This result's place in it.
    pub node: KeyNodeIndex,
}

impl ResultKey {
    /// Returns what is known of the result's own edge.
    pub fn node(&self) -> Option<&KeyNode> {
        self.graph.nodes.get(self.node.0 as usize)
    }
}
