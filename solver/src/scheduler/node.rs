//! A vertex in a job.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use kiln_digest::Digest;

use crate::key::{KeyDigest, KeyId};
use crate::keys::{CacheRecord, KeyAndSelector, RecordId};
use crate::op::{CacheMap, Dep, ResultRef};
use crate::outcome::Outcome;
use crate::scheduler::{BuildId, JobId, WorkId};
use crate::tables::push_tight;
use crate::vertex::{Graph, OutputIndex, Vertex};

/// Position of a node in [`Nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(usize);

/// How much is to be known of an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    #[default]
    Nothing,
    /// Its keys as far as definitions tell.
    Fast,
    /// Its keys, contents of inputs looked at where definitions tell nothing.
    Slow,
    /// Its result.
    Complete,
}

/// Where a node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing has been asked yet.
    Start,
    /// Waiting for the op's map and the inputs' keys.
    Begun,
    /// Looking for keys and records with what is known of the inputs: definitions, or more if `slow`.
    Lookup { slow: bool },
    /// Waiting for the content keys of these inputs.
    Contents(Vec<usize>),
    /// Nothing is known: waiting for all inputs, then running.
    Inputs,
}

/// A vertex in a job. Inputs are nodes of the same job.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) job: JobId,
    /// Orders the nodes of a job, inputs before users.
    pub(super) seq: u64,
    graph: Arc<Graph>,
    index: usize,
    pub(super) inputs: Vec<(NodeId, OutputIndex)>,
    /// The op's answers this node has taken up.
    pub(super) maps: Vec<Arc<CacheMap>>,
    pub(super) maps_last: bool,
    pub(super) stage: Stage,
    /// Goes up whenever a look-up may find more than before.
    pub(super) version: u32,
    /// Content digests of inputs, with the names of their keys.
    pub(super) contents: Vec<Option<(Digest, KeyId)>>,
    /// An input that can have no content key has no known key: no need to look up any more.
    pub(super) hopeless: bool,
    /// How often an input was found lost.
    pub(super) lost: u8,
    pub(super) outs: Vec<Out>,
    /// Finished executions whose results it has.
    pub(super) held: Vec<WorkId>,
    pub(super) wait: Wait,
    /// Whether it is in the ready queue.
    pub(super) ready: bool,
}

/// What a node waits for. Waiters with an older epoch are void.
#[derive(Debug, Default)]
pub(super) struct Wait {
    pub(super) epoch: u64,
    pub(super) pending: usize,
    pub(super) works: Vec<WorkId>,
}

/// One output of a node.
#[derive(Debug, Default)]
pub(super) struct Out {
    pub(super) output: OutputIndex,
    /// The most that somebody waits for.
    pub(super) want: Level,
    /// The most that somebody waits to know of its keys.
    pub(super) want_keys: Level,
    /// How far its keys are known (not `Complete`: see `done`). A result can be there before all of a source's keys.
    pub(super) settled: Level,
    /// Known names of its key, to be used by consumers.
    pub(super) ids: Vec<KeyId>,
    /// Names its result is saved under without standing for that result: it was made anew.
    pub(super) hidden: Vec<KeyId>,
    pub(super) by_content: bool,
    /// The node's version at the last look-up.
    pub(super) looked: u32,
    pub(super) looked_for_records: bool,
    /// Per input, whether the last look-up reached any key from it.
    pub(super) reached: Vec<bool>,
    /// Records to try, the best last.
    pub(super) records: Vec<CacheRecord>,
    /// The one being tried.
    pub(super) loading: Option<CacheRecord>,
    pub(super) tried: Vec<RecordId>,
    pub(super) done: Option<Done>,
    pub(super) waiters: Vec<Waiter>,
}

/// A result, and how it came.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) result: Option<ResultRef>,
    pub(super) outcome: Outcome,
    pub(super) work: Option<WorkId>,
}

/// Who waits for an output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) who: Who,
    pub(super) level: Level,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Who {
    Node { node: NodeId, epoch: u64, input: usize },
    Build(BuildId),
}

impl Node {
    pub(super) fn new(
        job: JobId,
        seq: u64,
        graph: Arc<Graph>,
        index: usize,
        inputs: Vec<(NodeId, OutputIndex)>,
    ) -> Self {
        let contents = vec![None; inputs.len()];
        Self {
            job,
            seq,
            graph,
            index,
            inputs,
            maps: Vec::new(),
            maps_last: false,
            stage: Stage::Start,
            version: 0,
            contents,
            hopeless: false,
            lost: 0,
            outs: Vec::new(),
            held: Vec::new(),
            wait: Wait::default(),
            ready: false,
        }
    }

    pub(super) fn vertex(&self) -> &Vertex {
        &self.graph.vertices()[self.index]
    }

    pub(super) fn forced(&self) -> bool {
        self.vertex().options.ignore_cache
    }

    pub(super) fn dep(&self, input: usize) -> Dep {
        self.maps.first().and_then(|map| map.deps.get(input)).cloned().unwrap_or_default()
    }

    pub(super) fn digests(&self) -> Vec<KeyDigest> {
        let mut digests: Vec<KeyDigest> = Vec::with_capacity(self.maps.len());
        for map in &self.maps {
            if !digests.contains(&map.digest) {
                digests.push(map.digest);
            }
        }
        digests
    }

    pub(super) fn out(&self, output: OutputIndex) -> Option<&Out> {
        self.outs.iter().find(|out| out.output == output)
    }

    pub(super) fn out_mut(&mut self, output: OutputIndex) -> &mut Out {
        let position = self.outs.iter().position(|out| out.output == output).unwrap_or_else(|| {
            push_tight(&mut self.outs, Out { output, ..Out::default() });
            self.outs.len() - 1
        });
        &mut self.outs[position]
    }

    /// Returns the outputs that have this very result.
    pub(super) fn outputs_with<'a>(
        &'a self,
        result: &'a ResultRef,
    ) -> impl Iterator<Item = OutputIndex> + 'a {
        let has = |out: &Out| {
            let done = out.done.as_ref().and_then(|done| done.result.as_ref());
            done.is_some_and(|its| Arc::ptr_eq(its, result))
        };
        self.outs.iter().filter(move |out| has(out)).map(|out| out.output)
    }

    /// Returns whether some output lacks what is wanted of it.
    pub(super) fn unsatisfied(&self) -> bool {
        self.outs.iter().any(Out::unsatisfied)
    }

    /// Returns whether some wanted result is not there.
    pub(super) fn incomplete(&self) -> bool {
        self.outs.iter().any(Out::lacks_result)
    }
}

impl Out {
    pub(super) fn level(&self) -> Level {
        if self.done.is_some() { Level::Complete } else { self.settled }
    }

    /// Returns whether this much of it is known.
    pub(super) fn has(&self, level: Level) -> bool {
        if level == Level::Complete { self.done.is_some() } else { self.settled >= level }
    }

    /// Takes note that somebody waits for this much.
    pub(super) fn want(&mut self, level: Level) {
        self.want = self.want.max(level);
        if level < Level::Complete {
            self.want_keys = self.want_keys.max(level);
        }
    }

    pub(super) fn unsatisfied(&self) -> bool {
        self.lacks_result() || self.want_keys > self.settled
    }

    /// Returns whether its result is wanted and not there.
    pub(super) fn lacks_result(&self) -> bool {
        self.want == Level::Complete && self.done.is_none()
    }

    /// Returns the alternatives it offers to a consumer.
    pub(super) fn alternatives(&self, selector: Option<Digest>) -> impl Iterator<Item = KeyAndSelector> + '_ {
        self.ids.iter().map(move |key| KeyAndSelector { key: key.clone(), selector })
    }

    /// Takes up what a look-up found.
    pub(super) fn add_records(&mut self, records: Vec<CacheRecord>) {
        for record in records {
            let known = self.loading.as_ref().is_some_and(|loading| loading.id == record.id)
                || self.tried.contains(&record.id)
                || self.records.iter().any(|old| old.id == record.id);
            if !known {
                self.records.push(record);
            }
        }
        sort_best_last(&mut self.records);
    }
}

/// Sorts records so that the newest comes last; of equally old ones that with the lowest priority number.
pub(super) fn sort_best_last(records: &mut [CacheRecord]) {
    records.sort_by(|a, b| {
        let by_age = a.created_at.cmp(&b.created_at);
        by_age.then_with(|| b.priority.cmp(&a.priority)).then_with(|| b.id.cmp(&a.id))
    });
}

/// All nodes of all jobs.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    nodes: Vec<Option<Node>>,
    free: Vec<usize>,
}

impl Nodes {
    /// Makes room for so many more.
    pub(super) fn reserve(&mut self, count: usize) {
        self.nodes.reserve(count.saturating_sub(self.free.len()));
    }

    pub(super) fn insert(&mut self, node: Node) -> NodeId {
        if let Some(index) = self.free.pop() {
            self.nodes[index] = Some(node);
            return NodeId(index);
        }
        self.nodes.push(Some(node));
        NodeId(self.nodes.len() - 1)
    }

    pub(super) fn remove(&mut self, id: NodeId) -> Option<Node> {
        let node = self.nodes.get_mut(id.0)?.take();
        if node.is_some() {
            self.free.push(id.0);
        }
        if self.free.len() == self.nodes.len() {
            *self = Self::default();
        }
        node
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0)?.as_ref()
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.nodes.len()
    }
}

impl Index<NodeId> for Nodes {
    type Output = Node;

    #[expect(clippy::expect_used, reason = "an id is dropped, or its epoch void, before its node goes")]
    fn index(&self, id: NodeId) -> &Node {
        self.get(id).expect("node of a live job")
    }
}

impl IndexMut<NodeId> for Nodes {
    #[expect(clippy::expect_used, reason = "an id is dropped, or its epoch void, before its node goes")]
    fn index_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(id.0).and_then(Option::as_mut).expect("node of a live job")
    }
}
