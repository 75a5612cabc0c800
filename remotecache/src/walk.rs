//! From the keys of a build's results to records: which there are, how they hang together, and which results go along.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use futures::{FutureExt, StreamExt as _, TryStreamExt as _, stream};
use kiln_cache::{BlobProvider, RecordId, Ref};
use kiln_digest::Digest;
use kiln_exporter::{ExportedLayer, LayerMaker, LayerOptions};
use kiln_solver::{Backlink, JobKeys, KeyGraph, KeyId, KeyInput, KeyNode, KeyOrigin, ResultRef};
use tokio::sync::Mutex;

use crate::attrs::Mode;
use crate::error::Result;
use crate::records::{RecordIndex, Records, Way};

/// Results whose layers are made at a time. How many really run is for the layers' own gate to say.
const RESULTS_AT_A_TIME: usize = 8;

/// What a walk needs.
#[derive(Clone, Copy)]
pub struct Walk<'a> {
    /// The stores of keys.
    pub keys: &'a JobKeys,
    /// Which results.
    pub mode: Mode,
    /// How layers are compressed.
    pub layers: &'a LayerOptions,
    /// What makes layers.
    pub maker: &'a LayerMaker,
    /// Brings the files of lazy layers where a layer has to be made of them.
    pub provider: &'a dyn BlobProvider,
}

impl std::fmt::Debug for Walk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").field("mode", &self.mode).field("layers", self.layers).finish_non_exhaustive()
    }
}

/// Collects the records of a graph's results and of all they are made of.
///
/// Of the results, keys without inputs (images, local directories) carry none; `min` makes layers for the first result
/// on each way down, and takes of those below what has blobs already. Merges that are only merged again have none
/// either: merging costs nothing. That a step asks to be left out changes nothing, as with moby/buildkit.
///
/// # Errors
/// Those of the stores and of making layers.
///
/// # Cancel safety
/// Layers that were made stay.
pub async fn collect(walk: Walk<'_>, graph: &KeyGraph) -> Result<Records> {
    let mut records = Records::new();
    let mut links = Links { keys: walk.keys, known: HashMap::new() };
    let layers = LayerCache { walk, known: Mutex::default() };
    let tops: Vec<usize> = graph.results.iter().map(|top| top.0 as usize).collect();
    let mut made = layers.results(graph, &tops).await?;
    leave_out_inner_merges(graph, &tops, &mut made);
    let mut places: Vec<Vec<RecordIndex>> = Vec::with_capacity(graph.nodes.len());
    for (node, made) in graph.nodes.iter().zip(made) {
        let own = links.add_node(&mut records, node, &places)?;
        if let Some(made) = made {
            for index in &own {
                records.attach(*index, made.created_at, made.layers.clone());
            }
        }
        places.push(own);
    }
    Ok(records)
}

/// What is wanted of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Want {
    Nothing,
    /// Its result, if it has blobs.
    Known,
    /// Its result, whatever it takes.
    Made,
}

type Made = Option<MadeResult>;

/// A result to be exported.
#[derive(Clone)]
struct MadeResult {
    created_at: SystemTime,
    layers: Vec<ExportedLayer>,
    /// It is a merge of others.
    merged: bool,
}

/// The layers of results, each looked at once.
struct LayerCache<'a> {
    walk: Walk<'a>,
    known: Mutex<HashMap<RecordId, ExportedLayer>>,
}

impl LayerCache<'_> {
    /// The exported results of a graph's nodes.
    async fn results(&self, graph: &KeyGraph, tops: &[usize]) -> Result<Vec<Made>> {
        let mut want = vec![Want::Nothing; graph.nodes.len()];
        for top in tops {
            if let Some(want) = want.get_mut(*top) {
                *want = Want::Made;
            }
        }
        let mut made: Vec<Made> = vec![None; graph.nodes.len()];
        if self.walk.mode == Mode::Max {
            for (index, node) in graph.nodes.iter().enumerate().rev() {
                spread(&mut want, index, node, Want::Made);
            }
            let wanted: Vec<_> = (0..want.len()).filter(|index| want[*index] != Want::Nothing).collect();
            let work: Vec<_> = wanted
                .iter()
                .map(|&index| async move {
                    Ok::<_, crate::Error>((index, self.result(&graph.nodes[index], true).await?))
                })
                .map(FutureExt::boxed)
                .collect();
            let all: Vec<_> = stream::iter(work).buffered(RESULTS_AT_A_TIME).try_collect().await?;
            all.into_iter().for_each(|(index, result)| made[index] = result);
            return Ok(made);
        }
        for (index, node) in graph.nodes.iter().enumerate().rev() {
            if want[index] == Want::Nothing {
                continue;
            }
            made[index] = self.result(node, want[index] == Want::Made).await?;
            let below = if made[index].is_some() { Want::Known } else { want[index] };
            spread(&mut want, index, node, below);
        }
        Ok(made)
    }

    /// A node's result with its layers; none where it has none to export.
    async fn result(&self, node: &KeyNode, make: bool) -> Result<Made> {
        if node.inputs.is_empty() {
            return Ok(None);
        }
        let Some((created_at, state)) = self.find(node).await? else { return Ok(None) };
        let merged = state.is_merge();
        let mut layers = Vec::new();
        for layer in state.layer_sequence() {
            let Some(layer) = self.layer(&layer, make).await? else { return Ok(None) };
            layers.push(layer);
        }
        Ok((!layers.is_empty()).then_some(MadeResult { created_at, layers, merged }))
    }

    async fn layer(&self, layer: &Ref, make: bool) -> Result<Option<ExportedLayer>> {
        if let Some(known) = self.known.lock().await.get(layer.id()) {
            return Ok(Some(known.clone()));
        }
        let Walk { maker, layers: options, provider, .. } = self.walk;
        let found = match make {
            true => Some(maker.layer(layer, options, provider).await?),
            false => maker.existing(layer, options).await?,
        };
        if let Some(found) = &found {
            self.known.lock().await.insert(layer.id().clone(), found.clone());
        }
        Ok(found)
    }

    /// The newest result under any of a node's keys that can be opened.
    async fn find(&self, node: &KeyNode) -> Result<Option<(SystemTime, Ref)>> {
        let own = node.result.as_ref().and_then(Option::as_ref).and_then(state);
        let mut records = Vec::new();
        for key in &node.ids {
            records.extend(self.walk.keys.records(key)?);
        }
        records.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.priority.cmp(&b.priority)));
        for record in records {
            if let Some(own) = own.as_ref().filter(|own| own.id().as_str() == &*record.id.0) {
                return Ok(Some((record.created_at, own.clone())));
            }
            if let Some(result) = self.walk.keys.load(&record).await?
                && let Some(state) = result.as_ref().and_then(state)
            {
                return Ok(Some((record.created_at, state)));
            }
        }
        Ok(own.map(|own| (own.created_at(), own)))
    }
}

fn state(result: &ResultRef) -> Option<Ref> {
    result.downcast::<Ref>().cloned()
}

/// Leaves out merges that nothing but merges is made of.
fn leave_out_inner_merges(graph: &KeyGraph, tops: &[usize], made: &mut [Made]) {
    let merged: Vec<bool> = made.iter().map(|made| made.as_ref().is_some_and(|made| made.merged)).collect();
    let mut users = vec![(0, 0); graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        for input in node.inputs.iter().flatten() {
            if let KeyOrigin::Node(from) = &input.from
                && let Some((all, merges)) = users.get_mut(from.0 as usize)
            {
                *all += 1;
                *merges += usize::from(merged[index]);
            }
        }
    }
    for (index, (all, merges)) in users.into_iter().enumerate() {
        if all > 0 && all == merges && merged[index] && !tops.contains(&index) {
            made[index] = None;
        }
    }
}

/// Hands what is wanted on to a node's inputs.
fn spread(want: &mut [Want], index: usize, node: &KeyNode, below: Want) {
    if want.get(index).is_none_or(|want| *want == Want::Nothing) {
        return;
    }
    for input in node.inputs.iter().flatten() {
        if let KeyOrigin::Node(from) = &input.from
            && let Some(want) = want.get_mut(from.0 as usize)
        {
            *want = (*want).max(below);
        }
    }
}

/// The records of keys that a build has not looked at itself: other ways to what it found.
struct Links<'a> {
    keys: &'a JobKeys,
    /// By name; none for keys that are not to be exported.
    known: HashMap<KeyId, Option<RecordIndex>>,
}

impl Links<'_> {
    /// Adds a node's records, one for each of its op digests. None, if one of its inputs has no record.
    fn add_node(
        &mut self,
        records: &mut Records,
        node: &KeyNode,
        places: &[Vec<RecordIndex>],
    ) -> Result<Vec<RecordIndex>> {
        let mut own = Vec::new();
        for digest in node.digests.iter().filter(|digest| !digest.is_random()) {
            let Some(name) = exported(&digest.root(node.output)) else { continue };
            let mut inputs: Vec<Vec<Way>> =
                node.inputs.iter().map(|ways| ways_in(records, ways, places)).collect();
            for key in &node.ids {
                for link in self.keys.backlinks(key)? {
                    if exported(&link.digest) == Some(name)
                        && let Some(from) = self.add_key(records, &link.from)?
                        && let Some(ways) = inputs.get_mut(link.input as usize)
                        && !ways.contains(&(link.selector, from))
                    {
                        ways.push((link.selector, from));
                    }
                }
            }
            if inputs.iter().all(|ways| !ways.is_empty()) {
                own.push(records.add(name, inputs));
            }
        }
        if node.inputs.is_empty() {
            for key in node.ids.iter().filter(|key| !key.is_random()) {
                for sibling in self.keys.siblings(key)? {
                    let Some(name) = exported(&sibling) else { continue };
                    let index = records.add(name, Vec::new());
                    if !own.contains(&index) {
                        own.push(index);
                    }
                }
            }
        }
        Ok(own)
    }

    /// Adds the record of a key, and all that leads to it.
    fn add_key(&mut self, records: &mut Records, key: &KeyId) -> Result<Option<RecordIndex>> {
        let mut open: HashMap<KeyId, Vec<Backlink>> = HashMap::new();
        let mut todo = vec![(key.clone(), false)];
        while let Some((key, below_done)) = todo.pop() {
            if self.known.contains_key(&key) {
                continue;
            }
            if !below_done {
                if open.contains_key(&key) {
                    // It leads to itself, which no honest store says; that way is left out.
                    continue;
                }
                let links = self.keys.backlinks(&key)?;
                todo.push((key.clone(), true));
                todo.extend(links.iter().map(|link| (link.from.clone(), false)));
                open.insert(key, links);
                continue;
            }
            let links = open.remove(&key).unwrap_or_default();
            let record = self.record(records, &key, &links);
            self.known.insert(key, record);
        }
        Ok(self.known.get(key).copied().flatten())
    }

    /// The record of a key whose inputs are known.
    fn record(&self, records: &mut Records, key: &KeyId, links: &[Backlink]) -> Option<RecordIndex> {
        let Some(first) = links.first() else {
            return exported(key).map(|name| records.add(name, Vec::new()));
        };
        let name = exported(&first.digest)?;
        let mut inputs: Vec<Vec<Way>> = Vec::new();
        let mut seen = HashSet::new();
        for link in links.iter().filter(|link| link.digest == first.digest) {
            let input = link.input as usize;
            if inputs.len() <= input {
                inputs.resize(input + 1, Vec::new());
            }
            if let Some(from) = self.known.get(&link.from).copied().flatten()
                && seen.insert((input, link.selector, from))
                && let Some(ways) = inputs.get_mut(input)
            {
                ways.push((link.selector, from));
            }
        }
        inputs.iter().all(|ways| !ways.is_empty()).then(|| records.add(name, inputs))
    }
}

fn ways_in(records: &mut Records, ways: &[KeyInput], places: &[Vec<RecordIndex>]) -> Vec<Way> {
    let mut found = Vec::new();
    for way in ways {
        match &way.from {
            KeyOrigin::Node(from) => {
                let from = places.get(from.0 as usize).into_iter().flatten();
                found.extend(from.map(|from| (way.selector, *from)));
            }
            KeyOrigin::Content(content) => {
                if let Some(name) = exported(&KeyId::content(content)) {
                    found.push((way.selector, records.add(name, Vec::new())));
                }
            }
        }
    }
    found
}

/// What an export calls a key without inputs; none for one that means nothing elsewhere.
fn exported(root: &KeyId) -> Option<Digest> {
    root.as_str().parse().ok()
}
