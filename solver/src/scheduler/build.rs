//! Jobs and their builds: taking graphs in, handing results out.

use std::sync::Arc;

use crate::driver::CachedResult;
use crate::error::{Error, Result, SolveError};
use crate::key_graph::{KeyGraph, KeyInput, KeyNode, KeyNodeIndex, KeyOrigin, ResultKey};
use crate::op::ResultRef;
use crate::scheduler::node::{Level, Node, NodeId, Who};
use crate::scheduler::{BuildId, Effect, JobId, Scheduler};
use crate::tables::{HashMap, HashSet};
use crate::vertex::{Edge, Graph, OutputIndex, VertexDigest};

/// A job's nodes, kept until it closes: a vertex is computed once per job.
#[derive(Debug, Default)]
pub(super) struct JobState {
    /// By vertex and whether it ignores the cache.
    nodes: HashMap<(VertexDigest, bool), NodeId>,
    pub(super) builds: Vec<BuildId>,
    /// The nodes that wait for something.
    pub(super) waiting: HashSet<NodeId>,
    next_seq: u64,
}

/// A request for results.
#[derive(Debug)]
pub(super) struct Build {
    job: JobId,
    pub(super) edges: Vec<(NodeId, OutputIndex)>,
    pending: usize,
}

impl Scheduler {
    /// Takes a graph in, as far as `edges` need it, and asks for them.
    pub(super) fn want(
        &mut self,
        job: JobId,
        build: BuildId,
        graph: Arc<Graph>,
        edges: &[Edge],
        effects: &mut Vec<Effect>,
    ) {
        if !self.jobs.contains_key(&job) {
            return effects.push(Effect::BuildDone { build, result: Err(SolveError::Cancelled) });
        }
        if let Some(edge) = edges.iter().find(|edge| graph.get(edge.vertex).is_none()) {
            let error = Error::Graph(format!("no vertex `{}`", edge.vertex.0));
            return effects.push(Effect::BuildDone { build, result: Err(error.into()) });
        }
        let edges = self.load_graph(job, &graph, edges, effects);
        self.builds.insert(build, Build { job, edges: edges.clone(), pending: 0 });
        if let Some(job) = self.jobs.get_mut(&job) {
            job.builds.push(build);
        }
        let mut pending = 0;
        for (node, output) in edges {
            pending += usize::from(!self.demand(node, output, Level::Complete, Who::Build(build)));
        }
        match self.builds.get_mut(&build) {
            Some(state) if pending > 0 => state.pending = pending,
            _ => self.finish_build(build, effects),
        }
    }

    fn load_graph(
        &mut self,
        job: JobId,
        graph: &Arc<Graph>,
        edges: &[Edge],
        effects: &mut Vec<Effect>,
    ) -> Vec<(NodeId, OutputIndex)> {
        let vertices = graph.vertices();
        let mut needed = vec![false; vertices.len()];
        edges.iter().for_each(|edge| needed[edge.vertex.0 as usize] = true);
        for index in (0..vertices.len()).rev() {
            if needed[index] {
                vertices[index].inputs.iter().for_each(|edge| needed[edge.vertex.0 as usize] = true);
            }
        }
        let count = needed.iter().filter(|needed| **needed).count();
        self.nodes.reserve(count);
        self.shared.reserve(count);
        if let Some(state) = self.jobs.get_mut(&job) {
            state.nodes.reserve(count);
        }
        let mut ids: Vec<Option<NodeId>> = vec![None; vertices.len()];
        let mut new = Vec::new();
        for (index, vertex) in vertices.iter().enumerate().filter(|(index, _)| needed[*index]) {
            let forced = vertex.options.ignore_cache;
            let Some(state) = self.jobs.get_mut(&job) else { return Vec::new() };
            let known = state.nodes.get(&(vertex.digest, forced));
            // A vertex that is there as one to be made anew will do for who does not care.
            let known = known.or_else(|| state.nodes.get(&(vertex.digest, true)).filter(|_| !forced));
            if let Some(known) = known {
                ids[index] = Some(*known);
                continue;
            }
            let below = |edge: &Edge| ids[edge.vertex.0 as usize].map(|node| (node, edge.output));
            let inputs = vertex.inputs.iter().filter_map(below).collect();
            state.next_seq += 1;
            let mut node = Node::new(job, state.next_seq, Arc::clone(graph), index, inputs);
            self.last_id += 1;
            node.wait.epoch = self.last_id;
            let node = self.nodes.insert(node);
            state.nodes.insert((vertex.digest, forced), node);
            self.shared.entry(vertex.digest).or_default().nodes += 1;
            ids[index] = Some(node);
            new.extend(u32::try_from(index).ok());
        }
        if !new.is_empty() {
            effects.push(Effect::Announce { job, graph: Arc::clone(graph), vertices: new });
        }
        edges.iter().filter_map(|edge| ids[edge.vertex.0 as usize].map(|node| (node, edge.output))).collect()
    }

    /// A result of a build is there.
    pub(super) fn build_got(&mut self, build: BuildId, effects: &mut Vec<Effect>) {
        let Some(state) = self.builds.get_mut(&build) else { return };
        state.pending = state.pending.saturating_sub(1);
        if state.pending == 0 {
            self.finish_build(build, effects);
        }
    }

    /// Makes all nodes of a job forget a result that somebody outside has found lost.
    pub(super) fn result_lost(&mut self, job: JobId, lost: &ResultRef, effects: &mut Vec<Effect>) {
        let Some(state) = self.jobs.get(&job) else { return };
        let mut holders = Vec::new();
        for &id in state.nodes.values() {
            holders.extend(self.nodes[id].outputs_with(lost).map(|output| (id, output)));
        }
        holders.sort_unstable();
        for (id, output) in holders {
            self.reset(id, output, lost, effects);
        }
    }

    fn finish_build(&mut self, build: BuildId, effects: &mut Vec<Effect>) {
        let Some(state) = self.builds.get(&build) else { return };
        // A result that was there may have been found lost since, and is being made again.
        let edges = state.edges.clone();
        let mut pending = 0;
        for (node, output) in edges {
            pending += usize::from(!self.demand(node, output, Level::Complete, Who::Build(build)));
        }
        let Some(state) = self.builds.get_mut(&build) else { return };
        state.pending = pending;
        if pending > 0 {
            return;
        }
        let Some(state) = self.builds.get(&build) else { return };
        let mut results = Vec::with_capacity(state.edges.len());
        for &(node, output) in &state.edges {
            if let Some(done) = self.nodes[node].out(output).and_then(|out| out.done.clone()) {
                let key = ResultKey { node, output };
                results.push(CachedResult { result: done.result, key, outcome: done.outcome });
            }
        }
        self.end_build(build, Ok(results), effects);
    }

    pub(super) fn end_build(
        &mut self,
        build: BuildId,
        result: Result<Vec<CachedResult>, SolveError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(state) = self.builds.remove(&build) else { return };
        effects.push(Effect::BuildDone { build, result });
        if let Some(job) = self.jobs.get_mut(&state.job) {
            job.builds.retain(|other| *other != build);
        }
        self.withdraw(state.job, effects);
    }

    pub(super) fn drop_build(&mut self, build: BuildId, effects: &mut Vec<Effect>) {
        self.end_build(build, Err(SolveError::Cancelled), effects);
    }

    /// Ends a job: its builds fail, its nodes go, and what only it waited for stops.
    pub(super) fn close_job(&mut self, job: JobId, effects: &mut Vec<Effect>) {
        let Some(state) = self.jobs.get(&job) else { return };
        for build in state.builds.clone() {
            self.end_build(build, Err(SolveError::Cancelled), effects);
        }
        let Some(state) = self.jobs.remove(&job) else { return };
        let mut nodes: Vec<_> = state.nodes.into_values().collect();
        nodes.sort_unstable();
        for id in nodes {
            self.stop_waiting(id, effects);
            for work in self.nodes[id].held.clone() {
                self.release(id, work, effects);
            }
            let digest = self.nodes[id].vertex().digest;
            self.nodes.remove(id);
            if let Some(shared) = self.shared.get_mut(&digest) {
                shared.nodes = shared.nodes.saturating_sub(1);
                if shared.nodes == 0 {
                    self.shared.remove(&digest);
                }
            }
        }
        self.processes.forget(job);
        self.light.forget(job);
    }

    /// Writes down the keys of a job's results and of all below, inputs first. None when the job has ended.
    pub(crate) fn key_graph(&self, job: JobId, results: &[ResultKey]) -> Option<KeyGraph> {
        let edges: Vec<_> = results.iter().map(|key| (key.node, key.output)).collect();
        if edges.iter().any(|(node, _)| self.nodes.get(*node).is_none_or(|node| node.job != job)) {
            return None;
        }
        let mut seen: HashSet<(NodeId, OutputIndex)> = edges.iter().copied().collect();
        let mut open: Vec<_> = seen.iter().copied().collect();
        while let Some((id, _)) = open.pop() {
            for input in &self.nodes[id].inputs {
                if seen.insert(*input) {
                    open.push(*input);
                }
            }
        }
        let mut order: Vec<_> = seen.into_iter().collect();
        order.sort_unstable_by_key(|(id, output)| (self.nodes[*id].seq, *output));
        let mut places = HashMap::with_capacity_and_hasher(order.len(), Default::default());
        let mut graph = KeyGraph { nodes: Vec::with_capacity(order.len()), results: Vec::new() };
        for (id, output) in order {
            let place = KeyNodeIndex(u32::try_from(graph.nodes.len()).unwrap_or(u32::MAX));
            graph.nodes.push(self.key_node(&self.nodes[id], output, &places));
            places.insert((id, output), place);
        }
        graph.results = edges.iter().filter_map(|edge| places.get(edge).copied()).collect();
        Some(graph)
    }

    fn key_node(
        &self,
        node: &Node,
        output: OutputIndex,
        places: &HashMap<(NodeId, OutputIndex), KeyNodeIndex>,
    ) -> KeyNode {
        let inputs = node.inputs.iter().enumerate().map(|(input, edge)| {
            let definition = places
                .get(edge)
                .map(|place| KeyInput { selector: node.dep(input).selector, from: KeyOrigin::Node(*place) });
            let content = node.contents[input]
                .as_ref()
                .map(|(content, _)| KeyInput { selector: None, from: KeyOrigin::Content(*content) });
            definition.into_iter().chain(content).collect()
        });
        let out = node.out(output);
        let done = out.and_then(|out| out.done.clone());
        KeyNode {
            vertex: node.vertex().digest,
            output,
            digests: node.digests(),
            ids: out.map(|out| out.ids.iter().chain(&out.hidden).cloned().collect()).unwrap_or_default(),
            inputs: inputs.collect(),
            outcome: done.as_ref().map(|done| done.outcome.clone()),
            result: done.map(|done| done.result),
            export_cache: node.vertex().options.export_cache,
        }
    }
}
