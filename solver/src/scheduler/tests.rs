use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use proptest::prelude::*;

use crate::driver::{State, TimeLimits, WatchedJob, find};
use crate::keys::CacheKeys;
use crate::op::Slot;
use crate::outcome::Outcome;
use crate::progress::{JobLog, ProgressEvent, ProgressStream, VertexEvent};
use crate::scheduler::{BuildId, Call, Effect, Event, JobId, Limits, Loaded, Reply};
use crate::testing::{Disturbances, GraphSpec, MemoryKeys, Oracle, Report, Rng, Script, Value, VertexSpec};
use crate::testing::{oracle_context, oracle_expected, oracle_now, replay, simulate, simulate_many};
use crate::vertex::{Edge, Graph, OutputIndex, Vertex, VertexDigest, VertexIndex};

type Runs = Arc<Mutex<HashMap<String, usize>>>;

/// A scheduler whose effects are carried out at once, events in order of arrival.
struct Bench<'a> {
    state: State,
    keys: &'a MemoryKeys,
    events: VecDeque<Event>,
    /// Answers to calls that were held back.
    held: Vec<Event>,
    /// The texts of what ran.
    ran: Vec<String>,
    results: HashMap<BuildId, Result<String, String>>,
}

impl<'a> Bench<'a> {
    fn new(keys: &'a MemoryKeys) -> Self {
        Self {
            state: State::new(Limits { processes: 4, light: 64 }),
            keys,
            events: VecDeque::new(),
            held: Vec::new(),
            ran: Vec::new(),
            results: HashMap::new(),
        }
    }

    /// Opens a job and a build of the same number; returns what the job is told.
    fn want(&mut self, number: u64, graph: &Arc<Graph>, edge: Edge) -> ProgressStream {
        let (job, build) = (JobId(number), BuildId(number));
        let log = Arc::new(JobLog::new());
        let told = ProgressStream::new(Arc::clone(&log));
        self.state.jobs.insert(job, WatchedJob::new(Arc::new(()), log, TimeLimits::default()));
        self.events.push_back(Event::JobOpened(job));
        self.events.push_back(Event::BuildWanted { job, build, graph: Arc::clone(graph), edges: vec![edge] });
        told
    }

    /// Lets everything happen but the end of calls that are to be held back.
    fn run(&mut self, mut hold: impl FnMut(&Call) -> bool) {
        let mut effects = Vec::new();
        while let Some(event) = self.events.pop_front() {
            self.state.scheduler.step(event, &mut effects);
            for effect in effects.drain(..) {
                match effect {
                    Effect::Query(query) => {
                        let found = find(self.keys, &query);
                        self.events.push_back(Event::Queried { query: query.id, found });
                    }
                    Effect::Start { work, call } => {
                        let held = hold(&call);
                        let done = Event::Done { work, reply: answer(self.keys, call, &mut self.ran) };
                        if held { self.held.push(done) } else { self.events.push_back(done) }
                    }
                    Effect::Link { key, to } => self.keys.link(&key, &to).now_or_never().unwrap().unwrap(),
                    Effect::BuildDone { build, result } => {
                        let result = result.map(|results| Value::text(results[0].result.as_ref()).to_owned());
                        self.results.insert(build, result.map_err(|error| error.to_string()));
                    }
                    shown => self.state.show(shown),
                }
            }
        }
    }
}

fn answer(keys: &MemoryKeys, call: Call, ran: &mut Vec<String>) -> Reply {
    let cx = oracle_context();
    match call {
        Call::CacheMap { op, index } => Reply::CacheMap(oracle_now(op.cache_map(&cx, index))),
        Call::ContentKey { op, input, result } => {
            Reply::ContentKey(oracle_now(op.content_key(&cx, input, result.as_ref())))
        }
        Call::Exec { op, inputs } => {
            let made = oracle_now(op.exec(&cx, inputs));
            ran.push(match &made {
                Ok(made) => Value::text(made[0].as_ref()).to_owned(),
                Err(_) => "failed".to_owned(),
            });
            Reply::Exec(made)
        }
        Call::Load { record } => {
            let loaded = keys.load(&record).now_or_never().unwrap();
            Reply::Load(loaded.map(|found| found.map(|result| Loaded { result, adopted: None })))
        }
        Call::Save { items } => {
            let save =
                |(new, result): &(Vec<_>, Option<_>)| keys.save(new, result.as_ref()).now_or_never().unwrap();
            Reply::Save(items.iter().map(save).collect())
        }
        Call::Lost { .. } => Reply::Lost,
    }
}

/// What a build came to.
#[derive(Debug, PartialEq, Eq)]
struct Built {
    result: Result<String, String>,
    /// The texts of what ran, sorted.
    ran: Vec<String>,
    /// How the vertices ended, as the job was told.
    ended: BTreeMap<VertexDigest, VertexEvent>,
}

/// Builds one edge in a job of its own. Of the calls, so many in a hundred are slow, and end in an order of their own.
fn build(keys: &MemoryKeys, graph: &Arc<Graph>, edge: Edge, slow: (u64, u64)) -> Built {
    let mut bench = Bench::new(keys);
    let mut rng = Rng::new(slow.0);
    let mut told = bench.want(1, graph, edge);
    loop {
        bench.run(|_| rng.chance(slow.1));
        if bench.held.is_empty() {
            break;
        }
        let next = rng.below(bench.held.len());
        let done = bench.held.swap_remove(next);
        bench.events.push_back(done);
    }
    let mut ended = BTreeMap::new();
    while let Some(events) = told.next().now_or_never().flatten() {
        for event in events {
            if let ProgressEvent::Vertex(event) = &*event {
                ended.insert(event.digest, VertexEvent::clone(event));
            }
        }
    }
    bench.events.push_back(Event::JobClosed(JobId(1)));
    bench.run(|_| false);
    assert!(bench.state.scheduler.is_empty(), "left over: {:#?}", bench.state.scheduler);
    bench.ran.sort();
    Built { result: bench.results.remove(&BuildId(1)).expect("the build ends"), ran: bench.ran, ended }
}

/// One job waits for a content key while another, with another vertex of the same key, runs, saves and goes.
#[test]
fn nothing_runs_that_was_saved_since_it_was_looked_up() {
    let (keys, runs) = (MemoryKeys::new(), Runs::default());
    let graph = |name: &str| {
        let vertices = vec![
            Script::new("one", 0).vertex("one", &[], &runs),
            Script::new("two", 0).vertex("two", &[], &runs),
            Script::new("op", 2).content(1).vertex(name, &[(0, 0), (1, 0)], &runs),
        ];
        Arc::new(Graph::new(vertices).unwrap())
    };
    let (first, second) = (graph("first"), graph("second"));
    let mut bench = Bench::new(&keys);
    bench.want(1, &first, last(&first));
    bench.want(2, &second, last(&second));
    bench.run(|call| matches!(call, Call::ContentKey { .. }));
    assert_eq!(bench.held.len(), 2);
    for number in [1, 2] {
        let done = bench.held.remove(0);
        bench.events.push_back(done);
        bench.run(|_| false);
        bench.events.push_back(Event::JobClosed(JobId(number)));
        bench.run(|_| false);
        assert_eq!(bench.results[&BuildId(number)].as_deref(), Ok("op(one(),two())"));
    }
    assert!(bench.state.scheduler.is_empty());
    assert_eq!(bench.ran, ["one()", "two()", "op(one(),two())"]);
}

/// One job has a hundred steps for one process at a time, the other a single one: it does not wait behind them.
#[test]
fn no_job_waits_behind_anothers_hundred() {
    let (keys, runs) = (MemoryKeys::new(), Runs::default());
    let step = |name: &str| {
        let mut script = Script::new(name, 0);
        script.slot = Slot::Process;
        script.vertex(name, &[], &runs)
    };
    let mut vertices: Vec<_> = (0..100).map(|number| step(&format!("large{number}"))).collect();
    let all: Vec<_> = (0..100).map(|number| (number, 0)).collect();
    vertices.push(Script::new("all", 100).vertex("all", &all, &runs));
    let large = Arc::new(Graph::new(vertices).unwrap());
    let small = Arc::new(Graph::new(vec![step("small")]).unwrap());
    let mut bench = Bench::new(&keys);
    bench.state = State::new(Limits { processes: 1, light: 64 });
    bench.want(1, &large, last(&large));
    let hold = |call: &Call| matches!(call, Call::Exec { op, .. } if op.slot() == Slot::Process);
    bench.run(hold);
    bench.want(2, &small, last(&small));
    bench.run(hold);
    while !bench.results.contains_key(&BuildId(2)) {
        let done = bench.held.remove(0);
        bench.events.push_back(done);
        bench.run(hold);
    }
    // The one that ran when it came, one in turn, and the one that runs since.
    assert!(bench.ran.len() <= 4, "{:?}", bench.ran);
    assert!(!bench.results.contains_key(&BuildId(1)));
}

/// A job that asks for steps and gives them up again, over and over, leaves nothing behind while others wait for them.
#[test]
fn asking_and_giving_up_leaves_nothing_behind() {
    let (keys, runs) = (MemoryKeys::new(), Runs::default());
    let mut script = Script::new("slow", 0);
    script.slot = Slot::Process;
    let vertices =
        vec![script.vertex("slow", &[], &runs), Script::new("user", 1).vertex("user", &[(0, 0)], &runs)];
    let graph = Arc::new(Graph::new(vertices).unwrap());
    let mut bench = Bench::new(&keys);
    bench.want(1, &graph, last(&graph));
    bench.run(|call| matches!(call, Call::Exec { .. }));
    let size = |bench: &Bench<'_>| format!("{:?}", bench.state.scheduler).len();
    let mut before = 0;
    for number in 2..1000 {
        let build = BuildId(number);
        let edges = vec![last(&graph)];
        bench.events.push_back(Event::BuildWanted { job: JobId(1), build, graph: Arc::clone(&graph), edges });
        bench.events.push_back(Event::BuildDropped(build));
        bench.run(|_| false);
        if number == 10 {
            before = size(&bench);
        }
    }
    assert!(size(&bench) < before + 200, "grown from {before} to {}", size(&bench));
}

fn last(graph: &Graph) -> Edge {
    Edge { vertex: VertexIndex(graph.vertices().len() as u32 - 1), output: OutputIndex(0) }
}

fn specs() -> impl Strategy<Value = GraphSpec> {
    let op = prop_oneof![12 => 0u8..20, 1 => Just(255u8)];
    let inputs = prop::collection::vec((0u8..4, 0u8..2), 0..4);
    let vertex =
        (op, inputs, 0u8..3).prop_map(|(op, inputs, salt)| VertexSpec { op, inputs, salt, forced: false });
    prop::collection::vec(vertex, 1..12).prop_map(|vertices| GraphSpec { vertices })
}

/// How many cases each test of random ones takes. `KILN_SIMULATIONS=2000` looks longer.
fn cases() -> u32 {
    std::env::var("KILN_SIMULATIONS").map_or(100, |text| text.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(), ..ProptestConfig::default() })]

    /// A series of builds on one store gives the same results, runs the same ops and leaves the same store as the
    /// naive evaluator, whichever of its calls are slow; and it tells the job what the evaluator did.
    #[test]
    fn does_what_the_oracle_does(
        series in prop::collection::vec((specs(), 0usize..3, any::<bool>()), 1..5),
        slow in (any::<u64>(), prop_oneof![Just(0u64), Just(50)]),
    ) {
        let (ours, theirs) = (MemoryKeys::new(), MemoryKeys::new());
        let runs = Runs::default();
        for (spec, session, prune) in series {
            let graph = Arc::new(spec.graph(session, &runs).unwrap());
            let edge = last(&graph);
            let Built { result, ran, ended } = build(&ours, &graph, edge, slow);
            let mut oracle = Oracle::new(&theirs, &graph);
            let want = oracle.complete(edge);
            let want = want.map(|result| Value::text(result.as_ref()).to_owned()).map_err(|e| e.to_string());
            prop_assert_eq!(&result, &want);
            if result.is_ok() {
                let mut executed = oracle.executed;
                executed.sort();
                prop_assert_eq!(&ran, &executed);
                prop_assert_eq!(ours.saved(), theirs.saved());
                check_told(&graph, edge, &ended, &ran)?;
            } else {
                // How far it gets before the failure is seen is a matter of order: start again from there.
                return Ok(());
            }
            if prune {
                let odd = |text: &str| text.len().is_multiple_of(3);
                ours.drop_results(|result| odd(Value::text(result)));
                theirs.drop_results(|result| odd(Value::text(result)));
            }
        }
    }
}

/// Ten thousand in every run of the tests; `KILN_SIMULATIONS=1000` makes it a thousand of each kind of disturbance.
#[test]
fn simulations_hold_what_is_promised() {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let count = std::env::var("KILN_SIMULATIONS").map_or(10_200, |text| 15 * text.parse::<u64>().unwrap());
    let summary = simulate_many(0, count, threads);
    if let Some((_, wrong)) = summary.wrong.first() {
        let seeds: Vec<_> = summary.wrong.iter().map(|(seed, wrong)| (seed, wrong.lines().next())).collect();
        panic!("{seeds:#?}\n{wrong}");
    }
    println!("{summary:?}");
    assert_eq!(summary.passed, count);
    let Report { runs, results, failures, cancelled, restarts, imported, determined, .. } = summary.sum;
    let all = [runs, results, failures, cancelled, restarts, imported, determined];
    assert!(all.iter().all(|times| *times > 0));
}

/// What is needed has ended well, and shows as run exactly where an op of that result has.
fn check_told(
    graph: &Graph,
    edge: Edge,
    ended: &BTreeMap<VertexDigest, VertexEvent>,
    ran: &[String],
) -> Result<(), TestCaseError> {
    let mut needed = vec![false; graph.vertices().len()];
    needed[edge.vertex.0 as usize] = true;
    let mut shown = BTreeSet::new();
    for (index, vertex) in
        graph.vertices().iter().enumerate().rev().filter(|(index, _)| *index <= edge.vertex.0 as usize)
    {
        if !needed[index] {
            continue;
        }
        vertex.inputs.iter().for_each(|edge| needed[edge.vertex.0 as usize] = true);
        let event = &ended[&vertex.digest];
        prop_assert!(event.completed.is_some() && event.error.is_none(), "{:?}", event);
        if event.outcome == Some(Outcome::Ran) {
            let vertex = VertexIndex(index as u32);
            shown.extend(oracle_expected(graph, Edge { vertex, output: OutputIndex(0) }));
        }
    }
    prop_assert_eq!(shown, ran.iter().cloned().collect::<BTreeSet<_>>());
    Ok(())
}

#[test]
fn the_same_seed_is_the_same_run() {
    let all = Disturbances::of(14);
    let (history, report) = replay(17, all);
    assert_eq!(simulate(17, all), report);
    assert_eq!(replay(17, all).0, history);
}

/// Nanoseconds this thread has spent on a processor; other programs do not count.
fn spent() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// Builds cold and warm; returns the time each took.
fn time(vertices: Vec<Vertex>) -> [u64; 2] {
    let keys = MemoryKeys::new();
    let graph = Arc::new(Graph::new(vertices).unwrap());
    let begun = spent();
    let first = build(&keys, &graph, last(&graph), (0, 0));
    let cold = spent();
    assert!(first.result.is_ok());
    assert_eq!(first.ran.len(), graph.vertices().len());
    let second = build(&keys, &graph, last(&graph), (0, 0));
    assert_eq!((second.result, second.ran), (first.result, Vec::new()));
    [cold - begun, spent() - cold]
}

#[track_caller]
fn check_linear(size: u32, graph: impl Fn(u32) -> Vec<Vertex>) {
    let [small, large] = [time(graph(size / 10)), time(graph(size))];
    println!("a tenth and {size} vertices, cold and warm, in ns: {small:?} {large:?}");
    for (small, large) in small.into_iter().zip(large) {
        assert!(large < small * 40, "ten times the vertices take {small} and {large} ns");
    }
}

#[test]
fn deep_graphs_cost_linear_time() {
    check_linear(10_000, |length| {
        let runs = Runs::default();
        let mut vertices = vec![Script::new("base", 0).vertex("base", &[], &runs)];
        for step in 1..length {
            let script = Script::new(&format!("s{step}"), 1);
            vertices.push(script.vertex(&format!("{step}"), &[(step - 1, 0)], &runs));
        }
        vertices
    });
}

#[test]
fn wide_graphs_cost_linear_time() {
    check_linear(4_000, |width| {
        let runs = Runs::default();
        let mut vertices = vec![Script::new("base", 0).vertex("base", &[], &runs)];
        for leaf in 1..width - 1 {
            vertices.push(Script::new(&format!("l{leaf}"), 1).vertex(&format!("{leaf}"), &[(0, 0)], &runs));
        }
        let all: Vec<_> = (1..width - 1).map(|leaf| (leaf, 0)).collect();
        vertices.push(Script::new("top", all.len()).vertex("top", &all, &runs));
        vertices
    });
}

#[test]
fn diamonds_cost_linear_time() {
    check_linear(4_000, |depth| {
        let runs = Runs::default();
        let mut vertices = vec![Script::new("base", 0).vertex("base", &[], &runs)];
        for level in 1..depth {
            let below = (level - 1, 0);
            let script = Script::new(&format!("d{level}"), 2);
            vertices.push(script.vertex(&format!("{level}"), &[below, below], &runs));
        }
        vertices
    });
}
