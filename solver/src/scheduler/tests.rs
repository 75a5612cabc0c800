use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use proptest::prelude::*;

use crate::driver::find;
use crate::keys::CacheKeys;
use crate::scheduler::{BuildId, Call, Effect, Event, JobId, Limits, Loaded, Reply, Scheduler};
use crate::testing::{Disturbances, GraphSpec, MemoryKeys, Oracle, Script, Value, VertexSpec, simulate};
use crate::testing::{Report, oracle_context, oracle_now};
use crate::vertex::{Edge, Graph, OutputIndex, Vertex, VertexIndex};

type Runs = Arc<Mutex<HashMap<String, usize>>>;

/// A scheduler whose effects are carried out at once, events in order of arrival.
struct Bench<'a> {
    scheduler: Scheduler,
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
            scheduler: Scheduler::new(Limits { processes: 4, light: 64 }),
            keys,
            events: VecDeque::new(),
            held: Vec::new(),
            ran: Vec::new(),
            results: HashMap::new(),
        }
    }

    /// Opens a job and a build of the same number.
    fn want(&mut self, number: u64, graph: &Arc<Graph>, edge: Edge) {
        let (job, build) = (JobId(number), BuildId(number));
        self.events.push_back(Event::JobOpened(job));
        self.events.push_back(Event::BuildWanted { job, build, graph: Arc::clone(graph), edges: vec![edge] });
    }

    /// Lets everything happen but the end of calls that are to be held back.
    fn run(&mut self, hold: impl Fn(&Call) -> bool) {
        let mut effects = Vec::new();
        while let Some(event) = self.events.pop_front() {
            self.scheduler.step(event, &mut effects);
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
                    _ => {}
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

/// Builds one edge in a job of its own; returns the result's text and the texts of what ran, sorted.
fn build(keys: &MemoryKeys, graph: &Arc<Graph>, edge: Edge) -> (Result<String, String>, Vec<String>) {
    let mut bench = Bench::new(keys);
    bench.want(1, graph, edge);
    bench.run(|_| false);
    bench.events.push_back(Event::JobClosed(JobId(1)));
    bench.run(|_| false);
    assert!(bench.scheduler.is_empty(), "left over: {:#?}", bench.scheduler);
    bench.ran.sort();
    (bench.results.remove(&BuildId(1)).expect("the build ends"), bench.ran)
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
    assert!(bench.scheduler.is_empty());
    assert_eq!(bench.ran, ["one()", "two()", "op(one(),two())"]);
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
    /// naive evaluator.
    #[test]
    fn does_what_the_oracle_does(series in prop::collection::vec((specs(), 0usize..3, any::<bool>()), 1..5)) {
        let (ours, theirs) = (MemoryKeys::new(), MemoryKeys::new());
        let runs = Runs::default();
        for (spec, session, prune) in series {
            let graph = Arc::new(spec.graph(session, &runs).unwrap());
            let edge = last(&graph);
            let (result, ran) = build(&ours, &graph, edge);
            let mut oracle = Oracle::new(&theirs, &graph);
            let want = oracle.complete(edge);
            let want = want.map(|result| Value::text(result.as_ref()).to_owned()).map_err(|e| e.to_string());
            prop_assert_eq!(&result, &want);
            if result.is_ok() {
                let mut executed = oracle.executed;
                executed.sort();
                prop_assert_eq!(ran, executed);
                prop_assert_eq!(ours.saved(), theirs.saved());
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

#[track_caller]
fn check_seeds(first: u64, disturbances: Disturbances) -> Report {
    let mut sum = Report::default();
    for seed in first..first + u64::from(cases()) {
        match simulate(seed, disturbances) {
            Ok(report) => {
                sum.steps += report.steps;
                sum.runs += report.runs;
                sum.results += report.results;
                sum.failures += report.failures;
                sum.cancelled += report.cancelled;
            }
            Err(wrong) => panic!("{wrong}"),
        }
    }
    assert!(sum.results > 0);
    sum
}

#[test]
fn undisturbed_jobs_run_each_key_once() {
    check_seeds(0, Disturbances::default());
}

#[test]
fn failing_vertices_fail_their_users_alone() {
    let sum = check_seeds(1000, Disturbances { failing: 5, ..Disturbances::default() });
    assert!(sum.failures > 0);
}

#[test]
fn cancels_disturb_nobody_else() {
    let sum = check_seeds(2000, Disturbances { cancels: 2, ..Disturbances::default() });
    assert!(sum.cancelled > 0);
}

#[test]
fn lost_and_pruned_results_are_made_again() {
    check_seeds(3000, Disturbances { losses: 5, prunes: 2, ..Disturbances::default() });
}

#[test]
fn everything_at_once() {
    let all = Disturbances { cancels: 1, failures: 2, losses: 3, prunes: 1, forced: 10, failing: 2 };
    check_seeds(4000, all);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let all = Disturbances { cancels: 1, failures: 2, losses: 3, prunes: 1, forced: 10, failing: 2 };
    assert_eq!(simulate(17, all), simulate(17, all));
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
    let (result, ran) = build(&keys, &graph, last(&graph));
    let cold = spent();
    assert!(result.is_ok());
    assert_eq!(ran.len(), graph.vertices().len());
    assert_eq!(build(&keys, &graph, last(&graph)), (result, Vec::new()));
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
