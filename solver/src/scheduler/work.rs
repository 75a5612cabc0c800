//! Work: calls that take time, in one table for all jobs, owned by the nodes that wait for them.

use std::sync::Arc;

use crate::error::{OpError, OpErrorKind};
use crate::key::KeyId;
use crate::keys::RecordId;
use crate::op::{ResultRef, Slot};
use crate::outcome::{Hit, Matched, Outcome};
use crate::scheduler::exec::Exec;
use crate::scheduler::node::{Done, Level, Node, NodeId, Stage};
use crate::scheduler::{Call, Completion, Effect, JobId, Loaded, Reply, Scheduler, WorkId};
use crate::tables::push_tight;
use crate::vertex::{OutputIndex, VertexDigest};

/// How often an input of one vertex may be found lost before that vertex fails.
const MAX_LOST: u8 = 5;

/// What identifies simple work. Executions are found by their cache keys instead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum WorkKey {
    /// A cache map: which vertex, which index.
    Map(VertexDigest, usize),
    /// A content key: which vertex, which input, and the address of its result, held while the work lives.
    Content(VertexDigest, usize, usize),
    Load(RecordId),
    Lost(usize),
}

#[derive(Debug)]
pub(super) struct Work {
    pub(super) kind: Kind,
    pub(super) phase: Phase,
    /// It was told to stop. Those who join it nevertheless make it start again.
    pub(super) cancelled: bool,
    pub(super) waiters: Vec<Waiting>,
}

#[derive(Debug)]
pub(super) enum Kind {
    Simple { key: WorkKey, call: Call, shows: bool },
    Exec(Box<Exec>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits for the last look-up before it runs.
    Probing,
    /// Loads what that found.
    Loading,
    /// Stands before its gate.
    Queued,
    /// The call is under way.
    Running,
    /// Its results are being saved, whoever still waits.
    Saving,
    /// Its results are there, as long as some node has them.
    Done,
}

/// A node that waits for work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) node: NodeId,
    epoch: u64,
    job: JobId,
    vertex: VertexDigest,
    output: OutputIndex,
    /// It came after the call had started, which may not have asked its job for what it needed.
    late: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GateKind {
    Open,
    Light,
    Process,
}

impl Work {
    pub(super) fn exec(exec: Exec) -> Self {
        Self {
            kind: Kind::Exec(Box::new(exec)),
            phase: Phase::Probing,
            cancelled: false,
            waiters: Vec::new(),
        }
    }

    pub(super) fn address(result: Option<&ResultRef>) -> usize {
        result.map_or(0, |result| Arc::as_ptr(result).cast::<()>().addr())
    }

    fn gate(&self) -> GateKind {
        match &self.kind {
            Kind::Simple { call: Call::Lost { .. }, .. } => GateKind::Open,
            Kind::Simple { .. } => GateKind::Light,
            Kind::Exec(exec) => match exec.slot() {
                Slot::Process => GateKind::Process,
                Slot::Nested => GateKind::Open,
                Slot::None => GateKind::Light,
            },
        }
    }

    /// Whether an op runs in it, which may tell its jobs things and borrow from them.
    fn has_context(&self) -> bool {
        match &self.kind {
            Kind::Simple { call, .. } => matches!(call, Call::CacheMap { .. } | Call::ContentKey { .. }),
            Kind::Exec(_) => true,
        }
    }

    /// The jobs that wait for it, each once.
    pub(super) fn jobs(&self) -> Vec<JobId> {
        let mut jobs: Vec<JobId> = Vec::new();
        for waiting in &self.waiters {
            if !jobs.contains(&waiting.job) {
                jobs.push(waiting.job);
            }
        }
        jobs
    }

    fn waits_for(&self, job: JobId) -> bool {
        self.waiters.iter().any(|waiting| waiting.job == job)
    }
}

impl Scheduler {
    /// Makes a node wait for simple work, which is started if it is not under way yet.
    pub(super) fn join_or_start(
        &mut self,
        key: WorkKey,
        node: NodeId,
        output: OutputIndex,
        effects: &mut Vec<Effect>,
        call: impl FnOnce(&Node) -> Call,
    ) {
        if let Some(&work) = self.by_key.get(&key) {
            return self.join_work(work, node, output, effects);
        }
        let call = call(&self.nodes[node]);
        // Only sources show while their first key is computed: it is what takes time there.
        let shows = matches!(call, Call::CacheMap { index: 0, .. }) && self.nodes[node].inputs.is_empty();
        let id = WorkId(self.fresh_id());
        self.by_key.insert(key.clone(), id);
        let kind = Kind::Simple { key, call, shows };
        self.works.insert(id, Work { kind, phase: Phase::Queued, cancelled: false, waiters: Vec::new() });
        self.join_work(id, node, output, effects);
        self.enqueue(id, effects);
    }

    pub(super) fn join_work(
        &mut self,
        id: WorkId,
        node: NodeId,
        output: OutputIndex,
        effects: &mut Vec<Effect>,
    ) {
        let (job, vertex) = (self.nodes[node].job, self.nodes[node].vertex().digest);
        let epoch = self.nodes[node].wait.epoch;
        let Some(work) = self.works.get_mut(&id) else { return };
        let new_job = !work.waits_for(job);
        let shown = work.waiters.iter().any(|waiting| waiting.job == job && waiting.vertex == vertex);
        let late = work.phase == Phase::Running;
        push_tight(&mut work.waiters, Waiting { node, epoch, job, vertex, output, late });
        if work.has_context() && !shown {
            effects.push(Effect::Joined { work: id, job, vertex });
        }
        if new_job && work.phase == Phase::Queued {
            match work.gate() {
                GateKind::Open => {}
                GateKind::Light => self.light.enqueue(job, id),
                GateKind::Process => self.processes.enqueue(job, id),
            }
        }
        self.begin_wait(node, Some(id));
    }

    /// A node waits for this work no more, because of `error` if there is one.
    pub(super) fn leave_work(
        &mut self,
        id: WorkId,
        node: NodeId,
        error: Option<&OpError>,
        effects: &mut Vec<Effect>,
    ) {
        let error = error.cloned();
        let Some(work) = self.works.get_mut(&id) else { return };
        let Some(position) = work.waiters.iter().position(|waiting| waiting.node == node) else { return };
        let left = work.waiters.remove(position);
        let shown = work.waiters.iter().any(|other| other.job == left.job && other.vertex == left.vertex);
        if work.has_context() && !shown {
            effects.push(Effect::Left { work: id, job: left.job, vertex: left.vertex, error });
        }
        if work.phase == Phase::Queued && !work.waits_for(left.job) {
            match work.gate() {
                GateKind::Open => {}
                GateKind::Light => self.light.withdraw(left.job, id),
                GateKind::Process => self.processes.withdraw(left.job, id),
            }
        }
        if !work.waiters.is_empty() {
            return;
        }
        match work.phase {
            Phase::Queued => self.remove_work(id, None, effects),
            Phase::Running | Phase::Loading if !work.cancelled => {
                work.cancelled = true;
                effects.push(Effect::Cancel(id));
            }
            _ => {}
        }
    }

    /// Puts work before its gate.
    pub(super) fn enqueue(&mut self, id: WorkId, effects: &mut Vec<Effect>) {
        let Some(work) = self.works.get_mut(&id) else { return };
        work.phase = Phase::Queued;
        work.cancelled = false;
        let gate = match work.gate() {
            GateKind::Open => return self.start(id, effects),
            GateKind::Light => &mut self.light,
            GateKind::Process => &mut self.processes,
        };
        for job in work.jobs() {
            gate.enqueue(job, id);
        }
    }

    /// Starts what the gates let pass.
    pub(super) fn open_gates(&mut self, effects: &mut Vec<Effect>) {
        let Self { processes, light, .. } = self;
        let passed: Vec<_> =
            [processes, light].into_iter().flat_map(|gate| std::iter::from_fn(|| gate.pass())).collect();
        for id in passed {
            self.start(id, effects);
        }
    }

    fn start(&mut self, id: WorkId, effects: &mut Vec<Effect>) {
        let Some(work) = self.works.get_mut(&id) else { return };
        work.phase = Phase::Running;
        work.waiters.iter_mut().for_each(|waiting| waiting.late = false);
        let (call, shows) = match &work.kind {
            Kind::Simple { call, shows, .. } => (call.clone(), *shows),
            Kind::Exec(exec) => (exec.call(), true),
        };
        if shows {
            effects.push(Effect::Started(id));
        }
        effects.push(Effect::Start { work: id, call });
    }

    /// A call has ended.
    pub(super) fn done(&mut self, id: WorkId, reply: Reply, effects: &mut Vec<Effect>) {
        let Some(work) = self.works.get_mut(&id) else { return };
        if work.phase == Phase::Running {
            match work.gate() {
                GateKind::Open => {}
                GateKind::Light => self.light.leave(),
                GateKind::Process => self.processes.leave(),
            }
        }
        if work.waiters.is_empty() && work.phase != Phase::Saving {
            return self.remove_work(id, None, effects);
        }
        if std::mem::take(&mut work.cancelled) && reply.is_err() {
            // Somebody came after it was told to stop.
            return match work.phase {
                Phase::Loading => self.probe_load(id, effects),
                _ => self.enqueue(id, effects),
            };
        }
        if let Some(error) = reply.not_lent().filter(|_| work.waiters.iter().any(|waiting| waiting.late)) {
            let error = error.clone();
            return self.ask_again(id, &error, effects);
        }
        if matches!(work.kind, Kind::Exec(_)) {
            return self.exec_done(id, reply, effects);
        }
        let nodes = &self.nodes;
        let known = |waiting: &Waiting| nodes[waiting.node].outs.iter().any(|out| !out.ids.is_empty());
        let dispensable = work.waiters.iter().all(known);
        let waiters = std::mem::take(&mut work.waiters);
        let Kind::Simple { key, call, .. } = &work.kind else { return };
        let (key, call) = (key.clone(), call.clone());
        let error = match &reply {
            // A further key of a source that is known already can be done without.
            Reply::CacheMap(Err(_)) if dispensable => None,
            Reply::ContentKey(Err(error)) if matches!(error.kind(), OpErrorKind::LostInput(_)) => None,
            Reply::CacheMap(Err(error)) | Reply::ContentKey(Err(error)) => Some(error.clone()),
            _ => None,
        };
        self.remove_work(id, Some(Completion { cached: false, error, outcome: None }), effects);
        match (key, call, reply) {
            (WorkKey::Map(digest, index), _, Reply::CacheMap(Ok(part))) => {
                self.map_done(digest, index, part, &waiters, effects);
            }
            (_, _, Reply::CacheMap(Err(error))) => self.map_failed(&error, &waiters, effects),
            (WorkKey::Content(_, input, _), _, Reply::ContentKey(Ok(content))) => {
                for waiting in waiters {
                    self.nodes[waiting.node].contents[input] = Some((content, KeyId::content(&content)));
                    self.wake(waiting);
                }
            }
            (
                WorkKey::Content(_, input, _),
                Call::ContentKey { result, .. },
                Reply::ContentKey(Err(error)),
            ) => {
                self.call_failed(&waiters, input, result, &error, effects);
            }
            (_, Call::Load { record }, Reply::Load(Ok(Some(loaded)))) => {
                for waiting in waiters {
                    self.loaded(waiting, &record, loaded.clone(), effects);
                }
            }
            (WorkKey::Load(record), ..) => {
                for waiting in waiters {
                    let out = self.nodes[waiting.node].out_mut(waiting.output);
                    out.loading = None;
                    out.tried.push(record.clone());
                    self.wake(waiting);
                }
            }
            (_, _, _) => waiters.into_iter().for_each(|waiting| self.wake(waiting)),
        }
    }

    /// What a call needed was not to be had from those who waited when it started: they fail. It starts again for
    /// those who came since, whom it may not have asked.
    fn ask_again(&mut self, id: WorkId, error: &OpError, effects: &mut Vec<Effect>) {
        let Some(work) = self.works.get(&id) else { return };
        let early: Vec<_> = work.waiters.iter().filter(|waiting| !waiting.late).copied().collect();
        self.enqueue(id, effects);
        self.fail_waiting(id, &early, error, effects);
    }

    /// A job has waited for work as long as it may.
    pub(super) fn expired(&mut self, id: WorkId, job: JobId, error: &OpError, effects: &mut Vec<Effect>) {
        let Some(work) = self.works.get(&id) else { return };
        let of_job: Vec<_> = work.waiters.iter().filter(|waiting| waiting.job == job).copied().collect();
        self.fail_waiting(id, &of_job, error, effects);
    }

    fn fail_waiting(&mut self, id: WorkId, waiters: &[Waiting], error: &OpError, effects: &mut Vec<Effect>) {
        for waiting in waiters {
            if self.still_waits(*waiting) {
                self.leave_work(id, waiting.node, Some(error), effects);
                self.fail_vertex(waiting.node, error.clone(), effects);
            }
        }
    }

    /// What it waited for has come, unless it has ceased to wait meanwhile.
    pub(super) fn wake(&mut self, waiting: Waiting) {
        if self.still_waits(waiting) {
            self.waited(waiting.node);
        }
    }

    pub(super) fn still_waits(&self, waiting: Waiting) -> bool {
        self.waits(waiting.node, waiting.epoch)
    }

    /// Forgets work. Its waiters have been dealt with.
    pub(super) fn remove_work(&mut self, id: WorkId, shown: Option<Completion>, effects: &mut Vec<Effect>) {
        let Some(work) = self.works.remove(&id) else { return };
        if work.has_context() && work.phase != Phase::Done {
            // What does not show shows nevertheless when its vertex fails.
            let shows = !matches!(work.kind, Kind::Simple { shows: false, .. });
            let shown = shown.filter(|shown| shows || shown.error.is_some());
            effects.push(Effect::Ended { work: id, shown });
        }
        match work.kind {
            Kind::Simple { key, .. } => {
                self.by_key.remove(&key);
            }
            Kind::Exec(exec) => self.index.remove(id, &exec),
        }
    }

    fn map_done(
        &mut self,
        digest: VertexDigest,
        index: usize,
        part: crate::op::CacheMapPart,
        waiters: &[Waiting],
        effects: &mut Vec<Effect>,
    ) {
        let Some(first) = waiters.first() else { return };
        let inputs = self.nodes[first.node].inputs.len();
        if part.map.deps.len() != inputs {
            let message = format!("cache map has {} deps for {inputs} inputs", part.map.deps.len());
            return self.map_failed(&OpError::failed(message), waiters, effects);
        }
        let shared = self.shared.entry(digest).or_default();
        if shared.maps.len() == index {
            shared.maps.push(Arc::new(part.map));
            shared.last = part.last || inputs > 0;
        }
        waiters.iter().for_each(|waiting| self.wake(*waiting));
    }

    fn map_failed(&mut self, error: &OpError, waiters: &[Waiting], effects: &mut Vec<Effect>) {
        for waiting in waiters {
            let node = &mut self.nodes[waiting.node];
            if node.outs.iter().any(|out| !out.ids.is_empty()) {
                node.maps_last = true;
                self.wake(*waiting);
            } else if self.still_waits(*waiting) {
                self.fail_vertex(waiting.node, error.clone(), effects);
            }
        }
    }

    /// A record was opened for an output.
    fn loaded(
        &mut self,
        waiting: Waiting,
        record: &crate::keys::CacheRecord,
        loaded: Loaded,
        effects: &mut Vec<Effect>,
    ) {
        let node = &mut self.nodes[waiting.node];
        let all_keys = node.maps_last || !node.inputs.is_empty();
        let out = node.out_mut(waiting.output);
        let matched = if out.by_content { Matched::Content } else { Matched::Definition };
        let outcome = Outcome::Hit(Hit::new(record, matched));
        out.done = Some(Done { result: loaded.result, outcome: outcome.clone(), work: None });
        out.ids.extend(loaded.adopted.filter(|key| !out.ids.contains(key)));
        // A source that was found by one key may have others, for which its users can ask.
        out.settled = if all_keys { Level::Slow } else { Level::Fast };
        out.loading = None;
        effects.push(Effect::Cached { job: waiting.job, vertex: waiting.vertex, outcome });
        self.notify(waiting.node, waiting.output, effects);
        self.wake(waiting);
    }

    /// A call that read inputs failed; where one of them was lost, it is made again, and the call repeated.
    pub(super) fn call_failed(
        &mut self,
        waiters: &[Waiting],
        input: usize,
        result: Option<ResultRef>,
        error: &OpError,
        effects: &mut Vec<Effect>,
    ) {
        let lost = matches!(error.kind(), OpErrorKind::LostInput(_)).then_some(result).flatten();
        let Some(lost) = lost else {
            for waiting in waiters {
                if self.still_waits(*waiting) {
                    self.fail_vertex(waiting.node, error.clone(), effects);
                }
            }
            return;
        };
        for waiting in waiters {
            if !self.still_waits(*waiting) {
                continue;
            }
            let node = &mut self.nodes[waiting.node];
            node.lost = node.lost.saturating_add(1);
            if node.lost > MAX_LOST {
                self.fail_vertex(waiting.node, error.clone(), effects);
                continue;
            }
            let (below, output) = node.inputs[input];
            self.reset(below, output, &lost, effects);
            let (key, result) = (WorkKey::Lost(Work::address(Some(&lost))), Arc::clone(&lost));
            self.join_or_start(key, waiting.node, OutputIndex(0), effects, |_| Call::Lost { result });
            self.wake(*waiting);
        }
    }

    /// Makes a node forget a result that is lost.
    pub(super) fn reset(
        &mut self,
        id: NodeId,
        output: OutputIndex,
        lost: &ResultRef,
        effects: &mut Vec<Effect>,
    ) {
        let forced = self.nodes[id].forced();
        let waiting = self.nodes[id].wait.pending > 0;
        let out = self.nodes[id].out_mut(output);
        let same = |done: &mut Done| done.result.as_ref().is_some_and(|result| Arc::ptr_eq(result, lost));
        let Some(done) = out.done.take_if(same) else { return };
        if let Outcome::Hit(hit) = &done.outcome
            && !out.tried.contains(&hit.record)
        {
            out.tried.push(hit.record.clone());
        }
        out.looked = 0;
        let node = &mut self.nodes[id];
        if !waiting && !forced && node.stage != Stage::Start {
            node.stage = Stage::Lookup { slow: true };
        }
        if let Some(work) = done.work {
            if let Some(Work { kind: Kind::Exec(exec), .. }) = self.works.get_mut(&work) {
                self.index.remove(work, exec);
            }
            self.release(id, work, effects);
        }
    }
}

impl Reply {
    /// Returns the error of a call that did not get from its jobs what it needed.
    fn not_lent(&self) -> Option<&OpError> {
        match self {
            Self::CacheMap(Err(error)) | Self::ContentKey(Err(error)) | Self::Exec(Err(error)) => {
                Some(error).filter(|error| error.kind() == OpErrorKind::NotLent)
            }
            _ => None,
        }
    }

    const fn is_err(&self) -> bool {
        matches!(
            self,
            Self::CacheMap(Err(_))
                | Self::ContentKey(Err(_))
                | Self::Exec(Err(_))
                | Self::Load(Err(_))
                | Self::Save(Err(_))
        )
    }
}
