use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::choose::nearest;
use super::study::{InputFacts, RunFacts};
use crate::testing::{MemoryKeys, Value, memo_conformance};
use crate::*;

fn fingerprint(text: &str) -> Fingerprint {
    let mut fingerprint = Fingerprint::default();
    for entry in text.split(';').filter(|entry| !entry.is_empty()) {
        let (name, value) = entry.split_once('=').unwrap();
        match (name.split_once('.'), value.strip_prefix('!')) {
            (_, Some(secret)) => fingerprint.add_hidden("", name, secret),
            (Some((part, name)), None) => fingerprint.add_to(part, name, value),
            (None, None) => fingerprint.add(name, value),
        }
    }
    fingerprint
}

#[track_caller]
fn check(then: &str, now: &str, want: &str) {
    let show = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let changes = fingerprint(now).changes_from(&fingerprint(then));
    let shown = changes.into_iter().map(|change| {
        let hidden = if change.hidden { " hidden" } else { "" };
        format!("{}: {} > {}{hidden}", change.name, show(change.was), show(change.is))
    });
    assert_eq!(shown.collect::<Vec<_>>().join("; "), want, "{then} -> {now}");
}

#[test]
fn components_are_compared_by_name() {
    check("a=1;b=2", "a=1;b=2", "");
    check("a=1;b=2", "a=1;b=3", "b: 2 > 3");
    check("a=1;b=2", "b=2;a=1", "");
    check("a=1;c=3", "a=1;b=2;c=3", "b: - > 2");
    check("a=1;b=2", "b=3", "b: 2 > 3; a: 1 > -");
    check("env T=!one", "env T=!two", "env T:  >  hidden");
    check("env T=!one", "env T=!one", "");
    check("mount /a.type=bind;mount /a.id=x", "mount /a.type=bind;mount /a.id=y", "id of mount /a: x > y");
    check("mount /a.type=bind;mount /a.id=x", "mount /b.type=bind;mount /b.id=x", "name of a mount: /a > /b");
    check("mount /a.type=bind", "mount /a.type=bind;mount /b.type=bind", "mount /b: - > ");
    check("mount /a.type=bind;mount /b.x=1;mount /b.y=1", "mount /a.type=bind", "mount /b:  > -");
    check("mount /a.type=bind", "host /b.type=bind", "host /b: - > ; mount /a:  > -");
}

#[test]
fn a_fingerprint_is_small_whatever_is_in_it() {
    let many = |changed: usize| {
        let mut fingerprint = Fingerprint::default();
        for index in 0..5000 {
            let value = if index == changed { "y".repeat(5000) + "!" } else { "y".repeat(5000) };
            fingerprint.add(&format!("{index}{}", "x".repeat(1000)), &value);
        }
        fingerprint
    };
    let fingerprint = many(usize::MAX);
    let size = |c: &Component| c.name.len() + c.part.len() + c.shown.as_ref().map_or(0, String::len);
    assert!(fingerprint.components().iter().map(size).sum::<usize>() < 100_000);
    for changed in [0, 100, 255, 256, 4999] {
        assert_eq!(many(changed).changes_from(&fingerprint).len(), 1, "component {changed} is compared");
    }
}

fn alternative(key: &str) -> KeyAndSelector {
    KeyAndSelector { key: KeyId::new(key), selector: None }
}

fn remembered(name: &str, print: &str, deps: &[&[&str]], age: u64) -> Remembered {
    let inputs = deps.iter().map(|_| MemoInput::new("below", None)).collect();
    Remembered {
        memo: Memo::new(name, fingerprint(print), inputs),
        key: KeyId::new("k"),
        digest: kiln_digest::Digest::of("op").into(),
        deps: deps.iter().map(|keys| keys.iter().map(|key| alternative(key)).collect()).collect(),
        created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(age),
        gone: None,
    }
}

#[test]
fn the_nearest_has_the_fewest_differences() {
    let input = |name: &str, key: &str| InputFacts {
        name: name.to_owned(),
        offered: vec![alternative(key)],
        content: false,
        anew: false,
    };
    let facts = RunFacts {
        name: "me".to_owned(),
        digests: vec![kiln_digest::Digest::of("op").into()],
        output: OutputIndex(0),
        forced: false,
        inputs: vec![input("first", "a"), input("second", "random:b")],
    };
    let check = |candidates: &[Remembered], want: &str| {
        let near = nearest(candidates.to_vec(), &facts, &fingerprint("x=1;y=2")).unwrap();
        let shown: Vec<_> = near
            .differences(&facts)
            .iter()
            .map(|d| match d {
                Difference::Op(change) => change.name.clone(),
                Difference::Input { index, .. } | Difference::Content { index, .. } => index.to_string(),
            })
            .collect();
        assert_eq!(format!("{}: {}", near.remembered.memo.name, shown.join(" ")), want);
    };
    let deps: &[&[&str]] = &[&["other", "a"], &["random:b"]];
    check(&[remembered("one", "x=1;y=2", deps, 1)], "one: 1");
    check(&[remembered("one", "x=1;y=9", deps, 1), remembered("two", "x=1;y=2", deps, 0)], "two: 1");
    check(&[remembered("old", "x=1;y=2", deps, 1), remembered("new", "x=1;y=2", deps, 2)], "new: 1");
    check(&[remembered("me", "x=1;y=2", deps, 1), remembered("new", "x=1;y=2", deps, 2)], "me: 1");
    check(&[remembered("few", "x=2;y=2", &[&["z"]], 1)], "few: x 0 1");
}

#[tokio::test]
async fn memory_keeps_the_contract_of_memos() {
    let mut made = 0;
    memo_conformance(&MemoryKeys::new(), async || {
        made += 1;
        Arc::new(Value(made.to_string())) as ResultRef
    })
    .await;
}

/// An op that is what its fingerprint says, and whose listings are its inputs' texts.
#[derive(Debug)]
struct Told {
    fingerprint: Fingerprint,
    digest: KeyDigest,
    deps: Vec<Dep>,
}

#[async_trait]
impl Op for Told {
    async fn cache_map(&self, _: &OpContext, _: usize) -> Result<CacheMapPart, OpError> {
        let map = CacheMap { digest: self.digest, deps: self.deps.clone() };
        Ok(CacheMapPart { map, last: true })
    }

    async fn content_key(
        &self,
        _: &OpContext,
        _: usize,
        result: Option<&ResultRef>,
    ) -> Result<kiln_digest::Digest, OpError> {
        Ok(kiln_digest::Digest::of(Value::text(result)))
    }

    async fn exec(
        &self,
        _: &OpContext,
        inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        let inputs: Vec<_> = inputs.iter().map(|input| Value::text(input.as_ref())).collect();
        let print: Vec<_> = self.fingerprint.components().iter().filter_map(|c| c.shown.clone()).collect();
        Ok(vec![Some(Arc::new(Value(format!("{}({})", print.join(" "), inputs.join(",")))))])
    }

    async fn fingerprint(&self, _: &OpContext) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn listing(&self, _: &OpContext, _: usize, result: Option<&ResultRef>) -> Option<Vec<u8>> {
        Some(Value::text(result).as_bytes().to_vec())
    }

    async fn content_change(
        &self,
        _: &OpContext,
        _: usize,
        _: Option<&ResultRef>,
        then: &[u8],
        now: &[u8],
    ) -> Option<ContentChange> {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Some(ContentChange::new("/", "content").values(text(then), text(now)))
    }
}

/// `name key inputs options`, joined by ` | `; an input is a position, with `c` if its content counts.
fn graph(text: &str) -> Graph {
    let vertices = text.split(" | ").enumerate().map(|(index, line)| {
        let mut words = line.split(' ');
        let (name, print) = (words.next().unwrap(), words.next().unwrap());
        let (mut inputs, mut deps) = (Vec::new(), Vec::new());
        let mut options = VertexOptions::default();
        let mut random = false;
        for word in words {
            match word {
                "anew" => options.ignore_cache = true,
                "random" => random = true,
                input => {
                    let place = input.trim_end_matches('c').parse().unwrap();
                    inputs.push(Edge { vertex: VertexIndex(place), output: OutputIndex(0) });
                    deps.push(Dep { selector: None, content: input.ends_with('c') });
                }
            }
        }
        let digest = kiln_digest::Digest::of(print);
        let digest = if random { KeyDigest::Random(digest) } else { KeyDigest::Stable(digest) };
        Vertex {
            digest: VertexDigest(kiln_digest::Digest::of(format!("{index}{line}"))),
            name: name.to_owned(),
            inputs,
            op: Arc::new(Told { fingerprint: fingerprint(print), digest, deps }),
            options,
        }
    });
    Graph::new(vertices.collect()).unwrap()
}

fn shown(miss: &Miss) -> String {
    match miss {
        Miss::Same { gone, .. } => format!("same {:?}", gone.map(|(_, why)| why)),
        Miss::Differs { name, differences, further, .. } => {
            let show = |difference: &Difference| match difference {
                Difference::Op(change) => change.name.clone(),
                Difference::Input { index, anew, .. } => {
                    format!("input {index}{}", if *anew { " anew" } else { "" })
                }
                Difference::Content { index, change, .. } => {
                    let change = change.as_ref().unwrap();
                    let values = (change.was.as_deref().unwrap(), change.is.as_deref().unwrap());
                    format!("content of {index} {} > {}", values.0, values.1)
                }
            };
            assert_eq!(*further, 0);
            format!("{name} {}", differences.iter().map(show).collect::<Vec<_>>().join(" "))
        }
        other => format!("{other:?}"),
    }
}

/// Builds the graphs one after the other with one store; returns the reasons of the last one.
async fn reasons(graphs: &[&str], before_last: impl FnOnce(&MemoryKeys)) -> String {
    let keys = Arc::new(MemoryKeys::new());
    let solver = Solver::new(keys.clone(), SolverOptions::default());
    let mut before_last = Some(before_last);
    let mut last = String::new();
    for (index, text) in graphs.iter().enumerate() {
        if index + 1 == graphs.len() {
            before_last.take().unwrap()(&keys);
        }
        let job = solver.job(&format!("job{index}"), Arc::new(())).unwrap();
        let graph = graph(text);
        let top = VertexIndex(graph.vertices().len() as u32 - 1);
        job.build(graph, vec![Edge { vertex: top, output: OutputIndex(0) }]).await.unwrap();
        let mut progress = job.progress();
        job.discard().await;
        let mut all = Vec::new();
        while let Some(events) = progress.next().await {
            for event in events {
                if let ProgressEvent::Vertex(event) = &*event
                    && let VertexEvent { name, miss: Some(miss), .. } = &**event
                {
                    all.push(format!("{name}: {}", shown(miss)));
                }
            }
        }
        last = all.join("; ");
    }
    last
}

#[tokio::test]
async fn each_miss_has_its_reason() {
    let first = "src s=1 | step x=1;y=2 0 | top t=1 1";
    for (then, now, want) in [
        (first, first, ""),
        ("other o=1", first, "src: New; step: New; top: New"),
        (first, "src s=1 | step x=1;y=3 0 | top t=1 1", "step: step y; top: top input 0"),
        (first, "src s=1 | renamed x=1;y=3 0 | top t=1 1", "renamed: step y; top: top input 0"),
        (first, "src s=2 | step x=1;y=2 0 | top t=1 1", "src: src s; step: step input 0; top: top input 0"),
        (first, "src s=1 | step x=1;y=2 0 anew | top t=1 1", "top: top input 0 anew"),
        (first, "src s=1 | step x=1;y=2 0 | top t=1 1 1", "top: top input 1"),
        (
            "src s=1 random | copy x=1 0c",
            "src s=2 random | copy x=1 0c",
            "src: Session; copy: copy content of 0 1() > 2()",
        ),
        ("src s=1 random | copy x=1 0c", "src s=1 random | copy x=1 0c", ""),
    ] {
        assert_eq!(reasons(&[then, now], |_| ()).await, want, "{then}\n{now}");
    }
}

#[tokio::test]
async fn what_was_pruned_is_said_to_be() {
    let graph = "src s=1 | step x=1 0 | top t=1 1";
    let pruned = reasons(&[graph, graph], |keys| keys.drop_results(|_| true)).await;
    assert_eq!(pruned, "src: same Some(Pruned); step: same Some(Pruned); top: same Some(Pruned)");
    let lost = reasons(&[graph, graph], |keys| keys.break_results(|_| true)).await;
    assert_eq!(lost, "src: same Some(Lost); step: same Some(Lost); top: same Some(Lost)");
}
