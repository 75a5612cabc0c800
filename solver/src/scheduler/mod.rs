//! Deciding what to do next: a pure state machine, without clock and I/O.
//!
//! Every job has a node per vertex, in an immutable graph; a node climbs [`node::Stage`]s as far as it is asked to.
//! What takes time is [`work::Work`], in one table for all jobs: it belongs to the nodes that wait for it, is found by
//! what it computes, and is cancelled when the last one leaves. Nodes never wait for each other across jobs.

mod advance;
mod build;
mod exec;
mod gate;
#[cfg(any(test, feature = "testing"))]
mod inspect;
mod node;
#[cfg(test)]
mod tests;
mod wait;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;

use kiln_digest::Digest;

use crate::driver::CachedResult;
use crate::error::{OpError, Result, SolveError};
use crate::key::{KeyDigest, KeyId};
use crate::keys::{CacheRecord, KeyAndSelector, NewKey};
use crate::op::{CacheMap, CacheMapPart, Op, ResultRef};
use crate::outcome::Outcome;
use crate::tables::HashMap;
use crate::vertex::{Edge, Graph, OutputIndex, VertexDigest};

use crate::scheduler::build::{Build, JobState};
use crate::scheduler::exec::WorkIndex;
use crate::scheduler::gate::Gate;
#[cfg(any(test, feature = "testing"))]
pub(crate) use crate::scheduler::inspect::Execution;
pub(crate) use crate::scheduler::node::NodeId;
use crate::scheduler::node::Nodes;
use crate::scheduler::work::{Work, WorkKey};

/// Names a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct JobId(pub(crate) u64);

/// Names one request for results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BuildId(pub(crate) u64);

/// Names a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WorkId(pub(crate) u64);

/// Names a look-up under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct QueryId(pub(crate) u64);

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    JobOpened(JobId),
    BuildWanted {
        job: JobId,
        build: BuildId,
        graph: Arc<Graph>,
        edges: Vec<Edge>,
    },
    BuildDropped(BuildId),
    /// Whoever got this result of a build has found it lost.
    ResultLost {
        job: JobId,
        result: ResultRef,
    },
    JobClosed(JobId),
    Queried {
        query: QueryId,
        found: Result<Found>,
    },
    Done {
        work: WorkId,
        reply: Reply,
    },
    /// A job waits for this work no longer: a limit of its own has passed. The clock is the driver's.
    Expired {
        work: WorkId,
        job: JobId,
        error: OpError,
    },
}

/// The answer to a look-up: keys with their records, and which inputs reached any key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) keys: Vec<(KeyId, Vec<CacheRecord>)>,
    pub(crate) reached: Vec<bool>,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Effect {
    /// New vertices of a job.
    Announce { job: JobId, graph: Arc<Graph>, vertices: Vec<u32> },
    /// Look something up; answered by [`Event::Queried`].
    Query(Query),
    /// Start a call; answered by [`Event::Done`], also when cancelled.
    Start { work: WorkId, call: Call },
    /// Tell the running call of this work to stop.
    Cancel(WorkId),
    /// A job's vertex waits for this work from now on. Comes before the start or after it.
    Joined { work: WorkId, job: JobId, vertex: VertexDigest },
    /// A job's vertex waits for it no more, and fails with the error if there is one.
    Left { work: WorkId, job: JobId, vertex: VertexDigest, error: Option<OpError> },
    /// The work shows as started on the vertices that wait for it, now and later.
    Started(WorkId),
    /// The work is over, and shows as completed if given.
    Ended { work: WorkId, shown: Option<Completion> },
    /// A vertex's result was there already.
    Cached { job: JobId, vertex: VertexDigest, outcome: Outcome },
    /// Add links; nobody waits for it.
    Link { key: NewKey, to: KeyId },
    /// A build has ended.
    BuildDone { build: BuildId, result: Result<Vec<CachedResult>, SolveError> },
}

/// A look-up.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) id: QueryId,
    pub(crate) digests: Vec<KeyDigest>,
    pub(crate) deps: Vec<Vec<KeyAndSelector>>,
    pub(crate) output: OutputIndex,
    /// Whose imported caches are to be looked into, too.
    pub(crate) jobs: Vec<JobId>,
    /// Whether records are wanted beside keys.
    pub(crate) records: bool,
}

/// A call that takes time.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    CacheMap { op: Arc<dyn Op>, index: usize },
    ContentKey { op: Arc<dyn Op>, input: usize, result: Option<ResultRef> },
    Exec { op: Arc<dyn Op>, inputs: Vec<Option<ResultRef>> },
    Load { record: CacheRecord },
    Save { items: Vec<(Vec<NewKey>, Option<ResultRef>)> },
    Lost { result: ResultRef },
}

/// The answer to a [`Call`].
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    CacheMap(Result<CacheMapPart, OpError>),
    ContentKey(Result<Digest, OpError>),
    Exec(Result<Vec<Option<ResultRef>>, OpError>),
    Load(Result<Option<Loaded>>),
    Save(Result<Vec<Vec<KeyId>>>),
    Lost,
}

/// A record that was opened.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) result: Option<ResultRef>,
    /// What the solver's own store calls its key from now on, if the record is of an imported cache.
    pub(crate) adopted: Option<KeyId>,
}

/// How a shown piece of work ended.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub(crate) cached: bool,
    pub(crate) error: Option<OpError>,
    pub(crate) outcome: Option<Outcome>,
}

/// What vertices with one digest share while any job has one: the answers of their ops.
#[derive(Debug, Default)]
struct SharedVertex {
    nodes: usize,
    maps: Vec<Arc<CacheMap>>,
    last: bool,
}

/// Who asked a look-up.
#[derive(Clone, Copy, Debug)]
enum Asker {
    Node { node: NodeId, epoch: u64, output: OutputIndex, version: u32, records: bool },
    Work(WorkId),
}

/// Limits of the scheduler's gates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) processes: usize,
    pub(crate) light: usize,
}

/// The state of all jobs.
#[derive(Debug)]
pub(crate) struct Scheduler {
    jobs: HashMap<JobId, JobState>,
    builds: HashMap<BuildId, Build>,
    nodes: Nodes,
    shared: HashMap<VertexDigest, SharedVertex>,
    works: HashMap<WorkId, Work>,
    by_key: HashMap<WorkKey, WorkId>,
    index: WorkIndex,
    queries: HashMap<QueryId, Asker>,
    processes: Gate,
    light: Gate,
    /// Nodes to look at before the step ends.
    ready: VecDeque<NodeId>,
    /// Nodes that somebody ceased to wait for: looked at when all that is ready has been.
    doubtful: Vec<NodeId>,
    /// Source of epochs, work and query ids.
    last_id: u64,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            jobs: HashMap::default(),
            builds: HashMap::default(),
            nodes: Nodes::default(),
            shared: HashMap::default(),
            works: HashMap::default(),
            by_key: HashMap::default(),
            index: WorkIndex::default(),
            queries: HashMap::default(),
            processes: Gate::new(limits.processes),
            light: Gate::new(limits.light),
            ready: VecDeque::new(),
            doubtful: Vec::new(),
            last_id: 0,
        }
    }

    /// Applies one event; what is to be done is appended to `effects`, in the order in which to do it.
    pub(crate) fn step(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::JobOpened(job) => {
                self.jobs.entry(job).or_default();
            }
            Event::BuildWanted { job, build, graph, edges } => self.want(job, build, graph, &edges, effects),
            Event::BuildDropped(build) => self.drop_build(build, effects),
            Event::ResultLost { job, result } => self.result_lost(job, &result, effects),
            Event::JobClosed(job) => self.close_job(job, effects),
            Event::Queried { query, found } => self.queried(query, found, effects),
            Event::Done { work, reply } => self.done(work, reply, effects),
            Event::Expired { work, job, error } => self.expired(work, job, &error, effects),
        }
        self.run(effects);
    }

    /// Returns whether nothing is left of any job.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
            && self.builds.is_empty()
            && self.nodes.is_empty()
            && self.shared.is_empty()
            && self.works.is_empty()
            && self.by_key.is_empty()
            && self.index.is_empty()
            && self.queries.is_empty()
            && self.processes.is_empty()
            && self.light.is_empty()
    }

    fn run(&mut self, effects: &mut Vec<Effect>) {
        while let Some(node) = self.ready.pop_front() {
            self.advance(node, effects);
        }
        self.let_go(effects);
        self.open_gates(effects);
    }

    fn queried(&mut self, query: QueryId, found: Result<Found>, effects: &mut Vec<Effect>) {
        match self.queries.remove(&query) {
            Some(Asker::Node { node, epoch, output, version, records }) if self.waits(node, epoch) => {
                self.node_found((node, output), (version, records), found, effects);
            }
            Some(Asker::Node { .. }) => {}
            Some(Asker::Work(work)) => self.probe_found(work, found, effects),
            None => {}
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}
