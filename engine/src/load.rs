//! Loading of definitions: what a client sent becomes a graph that can be solved.
//!
//! Every Op is brought into canonical form, source identifiers into theirs, policy is applied, and the
//! digests of all vertices are computed anew from the bottom up. Only what the wanted edge needs is then
//! validated. Nothing here recurses on the depth of the graph, and memory is linear in its size.

mod entitlements;
mod error;
mod identifier;
mod names;
mod options;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use kiln_digest::Hasher;
use kiln_llb::pb::op::Op as Kind;
use kiln_llb::{RawOp, VertexDigest, is_canonical_op, pb};
use prost::Message as _;

pub(crate) use crate::load::entitlements::not_registered;
pub use crate::load::entitlements::{Entitlements, GrantedEntitlements};
pub use crate::load::error::{LoadError, Located};
pub use crate::load::identifier::canonical_identifier;
pub use crate::load::options::{LoadOptions, PolicyError, SourcePolicy};
use crate::parallel;

/// More vertices than any real build has. Each costs a few kilobytes until its build ends, so this is what bounds the
/// memory of a build by its definition.
const MAX_VERTICES: usize = 100_000;

/// Inputs of one vertex; progress names them all in one message.
const MAX_INPUTS: usize = 100_000;

/// Inputs of all vertices together.
const MAX_EDGES: usize = 1_000_000;

/// How many policy evaluations run at once.
const POLICY_CONCURRENCY: usize = 16;

/// Appended to the bytes of an exec op that runs behind the proxy network, before hashing.
const PROXY_NETWORK_MARK: &[u8] = b"\0buildkit.proxy-network.v0";

/// A graph that is ready to be solved.
#[derive(Clone, Debug)]
pub struct LoadedGraph {
    /// Every vertex the wanted edge needs, inputs before their users.
    pub vertices: Vec<LoadedVertex>,
    /// The wanted edge.
    pub edge: Edge,
    /// Ids of cache mounts to prune before use; true for a mount on top of an input.
    pub pruned_cache_ids: BTreeMap<String, bool>,
}

/// One output of a vertex of the same graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Edge {
    /// Position in [`LoadedGraph::vertices`].
    pub vertex: usize,
    /// Which output.
    pub output: u64,
}

/// A validated vertex.
#[derive(Clone, Debug)]
pub struct LoadedVertex {
    /// Digest after loading; what status, errors and source maps refer to.
    pub digest: VertexDigest,
    /// Digest of the bytes as they were sent.
    pub sent: VertexDigest,
    /// What progress shows: the custom name, or one made from the op.
    pub name: String,
    /// The op, with its platform filled in and normal.
    pub op: Arc<pb::Op>,
    /// Edges it consumes, in the op's order.
    pub inputs: Vec<Edge>,
    /// Cached results are not looked up.
    pub ignore_cache: bool,
    /// `Some(false)` keeps the result out of cache exports.
    pub export_cache: Option<bool>,
    /// Free-form annotations.
    pub description: BTreeMap<String, String>,
    /// Group in progress displays.
    pub progress_group: Option<pb::ProgressGroup>,
    /// Limits for the process, exec ops only.
    pub linux_resources: Option<pb::LinuxResources>,
    /// The process runs behind the proxy network.
    pub proxy_network: bool,
}

impl LoadedGraph {
    /// Returns the vertex of the wanted edge.
    pub fn target(&self) -> Option<&LoadedVertex> {
        self.vertices.get(self.edge.vertex)
    }
}

/// An op on its way from sent to loaded.
struct Draft<'a> {
    sent: VertexDigest,
    bytes: &'a [u8],
    /// Whether the bytes are the canonical ones.
    canonical: bool,
    op: Arc<pb::Op>,
    /// Whether its source is no longer the one that was sent.
    source_changed: bool,
    metadata: Option<&'a pb::OpMetadata>,
    proxy_network: bool,
}

/// Loads `definition`.
///
/// # Errors
/// [`LoadError`], with the texts of the reference where clients know them.
///
/// # Cancel safety
/// Changes nothing; dropping the future only drops policy evaluations under way.
pub async fn load(definition: &pb::Definition, options: &LoadOptions<'_>) -> Result<LoadedGraph, LoadError> {
    if definition.def.is_empty() {
        return Err(LoadError::Empty);
    }
    if definition.def.len() > MAX_VERTICES {
        return Err(LoadError::TooManyVertices(definition.def.len()));
    }
    let (mut drafts, by_sent) = decode(definition)?;
    let last = definition.def.last().map(|bytes| VertexDigest::of(bytes));
    for draft in &mut drafts {
        draft.proxy_network = options.proxy_network && goes_through_proxy(&draft.op)?;
    }
    evaluate_sources(&mut drafts, options).await?;

    let inputs = resolve_inputs(&drafts, &by_sent)?;
    let digests = recompute_digests(&mut drafts, &inputs)?;
    // Different bytes may turn out to be the same vertex; the one sent last stands for both.
    let by_digest: HashMap<VertexDigest, usize> = digests.iter().copied().zip(0..).collect();
    if by_digest.len() < 2 {
        return Err(LoadError::TooFewVertices(by_digest.len()));
    }
    let stands_for: Vec<usize> =
        digests.iter().enumerate().map(|(at, digest)| by_digest.get(digest).copied().unwrap_or(at)).collect();
    let same = |at: &usize| stands_for.get(*at).copied().unwrap_or(*at);
    let inputs: Vec<Vec<usize>> = inputs.into_iter().map(|of| of.iter().map(same).collect()).collect();

    let last = last.and_then(|last| by_sent.get(&last).copied()).ok_or(LoadError::NoRequestedEdge)?;
    let head = drafts.get(last).and_then(|draft| draft.op.inputs.first()).map(|input| input.index);
    let target = inputs.get(last).and_then(|inputs| inputs.first().copied());
    let (Some(target), Some(output)) = (target, head) else { return Err(LoadError::NoRequestedEdge) };
    assemble(drafts, &inputs, &digests, (target, output), options)
}

fn decode(definition: &pb::Definition) -> Result<(Vec<Draft<'_>>, HashMap<VertexDigest, usize>), LoadError> {
    // Texts are dear to look for among thousands.
    let metadata = definition.metadata.iter();
    let metadata: HashMap<VertexDigest, &pb::OpMetadata> =
        metadata.filter_map(|(digest, metadata)| Some((digest.parse().ok()?, metadata))).collect();
    let mut drafts = Vec::with_capacity(definition.def.len());
    let mut by_sent = HashMap::with_capacity(definition.def.len());
    let mut edges = 0;
    let decoded = parallel::map(&definition.def, |bytes| (VertexDigest::of(bytes), decode_op(bytes)));
    for (bytes, (sent, decoded)) in definition.def.iter().zip(decoded) {
        if by_sent.contains_key(&sent) {
            continue;
        }
        let (op, canonical) = decoded?;
        edges += op.inputs.len();
        if op.inputs.len() > MAX_INPUTS || edges > MAX_EDGES {
            return Err(LoadError::TooManyInputs(edges));
        }
        by_sent.insert(sent, drafts.len());
        let metadata = metadata.get(&sent).copied();
        drafts.push(Draft {
            sent,
            bytes,
            canonical,
            op,
            source_changed: false,
            metadata,
            proxy_network: false,
        });
    }
    Ok((drafts, by_sent))
}

/// One op, and whether its bytes are the canonical ones.
fn decode_op(bytes: &[u8]) -> Result<(Arc<pb::Op>, bool), LoadError> {
    let canonical = is_canonical_op(bytes);
    if !canonical {
        // The wire-level decoder goes first because its errors read like the reference's.
        RawOp::decode(bytes).map_err(LoadError::Parse)?;
    }
    let mut op = pb::Op::decode(bytes).map_err(|e| LoadError::Parse(e.into()))?;
    fit(&mut op);
    for (position, input) in op.inputs.iter().enumerate() {
        if input.index < 0 {
            return Err(LoadError::NegativeOutput { position, output: input.index });
        }
    }
    Ok((Arc::new(op), canonical))
}

/// Gives back what lists have grown by beyond their entries: most have one, and there are as many as vertices.
fn fit(op: &mut pb::Op) {
    op.inputs.shrink_to_fit();
    match &mut op.op {
        Some(Kind::File(file)) => file.actions.shrink_to_fit(),
        Some(Kind::Exec(exec)) => exec.mounts.shrink_to_fit(),
        _ => {}
    }
}

fn goes_through_proxy(op: &pb::Op) -> Result<bool, LoadError> {
    let Some(Kind::Exec(exec)) = &op.op else { return Ok(false) };
    match pb::NetMode::try_from(exec.network) {
        Ok(pb::NetMode::Unset | pb::NetMode::Host) => Ok(true),
        Ok(pb::NetMode::None) => Ok(false),
        Err(_) => Err(LoadError::ProxyNetworkMode(exec.network)),
    }
}

async fn evaluate_sources(drafts: &mut [Draft<'_>], options: &LoadOptions<'_>) -> Result<(), LoadError> {
    let evaluations = drafts.iter_mut().filter_map(|draft| {
        if !matches!(draft.op.op, Some(Kind::Source(_))) {
            return None;
        }
        let pb::Op { op, platform, .. } = Arc::make_mut(&mut draft.op);
        match op {
            Some(Kind::Source(source)) => Some((source, &mut draft.source_changed, platform.as_ref())),
            _ => None,
        }
    });
    futures::stream::iter(evaluations)
        .map(Ok::<_, LoadError>)
        .try_for_each_concurrent(POLICY_CONCURRENCY, |(source, changed, platform)| async move {
            let sent = source.clone();
            if let Some(identifier) = canonical_identifier(source) {
                source.identifier = identifier;
            }
            if let Some(policy) = options.policy {
                policy.evaluate(source, platform).await.map_err(LoadError::Policy)?;
            }
            *changed = *source != sent;
            Ok(())
        })
        .await
}

/// Finds the drafts that the inputs of each name.
fn resolve_inputs(
    drafts: &[Draft<'_>],
    by_sent: &HashMap<VertexDigest, usize>,
) -> Result<Vec<Vec<usize>>, LoadError> {
    let position = |input: &pb::Input| {
        let sent = input.digest.parse::<VertexDigest>().ok();
        let position = sent.and_then(|sent| by_sent.get(&sent).copied());
        position.ok_or_else(|| LoadError::MissingInput(input.digest.clone()))
    };
    drafts.iter().map(|draft| draft.op.inputs.iter().map(position).collect()).collect()
}

/// A step of a walk through a graph that does not recurse.
enum Step {
    Enter(usize),
    Leave(usize),
}

/// Computes the digest of every draft, inputs first, and rewrites the inputs of the typed ops.
fn recompute_digests(
    drafts: &mut [Draft<'_>],
    inputs: &[Vec<usize>],
) -> Result<Vec<VertexDigest>, LoadError> {
    let mut done: Vec<Option<VertexDigest>> = vec![None; drafts.len()];
    let mut entered = vec![false; drafts.len()];
    let mut stack = Vec::new();
    for start in 0..drafts.len() {
        stack.push(Step::Enter(start));
        while let Some(step) = stack.pop() {
            match step {
                Step::Enter(at) => {
                    let Some(seen) = entered.get_mut(at).filter(|seen| !**seen) else { continue };
                    *seen = true;
                    stack.push(Step::Leave(at));
                    stack.extend(inputs.get(at).into_iter().flatten().rev().copied().map(Step::Enter));
                }
                Step::Leave(at) => {
                    let (Some(draft), Some(inputs)) = (drafts.get_mut(at), inputs.get(at)) else { continue };
                    let digest = |input: &usize| done.get(*input).copied().flatten();
                    // An op's digest covers its inputs' digests, so a circle cannot be written down; one is an input
                    // that names nothing.
                    let known: Option<Vec<VertexDigest>> = inputs.iter().map(digest).collect();
                    let known = known.ok_or_else(|| LoadError::MissingInput(draft.sent.to_string()))?;
                    let digest = finish(draft, &known)?;
                    if let Some(slot) = done.get_mut(at) {
                        *slot = Some(digest);
                    }
                }
            }
        }
    }
    Ok(done.into_iter().flatten().collect())
}

fn finish(draft: &mut Draft<'_>, inputs: &[VertexDigest]) -> Result<VertexDigest, LoadError> {
    let mut changed = draft.source_changed;
    for (position, digest) in inputs.iter().enumerate() {
        let digest = digest.to_string();
        if draft.op.inputs.get(position).is_some_and(|input| input.digest == digest) {
            continue;
        }
        if let Some(input) = Arc::make_mut(&mut draft.op).inputs.get_mut(position) {
            input.digest = digest;
            changed = true;
        }
    }
    if draft.canonical && !changed && !draft.proxy_network {
        return Ok(draft.sent);
    }
    let mut raw = RawOp::decode(draft.bytes).map_err(LoadError::Parse)?;
    raw.set_input_digests(inputs.iter().map(ToString::to_string).collect()).map_err(LoadError::Parse)?;
    if let Some(Kind::Source(source)) = &draft.op.op {
        raw.set_source(source.identifier.clone(), &source.attrs).map_err(LoadError::Parse)?;
    }
    let bytes = raw.encode().map_err(LoadError::Parse)?;
    if !draft.proxy_network {
        return Ok(VertexDigest::of(&bytes));
    }
    let mut hasher = Hasher::new();
    hasher.update(&bytes);
    hasher.update(PROXY_NETWORK_MARK);
    Ok(VertexDigest::from(hasher.finish()))
}

/// Walks from the wanted edge, validating on the way down and naming on the way up. `inputs` has, for each draft, the
/// drafts it reads; `target` is the wanted one with its output.
fn assemble(
    drafts: Vec<Draft<'_>>,
    inputs: &[Vec<usize>],
    digests: &[VertexDigest],
    (target, output): (usize, i64),
    options: &LoadOptions<'_>,
) -> Result<LoadedGraph, LoadError> {
    let mut drafts: Vec<Option<Draft<'_>>> = drafts.into_iter().map(Some).collect();
    let mut entered = vec![false; drafts.len()];
    let mut placed: Vec<Option<usize>> = vec![None; drafts.len()];
    let mut vertices: Vec<LoadedVertex> = Vec::with_capacity(drafts.len());
    let mut pruned_cache_ids = BTreeMap::new();
    let mut default_platform = None;
    let mut stack = vec![Step::Enter(target)];
    while let Some(step) = stack.pop() {
        match step {
            Step::Enter(at) => {
                let Some(seen) = entered.get_mut(at).filter(|seen| !**seen) else { continue };
                *seen = true;
                let Some(draft) = drafts.get_mut(at).and_then(Option::as_mut) else { continue };
                let checked = validate::op(&draft.op)
                    .and_then(|()| {
                        options::apply(draft, options, &mut default_platform, &mut pruned_cache_ids)
                    })
                    .and_then(|()| names::check(&draft.op));
                if let Err(error) = checked {
                    let vertex = digests.get(at).copied().unwrap_or(draft.sent);
                    return Err(LoadError::At(Box::new(Located { vertex, sent: draft.sent, error })));
                }
                stack.push(Step::Leave(at));
                stack.extend(inputs.get(at).into_iter().flatten().rev().copied().map(Step::Enter));
            }
            Step::Leave(at) => {
                let (Some(draft), Some(&digest), Some(below)) =
                    (drafts.get_mut(at).and_then(Option::take), digests.get(at), inputs.get(at))
                else {
                    continue;
                };
                let mut edges = Vec::with_capacity(below.len());
                for (input, below) in draft.op.inputs.iter().zip(below) {
                    let missing = || LoadError::MissingInput(input.digest.clone());
                    let vertex = placed.get(*below).copied().flatten().ok_or_else(missing)?;
                    edges.push(Edge { vertex, output: input.index.cast_unsigned() });
                }
                if let Some(place) = placed.get_mut(at) {
                    *place = Some(vertices.len());
                }
                let vertex = vertex(draft, digest, edges, &vertices);
                vertices.push(vertex);
            }
        }
    }
    let vertex = placed.get(target).copied().flatten().ok_or(LoadError::NoRequestedEdge)?;
    let edge = Edge { vertex, output: output.cast_unsigned() };
    Ok(LoadedGraph { vertices, edge, pruned_cache_ids })
}

/// The vertex of a draft whose inputs are among `vertices`.
fn vertex(
    draft: Draft<'_>,
    digest: VertexDigest,
    inputs: Vec<Edge>,
    vertices: &[LoadedVertex],
) -> LoadedVertex {
    let metadata = draft.metadata;
    let description = metadata.map(|m| m.description.clone()).unwrap_or_default();
    let name = match description.get("llb.customname") {
        Some(name) => names::bounded(name),
        None => names::of(&draft.op, &inputs, vertices),
    };
    let is_exec = matches!(draft.op.op, Some(Kind::Exec(_)));
    LoadedVertex {
        digest,
        sent: draft.sent,
        name,
        op: draft.op,
        inputs,
        ignore_cache: metadata.is_some_and(|m| m.ignore_cache),
        export_cache: metadata.and_then(|m| m.export_cache).map(|e| e.value),
        description,
        progress_group: metadata.and_then(|m| m.progress_group.clone()),
        linux_resources: metadata.and_then(|m| m.linux_resources.clone()).filter(|_| is_exec),
        proxy_network: draft.proxy_network,
    }
}
