//! The graph while it is built, and its marshalling.

use std::collections::{BTreeMap, HashMap};

use kiln_digest::Digest;
use kiln_frontend::pb;
use kiln_frontend::pb::op::Op as Kind;

use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::shell::Env;
use crate::source::{LineRange, SourceFile};

/// An output of a vertex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Edge {
    node: usize,
    index: i64,
}

/// What the next step of a stage starts from.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// None is an empty filesystem.
    pub(crate) output: Option<Edge>,
    pub(crate) env: Env,
    pub(crate) dir: Option<String>,
    pub(crate) user: String,
    pub(crate) hostname: String,
    pub(crate) network: i32,
    /// Normalised. None takes the target's.
    pub(crate) platform: Option<Platform>,
}

impl Edge {
    /// Another output of the same vertex.
    pub(crate) fn output(self, index: i64) -> Self {
        Self { index, ..self }
    }
}

impl State {
    pub(crate) fn new(output: Option<Edge>) -> Self {
        Self { output, ..Self::default() }
    }

    pub(crate) fn dir(&self) -> &str {
        self.dir.as_deref().unwrap_or("/")
    }
}

/// What all vertexes may carry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meta {
    pub(crate) name: Option<String>,
    /// Text of the instruction, for RUN and FROM.
    pub(crate) command: Option<String>,
    pub(crate) ignore_cache: bool,
    pub(crate) progress_group: Option<pb::ProgressGroup>,
    pub(crate) linux_resources: Option<pb::LinuxResources>,
    /// Lines of the instruction behind it; those of an image that a mount names are known to be none.
    pub(crate) lines: Option<Vec<LineRange>>,
}

impl Meta {
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }
}

#[derive(Clone, Debug)]
enum Body {
    Source {
        source: pb::SourceOp,
        platform: Option<pb::Platform>,
    },
    Exec {
        exec: Box<pb::ExecOp>,
        mounts: Vec<Option<Edge>>,
        platform: pb::Platform,
    },
    File {
        base: Option<Edge>,
        actions: Vec<FileStep>,
    },
    Merge(Vec<Edge>),
    /// Stands for something known later.
    Later(Option<Edge>),
    /// An op that came from elsewhere.
    Raw {
        bytes: Vec<u8>,
        inputs: Vec<Edge>,
        meta: pb::OpMetadata,
    },
}

/// An action of a file op; copies have a source.
#[derive(Clone, Debug)]
pub(crate) struct FileStep {
    pub(crate) source: Option<Edge>,
    pub(crate) action: pb::file_action::Action,
}

#[derive(Clone, Debug)]
struct Vertex {
    body: Body,
    meta: Meta,
    caps: Vec<String>,
}

/// All vertexes of one target.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    vertexes: Vec<Vertex>,
}

impl Graph {
    fn push(&mut self, body: Body, meta: Meta, caps: &[&str]) -> Edge {
        let caps = caps.iter().map(|&cap| cap.to_owned()).collect();
        self.vertexes.push(Vertex { body, meta, caps });
        Edge { node: self.vertexes.len() - 1, index: 0 }
    }

    pub(crate) fn source(
        &mut self,
        identifier: String,
        attrs: BTreeMap<String, String>,
        platform: Option<&Platform>,
        meta: Meta,
        caps: &[&str],
    ) -> Edge {
        let source = pb::SourceOp { identifier, attrs };
        self.push(Body::Source { source, platform: platform.map(Platform::to_pb) }, meta, caps)
    }

    /// An exec; `mounts` has the edge behind each mount of the op, the root included. Returns its root.
    pub(crate) fn exec(
        &mut self,
        exec: pb::ExecOp,
        mounts: Vec<Option<Edge>>,
        platform: &Platform,
        meta: Meta,
        caps: &[&str],
    ) -> Edge {
        self.push(Body::Exec { exec: Box::new(exec), mounts, platform: platform.to_pb() }, meta, caps)
    }

    pub(crate) fn file(&mut self, base: Option<Edge>, actions: Vec<FileStep>, meta: Meta) -> Edge {
        self.push(Body::File { base, actions }, meta, &["file.base"])
    }

    /// Stacks filesystems; with fewer than two there is nothing to stack.
    pub(crate) fn merge(&mut self, inputs: Vec<Option<Edge>>, meta: Meta) -> Option<Edge> {
        let inputs: Vec<Edge> = inputs.into_iter().flatten().collect();
        match inputs.as_slice() {
            [] => None,
            [only] => Some(*only),
            _ => Some(self.push(Body::Merge(inputs), meta, &["mergeop"])),
        }
    }

    /// A place holder, to be filled with [`fill`](Self::fill).
    pub(crate) fn later(&mut self) -> Edge {
        self.push(Body::Later(None), Meta::default(), &[])
    }

    pub(crate) fn fill(&mut self, place: Edge, with: Option<Edge>) {
        self.vertexes[place.node].body = Body::Later(with);
    }

    /// Changes the attributes of a source.
    pub(crate) fn edit_source(
        &mut self,
        edge: Edge,
        edit: impl FnOnce(&mut BTreeMap<String, String>, &mut Vec<String>),
    ) {
        let vertex = &mut self.vertexes[edge.node];
        if let Body::Source { source, .. } = &mut vertex.body {
            edit(&mut source.attrs, &mut vertex.caps);
        }
    }

    /// The source behind an edge.
    pub(crate) fn source_op(&self, edge: Edge) -> Option<pb::SourceOp> {
        match &self.vertexes[edge.node].body {
            Body::Source { source, .. } => Some(source.clone()),
            _ => None,
        }
    }

    /// Takes in a graph that came from elsewhere; none if it is empty.
    pub(crate) fn import(&mut self, definition: &pb::Definition) -> Result<Option<Edge>> {
        use prost::Message;
        let broken = |what: &str| Error::new(format!("failed to parse llb proto op: {what}"));
        let mut known: HashMap<String, usize> = HashMap::new();
        let Some((last, ops)) = definition.def.split_last() else { return Ok(None) };
        let edges = |op: &pb::Op, known: &HashMap<String, usize>| -> Result<Vec<Edge>> {
            let edge = |input: &pb::Input| match known.get(&input.digest) {
                Some(&node) => Ok(Edge { node, index: input.index }),
                None => Err(broken("an input is missing")),
            };
            op.inputs.iter().map(edge).collect()
        };
        for bytes in ops {
            let op = pb::Op::decode(bytes.as_slice()).map_err(|_| broken("not an op"))?;
            let digest = Digest::of(bytes).to_string();
            let meta = definition.metadata.get(&digest).cloned().unwrap_or_default();
            let inputs = edges(&op, &known)?;
            let edge = self.push(Body::Raw { bytes: bytes.clone(), inputs, meta }, Meta::default(), &[]);
            known.insert(digest, edge.node);
        }
        let last = pb::Op::decode(last.as_slice()).map_err(|_| broken("not an op"))?;
        Ok(edges(&last, &known)?.first().copied())
    }

    /// Writes what `root` needs, inputs first, and the final vertex.
    pub(crate) fn marshal(&self, root: Option<Edge>, file: &SourceFile) -> Result<pb::Definition> {
        let Some(root) = root.and_then(|edge| self.resolve(edge)) else {
            return Ok(pb::Definition::default());
        };
        let mut out = Marshal {
            graph: self,
            digests: HashMap::new(),
            definition: pb::Definition::default(),
            locations: BTreeMap::new(),
        };
        out.reach(root)?;
        let input = out.input(root)?;
        out.finish(input, file)
    }

    /// Looks through place holders.
    fn resolve(&self, mut edge: Edge) -> Option<Edge> {
        while let Body::Later(target) = &self.vertexes[edge.node].body {
            edge = (*target)?;
        }
        Some(edge)
    }
}

struct Marshal<'a> {
    graph: &'a Graph,
    digests: HashMap<usize, String>,
    definition: pb::Definition,
    locations: BTreeMap<String, pb::Locations>,
}

/// The inputs of an op, each once.
#[derive(Default)]
struct Inputs {
    list: Vec<pb::Input>,
    places: HashMap<(String, i64), usize>,
}

impl Marshal<'_> {
    /// Marshals everything below `root`; a stage may have thousands of steps, so this does not recurse.
    fn reach(&mut self, root: Edge) -> Result<()> {
        let mut open = vec![(root.node, false)];
        while let Some((node, expanded)) = open.pop() {
            if self.digests.contains_key(&node) {
                continue;
            }
            if expanded {
                self.emit(node)?;
                continue;
            }
            open.push((node, true));
            let inputs = self.inputs(node);
            open.extend(inputs.into_iter().rev().map(|edge| (edge.node, false)));
        }
        Ok(())
    }

    fn inputs(&self, node: usize) -> Vec<Edge> {
        let all: Vec<Option<Edge>> = match &self.graph.vertexes[node].body {
            Body::Source { .. } | Body::Later(_) => Vec::new(),
            Body::Exec { mounts, .. } => mounts.clone(),
            Body::File { base, actions } => {
                std::iter::once(*base).chain(actions.iter().map(|step| step.source)).collect()
            }
            Body::Merge(inputs) | Body::Raw { inputs, .. } => inputs.iter().copied().map(Some).collect(),
        };
        all.into_iter().flatten().filter_map(|edge| self.graph.resolve(edge)).collect()
    }

    fn input(&self, edge: Edge) -> Result<pb::Input> {
        let digest = self.digests.get(&edge.node).ok_or_else(|| Error::new("an input was not marshalled"))?;
        Ok(pb::Input { digest: digest.clone(), index: edge.index })
    }

    /// Position of an edge among the inputs of an op, added if it is new; -1 for nothing.
    fn position(&self, inputs: &mut Inputs, edge: Option<Edge>) -> Result<i64> {
        let Some(edge) = edge.and_then(|edge| self.graph.resolve(edge)) else { return Ok(-1) };
        let input = self.input(edge)?;
        let next = inputs.list.len();
        let at = *inputs.places.entry((input.digest.clone(), input.index)).or_insert(next);
        if at == next {
            inputs.list.push(input);
        }
        Ok(i64::try_from(at).unwrap_or(i64::MAX))
    }

    fn emit(&mut self, node: usize) -> Result<()> {
        let vertex = &self.graph.vertexes[node];
        let mut op = pb::Op { constraints: Some(pb::WorkerConstraints::default()), ..pb::Op::default() };
        let mut inputs = Inputs::default();
        match &vertex.body {
            Body::Later(_) => return Ok(()),
            Body::Raw { bytes, meta, .. } => {
                let digest = Digest::of(bytes).to_string();
                self.add(node, digest, bytes.clone(), meta.clone(), None);
                return Ok(());
            }
            Body::Source { source, platform } => {
                op.platform = platform.clone();
                op.op = Some(Kind::Source(source.clone()));
            }
            Body::Exec { exec, mounts, platform } => {
                let mut exec = exec.as_ref().clone();
                if exec.meta.as_ref().is_none_or(|meta| meta.args.is_empty()) {
                    return Err(Error::new("failed to marshal LLB definition: arguments are required"));
                }
                for (mount, edge) in exec.mounts.iter_mut().zip(mounts) {
                    if !matches!(mount.mount_type(), pb::MountType::Secret | pb::MountType::Ssh) {
                        mount.input = self.position(&mut inputs, *edge)?;
                    } else {
                        mount.input = -1;
                    }
                }
                op.platform = Some(platform.clone());
                op.op = Some(Kind::Exec(Box::new(exec)));
            }
            Body::File { base, actions } => {
                let actions = self.file_actions(&mut inputs, *base, actions)?;
                op.op = Some(Kind::File(pb::FileOp { actions }));
            }
            Body::Merge(edges) => {
                let mut merged = Vec::new();
                for edge in edges.iter().filter_map(|edge| self.graph.resolve(*edge)) {
                    merged
                        .push(pb::MergeInput { input: i64::try_from(inputs.list.len()).unwrap_or(i64::MAX) });
                    inputs.list.push(self.input(edge)?);
                }
                op.op = Some(Kind::Merge(pb::MergeOp { inputs: merged }));
            }
        }
        op.inputs = inputs.list;
        let bytes = encode_op(&op)?;
        let digest = Digest::of(&bytes).to_string();
        let mut meta = pb::OpMetadata {
            ignore_cache: vertex.meta.ignore_cache,
            progress_group: vertex.meta.progress_group.clone(),
            linux_resources: vertex.meta.linux_resources.clone(),
            caps: vertex.caps.iter().map(|cap| (cap.clone(), true)).collect(),
            ..pb::OpMetadata::default()
        };
        if let Some(name) = &vertex.meta.name {
            meta.description.insert("llb.customname".to_owned(), name.clone());
        }
        if let Some(command) = &vertex.meta.command {
            meta.description.insert("com.docker.dockerfile.v1.command".to_owned(), command.clone());
        }
        self.add(node, digest, bytes, meta, vertex.meta.lines.as_deref());
        Ok(())
    }

    /// Numbers the inputs and results of a chain of actions, each working on the one before.
    fn file_actions(
        &self,
        inputs: &mut Inputs,
        base: Option<Edge>,
        steps: &[FileStep],
    ) -> Result<Vec<pb::FileAction>> {
        let base = self.position(inputs, base)?;
        let mut sources = Vec::new();
        for step in steps {
            sources.push(self.position(inputs, step.source)?);
        }
        let results = i64::try_from(inputs.list.len()).unwrap_or(i64::MAX);
        let mut actions = Vec::new();
        let mut input = base;
        for (i, (step, source)) in steps.iter().zip(sources).enumerate() {
            let is_copy = matches!(step.action, pb::file_action::Action::Copy(_));
            let mut action = step.action.clone();
            set_owner_input(&mut action, input);
            actions.push(pb::FileAction {
                input,
                secondary_input: if is_copy { source } else { -1 },
                output: if i + 1 == steps.len() { 0 } else { -1 },
                action: Some(action),
            });
            input = results + i64::try_from(i).unwrap_or(i64::MAX);
        }
        Ok(actions)
    }

    fn add(
        &mut self,
        node: usize,
        digest: String,
        bytes: Vec<u8>,
        meta: pb::OpMetadata,
        lines: Option<&[LineRange]>,
    ) {
        self.digests.insert(node, digest.clone());
        let known = self.locations.entry(digest.clone()).or_default();
        if let Some(lines) = lines {
            let ranges = lines.iter().map(|line| line.to_pb()).collect();
            known.locations.push(pb::Location { source_index: 0, ranges });
        }
        match self.definition.metadata.get_mut(&digest) {
            Some(known) => merge_meta(known, meta),
            None => {
                self.definition.metadata.insert(digest, meta);
                self.definition.def.push(bytes);
            }
        }
    }

    fn finish(mut self, input: pb::Input, file: &SourceFile) -> Result<pb::Definition> {
        let bytes = encode_op(&pb::Op { inputs: vec![input], ..pb::Op::default() })?;
        let mut caps: BTreeMap<String, bool> =
            [("constraints".to_owned(), true), ("platform".to_owned(), true)].into();
        for meta in self.definition.metadata.values() {
            if meta.ignore_cache {
                caps.insert("meta.ignorecache".to_owned(), true);
            }
            if !meta.description.is_empty() {
                caps.insert("meta.description".to_owned(), true);
            }
            if meta.export_cache.is_some() {
                caps.insert("meta.exportcache".to_owned(), true);
            }
        }
        let meta = pb::OpMetadata { caps, ..pb::OpMetadata::default() };
        self.definition.metadata.insert(Digest::of(&bytes).to_string(), meta);
        self.definition.def.push(bytes);
        let placed = self.locations.values().any(|known| !known.locations.is_empty());
        let infos = if placed { vec![file.to_pb()] } else { Vec::new() };
        self.definition.source = Some(pb::Source { locations: self.locations, infos });
        Ok(self.definition)
    }
}

/// Says where names of owners are looked up: in what the action works on.
fn set_owner_input(action: &mut pb::file_action::Action, input: i64) {
    use pb::file_action::Action;
    let owner = match action {
        Action::Copy(copy) => copy.owner.as_mut(),
        Action::Mkdir(mkdir) => mkdir.owner.as_mut(),
        Action::Mkfile(mkfile) => mkfile.owner.as_mut(),
        _ => None,
    };
    let Some(owner) = owner else { return };
    for user in [&mut owner.user, &mut owner.group] {
        if let Some(pb::user_opt::User::ByName(named)) = user.as_mut().and_then(|user| user.user.as_mut()) {
            named.input = input;
        }
    }
}

fn merge_meta(known: &mut pb::OpMetadata, more: pb::OpMetadata) {
    known.ignore_cache |= more.ignore_cache;
    known.description.extend(more.description);
    known.caps.extend(more.caps);
    known.export_cache = more.export_cache.or(known.export_cache.take());
    known.progress_group = more.progress_group.or(known.progress_group.take());
    known.linux_resources = more.linux_resources.or(known.linux_resources.take());
}

/// Encodes an op canonically.
fn encode_op(op: &pb::Op) -> Result<Vec<u8>> {
    kiln_llb::marshal_op(op).map_err(|error| Error::new(format!("failed to marshal LLB definition: {error}")))
}
