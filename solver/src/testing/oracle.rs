//! What a solve does, written down as plainly as possible: one vertex after the other, recursively.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt as _;
use kiln_digest::Digest;

use crate::driver::find;
use crate::error::OpError;
use crate::key::KeyId;
use crate::keys::{CacheKeys, CacheRecord, KeyAndSelector, NewKey, RecordId};
use crate::op::{CacheMap, OpContext, ResultRef, WaiterSet};
use crate::progress::VertexProgress;
use crate::scheduler::{Query, QueryId};
use crate::testing::memory_keys::MemoryKeys;
use crate::testing::script::Value;
use crate::vertex::{Edge, Graph, OutputIndex, Vertex, VertexIndex};

/// Evaluates the edges of a graph, one by one. Vertices that ignore the cache are not known here.
#[derive(Debug)]
pub struct Oracle<'a> {
    keys: &'a MemoryKeys,
    graph: &'a Graph,
    vertices: Vec<Known>,
    /// The texts of the results made, in order; `failed` for failures.
    pub executed: Vec<String>,
}

#[derive(Debug, Default)]
struct Known {
    maps: Vec<CacheMap>,
    last: bool,
    contents: HashMap<usize, Digest>,
    outputs: HashMap<OutputIndex, Output>,
}

#[derive(Clone, Debug, Default)]
struct Output {
    ids: Vec<KeyId>,
    reached: Vec<bool>,
    tried: Vec<RecordId>,
    result: Option<Option<ResultRef>>,
}

impl<'a> Oracle<'a> {
    /// Makes one that looks results up in `keys` and saves them there.
    pub fn new(keys: &'a MemoryKeys, graph: &'a Graph) -> Self {
        let vertices = graph.vertices().iter().map(|_| Known::default()).collect();
        Self { keys, graph, vertices, executed: Vec::new() }
    }

    /// Returns the result of an edge.
    ///
    /// # Errors
    /// That of the first vertex that fails.
    pub fn complete(&mut self, edge: Edge) -> Result<Option<ResultRef>, OpError> {
        for effort in [Self::fast, Self::slow] {
            if let Some(result) = &self.output(edge).result {
                return Ok(result.clone());
            }
            effort(self, edge)?;
            if let Some(result) = self.load(edge)? {
                return Ok(result);
            }
        }
        self.run(edge)
    }

    /// Finds keys by definition.
    fn fast(&mut self, edge: Edge) -> Result<(), OpError> {
        if self.vertex(edge).inputs.is_empty() {
            while self.look(edge)?.is_empty() && self.ask(edge)? {}
            return Ok(());
        }
        self.ask(edge)?;
        for input in self.vertex(edge).inputs.clone() {
            self.fast(input)?;
        }
        self.look(edge)?;
        Ok(())
    }

    /// Finds keys by content, where definitions lead nowhere.
    fn slow(&mut self, edge: Edge) -> Result<(), OpError> {
        let inputs = self.vertex(edge).inputs.clone();
        if inputs.is_empty() {
            while self.ask(edge)? {}
            self.look(edge)?;
            return Ok(());
        }
        for (index, input) in inputs.iter().enumerate() {
            // A key that is known is not looked for in further ways, except at sources, which may have more keys.
            let known = !self.output(*input).ids.is_empty() && !self.vertex(*input).inputs.is_empty();
            if !self.reached(edge, index) && !known {
                self.slow(*input)?;
            }
        }
        self.look(edge)?;
        loop {
            let output = self.output(edge);
            let wanted = self.known(edge).outputs.get(&edge.output).is_some_and(|out| out.result.is_none());
            if !wanted || (!output.ids.is_empty() && self.untried(edge)?.is_some()) {
                return Ok(());
            }
            let open = |index: usize| {
                self.dep(edge, index).content && !self.known(edge).contents.contains_key(&index)
            };
            let unreached: Vec<_> = (0..inputs.len()).filter(|index| !self.reached(edge, *index)).collect();
            if unreached.iter().any(|index| !open(*index)) {
                return Ok(());
            }
            let all: Vec<_> = (0..inputs.len()).filter(|index| open(*index)).collect();
            let useful = if unreached.is_empty() { all } else { unreached };
            if useful.is_empty() {
                return Ok(());
            }
            for index in useful {
                self.content(edge, index)?;
            }
            self.look(edge)?;
        }
    }

    /// Loads the best record.
    fn load(&mut self, edge: Edge) -> Result<Option<Option<ResultRef>>, OpError> {
        while let Some(record) = self.untried(edge)? {
            let loaded = self.keys.load(&record).now_or_never().and_then(Result::ok).flatten();
            let output = self.output_mut(edge);
            output.tried.push(record.id);
            if let Some(result) = loaded {
                output.result = Some(result.clone());
                return Ok(Some(result));
            }
        }
        Ok(None)
    }

    /// Makes all inputs, looks a last time, runs, saves.
    fn run(&mut self, edge: Edge) -> Result<Option<ResultRef>, OpError> {
        let mut results = Vec::new();
        for input in self.vertex(edge).inputs.clone() {
            results.push(self.complete(input)?);
            if self.vertex(input).inputs.is_empty() {
                self.slow(input)?;
            }
        }
        for index in 0..results.len() {
            if self.dep(edge, index).content {
                self.content(edge, index)?;
            }
        }
        while self.ask(edge)? {}
        self.look(edge)?;
        if let Some(result) = self.load(edge)? {
            return Ok(result);
        }
        let op = Arc::clone(&self.vertex(edge).op);
        let made =
            now(op.exec(&context(), results)).inspect_err(|_| self.executed.push("failed".to_owned()))?;
        self.executed.push(Value::text(made[0].as_ref()).to_owned());
        for (output, result) in made.into_iter().enumerate() {
            let edge = Edge { output: OutputIndex(output as u32), ..edge };
            let keys: Vec<_> = self
                .known(edge)
                .maps
                .iter()
                .map(|map| NewKey { digest: map.digest, output: edge.output, deps: self.alternatives(edge) })
                .collect();
            let saved = self.keys.save(&keys, result.as_ref()).now_or_never().and_then(Result::ok);
            let output = self.output_mut(edge);
            output.ids = saved.unwrap_or_default();
            if output.result.is_none() {
                output.result = Some(result);
            }
        }
        self.output(edge).result.ok_or_else(|| OpError::failed("no such output"))
    }

    fn content(&mut self, edge: Edge, index: usize) -> Result<(), OpError> {
        if !self.known(edge).contents.contains_key(&index) {
            let result = self.complete(self.vertex(edge).inputs[index])?;
            let op = Arc::clone(&self.vertex(edge).op);
            let content = now(op.content_key(&context(), index, result.as_ref()))?;
            self.vertices[edge.vertex.0 as usize].contents.insert(index, content);
        }
        Ok(())
    }

    /// Asks for one more cache map; returns whether there was one.
    fn ask(&mut self, edge: Edge) -> Result<bool, OpError> {
        let op = Arc::clone(&self.vertex(edge).op);
        let known = &mut self.vertices[edge.vertex.0 as usize];
        if known.last {
            return Ok(false);
        }
        let part = now(op.cache_map(&context(), known.maps.len()))?;
        known.last = part.last;
        known.maps.push(part.map);
        Ok(true)
    }

    /// Looks up what is known of an edge; returns its keys.
    fn look(&mut self, edge: Edge) -> Result<Vec<KeyId>, OpError> {
        let deps = self.alternatives(edge);
        let digests: Vec<_> = self.known(edge).maps.iter().map(|map| map.digest).collect();
        if deps.iter().any(Vec::is_empty) {
            self.output_mut(edge).reached = deps.iter().map(|dep| !dep.is_empty()).collect();
            return Ok(self.output(edge).ids);
        }
        let by_content = !self.known(edge).contents.is_empty();
        let query = Query {
            id: QueryId(0),
            digests: digests.clone(),
            deps,
            output: edge.output,
            jobs: Vec::new(),
            records: false,
        };
        let found = find(self.keys, &query).map_err(OpError::failed)?;
        let output = self.output_mut(edge);
        let unknown = output.ids.is_empty();
        output.reached = found.reached;
        output.ids.extend(found.keys.into_iter().map(|(id, _)| id));
        output.ids.sort();
        output.ids.dedup();
        let ids = output.ids.clone();
        if unknown && by_content {
            for (digest, to) in digests.iter().flat_map(|digest| ids.iter().map(move |to| (digest, to))) {
                let key = NewKey { digest: *digest, output: edge.output, deps: query.deps.clone() };
                let _ = self.keys.link(&key, to).now_or_never();
            }
        }
        Ok(ids)
    }

    fn untried(&self, edge: Edge) -> Result<Option<CacheRecord>, OpError> {
        let output = self.output(edge);
        let mut records = Vec::new();
        for id in &output.ids {
            records.extend(self.keys.records(id).map_err(OpError::failed)?);
        }
        records.retain(|record| !output.tried.contains(&record.id));
        Ok(records.into_iter().max_by_key(|record| (record.created_at, std::cmp::Reverse(record.priority))))
    }

    fn alternatives(&self, edge: Edge) -> Vec<Vec<KeyAndSelector>> {
        let alternatives = |(index, input): (usize, &Edge)| {
            let selector = self.dep(edge, index).selector;
            let ids = self.output(*input).ids;
            let content = self.known(edge).contents.get(&index).map(KeyId::content);
            ids.into_iter()
                .map(|key| KeyAndSelector { key, selector })
                .chain(content.map(|key| KeyAndSelector { key, selector: None }))
                .collect()
        };
        self.vertex(edge).inputs.iter().enumerate().map(alternatives).collect()
    }

    fn reached(&self, edge: Edge, index: usize) -> bool {
        self.output(edge).reached.get(index).copied().unwrap_or(false)
    }

    fn dep(&self, edge: Edge, index: usize) -> crate::op::Dep {
        self.known(edge).maps.first().map(|map| map.deps[index].clone()).unwrap_or_default()
    }

    fn vertex(&self, edge: Edge) -> &'a Vertex {
        &self.graph.vertices()[edge.vertex.0 as usize]
    }

    fn known(&self, edge: Edge) -> &Known {
        &self.vertices[edge.vertex.0 as usize]
    }

    fn output(&self, edge: Edge) -> Output {
        self.known(edge).outputs.get(&edge.output).cloned().unwrap_or_default()
    }

    fn output_mut(&mut self, edge: Edge) -> &mut Output {
        self.vertices[edge.vertex.0 as usize].outputs.entry(edge.output).or_default()
    }
}

/// Returns the text that every evaluation of an edge has to give, cached or not; none if it has to fail.
pub(crate) fn expected(graph: &Graph, edge: Edge) -> Option<String> {
    let mut made: Vec<Option<Vec<Option<ResultRef>>>> = Vec::new();
    for vertex in graph.vertices().iter().take(edge.vertex.0 as usize + 1) {
        let input = |edge: &Edge| made[edge.vertex.0 as usize].as_ref()?.get(edge.output.0 as usize).cloned();
        let inputs: Option<Vec<_>> = vertex.inputs.iter().map(input).collect();
        made.push(inputs.and_then(|inputs| now(vertex.op.exec(&context(), inputs)).ok()));
    }
    let VertexIndex(index) = edge.vertex;
    let result = made.get(index as usize)?.as_ref()?.get(edge.output.0 as usize)?;
    Some(Value::text(result.as_ref()).to_owned())
}

pub(crate) fn context() -> OpContext {
    OpContext {
        cancel: tokio_util::sync::CancellationToken::new(),
        progress: VertexProgress::discard(),
        waiters: WaiterSet::default(),
    }
}

/// Runs a call of a scripted op, none of which waits for anything.
pub(crate) fn now<T>(call: impl Future<Output = Result<T, OpError>>) -> Result<T, OpError> {
    call.now_or_never().unwrap_or_else(|| Err(OpError::failed("scripted ops do not wait")))
}
