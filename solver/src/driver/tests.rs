use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kiln_digest::Digest;
use tokio::sync::Notify;

use crate::testing::{MemoryKeys, MemorySource, Script, Value, conformance};
use crate::*;

type Runs = Arc<Mutex<HashMap<String, usize>>>;

struct Bench {
    keys: Arc<MemoryKeys>,
    solver: Solver,
    runs: Runs,
    jobs: u32,
}

impl Bench {
    fn new() -> Self {
        let keys = Arc::new(MemoryKeys::new());
        let solver = Solver::new(keys.clone(), SolverOptions::default());
        Self { keys, solver, runs: Runs::default(), jobs: 0 }
    }

    /// Builds the last vertex in a job of its own; returns its text and what ran, with how often it has.
    async fn build(&mut self, vertices: Vec<Vertex>) -> (String, String) {
        self.jobs += 1;
        let before = self.runs.lock().unwrap().clone();
        let job = self.solver.job(&format!("job{}", self.jobs), Arc::new(())).unwrap();
        let top = Edge { vertex: VertexIndex(vertices.len() as u32 - 1), output: OutputIndex(0) };
        let text = match job.build(Graph::new(vertices).unwrap(), vec![top]).await {
            Ok(results) => Value::text(results[0].result.as_ref()).to_owned(),
            Err(error) => format!("error: {error}"),
        };
        job.discard().await;
        assert!(self.solver.shared.lock().scheduler.is_empty(), "nothing is left");
        assert!(self.solver.shared.lock().works.is_empty(), "nothing is left");
        let ran = |(label, count): (&String, &usize)| {
            let count = count - before.get(label).copied().unwrap_or_default();
            (count > 0).then(|| format!("{label}:{count}"))
        };
        let mut runs: Vec<_> = self.runs.lock().unwrap().iter().filter_map(ran).collect();
        runs.sort();
        (text, runs.join(" "))
    }
}

fn chain(runs: &Runs, context: &str, length: u32) -> Vec<Vertex> {
    let mut local = Script::new(context, 0);
    local.random = true;
    let mut copy = Script::new("copy", 2).content(1);
    copy.content_prefix = 3;
    let mut vertices = vec![
        Script::new("image", 0).vertex("image", &[], runs),
        local.vertex(context, &[], runs),
        copy.vertex(&format!("copy {context}"), &[(0, 0), (1, 0)], runs),
    ];
    for step in 0..length {
        let name = format!("run {step} {context}");
        vertices.push(Script::new(&format!("run{step}"), 1).vertex(&name, &[(step + 2, 0)], runs));
    }
    vertices
}

#[tokio::test]
async fn a_build_again_runs_nothing_but_its_context() {
    let mut bench = Bench::new();
    let runs = bench.runs.clone();
    let (first, ran) = bench.build(chain(&runs, "abc-1", 2)).await;
    assert_eq!(first, "run1(run0(copy(image(),abc)))");
    assert_eq!(ran, "abc-1:1 copy:1 image:1 run0:1 run1:1");
    assert_eq!(bench.build(chain(&runs, "abc-1", 2)).await, (first.clone(), String::new()));
    assert_eq!(bench.build(chain(&runs, "abc-2", 2)).await, (first, "abc-2:1".to_owned()));
    let (other, ran) = bench.build(chain(&runs, "xyz-3", 2)).await;
    assert_eq!(other, "run1(run0(copy(image(),xyz)))");
    assert_eq!(ran, "copy:1 run0:1 run1:1 xyz-3:1");
}

#[tokio::test]
async fn pruned_results_are_made_again() {
    let mut bench = Bench::new();
    let runs = bench.runs.clone();
    bench.build(chain(&runs, "abc-1", 2)).await;
    bench.keys.drop_results(|result| Value::text(result).starts_with("run1"));
    let (_, ran) = bench.build(chain(&runs, "abc-2", 2)).await;
    assert_eq!(ran, "abc-2:1 run1:1");
    bench.keys.break_results(|_| true);
    let (_, ran) = bench.build(chain(&runs, "abc-2", 2)).await;
    assert_eq!(ran, "abc-2:1 copy:1 image:1 run0:1 run1:1");
}

#[tokio::test]
async fn a_result_that_its_reader_finds_lost_is_made_again() {
    let bench = Bench::new();
    let runs = bench.runs.clone();
    let job = bench.solver.job("j", Arc::new(())).unwrap();
    let graph = Arc::new(Graph::new(chain(&runs, "abc-1", 2)).unwrap());
    let top = Edge { vertex: VertexIndex(4), output: OutputIndex(0) };
    let build = async || job.build(Arc::clone(&graph), vec![top]).await.unwrap().remove(0).result.unwrap();
    let first = build().await;
    assert!(Arc::ptr_eq(&first, &build().await));
    bench.keys.lost(&first).await.unwrap();
    job.lost(&first);
    let again = build().await;
    assert!(!Arc::ptr_eq(&first, &again));
    assert_eq!(Value::text(Some(&again)), "run1(run0(copy(image(),abc)))");
    let counts = runs.lock().unwrap().clone();
    assert_eq!((counts["run1"], counts["run0"]), (2, 1));
    job.discard().await;
    assert!(bench.solver.shared.lock().scheduler.is_empty(), "nothing is left");
}

#[tokio::test]
async fn an_error_names_its_vertex() {
    let bench = Bench::new();
    let runs = bench.runs.clone();
    let mut failing = Script::new("bad", 0);
    failing.fails = Some("exit code: 1".to_owned());
    let vertices =
        vec![failing.vertex("bad", &[], &runs), Script::new("top", 1).vertex("top", &[(0, 0)], &runs)];
    let job = bench.solver.job("j", Arc::new(())).unwrap();
    let top = Edge { vertex: VertexIndex(1), output: OutputIndex(0) };
    let error = job.build(Graph::new(vertices).unwrap(), vec![top]).await.unwrap_err();
    assert_eq!(error.to_string(), "exit code: 1");
    assert_eq!(error.vertex(), Some(VertexDigest(Digest::of("bad"))));
    let mut progress = job.progress();
    job.discard().await;
    let mut seen = Vec::new();
    while let Some(events) = progress.next().await {
        for event in events {
            if let ProgressEvent::Vertex(event) = &*event {
                let state = match (event.started, event.completed) {
                    (None, _) => "announced",
                    (_, None) => "started",
                    _ => "completed",
                };
                seen.push(format!("{} {state} {}", event.name, event.error.as_deref().unwrap_or("-")));
            }
        }
    }
    // The first pair is the computation of the source's key.
    let want = [
        "bad announced -",
        "top announced -",
        "bad started -",
        "bad completed -",
        "bad started -",
        "bad completed exit code: 1",
    ];
    assert_eq!(seen, want);
}

/// A source, an op on it that gives another result each time, and two ops on that, the first by content if so told.
fn counting(runs: &Runs, forced: bool, by_content: bool) -> Vec<Vertex> {
    let mut again = Script::new("again", 1);
    again.counts = true;
    let mut user = Script::new("user", 1);
    user.content_prefix = 5;
    user.deps[0].content = by_content;
    let mut vertices = vec![
        Script::new("src", 0).vertex("src", &[], runs),
        again.vertex("again", &[(0, 0)], runs),
        user.vertex("user", &[(1, 0)], runs),
        Script::new("top", 1).vertex("top", &[(2, 0)], runs),
    ];
    vertices[1].options.ignore_cache = forced;
    vertices
}

#[tokio::test]
async fn what_ignores_the_cache_is_seen_by_its_users() {
    let mut bench = Bench::new();
    let runs = bench.runs.clone();
    let (first, _) = bench.build(counting(&runs, false, false)).await;
    assert_eq!(first, "top(user(again-1(src())))");
    let (second, ran) = bench.build(counting(&runs, true, false)).await;
    assert_eq!(second, "top(user(again-2(src())))");
    assert_eq!(ran, "again:1 top:1 user:1");
    assert_eq!(bench.build(counting(&runs, false, false)).await, (second, String::new()));
}

#[tokio::test]
async fn what_ignores_the_cache_is_known_by_its_content() {
    let mut bench = Bench::new();
    let runs = bench.runs.clone();
    let (first, _) = bench.build(counting(&runs, false, true)).await;
    assert_eq!(first, "top(user(again))");
    assert_eq!(bench.build(counting(&runs, true, true)).await, (first.clone(), "again:1".to_owned()));
    assert_eq!(bench.build(counting(&runs, false, true)).await, (first, String::new()));
}

#[tokio::test]
async fn a_job_runs_what_ignores_the_cache_once() {
    let bench = Bench::new();
    let runs = bench.runs.clone();
    let job = bench.solver.job("j", Arc::new(())).unwrap();
    for top in [3, 3, 2] {
        let graph = Graph::new(counting(&runs, true, false)).unwrap();
        let edge = Edge { vertex: VertexIndex(top), output: OutputIndex(0) };
        job.build(graph, vec![edge]).await.unwrap();
    }
    assert_eq!(runs.lock().unwrap()["again"], 1);
}

/// Two references with one content, and an op on each.
fn images(runs: &Runs, reference: &str) -> Vec<Vertex> {
    let mut image = Script::new(reference, 0);
    image.keys.push("content".to_owned());
    image.label = "content".to_owned();
    vec![
        image.vertex(reference, &[], runs),
        Script::new("run", 1).vertex(&format!("run {reference}"), &[(0, 0)], runs),
    ]
}

#[tokio::test]
async fn a_source_is_found_by_its_second_key() {
    let mut bench = Bench::new();
    let runs = bench.runs.clone();
    assert_eq!(bench.build(images(&runs, "one")).await.1, "content:1 run:1");
    assert_eq!(bench.build(images(&runs, "two")).await.1, "");
}

#[tokio::test]
async fn keys_of_a_result_reach_to_the_sources() {
    let bench = Bench::new();
    let runs = bench.runs.clone();
    let job = bench.solver.job("j", Arc::new(())).unwrap();
    let edge = Edge { vertex: VertexIndex(3), output: OutputIndex(0) };
    let results = job.build(Graph::new(chain(&runs, "abc-1", 1)).unwrap(), vec![edge]).await.unwrap();
    let graph = job.key_graph(&[results[0].key]).unwrap();
    assert_eq!(graph.results, [KeyNodeIndex(3)]);
    let copy = &graph.nodes[2];
    assert_eq!(copy.ids.len(), 1);
    assert_eq!(copy.outcome, Some(Outcome::Ran));
    let from = |input: usize| copy.inputs[input].iter().map(|key| key.from.clone()).collect::<Vec<_>>();
    assert_eq!(from(0), [KeyOrigin::Node(KeyNodeIndex(0))]);
    assert_eq!(from(1), [KeyOrigin::Node(KeyNodeIndex(1)), KeyOrigin::Content(Digest::of("abc"))]);
    assert!(graph.nodes[1].digests[0].is_random());
    bench.solver.close().await;
    assert!(matches!(job.key_graph(&[results[0].key]), Err(SolveError::Cancelled)));
}

#[tokio::test]
async fn steps_below_a_hit_show_as_cached() {
    let mut bench = Bench::new();
    let runs = bench.runs.clone();
    bench.build(chain(&runs, "abc-1", 2)).await;
    let job = bench.solver.job("j", Arc::new(())).unwrap();
    let edge = Edge { vertex: VertexIndex(4), output: OutputIndex(0) };
    job.build(Graph::new(chain(&runs, "abc-1", 2)).unwrap(), vec![edge]).await.unwrap();
    let mut progress = job.progress();
    job.discard().await;
    let mut last = std::collections::BTreeMap::new();
    while let Some(events) = progress.next().await {
        for event in events {
            if let ProgressEvent::Vertex(event) = &*event {
                let by = match &event.outcome {
                    Some(Outcome::Hit(hit)) => format!(" {:?} {:?}", hit.matched, hit.origin),
                    _ => String::new(),
                };
                let state = if event.cached { "cached" } else { "done" };
                last.insert(event.name.to_string(), format!("{state}{by}"));
            }
        }
    }
    let last: Vec<_> = last.into_iter().map(|(name, state)| format!("{name}: {state}")).collect();
    // Keys of sources are computed, which shows as work done.
    let want = [
        "abc-1: done",
        "copy abc-1: cached",
        "image: done",
        "run 0 abc-1: cached",
        "run 1 abc-1: cached Definition Local",
    ];
    assert_eq!(last, want);
}

/// Runs until let go, or cancelled.
#[derive(Debug, Default)]
struct Slow {
    started: Notify,
    go: Notify,
    log: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct SlowOp(Arc<Slow>);

#[async_trait]
impl Op for SlowOp {
    async fn cache_map(&self, _: &OpContext, _: usize) -> Result<CacheMapPart, OpError> {
        let digest = KeyDigest::Stable(Digest::of("slow"));
        Ok(CacheMapPart { map: CacheMap { digest, deps: Vec::new() }, last: true })
    }

    async fn content_key(&self, _: &OpContext, _: usize, _: Option<&ResultRef>) -> Result<Digest, OpError> {
        Err(OpError::failed("not wanted"))
    }

    async fn exec(
        &self,
        cx: &OpContext,
        _: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        self.0.log.lock().unwrap().push("run".to_owned());
        cx.progress.log(Stream::Stdout, b"hello");
        self.0.started.notify_one();
        tokio::select! {
            () = self.0.go.notified() => Ok(vec![None]),
            () = cx.cancel.cancelled() => {
                self.0.log.lock().unwrap().push("cancelled".to_owned());
                Err(OpError::cancelled())
            }
        }
    }
}

fn slow(op: &Arc<Slow>, name: &str) -> Graph {
    let vertex = Vertex {
        digest: VertexDigest(Digest::of(name)),
        name: name.to_owned(),
        inputs: Vec::new(),
        op: Arc::new(SlowOp(Arc::clone(op))),
        options: VertexOptions::default(),
    };
    Graph::new(vec![vertex]).unwrap()
}

const TOP: Edge = Edge { vertex: VertexIndex(0), output: OutputIndex(0) };

#[tokio::test]
async fn work_outlives_who_started_it_but_not_the_last_waiter() {
    let bench = Bench::new();
    let op = Arc::new(Slow::default());
    let one = bench.solver.job("one", Arc::new("one")).unwrap();
    let two = bench.solver.job("two", Arc::new("two")).unwrap();
    let first = one.build(slow(&op, "first"), vec![TOP]);
    let mut second = Box::pin(two.build(slow(&op, "second"), vec![TOP]));
    {
        tokio::pin!(first);
        tokio::select! {
            biased;
            _ = &mut first => panic!("not yet"),
            () = op.started.notified() => {}
        }
        let mut progress = two.progress();
        let mut logged = false;
        while !logged {
            tokio::select! {
                biased;
                _ = &mut second => panic!("not yet"),
                events = progress.next() => {
                    logged = events.unwrap().iter().any(|event| matches!(&**event, ProgressEvent::Log(_)));
                }
            }
        }
    }
    one.discard().await;
    op.go.notify_one();
    let results = second.as_mut().await.unwrap();
    drop(second);
    assert!(results[0].result.is_none());
    assert_eq!(*op.log.lock().unwrap(), ["run"]);

    bench.keys.drop_results(|_| true);
    let three = bench.solver.job("three", Arc::new(())).unwrap();
    two.discard().await;
    let op = Arc::new(Slow::default());
    tokio::select! {
        biased;
        _ = three.build(slow(&op, "third"), vec![TOP]) => panic!("not yet"),
        () = op.started.notified() => {}
    }
    three.discard().await;
    bench.solver.close().await;
    assert_eq!(*op.log.lock().unwrap(), ["run", "cancelled"]);
}

#[tokio::test]
async fn memory_keys_conform() {
    let mut count = 0;
    conformance(&MemoryKeys::new(), async || {
        count += 1;
        Arc::new(Value(format!("value {count}"))) as ResultRef
    })
    .await;
}

/// A solver, and a cache made by another one that built the same before.
async fn imported(context: &str, length: u32) -> (Bench, Arc<MemorySource>) {
    let mut elsewhere = Bench::new();
    let runs = elsewhere.runs.clone();
    elsewhere.build(chain(&runs, context, length)).await;
    (Bench::new(), Arc::new(MemorySource::new("import", elsewhere.keys)))
}

impl Bench {
    /// As `build`, with imports.
    async fn build_with(
        &mut self,
        sources: &[&Arc<MemorySource>],
        vertices: Vec<Vertex>,
    ) -> (String, String, Vec<Outcome>) {
        self.jobs += 1;
        let before = self.runs.lock().unwrap().clone();
        let job = self.solver.job(&format!("job{}", self.jobs), Arc::new(())).unwrap();
        sources.iter().for_each(|source| job.import((*source).clone()));
        let top = Edge { vertex: VertexIndex(vertices.len() as u32 - 1), output: OutputIndex(0) };
        let results = job.build(Graph::new(vertices).unwrap(), vec![top]).await.unwrap();
        let text = Value::text(results[0].result.as_ref()).to_owned();
        let outcomes = results.iter().map(|result| result.outcome.clone()).collect();
        job.discard().await;
        let runs = self.runs.lock().unwrap();
        let ran =
            runs.iter().filter(|(label, count)| before.get(*label).copied().unwrap_or_default() < **count);
        let mut ran: Vec<_> = ran.map(|(label, _)| label.clone()).collect();
        ran.sort();
        (text, ran.join(" "), outcomes)
    }
}

#[tokio::test]
async fn imported_results_are_found_and_kept() {
    let (mut bench, source) = imported("abc-1", 3).await;
    let runs = bench.runs.clone();
    let (text, ran, outcomes) = bench.build_with(&[&source], chain(&runs, "abc-2", 3)).await;
    assert_eq!(text, "run2(run1(run0(copy(image(),abc))))");
    assert_eq!(ran, "abc-2", "the context is looked into, nothing else is made");
    let Outcome::Hit(hit) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(hit.origin, Origin::Imported("import".into()));
    assert_eq!(source.counts().1, 1, "only the last result is opened");
    // Without the import, what was taken over is found by its own chain.
    let (again, ran, outcomes) = bench.build_with(&[], chain(&runs, "abc-3", 3)).await;
    assert_eq!((again, ran.as_str()), (text, "abc-3"));
    let Outcome::Hit(hit) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(hit.origin, Origin::Local);
}

#[tokio::test]
async fn a_step_on_an_imported_result_is_found_again() {
    let (mut bench, source) = imported("abc-1", 2).await;
    let runs = bench.runs.clone();
    let (_, ran, _) = bench.build_with(&[&source], chain(&runs, "abc-2", 3)).await;
    assert_eq!(ran, "abc-2 run2");
    let (_, ran, _) = bench.build_with(&[], chain(&runs, "abc-3", 3)).await;
    assert_eq!(ran, "abc-3");
    let (_, ran, _) = bench.build_with(&[&source], chain(&runs, "abc-4", 3)).await;
    assert_eq!(ran, "abc-4");
}

#[tokio::test]
async fn many_imports_are_asked_at_once() {
    let (mut bench, first) = imported("abc-1", 1).await;
    let (_, second) = imported("xyz-1", 2).await;
    let second = Arc::new(MemorySource::new("second", {
        let mut elsewhere = Bench::new();
        let runs = elsewhere.runs.clone();
        elsewhere.build(chain(&runs, "xyz-1", 2)).await;
        drop(second);
        elsewhere.keys
    }));
    let runs = bench.runs.clone();
    let (text, ran, _) = bench.build_with(&[&first, &second], chain(&runs, "xyz-2", 2)).await;
    assert_eq!((text.as_str(), ran.as_str()), ("run1(run0(copy(image(),xyz)))", "xyz-2"));
    let (_, ran, _) = bench.build_with(&[&first, &second], chain(&runs, "abc-2", 2)).await;
    assert_eq!(ran, "abc-2 run1");
}

#[tokio::test]
async fn an_import_that_answers_late_holds_up_its_own_build_only() {
    let (mut bench, source) = imported("abc-1", 1).await;
    let source = Arc::new(Arc::into_inner(source).unwrap().closed());
    let runs = bench.runs.clone();
    let job = bench.solver.job("slow", Arc::new(())).unwrap();
    job.import(source.clone());
    let slow = job.build(
        Graph::new(chain(&runs, "abc-2", 1)).unwrap(),
        vec![Edge { vertex: VertexIndex(3), output: OutputIndex(0) }],
    );
    let mut slow = Box::pin(slow);
    assert!(futures::poll!(&mut slow).is_pending());
    let (_, ran, _) = bench.build_with(&[], chain(&runs, "xyz-1", 1)).await;
    assert_eq!(ran, "copy image run0 xyz-1");
    assert!(futures::poll!(&mut slow).is_pending());
    source.open();
    slow.as_mut().await.unwrap();
    drop(slow);
    assert_eq!(runs.lock().unwrap().get("run0").copied(), Some(1));
    // A build that is given up does not wait for it either.
    let never = Arc::new(MemorySource::new("never", Arc::new(MemoryKeys::new())).closed());
    job.import(never);
    job.discard().await;
}

#[tokio::test]
async fn imported_results_that_are_gone_are_made() {
    let mut elsewhere = Bench::new();
    let runs = elsewhere.runs.clone();
    elsewhere.build(chain(&runs, "abc-1", 2)).await;
    elsewhere.keys.break_results(|_| true);
    let source = Arc::new(MemorySource::new("import", elsewhere.keys));
    let mut bench = Bench::new();
    let runs = bench.runs.clone();
    let (text, ran, _) = bench.build_with(&[&source], chain(&runs, "abc-2", 2)).await;
    assert_eq!(text, "run1(run0(copy(image(),abc)))");
    assert_eq!(ran, "abc-2 copy image run0 run1");
}

#[tokio::test]
async fn the_memory_source_keeps_the_contract() {
    let mut made = 0;
    let value = |text: &str| Arc::new(Value(text.to_owned())) as ResultRef;
    let make = async |entries: &[testing::SourceEntry]| {
        made += 1;
        let keys = MemoryKeys::new();
        let mut ids: Vec<KeyId> = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let Ok(output) = u32::try_from(entry.output) else {
                ids.push(KeyId::content(&entry.digest));
                continue;
            };
            let way = |(selector, at): &(Option<Digest>, usize)| KeyAndSelector {
                key: ids[*at].clone(),
                selector: *selector,
            };
            let key = NewKey {
                digest: entry.digest.into(),
                output: OutputIndex(output),
                deps: entry.inputs.iter().map(|ways| ways.iter().map(way).collect()).collect(),
            };
            let id = match entry.result {
                true => keys.save(&[key], Some(&value(&format!("{index}")))).await.unwrap().remove(0),
                false => {
                    // A result that is gone leaves its key.
                    let gone = value("gone");
                    let id = keys.save(&[key], Some(&gone)).await.unwrap().remove(0);
                    keys.lost(&gone).await.unwrap();
                    id
                }
            };
            ids.push(id);
        }
        MemorySource::new(&format!("source{made}"), Arc::new(keys))
    };
    testing::source_conformance(make).await;
}

/// A stage that is copied from and mounted, with a result for the last step only, as in exports of mode min.
fn two_ways(runs: &Runs, context: &str) -> Vec<Vertex> {
    let mut local = Script::new(context, 0);
    local.random = true;
    let mut copy = Script::new("copy", 2).content(1);
    copy.content_prefix = 3;
    let from = Script::new("from", 2).content(1);
    let bind = Script::new("bind", 2).content(1);
    vec![
        Script::new("image", 0).vertex("image", &[], runs),
        local.vertex(context, &[], runs),
        copy.vertex(&format!("copy {context}"), &[(0, 0), (1, 0)], runs),
        Script::new("run", 1).vertex(&format!("run {context}"), &[(2, 0)], runs),
        from.vertex(&format!("from {context}"), &[(0, 0), (3, 0)], runs),
        bind.vertex(&format!("bind {context}"), &[(4, 0), (3, 0)], runs),
    ]
}

#[tokio::test]
async fn keys_found_by_content_further_down_lead_up_on_all_ways() {
    let mut bench = Bench::new();
    let runs = bench.runs.clone();
    bench.build(two_ways(&runs, "abc-1")).await;
    bench.keys.drop_results(|result| !Value::text(result).starts_with("bind"));
    let source = Arc::new(MemorySource::new("import", bench.keys.clone()));
    let (_, ran) = bench.build(two_ways(&runs, "abc-2")).await;
    assert_eq!(ran, "abc-2:1");
    let mut other = Bench::new();
    let runs = other.runs.clone();
    let (_, ran, _) = other.build_with(&[&source], two_ways(&runs, "abc-3")).await;
    assert_eq!(ran, "abc-3");
}
