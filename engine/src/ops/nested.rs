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
use kiln_solver::{OpContext, OpError, ResultRef, Slot};
use prost::Message as _;

use crate::build::BuildState;
use crate::error::{Error, Result};
use crate::lending::JobInfo;
use crate::load::{LoadedGraph, LoadedVertex};
use crate::ops::common;
use crate::ops::keyed::Action;
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
    /// Which input holds the definition.
    input: usize,
    filename: String,
    /// How many builds are around this one.
    depth: u32,
}

impl BuildOp {
    /// Checks the op.
    pub(crate) fn new(worker: &Arc<Worker>, op: &pb::BuildOp, inputs: usize, depth: u32) -> Result<Self> {
        let (input, filename) = parse(op, inputs)?;
        if depth >= MAX_DEPTH {
            return Err(Error::request(format!("builds are nested deeper than {MAX_DEPTH}")));
        }
        Ok(Self { worker: worker.clone(), input, filename, depth })
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
impl Action for BuildOp {
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

/// The input that holds the definition, and the name of the file there.
fn parse(op: &pb::BuildOp, inputs: usize) -> Result<(usize, String)> {
    if op.builder != LLB_BUILDER {
        return Err(Error::request("only LLB builder is currently allowed"));
    }
    let input = op.inputs.get(DEFINITION);
    let input =
        input.ok_or_else(|| Error::request(format!("no llb definition input {DEFINITION} found")))?.input;
    let index = usize::try_from(input).ok().filter(|index| *index < inputs);
    let index = index.ok_or_else(|| Error::request(format!("invalid build input index {input}")))?;
    let filename = op.attrs.get(FILENAME).filter(|name| !name.is_empty());
    Ok((index, filename.map_or(DEFINITION, String::as_str).to_owned()))
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

/// The key digest of a build op that is solved within `depth` builds.
pub(crate) fn key(digest: Digest, depth: u32) -> Digest {
    if depth == 0 { digest } else { inner(digest, depth) }
}

fn inner(digest: Digest, depth: u32) -> Digest {
    Digest::of(format!("{digest}, within {depth} builds"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::load::{GrantedEntitlements, LoadOptions, load};

    fn op(builder: i64, input: Option<i64>, filename: Option<&str>) -> pb::BuildOp {
        let input = input.map(|input| (DEFINITION.to_owned(), pb::BuildInput { input }));
        let attr = filename.map(|name| (FILENAME.to_owned(), name.to_owned()));
        pb::BuildOp {
            builder,
            inputs: input.into_iter().collect(),
            attrs: attr.into_iter().collect(),
            ..pb::BuildOp::default()
        }
    }

    #[test]
    fn what_a_build_op_names() {
        for (op, want) in [
            (op(-1, Some(0), None), "0 buildkit.llb.definition"),
            (op(-1, Some(1), Some("other")), "1 other"),
            (op(-1, Some(1), Some("")), "1 buildkit.llb.definition"),
            (op(0, Some(0), None), "only LLB builder is currently allowed"),
            (op(-1, None, None), "no llb definition input buildkit.llb.definition found"),
            (op(-1, Some(2), None), "invalid build input index 2"),
            (op(-1, Some(-1), None), "invalid build input index -1"),
        ] {
            let got = match parse(&op, 2) {
                Ok((input, name)) => format!("{input} {name}"),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, want, "{op:?}");
        }
    }

    #[test]
    fn inner_builds_and_what_stands_on_them_are_told_apart() {
        use pb::op::Op as Kind;
        let mut definition = pb::Definition::default();
        let mut add = |inputs: &[&str], op: Option<Kind>| -> String {
            let inputs = inputs.iter().map(|d| pb::Input { digest: (*d).to_owned(), index: 0 }).collect();
            let bytes = kiln_llb::marshal_op(&pb::Op { inputs, op, ..pb::Op::default() }).unwrap();
            let digest = VertexDigest::of(&bytes).to_string();
            definition.def.push(bytes);
            digest
        };
        let local = pb::SourceOp { identifier: "local://x".into(), attrs: BTreeMap::new() };
        let source = add(&[], Some(Kind::Source(local)));
        let build = add(&[&source], Some(Kind::Build(op(-1, Some(0), None))));
        let merge = pb::MergeOp { inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }] };
        let merge = add(&[&source, &build], Some(Kind::Merge(merge)));
        add(&[&merge], None);
        let (platform, granted) = (kiln_llb::platform::host(), GrantedEntitlements::default());
        let options = LoadOptions::new(&platform, &granted);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let graph = runtime.block_on(load(&definition, &options)).unwrap();
        let digests = |depth| {
            let mut graph = graph.clone();
            set_apart(&mut graph, depth);
            graph.vertices.into_iter().map(|v| v.digest.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(digests(0), [source.clone(), build.clone(), merge.clone()]);
        let (one, two) = (digests(1), digests(2));
        assert_eq!([&one[0], &two[0]], [&source, &source]);
        for at in [1, 2] {
            assert_ne!(one[at], digests(0)[at]);
            assert_ne!(one[at], two[at]);
        }
    }
}
