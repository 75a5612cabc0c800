//! What each op of a graph does on a worker.

mod combine;
pub(crate) mod common;
pub(crate) mod exec;
mod file;
mod keyed;
pub(crate) mod nested;
pub(crate) mod source;

use std::sync::Arc;

use kiln_digest::Digest;
use kiln_llb::pb::op::Op as Kind;
use kiln_solver::{
    Edge, Graph, Op, OutputIndex, ProgressGroup, Vertex, VertexDigest, VertexIndex, VertexOptions,
};

use crate::error::{Error, Result};
use crate::keys::{self, OpKey};
use crate::load::{self, LoadedGraph, LoadedVertex};
use crate::ops::combine::{Combination, CombineOp};
use crate::ops::keyed::{Action, KeyedOp};
use crate::ops::source::Resolutions;
use crate::parallel;
use crate::worker::Worker;

/// Says in an index that there is no input.
const NO_INPUT: i64 = -1;

/// Puts ops of the worker behind the vertices of a loaded definition, which is solved within `depth` other builds.
pub(crate) fn graph(
    worker: &Arc<Worker>,
    loaded: &LoadedGraph,
    resolutions: &Arc<Resolutions>,
    depth: u32,
) -> Result<Graph> {
    let vertices = parallel::map(&loaded.vertices, |v| vertex(worker, v, resolutions, depth));
    let vertices = vertices.into_iter().collect::<Result<Vec<_>>>()?;
    Graph::new(vertices).map_err(|e| Error::request(e.to_string()))
}

/// A wanted or consumed edge for the solver.
pub(crate) fn edge(edge: load::Edge) -> Result<Edge> {
    let index = |n: u64| u32::try_from(n).map_err(|_| Error::request(format!("output {n} is out of range")));
    Ok(Edge { vertex: VertexIndex(index(edge.vertex as u64)?), output: OutputIndex(index(edge.output)?) })
}

fn vertex(
    worker: &Arc<Worker>,
    vertex: &LoadedVertex,
    resolutions: &Arc<Resolutions>,
    depth: u32,
) -> Result<Vertex> {
    let options = VertexOptions {
        ignore_cache: vertex.ignore_cache,
        export_cache: vertex.export_cache,
        description: vertex.description.clone(),
        progress_group: vertex.progress_group.as_ref().map(|g| ProgressGroup {
            id: g.id.clone(),
            name: g.name.clone(),
            weak: g.weak,
        }),
    };
    Ok(Vertex {
        digest: VertexDigest(vertex.digest.digest()),
        name: vertex.name.clone(),
        inputs: vertex.inputs.iter().map(|e| edge(*e)).collect::<Result<_>>()?,
        op: op(worker, vertex, resolutions, depth).map_err(|error| of_vertex(vertex, error))?,
        options,
    })
}

/// Tells the directories of whichever client asks from each other: clients with equal definitions are not given each
/// other's files.
pub(crate) fn set_apart_directories(graph: &mut LoadedGraph, session: &str) {
    for vertex in &mut graph.vertices {
        if let Some(Kind::Source(op)) = &vertex.op.op
            && op.identifier.starts_with("local://")
            && op.attrs.get("local.session").is_none_or(String::is_empty)
        {
            let digest = vertex.digest.digest();
            vertex.digest = Digest::of(format!("{digest} {session}")).into();
        }
    }
}

/// Says which vertex a refusal is about; where that is in the input is for the caller to add.
fn of_vertex(vertex: &LoadedVertex, error: Error) -> Error {
    match error {
        Error::Request { message } => {
            Error::Vertex { vertex: VertexDigest(vertex.digest.digest()), sources: Vec::new(), message }
        }
        error => error,
    }
}

fn op(
    worker: &Arc<Worker>,
    vertex: &LoadedVertex,
    resolutions: &Arc<Resolutions>,
    depth: u32,
) -> Result<Arc<dyn Op>> {
    if let Some(Kind::Source(op)) = &vertex.op.op {
        let kind = source::SourceKind::parse(op, vertex.op.platform.as_ref())
            .map_err(|e| Error::request(e.to_string()))?;
        let (worker, resolutions) = (worker.clone(), resolutions.clone());
        return Ok(Arc::new(source::SourceOp { worker, kind, resolutions }));
    }
    let key = keys::op_key(&vertex.op).map_err(|e| Error::request(e.to_string()))?;
    let mut key = key.ok_or_else(|| Error::request(format!("step `{}` has no operation", vertex.name)))?;
    let action = action(worker, vertex, &mut key, depth)?;
    Ok(Arc::new(KeyedOp { action, key, definition: vertex.op.clone(), worker: worker.clone() }))
}

fn action(
    worker: &Arc<Worker>,
    vertex: &LoadedVertex,
    key: &mut OpKey,
    depth: u32,
) -> Result<Box<dyn Action>> {
    let combine = |combination| -> Box<dyn Action> {
        Box::new(CombineOp { worker: worker.clone(), combination, name: vertex.name.clone() })
    };
    Ok(match &vertex.op.op {
        Some(Kind::Exec(op)) => Box::new(exec::ExecOp {
            worker: worker.clone(),
            op: (**op).clone(),
            platform: vertex.op.platform.clone(),
            resources: vertex.linux_resources.clone(),
            vertex: VertexDigest(vertex.digest.digest()),
        }),
        Some(Kind::File(_)) => {
            let files = file::Files { worker: worker.clone(), definition: vertex.op.clone() };
            Box::new(file::FileOp { files: Arc::new(files) })
        }
        Some(Kind::Merge(_)) => combine(Combination::Merge),
        Some(Kind::Diff(op)) => combine(Combination::Diff {
            lower: op.lower.is_some_and(|l| l.input != NO_INPUT),
            upper: op.upper.is_some_and(|u| u.input != NO_INPUT),
        }),
        Some(Kind::Passthrough(op)) => combine(Combination::Passthrough { outputs: op.outputs.clone() }),
        Some(Kind::Build(op)) => {
            key.digest = nested::key(key.digest, depth);
            Box::new(nested::BuildOp::new(worker, op, vertex.inputs.len(), depth)?)
        }
        Some(Kind::Source(_)) | None => {
            return Err(Error::request(format!("step `{}` has no operation", vertex.name)));
        }
    })
}

#[cfg(test)]
mod tests {
    use kiln_llb::pb;
    use kiln_llb::state::{Constraints, FileActions, Source, State};

    use super::*;
    use crate::load::{GrantedEntitlements, LoadOptions, load};

    /// The digests of the vertices of a copy out of a directory, as a build of `session` has them.
    async fn digests(directory: Source, session: &str) -> Vec<String> {
        let directory = State::source(directory);
        let copy = FileActions::new().copy(&directory, "/a", "/a", kiln_llb::state::Copy::default());
        let definition = State::scratch().file(copy).marshal(&Constraints::default()).unwrap();
        let platform =
            pb::Platform { architecture: "amd64".into(), os: "linux".into(), ..Default::default() };
        let entitlements = GrantedEntitlements::default();
        let mut graph = load(&definition, &LoadOptions::new(&platform, &entitlements)).await.unwrap();
        set_apart_directories(&mut graph, session);
        graph.vertices.iter().map(|vertex| vertex.digest.to_string()).collect()
    }

    #[tokio::test]
    async fn directories_of_whoever_asks_are_told_apart_by_session() {
        let whose = || Source::local("files");
        let (one, same, other) =
            (digests(whose(), "1").await, digests(whose(), "1").await, digests(whose(), "2").await);
        assert_eq!(one, same);
        assert_ne!(one[0], other[0], "the directory");
        assert_eq!(one[1..], other[1..], "what is made of it is told apart by its keys");
        // One that names its session is that session's for everybody.
        let named = || Source::local("files").attr("local.session", "3");
        assert_eq!(digests(named(), "1").await, digests(named(), "2").await);
    }
}
