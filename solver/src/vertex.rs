//! Graphs of vertices: what a solve is asked to compute.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kiln_digest::Digest;

use crate::error::{Error, Result};
use crate::op::Op;

/// Checksum of a vertex's definition and everything below it. Compare it within one solve only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VertexDigest(pub Digest);

impl From<Digest> for VertexDigest {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

impl fmt::Display for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Position of a vertex in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VertexIndex(pub u32);

/// Which output of an op an edge refers to, counted from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OutputIndex(pub u32);

/// One output of one vertex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// The vertex.
    pub vertex: VertexIndex,
    /// Its output.
    pub output: OutputIndex,
}

/// A step of a build.
#[derive(Clone, Debug)]
pub struct Vertex {
    /// Identifies the vertex in its job: two vertices with equal digests in one job are the same vertex.
    pub digest: VertexDigest,
    /// What people see.
    pub name: String,
    /// The edges it reads, all of earlier vertices.
    pub inputs: Vec<Edge>,
    /// What computes it.
    pub op: Arc<dyn Op>,
    /// How it is treated.
    pub options: VertexOptions,
}

/// How a vertex is treated.
#[derive(Clone, Debug, Default)]
pub struct VertexOptions {
    /// Runs it even if its result is known.
    pub ignore_cache: bool,
    /// Whether exported caches contain its result; none leaves it to the export.
    pub export_cache: Option<bool>,
    /// Free key-value pairs.
    pub description: BTreeMap<String, String>,
    /// The group it is shown in.
    pub progress_group: Option<ProgressGroup>,
}

/// Vertices that clients show as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgressGroup {
    /// Identifies the group.
    pub id: String,
    /// What people see.
    pub name: String,
    /// Whether vertices of the group may be shown elsewhere when the group has no other.
    pub weak: bool,
}

/// An immutable graph, inputs before their users.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    vertices: Vec<Vertex>,
}

impl Graph {
    /// Checks the order of the vertices and takes them.
    ///
    /// # Errors
    /// [`Error::Graph`] if an input is not an earlier vertex, or a digest appears twice.
    pub fn new(vertices: Vec<Vertex>) -> Result<Self> {
        let mut digests = std::collections::HashSet::with_capacity(vertices.len());
        if u32::try_from(vertices.len()).is_err() {
            return Err(Error::Graph("too many vertices".to_owned()));
        }
        for (index, vertex) in vertices.iter().enumerate() {
            if let Some(edge) = vertex.inputs.iter().find(|edge| edge.vertex.0 as usize >= index) {
                let message =
                    format!("input `{}` of vertex `{}` is not before it", edge.vertex.0, vertex.digest);
                return Err(Error::Graph(message));
            }
            if !digests.insert(vertex.digest) {
                return Err(Error::Graph(format!("vertex `{}` appears twice", vertex.digest)));
            }
        }
        Ok(Self { vertices })
    }

    /// Returns the vertices, inputs before their users.
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// Returns one vertex.
    pub fn get(&self, index: VertexIndex) -> Option<&Vertex> {
        self.vertices.get(index.0 as usize)
    }
}
