//! From states to definitions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::caps::CapSet;
use crate::definition::{VertexDigest, marshal_op};
use crate::error::{Error, Result};
use crate::pb::{self, op::Op as Kind};
use crate::platform;
use crate::state::{Body, Output, State, Vertex, VertexMeta};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What holds for all vertices of a graph.
#[derive(Clone, Debug)]
pub struct Constraints {
    /// Platform of steps that name none.
    pub platform: pb::Platform,
    /// Which workers may run the graph.
    pub filter: Vec<String>,
    /// What the daemon can do, if that is known.
    pub caps: Option<CapSet>,
    /// Keeps local sources without a session apart from those of other graphs; drawn at random by clients.
    pub local_unique_id: String,
}

impl Default for Constraints {
    fn default() -> Self {
        let host = platform::host();
        Self {
            platform: platform::normalize(&host, &host),
            filter: Vec::new(),
            caps: None,
            local_unique_id: String::new(),
        }
    }
}

impl State {
    /// Writes the graph that leads to this state. An empty state gives an empty definition.
    ///
    /// # Errors
    /// If a step has no meaning, for example a process without arguments.
    pub fn marshal(&self, constraints: &Constraints) -> Result<pb::Definition> {
        let mut marshaller = Marshaller::new(constraints);
        let Some(output) = &self.output else { return Ok(pb::Definition::default()) };
        marshaller.add(&output.vertex)?;
        let last = pb::Op { inputs: vec![marshaller.input(output)?], ..Default::default() };
        marshaller.finish(&last)
    }
}

struct Marshaller<'a> {
    constraints: &'a Constraints,
    digests: HashMap<*const Vertex, VertexDigest>,
    definition: pb::Definition,
    source: pb::Source,
}

impl<'a> Marshaller<'a> {
    fn new(constraints: &'a Constraints) -> Self {
        Self {
            constraints,
            digests: HashMap::new(),
            definition: pb::Definition::default(),
            source: pb::Source::default(),
        }
    }

    /// Adds a vertex and everything below it, inputs first.
    fn add(&mut self, root: &Arc<Vertex>) -> Result<()> {
        let mut stack = vec![(root, false)];
        while let Some((vertex, inputs_done)) = stack.pop() {
            if self.digests.contains_key(&Arc::as_ptr(vertex)) {
                continue;
            }
            if inputs_done {
                self.add_one(vertex)?;
                continue;
            }
            stack.push((vertex, true));
            let inputs = vertex.inputs.iter().flatten().map(|output| (&output.vertex, false));
            stack.extend(inputs.rev());
        }
        Ok(())
    }

    fn add_one(&mut self, vertex: &Arc<Vertex>) -> Result<()> {
        let (op, extra_caps) = self.op(vertex)?;
        let bytes = marshal_op(&op)?;
        let digest = VertexDigest::of(&bytes);
        self.digests.insert(Arc::as_ptr(vertex), digest);
        let text = digest.to_string();
        for location in &vertex.meta.locations {
            let index = self.source_index(&location.file);
            let locations = &mut self.source.locations.entry(text.clone()).or_default().locations;
            locations.push(pb::Location { source_index: index, ranges: location.ranges.clone() });
        }
        let known = self.definition.metadata.contains_key(&text);
        let metadata = self.definition.metadata.entry(text).or_default();
        merge_metadata(metadata, &vertex.meta);
        let caps = vertex.caps.iter().chain(&extra_caps);
        metadata.caps.extend(caps.map(|cap| ((*cap).to_owned(), true)));
        if !known {
            self.definition.def.push(bytes);
        }
        Ok(())
    }

    fn op(&self, vertex: &Vertex) -> Result<(pb::Op, Vec<&'static str>)> {
        let mut filter = self.constraints.filter.clone();
        filter.extend_from_slice(&vertex.meta.filter);
        let mut op = pb::Op { constraints: Some(pb::WorkerConstraints { filter }), ..Default::default() };
        let mut caps = Vec::new();
        let platform = vertex.meta.platform.as_ref().unwrap_or(&self.constraints.platform);
        op.op = Some(match &vertex.body {
            Body::Source(source) => {
                let mut source = source.clone();
                if source.identifier.starts_with("local://") && !source.attrs.contains_key("local.session") {
                    caps.push("source.local.unique");
                    let id = self.constraints.local_unique_id.clone();
                    source.attrs.insert("local.unique".to_owned(), id);
                }
                let image = ["docker-image://", "oci-layout://"];
                if image.iter().any(|scheme| source.identifier.starts_with(scheme)) {
                    op.platform = Some(platform.clone());
                }
                Kind::Source(source)
            }
            Body::Exec(exec) => {
                op.platform = Some(platform.clone());
                let mut exec = (**exec).clone();
                self.finish_process(&mut exec, platform, &mut caps)?;
                for (mount, input) in exec.mounts.iter_mut().zip(&vertex.inputs) {
                    mount.input = self.shared_input(&mut op.inputs, input.as_ref())?;
                }
                Kind::Exec(Box::new(exec))
            }
            Body::File(steps) => {
                let mut slots = Vec::with_capacity(vertex.inputs.len());
                for input in &vertex.inputs {
                    slots.push(self.shared_input(&mut op.inputs, input.as_ref())?);
                }
                let base = slots.first().copied().unwrap_or(-1);
                let inputs = i64::try_from(op.inputs.len()).unwrap_or(i64::MAX);
                let last = steps.len().saturating_sub(1);
                let actions = steps.iter().enumerate().map(|(i, step)| pb::FileAction {
                    input: if i == 0 { base } else { inputs + i64::try_from(i - 1).unwrap_or_default() },
                    secondary_input: step.from.and_then(|slot| slots.get(slot).copied()).unwrap_or(-1),
                    output: if i == last { 0 } else { -1 },
                    action: Some(step.with_base(base)),
                });
                Kind::File(pb::FileOp { actions: actions.collect() })
            }
            Body::Merge => {
                let mut inputs = Vec::new();
                for input in vertex.inputs.iter().flatten() {
                    inputs.push(pb::MergeInput { input: self.own_input(&mut op.inputs, Some(input))? });
                }
                Kind::Merge(pb::MergeOp { inputs })
            }
            Body::Diff => {
                let mut sides = vertex.inputs.iter().map(Option::as_ref);
                let lower = self.own_input(&mut op.inputs, sides.next().flatten())?;
                let upper = self.own_input(&mut op.inputs, sides.next().flatten())?;
                Kind::Diff(pb::DiffOp {
                    lower: Some(pb::LowerDiffInput { input: lower }),
                    upper: Some(pb::UpperDiffInput { input: upper }),
                })
            }
        });
        Ok((op, caps))
    }

    fn finish_process(
        &self,
        exec: &mut pb::ExecOp,
        platform: &pb::Platform,
        caps: &mut Vec<&'static str>,
    ) -> Result<()> {
        let meta = exec.meta.get_or_insert_default();
        if meta.args.is_empty() {
            return Err(Error::Build("arguments are required".to_owned()));
        }
        match &self.constraints.caps {
            Some(set) if set.enabled("exec.meta.setsdefaultpath") => caps.push("exec.meta.setsdefaultpath"),
            Some(_) if platform.os != "windows" && !meta.env.iter().any(|e| e.starts_with("PATH=")) => {
                meta.env.push(format!("PATH={DEFAULT_PATH}"));
            }
            _ => {}
        }
        Ok(())
    }

    fn input(&self, output: &Output) -> Result<pb::Input> {
        let digest = self.digests.get(&Arc::as_ptr(&output.vertex));
        let digest = digest.ok_or_else(|| Error::MissingInput(String::new()))?;
        Ok(pb::Input { digest: digest.to_string(), index: output.index })
    }

    /// Returns the position of an input, adding it unless it is there already.
    fn shared_input(&self, inputs: &mut Vec<pb::Input>, output: Option<&Output>) -> Result<i64> {
        let Some(output) = output else { return Ok(-1) };
        let input = self.input(output)?;
        let position = inputs.iter().position(|known| *known == input).unwrap_or_else(|| {
            inputs.push(input);
            inputs.len() - 1
        });
        Ok(i64::try_from(position).unwrap_or(i64::MAX))
    }

    fn own_input(&self, inputs: &mut Vec<pb::Input>, output: Option<&Output>) -> Result<i64> {
        let Some(output) = output else { return Ok(-1) };
        inputs.push(self.input(output)?);
        Ok(i64::try_from(inputs.len() - 1).unwrap_or(i64::MAX))
    }

    fn source_index(&mut self, file: &pb::SourceInfo) -> i32 {
        let infos = &mut self.source.infos;
        let position = infos.iter().position(|known| known == file).unwrap_or_else(|| {
            infos.push(file.clone());
            infos.len() - 1
        });
        i32::try_from(position).unwrap_or(i32::MAX)
    }

    fn finish(mut self, last: &pb::Op) -> Result<pb::Definition> {
        let bytes = marshal_op(last)?;
        let mut caps = BTreeMap::from([("constraints", true), ("platform", true)]);
        for metadata in self.definition.metadata.values() {
            let used = [
                (metadata.ignore_cache, "meta.ignorecache"),
                (!metadata.description.is_empty(), "meta.description"),
                (metadata.export_cache.is_some(), "meta.exportcache"),
            ];
            caps.extend(used.into_iter().filter(|(used, _)| *used).map(|(_, cap)| (cap, true)));
        }
        let caps = caps.into_iter().map(|(cap, used)| (cap.to_owned(), used)).collect();
        let metadata = pb::OpMetadata { caps, ..Default::default() };
        self.definition.metadata.insert(VertexDigest::of(&bytes).to_string(), metadata);
        self.definition.def.push(bytes);
        self.definition.source = Some(self.source);
        Ok(self.definition)
    }
}

fn merge_metadata(into: &mut pb::OpMetadata, meta: &VertexMeta) {
    into.ignore_cache |= meta.ignore_cache;
    into.description.extend(meta.description.clone());
    if let Some(value) = meta.export_cache {
        into.export_cache = Some(pb::ExportCache { value });
    }
    if meta.progress_group.is_some() {
        into.progress_group.clone_from(&meta.progress_group);
    }
    if meta.linux_resources.is_some() {
        into.linux_resources.clone_from(&meta.linux_resources);
    }
}
