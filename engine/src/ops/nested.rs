//! The build op: a definition that an input holds as a file, solved while the op runs.
//!
//! The op solves through a build that waits for it, so that the inner steps are shown there, under that build's rights,
//! and end with it; when that build goes away, another that waits takes over.
//!
//! Solving from within a step could come back to the step itself and wait for it for ever. So build ops of an inner
//! graph, and what stands on them, are told apart from the same ones further out: by digest, and build ops by key too.
//! Whoever waits is always further out than what it waits for, and depth is bounded.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_cache::Ref;
use kiln_digest::Digest;
use kiln_llb::{VertexDigest, pb};
use kiln_rootdir::Root;
use kiln_solver::{CacheMapPart, Op, OpContext, OpError, ResultRef, Slot};
use prost::Message as _;

use crate::build::BuildState;
use crate::error::{Error, Result};
use crate::keys::OpKey;
use crate::lending::JobInfo;
use crate::load::{LoadedGraph, LoadedVertex};
use crate::ops::common;
use crate::worker::Worker;

/// How deep builds may be within each other.
const MAX_DEPTH: u32 = 16;
/// A definition in a file is at most this large.
const MAX_DEFINITION: u64 = 64 << 20;
/// The input that holds the definition, and the name of its file unless an attribute gives another.
const DEFINITION: &str = "buildkit.llb.definition";
const FILENAME: &str = "llbbuild.filename";
/// Says that the definition is LLB.
const LLB_BUILDER: i64 = -1;

/// A build op on a worker.
#[derive(Debug)]
pub(crate) struct BuildOp {
    worker: Arc<Worker>,
    key: OpKey,
    /// Which input holds the definition.
    input: usize,
    filename: String,
    /// How many builds are around this one.
    depth: u32,
}

impl BuildOp {
    /// Checks the op.
    pub(crate) fn new(
        worker: &Arc<Worker>,
        op: &pb::BuildOp,
        mut key: OpKey,
        inputs: usize,
        depth: u32,
    ) -> Result<Self> {
        if op.builder != LLB_BUILDER {
            return Err(Error::request("only LLB builder is currently allowed"));
        }
        let input = op
            .inputs
            .get(DEFINITION)
            .ok_or_else(|| Error::request(format!("no definition input {DEFINITION}")))?;
        let input = usize::try_from(input.input)
            .ok()
            .filter(|input| *input < inputs)
            .ok_or_else(|| Error::request(format!("invalid build input index {}", input.input)))?;
        if depth >= MAX_DEPTH {
            return Err(Error::request(format!("builds are nested deeper than {MAX_DEPTH}")));
        }
        if depth > 0 {
            key.digest = inner(key.digest, depth);
        }
        let filename = op.attrs.get(FILENAME).filter(|name| !name.is_empty());
        let filename = filename.map_or(DEFINITION, String::as_str).to_owned();
        Ok(Self { worker: worker.clone(), key, input, filename, depth })
    }

    async fn definition(&self, cx: &OpContext, state: Option<&Ref>) -> Result<pb::Definition, OpError> {
        let provider = common::provider(&self.worker, cx);
        let mount = tokio::select! {
            mount = common::view(state, &provider, Some(self.input)) => mount?,
            () = cx.cancel.cancelled() => return Err(OpError::cancelled()),
        };
        let name = self.filename.clone();
        common::blocking(move || {
            let mounted = mount.with_temp().map_err(OpError::failed)?;
            let root = Root::open(mounted.path()).map_err(OpError::failed)?;
            let found = root.stat(&name, true).map_err(OpError::failed)?;
            let problem = |what: String| OpError::failed(format!("definition file `{name}` {what}"));
            match found {
                None => return Err(problem("is not there".to_owned())),
                Some(found) if !found.is_file() => return Err(problem("is no regular file".to_owned())),
                Some(found) if found.size > MAX_DEFINITION => {
                    return Err(problem(format!("has more than {MAX_DEFINITION} bytes")));
                }
                Some(_) => {}
            }
            let bytes = root.read(&name, MAX_DEFINITION).map_err(OpError::failed)?;
            pb::Definition::decode(bytes.as_slice()).map_err(|error| problem(format!("is no LLB: {error}")))
        })
        .await
    }

    /// Solves with each build that waits, until one gives an answer.
    async fn solve(&self, cx: &OpContext, definition: &pb::Definition) -> Result<Option<ResultRef>, OpError> {
        let mut tried: Vec<Arc<BuildState>> = Vec::new();
        loop {
            let next = cx.waiters.current().iter().find_map(|context| {
                let build = context.downcast_ref::<JobInfo>()?.build.get()?.upgrade()?;
                tried.iter().all(|known| !Arc::ptr_eq(known, &build)).then_some(build)
            });
            let Some(build) = next else { return Err(OpError::cancelled()) };
            let solved = tokio::select! {
                solved = build.solve_within(definition, self.depth + 1) => solved,
                () = cx.cancel.cancelled() => return Err(OpError::cancelled()),
            };
            match solved {
                Ok(solved) => return Ok(solved.result),
                // That build has ended; who else waits still wants the result.
                Err(error) if error.is_cancelled() => tried.push(build),
                Err(error) => return Err(OpError::failed(error)),
            }
        }
    }
}

#[async_trait]
impl Op for BuildOp {
    async fn cache_map(&self, _cx: &OpContext, _index: usize) -> Result<CacheMapPart, OpError> {
        Ok(self.key.part())
    }

    async fn content_key(
        &self,
        cx: &OpContext,
        input: usize,
        result: Option<&ResultRef>,
    ) -> Result<Digest, OpError> {
        common::content_key(&self.worker, cx, &self.key, input, result).await
    }

    async fn exec(
        &self,
        cx: &OpContext,
        inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        let inputs = common::refs(&inputs)?;
        let state = inputs.get(self.input).and_then(Option::as_ref);
        let definition = self.definition(cx, state).await?;
        Ok(vec![self.solve(cx, &definition).await?])
    }

    fn slot(&self) -> Slot {
        Slot::Nested
    }
}

/// Tells the build ops of a graph that is solved within `depth` builds, and what stands on them, from those further out.
pub(crate) fn set_apart(graph: &mut LoadedGraph, depth: u32) {
    if depth == 0 {
        return;
    }
    let mut apart: Vec<bool> = Vec::with_capacity(graph.vertices.len());
    for vertex in &mut graph.vertices {
        let LoadedVertex { op, inputs, digest, .. } = vertex;
        let is_build = matches!(op.op, Some(pb::op::Op::Build(_)));
        let is_apart = is_build || inputs.iter().any(|edge| apart.get(edge.vertex) == Some(&true));
        if is_apart {
            *digest = VertexDigest::from(inner(digest.digest(), depth));
        }
        apart.push(is_apart);
    }
}

fn inner(digest: Digest, depth: u32) -> Digest {
    Digest::of(format!("{digest}, within {depth} builds"))
}
