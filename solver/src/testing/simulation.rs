//! Many jobs at once, in an order drawn from a seed, with everything going wrong that can.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;

use crate::driver::find;
use crate::error::{OpError, SolveError};
use crate::keys::CacheKeys;
use crate::op::ResultRef;
use crate::scheduler::{
    BuildId, Call, Effect, Event, JobId, Limits, Loaded, Query, Reply, Scheduler, WorkId,
};
use crate::testing::memory_keys::MemoryKeys;
use crate::testing::oracle::{context, expected, now};
use crate::testing::random::{GraphSpec, Rng};
use crate::testing::script::Value;
use crate::vertex::{Edge, Graph, OutputIndex, VertexIndex};

/// Steps after which a simulation counts as endless.
const MAX_STEPS: usize = 200_000;

/// What goes wrong, in percent of the occasions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disturbances {
    /// A step drops a build or closes a job.
    pub cancels: u64,
    /// A run fails that would not have.
    pub failures: u64,
    /// A call finds an input lost.
    pub losses: u64,
    /// A step prunes some results.
    pub prunes: u64,
    /// A vertex ignores the cache.
    pub forced: u64,
    /// A vertex fails each time.
    pub failing: u64,
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events that were given to the scheduler.
    pub steps: usize,
    /// Runs of ops.
    pub runs: usize,
    /// Builds that gave results.
    pub results: usize,
    /// Builds that failed.
    pub failures: usize,
    /// Builds that were given up.
    pub cancelled: usize,
}

/// Runs two to four jobs with one to three builds each, and checks: no hang, no key run twice at once, no work
/// without waiters, the right results, nothing left. Without disturbances no key is run twice at all.
///
/// # Errors
/// What was wrong, with what led to it.
pub fn simulate(seed: u64, disturbances: Disturbances) -> Result<Report, String> {
    let mut simulation = Simulation::new(seed, disturbances);
    if simulation.run().is_ok() {
        return Ok(simulation.report);
    }
    // Once more, writing down what happens.
    let mut simulation = Simulation::new(seed, disturbances);
    simulation.history = Some(Vec::new());
    let wrong = simulation.run().err().unwrap_or_else(|| "not the same again".to_owned());
    let history = simulation.history.unwrap_or_default();
    let tail = history.len().saturating_sub(60);
    Err(format!("seed {seed}: {wrong}\n  {}", history[tail..].join("\n  ")))
}

struct Simulation {
    rng: Rng,
    disturbances: Disturbances,
    scheduler: Scheduler,
    keys: MemoryKeys,
    queries: Vec<Query>,
    calls: BTreeMap<WorkId, Running>,
    jobs: Vec<JobId>,
    open: BTreeMap<BuildId, Wanted>,
    planned: Vec<(JobId, GraphSpec)>,
    runs: HashMap<String, usize>,
    counters: Arc<Mutex<HashMap<String, usize>>>,
    last_build: u64,
    sessions: HashMap<JobId, usize>,
    injected: bool,
    history: Option<Vec<String>>,
    report: Report,
}

struct Running {
    call: Call,
    cancelled: bool,
    /// For runs: what is computed, and whether the vertex ignores the cache.
    text: Option<String>,
    reply: Reply,
}

struct Wanted {
    job: JobId,
    graph: Arc<Graph>,
    edges: Vec<Edge>,
}

impl Simulation {
    fn new(seed: u64, disturbances: Disturbances) -> Self {
        let mut rng = Rng::new(seed);
        let limits = Limits { processes: 1 + rng.below(4), light: 1 + rng.below(8) };
        Self {
            rng,
            disturbances,
            scheduler: Scheduler::new(limits),
            keys: MemoryKeys::new(),
            queries: Vec::new(),
            calls: BTreeMap::new(),
            jobs: Vec::new(),
            open: BTreeMap::new(),
            planned: Vec::new(),
            runs: HashMap::new(),
            counters: Arc::default(),
            last_build: 0,
            sessions: HashMap::new(),
            injected: false,
            history: None,
            report: Report::default(),
        }
    }

    fn run(&mut self) -> Result<(), String> {
        for job in 0..2 + self.rng.below(3) as u64 {
            let job = JobId(job + 1);
            // Some share a session, and with it what is known in one session only.
            let session = self.rng.below(3);
            self.sessions.insert(job, session);
            self.jobs.push(job);
            self.step(Event::JobOpened(job))?;
            for _ in 0..1 + self.rng.below(3) {
                let Disturbances { forced, failing, .. } = self.disturbances;
                let spec = GraphSpec::random(&mut self.rng, 10, forced, failing);
                self.planned.push((job, spec));
            }
        }
        while !(self.open.is_empty() && self.planned.is_empty()) {
            self.turn()?;
            if self.report.steps > MAX_STEPS {
                return Err("does not end".to_owned());
            }
        }
        self.check_nothing_runs_unasked()?;
        for job in std::mem::take(&mut self.jobs) {
            self.step(Event::JobClosed(job))?;
        }
        self.check_nothing_runs_unasked()?;
        while !(self.queries.is_empty() && self.calls.is_empty()) {
            self.answer()?;
        }
        if self.scheduler.is_empty() { Ok(()) } else { Err(format!("left over: {:#?}", self.scheduler)) }
    }

    /// Lets one thing happen.
    fn turn(&mut self) -> Result<(), String> {
        if self.rng.chance(self.disturbances.cancels) {
            return self.cancel();
        }
        let busy = |job: &JobId| {
            self.planned.iter().any(|(other, _)| other == job)
                || self.open.values().any(|open| open.job == *job)
        };
        if let Some(idle) = self.jobs.iter().position(|job| !busy(job))
            && self.rng.chance(20)
        {
            let job = self.jobs.swap_remove(idle);
            return self.step(Event::JobClosed(job));
        }
        if self.rng.chance(self.disturbances.prunes) {
            let seed = self.rng.next();
            let mut rng = Rng::new(seed);
            self.note(|| "prune".to_owned());
            self.keys.drop_results(|_| rng.chance(30));
        }
        if !self.planned.is_empty() && (self.rng.chance(5) || self.open.is_empty()) {
            return self.build();
        }
        self.answer()
    }

    fn build(&mut self) -> Result<(), String> {
        let next = self.rng.below(self.planned.len());
        let (job, spec) = self.planned.swap_remove(next);
        let session = self.sessions.get(&job).copied().unwrap_or_default();
        let graph = Arc::new(spec.graph(session, &self.counters).map_err(|error| error.to_string())?);
        let edges: Vec<_> = (0..1 + self.rng.below(2))
            .map(|_| {
                let back = self.rng.below(graph.vertices().len().min(2));
                Edge {
                    vertex: VertexIndex((graph.vertices().len() - 1 - back) as u32),
                    output: OutputIndex(0),
                }
            })
            .collect();
        self.last_build += 1;
        let build = BuildId(self.last_build);
        self.open.insert(build, Wanted { job, graph: Arc::clone(&graph), edges: edges.clone() });
        self.step(Event::BuildWanted { job, build, graph, edges })
    }

    fn cancel(&mut self) -> Result<(), String> {
        if self.rng.chance(50) && !self.open.is_empty() {
            let next = self.rng.below(self.open.len());
            let Some(build) = self.open.keys().nth(next).copied() else { return Ok(()) };
            return self.step(Event::BuildDropped(build));
        }
        if self.jobs.is_empty() {
            return Ok(());
        }
        let next = self.rng.below(self.jobs.len());
        let job = self.jobs.swap_remove(next);
        self.planned.retain(|(other, _)| *other != job);
        self.step(Event::JobClosed(job))
    }

    /// Answers a look-up or ends a call.
    fn answer(&mut self) -> Result<(), String> {
        let waiting = self.queries.len() + self.calls.len();
        if waiting == 0 {
            return Err(format!("hangs: {} builds open, {:#?}", self.open.len(), self.scheduler));
        }
        let next = self.rng.below(waiting);
        if next < self.queries.len() {
            let query = self.queries.swap_remove(next);
            let found = find(&self.keys, &query);
            return self.step(Event::Queried { query: query.id, found });
        }
        let Some(work) = self.calls.keys().nth(next - self.queries.len()).copied() else { return Ok(()) };
        let Some(running) = self.calls.remove(&work) else { return Ok(()) };
        let mut reply = running.reply;
        if running.cancelled && self.rng.chance(60) {
            let error = OpError::cancelled();
            reply = match running.call {
                Call::CacheMap { .. } => Reply::CacheMap(Err(error)),
                Call::ContentKey { .. } => Reply::ContentKey(Err(error)),
                Call::Exec { .. } => Reply::Exec(Err(error)),
                Call::Load { .. } => Reply::Load(Err(crate::error::Error::keys("cancelled", error))),
                Call::Save { .. } | Call::Lost { .. } => reply,
            };
        }
        // Stores are written when a call ends, as far as anybody can tell.
        match &running.call {
            Call::Save { items } => {
                let save = |(keys, result): &(Vec<crate::keys::NewKey>, Option<ResultRef>)| {
                    self.keys.save(keys, result.as_ref()).now_or_never().and_then(Result::ok)
                };
                reply = Reply::Save(Ok(items.iter().filter_map(save).collect()));
            }
            Call::Lost { result } => {
                let _ = self.keys.lost(result).now_or_never();
            }
            Call::Load { record } if !matches!(reply, Reply::Load(Err(_))) => {
                let loaded = self.keys.load(record).now_or_never().unwrap_or(Ok(None));
                reply = Reply::Load(loaded.map(|found| found.map(|result| Loaded { result, adopted: None })));
            }
            Call::Exec { .. } if matches!(reply, Reply::Exec(Ok(_))) => {
                if let Some(text) = &running.text {
                    *self.runs.entry(text.clone()).or_default() += 1;
                    if self.undisturbed() && self.runs.get(text).is_some_and(|runs| *runs > 1) {
                        return Err(format!("{text} has run twice"));
                    }
                }
            }
            _ => {}
        }
        self.step(Event::Done { work, reply })
    }

    const fn undisturbed(&self) -> bool {
        let Disturbances { cancels, failures, losses, prunes, forced, failing: _ } = self.disturbances;
        cancels + failures + losses + prunes + forced == 0
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        self.report.steps += 1;
        self.note(|| brief(&event));
        let mut effects = Vec::new();
        self.scheduler.step(event, &mut effects);
        for effect in effects {
            match effect {
                Effect::Query(query) => self.queries.push(query),
                Effect::Start { work, call } => self.start(work, call)?,
                Effect::Cancel(work) => match self.calls.get_mut(&work) {
                    Some(running) => running.cancelled = true,
                    None => return Err(format!("{work:?} is cancelled but does not run")),
                },
                Effect::Link { key, to } => {
                    let _ = self.keys.link(&key, &to).now_or_never();
                }
                Effect::BuildDone { build, result } => self.build_done(build, result)?,
                Effect::Announce { .. }
                | Effect::Joined { .. }
                | Effect::Left { .. }
                | Effect::Started(_)
                | Effect::Ended { .. }
                | Effect::Cached { .. } => {}
            }
        }
        Ok(())
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(history) = &mut self.history {
            history.push(line());
        }
    }

    fn start(&mut self, work: WorkId, call: Call) -> Result<(), String> {
        let mut text = None;
        let lost = self.rng.chance(self.disturbances.losses);
        let reply = match &call {
            Call::CacheMap { op, index } => Reply::CacheMap(now(op.cache_map(&context(), *index))),
            Call::ContentKey { input, result: Some(result), .. } if lost => {
                Reply::ContentKey(Err(self.lose(*input, result)))
            }
            Call::ContentKey { op, input, result } => {
                Reply::ContentKey(now(op.content_key(&context(), *input, result.as_ref())))
            }
            Call::Exec { inputs, .. } if lost && inputs.first().is_some_and(Option::is_some) => {
                let input = self.rng.below(inputs.len());
                match &inputs[input] {
                    Some(result) => Reply::Exec(Err(self.lose(input, result))),
                    None => Reply::Exec(Err(OpError::cancelled())),
                }
            }
            Call::Exec { .. } if self.rng.chance(self.disturbances.failures) => {
                self.injected = true;
                Reply::Exec(Err(OpError::failed("injected")))
            }
            Call::Exec { op, inputs } => {
                self.report.runs += 1;
                let made = now(op.exec(&context(), inputs.clone()));
                if let Ok(made) = &made {
                    text = Some(Value::text(made[0].as_ref()).to_owned());
                }
                Reply::Exec(made)
            }
            Call::Load { .. } => Reply::Load(Ok(None)),
            Call::Save { .. } => Reply::Save(Ok(Vec::new())),
            Call::Lost { .. } => Reply::Lost,
        };
        self.note(|| format!("  start {work:?} {} {}", name(&call), text.as_deref().unwrap_or("")));
        // A vertex that ignores the cache may run beside one that does not.
        let twice = text.is_some() && self.calls.values().any(|other| other.text == text);
        if twice && self.disturbances.forced == 0 {
            return Err(format!("{text:?} runs twice at once"));
        }
        if self.calls.insert(work, Running { call, cancelled: false, text, reply }).is_some() {
            return Err(format!("{work:?} started while it runs"));
        }
        Ok(())
    }

    fn lose(&self, input: usize, result: &ResultRef) -> OpError {
        self.keys.drop_results(|other| other.is_some_and(|other| Arc::ptr_eq(other, result)));
        OpError::lost_input(input, "gone")
    }

    fn build_done(
        &mut self,
        build: BuildId,
        result: Result<Vec<crate::driver::CachedResult>, SolveError>,
    ) -> Result<(), String> {
        let Some(wanted) = self.open.remove(&build) else { return Err(format!("{build:?} ends twice")) };
        let want: Vec<_> = wanted.edges.iter().map(|edge| expected(&wanted.graph, *edge)).collect();
        match result {
            Ok(results) => {
                self.report.results += 1;
                let got: Vec<_> =
                    results.iter().map(|one| Some(Value::text(one.result.as_ref()).to_owned())).collect();
                if got != want {
                    return Err(format!("{build:?} gives {got:?} instead of {want:?}"));
                }
            }
            Err(SolveError::Cancelled) => self.report.cancelled += 1,
            Err(error) => {
                self.report.failures += 1;
                let may_fail = want.contains(&None)
                    || (self.injected && error.to_string() == "injected")
                    || (self.disturbances.losses > 0 && error.to_string() == "gone");
                if !may_fail {
                    return Err(format!("{build:?} of {:?} fails: {error}", wanted.job));
                }
            }
        }
        Ok(())
    }

    /// Without builds, only what is being saved may be under way.
    fn check_nothing_runs_unasked(&self) -> Result<(), String> {
        let unasked = |running: &&Running| !running.cancelled && !matches!(running.call, Call::Save { .. });
        match self.calls.values().find(unasked) {
            Some(running) => Err(format!("nobody waits for {}", name(&running.call))),
            None => Ok(()),
        }
    }
}

fn name(call: &Call) -> String {
    match call {
        Call::CacheMap { index, .. } => format!("cache map {index}"),
        Call::ContentKey { input, .. } => format!("content key {input}"),
        Call::Exec { .. } => "exec".to_owned(),
        Call::Load { record } => format!("load {}", record.id.0),
        Call::Save { .. } => "save".to_owned(),
        Call::Lost { .. } => "lost".to_owned(),
    }
}

fn brief(event: &Event) -> String {
    match event {
        Event::BuildWanted { job, build, graph, .. } => {
            let names: HashSet<_> = graph.vertices().iter().map(|vertex| vertex.name.as_str()).collect();
            format!("{job:?} wants {build:?} of {} vertices", names.len())
        }
        Event::Queried { query, found } => {
            let keys =
                found.as_ref().map(|found| found.keys.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>());
            format!("{query:?} found {keys:?}")
        }
        Event::Done { work, reply } => format!("{work:?} done {reply:?}"),
        other => format!("{other:?}"),
    }
}
