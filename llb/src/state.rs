//! Building graphs.
//!
//! A [`State`] is a file system as it will be: an output of a vertex, with the environment, directory and
//! user that later steps start from. States are values; every step makes a new one. [`State::marshal`]
//! writes the graph that leads to a state, with the digests that the reference's client would give.

mod exec;
mod file;
mod marshal;
mod paths;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::pb;

pub use crate::state::exec::{Exec, ExecState, MountOptions, SecretFile, SshSocket};
pub use crate::state::file::{ChownTo, Copy, FileActions, Owner};
pub use crate::state::marshal::Constraints;
pub use crate::state::source::Source;

/// A file system as it will be.
#[derive(Clone, Debug, Default)]
pub struct State {
    output: Option<Output>,
    env: Vec<(String, String)>,
    dir: String,
    user: String,
    platform: Option<pb::Platform>,
}

/// What is known about a vertex besides its definition.
#[derive(Clone, Debug, Default)]
pub struct VertexMeta {
    /// Overrides the platform of the state and of the whole graph.
    pub platform: Option<pb::Platform>,
    /// Do not look up cached results.
    pub ignore_cache: bool,
    /// Annotations; see [`VertexMeta::named`].
    pub description: BTreeMap<String, String>,
    /// Whether the result goes into cache exports.
    pub export_cache: Option<bool>,
    /// Group in progress displays.
    pub progress_group: Option<pb::ProgressGroup>,
    /// Limits for the process, exec only.
    pub linux_resources: Option<pb::LinuxResources>,
    /// Which workers may run the vertex.
    pub filter: Vec<String>,
    /// Where it comes from.
    pub locations: Vec<SourceLocation>,
}

impl VertexMeta {
    /// Sets the name that progress shows.
    pub fn named(name: impl Into<String>) -> Self {
        Self { description: BTreeMap::from([("llb.customname".to_owned(), name.into())]), ..Self::default() }
    }
}

/// Ranges of a source file that a vertex was made from.
#[derive(Clone, Debug)]
pub struct SourceLocation {
    /// The file; equal ones are written once.
    pub file: Arc<pb::SourceInfo>,
    /// The ranges.
    pub ranges: Vec<pb::Range>,
}

#[derive(Clone)]
struct Output {
    vertex: Arc<Vertex>,
    index: i64,
}

/// Shows nothing of what lies below: that may be very deep.
impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("index", &self.index).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Vertex {
    body: Body,
    /// What the body's slots refer to; `None` is an empty file system.
    inputs: Vec<Option<Output>>,
    meta: VertexMeta,
    caps: BTreeSet<&'static str>,
}

/// An op whose inputs are slots of its vertex.
#[derive(Debug)]
enum Body {
    Source(pb::SourceOp),
    /// The slot of mount i is i; mounts beyond the slots have no input.
    Exec(Box<pb::ExecOp>),
    File(Vec<file::Step>),
    Merge,
    Diff,
}

impl State {
    /// Returns an empty file system.
    pub fn scratch() -> Self {
        Self::default()
    }

    /// Returns the file system of an image. The reference is completed like Docker does it.
    pub fn image(reference: &str) -> Self {
        Self::source(Source::image(reference))
    }

    /// Returns a directory of the client.
    pub fn local(name: &str) -> Self {
        Self::source(Source::local(name))
    }

    /// Returns what a source gives.
    pub fn source(source: Source) -> Self {
        let platform = source.meta.platform.clone();
        let vertex = source.into_vertex();
        Self { output: Some(Output { vertex: Arc::new(vertex), index: 0 }), platform, ..Self::default() }
    }

    /// Runs a process on this file system.
    pub fn run(&self, exec: Exec) -> ExecState {
        exec.into_state(self)
    }

    /// Changes files.
    pub fn file(&self, actions: FileActions) -> Self {
        match actions.into_vertex(self) {
            Some(vertex) => self.with_vertex(vertex),
            None => self.clone(),
        }
    }

    /// Stacks file systems, later ones on top. Empty ones do not count.
    pub fn merge(states: impl IntoIterator<Item = Self>, meta: VertexMeta) -> Self {
        let mut states: Vec<Self> = states.into_iter().filter(|s| s.output.is_some()).collect();
        if states.len() < 2 {
            return states.pop().unwrap_or_default();
        }
        let inputs = states.iter().map(|s| s.output.clone()).collect();
        let vertex = Vertex { body: Body::Merge, inputs, meta, caps: BTreeSet::from(["mergeop"]) };
        states.swap_remove(0).with_vertex(vertex)
    }

    /// Returns the changes that lead from `lower` to `upper`.
    pub fn diff(lower: &Self, upper: &Self, meta: VertexMeta) -> Self {
        if lower.output.is_none() {
            return upper.clone();
        }
        let inputs = vec![lower.output.clone(), upper.output.clone()];
        lower.with_vertex(Vertex { body: Body::Diff, inputs, meta, caps: BTreeSet::from(["diffop"]) })
    }

    /// Sets a variable for later steps; its place among the others is that of its last setting.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.retain(|(k, _)| k != key);
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sets the directory of later steps, relative to the one before.
    #[must_use]
    pub fn dir(mut self, dir: &str) -> Self {
        self.dir = if dir.starts_with('/') { dir.to_owned() } else { paths::join(self.cwd(), dir) };
        self
    }

    /// Sets the user of later steps.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// Sets the platform of later steps.
    #[must_use]
    pub fn platform(mut self, platform: pb::Platform) -> Self {
        self.platform = Some(platform);
        self
    }

    /// Whether this is an empty file system.
    pub fn is_scratch(&self) -> bool {
        self.output.is_none()
    }

    fn cwd(&self) -> &str {
        if self.dir.is_empty() { "/" } else { &self.dir }
    }

    fn with_vertex(&self, vertex: Vertex) -> Self {
        self.with_output(Some(Output { vertex: Arc::new(vertex), index: 0 }))
    }

    fn with_output(&self, output: Option<Output>) -> Self {
        Self { output, ..self.clone() }
    }
}

/// Takes a graph apart step by step, so that dropping a long chain does not exhaust the stack.
impl Drop for Vertex {
    fn drop(&mut self) {
        let mut inputs = std::mem::take(&mut self.inputs);
        while let Some(input) = inputs.pop() {
            if let Some(mut vertex) = input.and_then(|output| Arc::into_inner(output.vertex)) {
                inputs.append(&mut vertex.inputs);
            }
        }
    }
}
