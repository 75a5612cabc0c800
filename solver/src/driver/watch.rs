//! Telling jobs what happens to the work they wait for.

use std::sync::Arc;
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;

use crate::driver::State;
use crate::driver::imports::Imports;
use crate::driver::limits::{Guard, TimeLimits};
use crate::error::OpError;
use crate::op::{JobContext, OpContext, WaiterSet};
use crate::outcome::Outcome;
use crate::progress::{CANCELED, JobLog, VertexEvent, VertexProgress};
use crate::reason::{Miss, Study};
use crate::scheduler::{Completion, Effect, JobId, WorkId};
use crate::tables::{HashMap, push_tight};
use crate::vertex::{Graph, VertexDigest};

/// A job as the driver sees it.
pub(crate) struct WatchedJob {
    pub(super) context: JobContext,
    pub(super) log: Arc<JobLog>,
    pub(super) limits: TimeLimits,
    /// The caches it has imported; none for most.
    pub(crate) imports: Option<Arc<Imports>>,
    /// What is fixed of the events of each vertex.
    templates: HashMap<VertexDigest, Arc<VertexEvent>>,
}

/// A work as the driver sees it.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Of most work there is more than may run at once, and much of it is never called.
    pub(super) live: Option<Box<Live>>,
    vertices: Vec<(JobId, VertexDigest)>,
    started: Option<SystemTime>,
    /// Why its op had to run, once that is found out.
    pub(super) study: Option<Study>,
}

/// What a work has from its first call on.
#[derive(Debug)]
pub(crate) struct Live {
    pub(super) cancel: CancellationToken,
    /// Fires when the work is over.
    pub(super) over: CancellationToken,
    pub(super) progress: VertexProgress,
    pub(super) guard: Guard,
    waiters: WaiterSet,
}

impl Live {
    fn new() -> Self {
        Self {
            cancel: CancellationToken::new(),
            over: CancellationToken::new(),
            progress: VertexProgress::discard(),
            guard: Guard::default(),
            waiters: WaiterSet::default(),
        }
    }

    pub(crate) fn context(&self) -> OpContext {
        OpContext {
            cancel: self.cancel.clone(),
            progress: self.progress.clone(),
            waiters: self.waiters.clone(),
        }
    }

    fn join(&self, id: JobId, job: &WatchedJob, vertex: VertexDigest) {
        self.waiters.join(id.0, Arc::clone(&job.context));
        self.progress.join(id.0, vertex, &job.log);
    }

    /// Prepares for a call.
    fn renew(&mut self) {
        if self.cancel.is_cancelled() {
            self.cancel = CancellationToken::new();
        }
        self.progress.restart_clock();
    }
}

impl Watch {
    /// The jobs that wait for it.
    pub(super) fn jobs(&self) -> Vec<JobId> {
        let mut jobs: Vec<_> = self.vertices.iter().map(|(job, _)| *job).collect();
        jobs.sort_unstable();
        jobs.dedup();
        jobs
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl State {
    /// Shows what an effect says of vertices.
    pub(crate) fn show(&mut self, effect: Effect) {
        match effect {
            Effect::Announce { job, graph, vertices } => self.announce(job, &graph, &vertices),
            Effect::Joined { work, job, vertex } => self.joined(work, job, vertex),
            Effect::Left { work, job, vertex, error } => self.left(work, job, vertex, error.as_ref()),
            Effect::Started(work) => self.started(work),
            Effect::Ended { work, shown } => self.ended(work, shown),
            Effect::Cached { job, vertex, outcome } => self.cached(job, vertex, outcome),
            Effect::Query(_)
            | Effect::Link { .. }
            | Effect::Start { .. }
            | Effect::Cancel(_)
            | Effect::BuildDone { .. } => {}
        }
    }

    fn announce(&mut self, job: JobId, graph: &Graph, vertices: &[u32]) {
        let Some(job) = self.jobs.get_mut(&job) else { return };
        let mut announced = Vec::with_capacity(vertices.len());
        for vertex in vertices.iter().filter_map(|index| graph.vertices().get(*index as usize)) {
            let inputs = vertex.inputs.iter().filter_map(|edge| graph.get(edge.vertex));
            let event = VertexEvent {
                inputs: inputs.map(|input| input.digest).collect(),
                group: vertex.options.progress_group.clone(),
                ..VertexEvent::announced(vertex.digest, &vertex.name)
            };
            let event = Arc::new(event);
            job.templates.insert(vertex.digest, Arc::clone(&event));
            announced.push(event);
        }
        job.log.vertices(announced);
    }

    fn joined(&mut self, work: WorkId, id: JobId, vertex: VertexDigest) {
        let Some(job) = self.jobs.get(&id) else { return };
        let watch = self.works.entry(work).or_default();
        push_tight(&mut watch.vertices, (id, vertex));
        if let Some(started) = watch.started {
            job.tell(vertex, |event| event.started = Some(started));
        }
        if let Some(live) = &watch.live {
            live.join(id, job, vertex);
        }
    }

    pub(crate) fn live(&mut self, work: WorkId) -> Option<&mut Live> {
        self.works.get_mut(&work)?.live.as_deref_mut()
    }

    /// A call of this work begins.
    pub(crate) fn called(&mut self, work: WorkId) -> &mut Live {
        let watch = self.works.entry(work).or_default();
        let vertices = &watch.vertices;
        let live = watch.live.get_or_insert_with(|| {
            let live = Live::new();
            for (id, vertex) in vertices {
                if let Some(job) = self.jobs.get(id) {
                    live.join(*id, job, *vertex);
                }
            }
            Box::new(live)
        });
        live.renew();
        live
    }

    fn left(&mut self, work: WorkId, id: JobId, vertex: VertexDigest, error: Option<&OpError>) {
        let Some(watch) = self.works.get_mut(&work) else { return };
        watch.vertices.retain(|other| *other != (id, vertex));
        if let Some(live) = watch.live.as_ref().filter(|_| watch.vertices.iter().all(|(job, _)| *job != id)) {
            live.waiters.leave(id.0);
            live.progress.leave(id.0);
        }
        let Some(job) = self.jobs.get(&id) else { return };
        if watch.started.is_none() && error.is_none() {
            return;
        }
        let now = SystemTime::now();
        job.tell(vertex, |event| {
            event.started = Some(watch.started.unwrap_or(now));
            event.completed = Some(now);
            event.error = Some(error.map_or_else(|| CANCELED.to_owned(), OpError::chain));
        });
    }

    fn started(&mut self, work: WorkId) {
        let Some(watch) = self.works.get_mut(&work) else { return };
        // What starts again has been shown as started before.
        let now = *watch.started.get_or_insert_with(SystemTime::now);
        for (job, vertex) in &watch.vertices {
            if let Some(job) = self.jobs.get(job) {
                job.tell(*vertex, |event| event.started = Some(now));
            }
        }
    }

    fn ended(&mut self, work: WorkId, shown: Option<Completion>) {
        let Some(watch) = self.works.remove(&work) else { return };
        let Some(shown) = shown else { return };
        if let Some(live) = watch.live.as_ref().filter(|_| shown.error.is_some()) {
            live.progress.send_tails();
        }
        let now = SystemTime::now();
        for (job, vertex) in &watch.vertices {
            if let Some(job) = self.jobs.get(job) {
                job.tell(*vertex, |event| {
                    event.started = Some(watch.started.unwrap_or(now));
                    event.completed = Some(now);
                    event.cached = shown.cached;
                    event.error = shown.error.as_ref().map(OpError::chain);
                    event.outcome.clone_from(&shown.outcome);
                    event.miss = watch.study.as_ref().and_then(|study| study.miss.clone());
                });
            }
        }
    }

    fn cached(&mut self, job: JobId, vertex: VertexDigest, outcome: Outcome) {
        let Some(job) = self.jobs.get(&job) else { return };
        let now = SystemTime::now();
        job.tell(vertex, |event| {
            event.started = Some(now);
            event.completed = Some(now);
            event.cached = true;
            event.outcome = Some(outcome);
        });
    }

    /// Takes note of why a work had to run.
    pub(crate) fn studied(&mut self, work: WorkId, mut study: Study) {
        let Some(jobs) = self.works.get(&work).map(Watch::jobs) else { return };
        if study.miss.as_deref() == Some(&Miss::New) && !self.imports_of(&jobs).is_empty() {
            study.miss = Some(Arc::new(Miss::NotImported));
        }
        if let Some(watch) = self.works.get_mut(&work) {
            watch.study = Some(study);
        }
    }

    /// Loads have no watchers, so nothing else says when they are over.
    pub(crate) fn forget_if_unseen(&mut self, work: WorkId) {
        if self.works.get(&work).is_some_and(|watch| watch.vertices.is_empty()) {
            self.works.remove(&work);
        }
    }
}

impl WatchedJob {
    pub(crate) fn new(context: JobContext, log: Arc<JobLog>, limits: TimeLimits) -> Self {
        Self { context, log, limits, imports: None, templates: HashMap::default() }
    }

    /// Ends the job's log.
    pub(crate) fn close(&self, now: SystemTime) {
        self.log.close(now);
    }

    fn tell(&self, vertex: VertexDigest, change: impl FnOnce(&mut VertexEvent)) {
        let Some(template) = self.templates.get(&vertex) else { return };
        let mut event = VertexEvent::clone(template);
        change(&mut event);
        self.log.vertex(Arc::new(event));
    }
}
