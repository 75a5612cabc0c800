//! Many jobs at once, in an order drawn from a seed, with everything going wrong that can.

mod calls;
mod checks;
mod imported;
mod many;
mod story;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;

use crate::driver::{CachedResult, State, TimeLimits, WatchedJob};
use crate::error::{OpError, SolveError};
use crate::keys::CacheKeys;
use crate::op::ResultRef;
use crate::progress::{JobLog, ProgressStream};
use crate::scheduler::{BuildId, Effect, Event, JobId, Limits, Query, WorkId};
use crate::testing::memory_keys::MemoryKeys;
use crate::testing::memory_source::MemorySource;
use crate::testing::oracle::expected;
use crate::testing::random::{GraphSpec, Rng};
use crate::testing::script::Value;
use crate::vertex::{Edge, Graph, OutputIndex, VertexIndex};

use crate::testing::simulation::calls::Running;
use crate::testing::simulation::checks::Ledger;
pub use crate::testing::simulation::many::{Summary, simulate_many};
use crate::testing::simulation::story::Stories;

/// Steps after which a simulation counts as endless.
const MAX_STEPS: usize = 200_000;
/// The error of a run that was made to fail.
const INJECTED: &str = "injected";
/// The error of a call that found an input gone too often.
const GONE: &str = "gone";
/// Results lost after which a vertex may give up: its patience is for five.
const GONE_TOO_OFTEN: usize = 6;
/// The error of a call that found no session to ask.
const UNLENT: &str = "no session lives";
/// The error of a job whose time is over.
const EXPIRED: &str = "limit";

/// What goes wrong, in percent of the occasions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disturbances {
    /// A step drops a build or closes a job.
    pub cancels: u64,
    /// A job's session dies, and later the job with it. Calls ask for something from whoever waits.
    pub deaths: u64,
    /// A run fails that would not have.
    pub failures: u64,
    /// A call finds an input lost.
    pub losses: u64,
    /// A step prunes some results, or breaks some while their records stay.
    pub prunes: u64,
    /// The daemon dies once, and starts again with what it has saved.
    pub restarts: u64,
    /// A job has waited too long for a call.
    pub limits: u64,
    /// A call takes long.
    pub slow: u64,
    /// A vertex ignores the cache.
    pub forced: u64,
    /// A vertex fails each time.
    pub failing: u64,
    /// A job has imported caches, which are slow if calls are.
    pub imports: u64,
}

impl Disturbances {
    /// The mixture that belongs to a seed: each kind alone, several, all, none.
    pub fn of(seed: u64) -> Self {
        let none = Self::default();
        match seed % 15 {
            0 => none,
            1 => Self { slow: 30, ..none },
            2 => Self { cancels: 2, slow: 10, ..none },
            3 => Self { deaths: 2, slow: 10, ..none },
            4 => Self { failures: 5, failing: 3, ..none },
            5 => Self { losses: 5, prunes: 2, ..none },
            6 => Self { restarts: 100, prunes: 1, ..none },
            7 => Self { limits: 2, slow: 20, cancels: 1, ..none },
            8 => Self { forced: 15, ..none },
            9 => Self { cancels: 1, deaths: 1, restarts: 50, slow: 10, ..none },
            10 => Self { losses: 3, prunes: 1, cancels: 1, failures: 2, forced: 5, ..none },
            11 => Self { imports: 60, ..none },
            12 => Self { imports: 60, slow: 20, cancels: 1, ..none },
            13 => Self { imports: 60, losses: 3, prunes: 1, failures: 2, failing: 2, restarts: 30, ..none },
            _ => Self {
                cancels: 1,
                deaths: 1,
                failures: 2,
                losses: 2,
                prunes: 1,
                restarts: 30,
                limits: 1,
                slow: 10,
                forced: 8,
                failing: 2,
                imports: 20,
            },
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Restarts of the daemon.
    pub restarts: usize,
    /// Results that came out of imported caches.
    pub imported: usize,
    /// Simulations in which what has to run was known beforehand, and ran.
    pub determined: usize,
}

/// Runs two to five jobs with one to three builds each, and checks at every step what has to be so: nothing hangs,
/// nothing runs that is known, no key runs twice at once, nothing runs that nobody waits for, jobs get their turns,
/// results are right, and each job is told one consistent story of each vertex. At the end nothing is left.
///
/// # Errors
/// What was wrong, with what led to it.
pub fn simulate(seed: u64, disturbances: Disturbances) -> Result<Report, String> {
    let mut simulation = Simulation::new(seed, disturbances);
    if simulation.run().is_ok() {
        return Ok(simulation.report);
    }
    // Once more, writing down what happens.
    let (history, outcome) = replay(seed, disturbances);
    let wrong = outcome.err().unwrap_or_else(|| "not the same again".to_owned());
    let tail = history.len().saturating_sub(60);
    Err(format!("seed {seed}, {disturbances:?}: {wrong}\n  {}", history[tail..].join("\n  ")))
}

/// As [`simulate`], with everything that happened beside the outcome.
pub fn replay(seed: u64, disturbances: Disturbances) -> (Vec<String>, Result<Report, String>) {
    let mut simulation = Simulation::new(seed, disturbances);
    simulation.history = Some(Vec::new());
    let outcome = simulation.run().map(|()| simulation.report);
    (simulation.history.unwrap_or_default(), outcome)
}

struct Simulation {
    rng: Rng,
    disturbances: Disturbances,
    limits: Limits,
    state: State,
    keys: MemoryKeys,
    queries: Vec<Query>,
    calls: BTreeMap<WorkId, Running>,
    jobs: BTreeMap<JobId, Client>,
    open: BTreeMap<BuildId, Wanted>,
    /// What is to be built, and in which session's name; several jobs may share what one session alone knows.
    planned: Vec<(JobId, Arc<GraphSpec>)>,
    ledger: Ledger,
    counters: Arc<Mutex<HashMap<String, usize>>>,
    last_id: u64,
    restarts_left: usize,
    injected: bool,
    /// Results whose physical part is gone.
    lost: Vec<ResultRef>,
    /// What was built, in the order in which it began.
    built: Vec<(Arc<Graph>, Vec<Edge>)>,
    history: Option<Vec<String>>,
    report: Report,
}

/// A client with its job.
struct Client {
    session: usize,
    lent: Arc<Session>,
    stories: Stories,
    expired: bool,
    caches: Vec<Arc<MemorySource>>,
}

/// What a job lends.
struct Session {
    job: JobId,
    alive: AtomicBool,
}

struct Wanted {
    job: JobId,
    spec: Arc<GraphSpec>,
    graph: Arc<Graph>,
    edges: Vec<Edge>,
}

type Step = Result<(), String>;

impl Simulation {
    fn new(seed: u64, disturbances: Disturbances) -> Self {
        let mut rng = Rng::new(seed);
        let limits = Limits { processes: 1 + rng.below(4), light: 1 + rng.below(8) };
        let restarts_left = usize::from(rng.chance(disturbances.restarts));
        Self {
            rng,
            disturbances,
            limits,
            state: State::new(limits),
            keys: MemoryKeys::new(),
            queries: Vec::new(),
            calls: BTreeMap::new(),
            jobs: BTreeMap::new(),
            open: BTreeMap::new(),
            planned: Vec::new(),
            ledger: Ledger::default(),
            counters: Arc::default(),
            last_id: 0,
            restarts_left,
            injected: false,
            lost: Vec::new(),
            built: Vec::new(),
            history: None,
            report: Report::default(),
        }
    }

    fn run(&mut self) -> Step {
        for _ in 0..2 + self.rng.below(4) {
            let session = self.rng.below(3);
            let job = self.open_job(session)?;
            for _ in 0..1 + self.rng.below(3) {
                let Disturbances { forced, failing, .. } = self.disturbances;
                let spec = GraphSpec::random(&mut self.rng, 10, forced, failing);
                self.planned.push((job, Arc::new(spec)));
            }
        }
        self.import();
        while !(self.open.is_empty() && self.planned.is_empty()) {
            self.turn()?;
            if self.report.steps > MAX_STEPS {
                return Err("does not end".to_owned());
            }
        }
        self.check_wanted()?;
        while let Some(job) = self.jobs.keys().next().copied() {
            self.close_job(job)?;
        }
        self.check_wanted()?;
        while !(self.queries.is_empty() && self.calls.is_empty()) {
            self.answer()?;
        }
        let scheduler = &self.state.scheduler;
        if !scheduler.is_empty() || !self.state.works.is_empty() {
            return Err(format!("left over: {scheduler:#?}"));
        }
        self.check_executed()
    }

    /// Lets one thing happen.
    fn turn(&mut self) -> Step {
        let Disturbances { cancels, deaths, prunes, limits, .. } = self.disturbances;
        if self.rng.chance(cancels) {
            return self.cancel();
        }
        if self.rng.chance(deaths) {
            return self.session_dies();
        }
        if self.rng.chance(limits) {
            return self.expire();
        }
        if self.restarts_left > 0 && !self.open.is_empty() && self.rng.chance(2) {
            return self.restart();
        }
        let dead = |(_, client): &(&JobId, &Client)| !client.lent.alive.load(Ordering::Relaxed);
        if let Some(job) = self.jobs.iter().find(dead).map(|(job, _)| *job)
            && self.rng.chance(5)
        {
            self.planned.retain(|(other, _)| *other != job);
            return self.close_job(job);
        }
        let busy = |job: &JobId| {
            self.planned.iter().any(|(other, _)| other == job)
                || self.open.values().any(|open| open.job == *job)
        };
        if let Some(idle) = self.jobs.keys().find(|job| !busy(job)).copied()
            && self.rng.chance(20)
        {
            return self.close_job(idle);
        }
        if self.rng.chance(prunes) {
            self.prune();
        }
        if !self.planned.is_empty() && (self.rng.chance(5) || self.open.is_empty()) {
            return self.build();
        }
        self.answer()
    }

    fn open_job(&mut self, session: usize) -> Result<JobId, String> {
        let job = JobId(self.fresh_id());
        let lent = Arc::new(Session { job, alive: AtomicBool::new(true) });
        let log = Arc::new(JobLog::new());
        let stream = ProgressStream::new(Arc::clone(&log));
        let stories = Stories::new(stream, self.disturbances.forced > 0);
        let watched = WatchedJob::new(lent.clone(), log, TimeLimits::default());
        self.state.jobs.insert(job, watched);
        self.jobs.insert(job, Client { session, lent, stories, expired: false, caches: Vec::new() });
        self.ledger.jobs += 1;
        self.step(Event::JobOpened(job))?;
        Ok(job)
    }

    fn close_job(&mut self, job: JobId) -> Step {
        self.step(Event::JobClosed(job))?;
        if let Some(watched) = self.state.jobs.remove(&job) {
            watched.close(std::time::SystemTime::now());
        }
        let Some(mut client) = self.jobs.remove(&job) else { return Ok(()) };
        let told = client.stories.read().and_then(|()| client.stories.check_end());
        told.map_err(|wrong| format!("{job:?}: {wrong}"))
    }

    fn build(&mut self) -> Step {
        let next = self.rng.below(self.planned.len());
        let (job, spec) = self.planned.swap_remove(next);
        let Some(client) = self.jobs.get(&job) else { return Ok(()) };
        let graph = Arc::new(spec.graph(client.session, &self.counters).map_err(|error| error.to_string())?);
        let count = graph.vertices().len();
        let edges: Vec<_> = (0..1 + self.rng.below(2))
            .map(|_| {
                let vertex = count - 1 - self.rng.below(count.min(2));
                let vertex = VertexIndex(vertex as u32);
                let second = Edge { vertex, output: OutputIndex(1) };
                // Keys of `random:` sources do not tell outputs apart; of others, one may be asked for that is not there.
                let may = !graph.vertices()[vertex.0 as usize].inputs.is_empty()
                    && (self.disturbances.failing > 0 || expected(&graph, second).is_some());
                if may && self.rng.chance(30) { second } else { Edge { output: OutputIndex(0), ..second } }
            })
            .collect();
        let build = BuildId(self.fresh_id());
        self.built.push((Arc::clone(&graph), edges.clone()));
        let wanted = Wanted { job, spec, graph: Arc::clone(&graph), edges: edges.clone() };
        self.open.insert(build, wanted);
        self.step(Event::BuildWanted { job, build, graph, edges })
    }

    fn cancel(&mut self) -> Step {
        if self.rng.chance(50) && !self.open.is_empty() {
            let next = self.rng.below(self.open.len());
            let Some(build) = self.open.keys().nth(next).copied() else { return Ok(()) };
            return self.step(Event::BuildDropped(build));
        }
        let Some(job) = self.any_job() else { return Ok(()) };
        self.planned.retain(|(other, _)| *other != job);
        self.close_job(job)
    }

    fn session_dies(&mut self) -> Step {
        if let Some(job) = self.any_job()
            && let Some(client) = self.jobs.get(&job)
        {
            client.lent.alive.store(false, Ordering::Relaxed);
            self.note(|| format!("the session of {job:?} dies"));
        }
        Ok(())
    }

    fn expire(&mut self) -> Step {
        let running: Vec<_> =
            self.calls.iter().filter(|(_, call)| call.is_run()).map(|(id, _)| *id).collect();
        if running.is_empty() {
            return Ok(());
        }
        let work = running[self.rng.below(running.len())];
        let waiting: BTreeSet<_> = self.state.scheduler.waiting_for(work).into_iter().collect();
        let Some(job) = waiting.into_iter().next() else { return Ok(()) };
        if let Some(client) = self.jobs.get_mut(&job) {
            client.expired = true;
        }
        self.step(Event::Expired { work, job, error: OpError::failed(EXPIRED) })
    }

    fn prune(&mut self) {
        let mut rng = Rng::new(self.rng.next());
        self.note(|| "prune".to_owned());
        if rng.chance(50) {
            self.keys.drop_results(|_| rng.chance(30));
        } else {
            self.keys.break_results(|_| rng.chance(30));
        }
    }

    /// The daemon dies and starts again: what was saved is there, what was under way is not, and what was valid in one
    /// daemon only is void. The clients come again.
    fn restart(&mut self) -> Step {
        self.note(|| "restart".to_owned());
        self.report.restarts += 1;
        self.restarts_left -= 1;
        for running in std::mem::take(&mut self.calls).into_values() {
            if self.rng.chance(50) {
                running.save(&self.keys);
            }
        }
        self.keys.forget_random();
        self.queries.clear();
        self.ledger.restart();
        self.state = State::new(self.limits);
        let clients = std::mem::take(&mut self.jobs);
        let mut renamed = HashMap::new();
        for (job, client) in clients {
            // No session number is given twice.
            let new = self.open_job(client.session + 10)?;
            renamed.insert(job, new);
            if let Some(back) = self.jobs.get_mut(&new) {
                back.caches = client.caches;
            }
            self.offer_caches(new);
        }
        for wanted in std::mem::take(&mut self.open).into_values() {
            self.planned.push((wanted.job, wanted.spec));
        }
        for (job, _) in &mut self.planned {
            *job = renamed.get(job).copied().unwrap_or(*job);
        }
        Ok(())
    }

    /// Answers a look-up or ends a call.
    fn answer(&mut self) -> Step {
        let waiting = self.queries.len() + self.calls.len();
        if waiting == 0 {
            return Err(format!("hangs: {} builds open, {:#?}", self.open.len(), self.state.scheduler));
        }
        let next = self.rng.below(waiting);
        if next < self.queries.len() {
            if self.is_held_up(next) {
                self.report.steps += 1;
                return Ok(());
            }
            let query = self.queries.swap_remove(next);
            let found = self.found(&query);
            if let Some(work) = self.state.scheduler.probed(query.id) {
                self.ledger.probe(work, &self.state.scheduler, &self.keys);
                let offered = found.as_ref().map(|found| self.offered(found)).unwrap_or_default();
                self.ledger.offered(work, query.output, offered);
            }
            return self.step(Event::Queried { query: query.id, found });
        }
        let Some(work) = self.calls.keys().nth(next - self.queries.len()).copied() else { return Ok(()) };
        self.end_call(work)
    }

    fn step(&mut self, event: Event) -> Step {
        self.report.steps += 1;
        self.note(|| checks::brief(&event));
        let before = self.state.scheduler.before_gate();
        let mut effects = Vec::new();
        self.state.scheduler.step(event, &mut effects);
        let mut ended = Vec::new();
        for effect in effects {
            match effect {
                Effect::Query(query) => self.queries.push(query),
                Effect::Start { work, call } => self.start(work, call, &before)?,
                Effect::Cancel(work) => self.cancel_call(work)?,
                Effect::Link { key, to } => {
                    let _ = self.keys.link(&key, &to).now_or_never();
                }
                Effect::BuildDone { build, result } => ended.push((build, result)),
                shown => {
                    self.ledger.show(&shown, &self.state.scheduler, &self.keys)?;
                    self.state.show(shown);
                }
            }
        }
        for (build, result) in ended {
            self.build_done(build, result)?;
        }
        self.ledger.check_turns(&self.state.scheduler, &before)?;
        self.check_wanted()
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(history) = &mut self.history {
            history.push(line());
        }
    }

    fn build_done(&mut self, build: BuildId, result: Result<Vec<CachedResult>, SolveError>) -> Step {
        let Some(wanted) = self.open.remove(&build) else { return Err(format!("{build:?} ends twice")) };
        self.note(|| match &result {
            Ok(results) => {
                let texts = results.iter().map(|one| Value::text(one.result.as_ref()));
                format!("  {build:?} gives {:?}", texts.collect::<Vec<_>>())
            }
            Err(error) => format!("  {build:?} fails: {error}"),
        });
        let want: Vec<_> = wanted.edges.iter().map(|edge| expected(&wanted.graph, *edge)).collect();
        let Some(client) = self.jobs.get_mut(&wanted.job) else {
            return Err(format!("{build:?} outlives its job"));
        };
        match result {
            Ok(results) => {
                self.report.results += 1;
                let got: Vec<_> =
                    results.iter().map(|one| Some(Value::text(one.result.as_ref()).to_owned())).collect();
                if got != want {
                    return Err(format!("{build:?} gives {got:?} instead of {want:?}"));
                }
                let vertices = wanted.graph.vertices();
                let roots = wanted.edges.iter().zip(&results);
                let roots: Vec<_> = roots
                    .map(|(edge, one)| {
                        let single =
                            expected(&wanted.graph, Edge { output: OutputIndex(1), ..*edge }).is_none();
                        (vertices[edge.vertex.0 as usize].digest, one.outcome.clone(), single)
                    })
                    .collect();
                let alone = self.open.values().all(|open| open.job != wanted.job);
                let told = client
                    .stories
                    .read()
                    .and_then(|()| client.stories.check_success(&wanted.graph, &roots, alone));
                told.map_err(|wrong| format!("{build:?} of {:?}: {wrong}", wanted.job))
            }
            Err(SolveError::Cancelled) => {
                self.report.cancelled += 1;
                Ok(())
            }
            Err(error) => {
                self.report.failures += 1;
                let may_fail = match error.to_string().as_str() {
                    INJECTED => self.injected,
                    GONE => self.lost.len() >= GONE_TOO_OFTEN,
                    // Somebody else's session or time is no reason.
                    UNLENT => !client.lent.alive.load(Ordering::Relaxed),
                    EXPIRED => client.expired,
                    _ => want.contains(&None),
                };
                if may_fail { Ok(()) } else { Err(format!("{build:?} of {:?} fails: {error}", wanted.job)) }
            }
        }
    }

    fn any_job(&mut self) -> Option<JobId> {
        if self.jobs.is_empty() {
            return None;
        }
        let next = self.rng.below(self.jobs.len());
        self.jobs.keys().nth(next).copied()
    }

    fn fresh_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}
