use std::error::Error;
use std::fs;
use std::path::Path;

use kiln_llb::{Message, Schema, pb, render};
use kiln_vectors::Vectors;
use prost::Message as _;
use serde_json::{Map, Value, json};

use crate::keys::op_key;
use crate::load::{GrantedEntitlements, LoadOptions, LoadedVertex, load};

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn host() -> pb::Platform {
    pb::Platform { architecture: "amd64".to_owned(), os: "linux".to_owned(), ..Default::default() }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `platform` asks for the platform even if it looks unchanged, because unknown fields were dropped from it.
fn render_vertex(vertex: &LoadedVertex, sent: &pb::Op, platform: bool) -> Value {
    let mut out = Map::new();
    out.insert("digest".into(), json!(vertex.digest.to_string()));
    out.insert("sent".into(), json!(vertex.sent.to_string()));
    out.insert("name".into(), json!(vertex.name));
    let mut options = Map::new();
    if vertex.ignore_cache {
        options.insert("ignore_cache".into(), json!(true));
    }
    if let Some(export) = vertex.export_cache {
        options.insert("export_cache".into(), json!(export));
    }
    if !options.is_empty() {
        out.insert("options".into(), Value::Object(options));
    }
    if let (Some(pb::op::Op::Source(now)), Some(pb::op::Op::Source(then))) = (&vertex.op.op, &sent.op)
        && now.identifier != then.identifier
    {
        out.insert("identifier".into(), json!(now.identifier));
    }
    if platform || vertex.op.platform != sent.platform {
        let platform = vertex.op.platform.as_ref().unwrap();
        let message = Message::of(Schema::llb(), "pb.Platform", platform).unwrap();
        out.insert("platform".into(), render::message(&message).unwrap());
    }
    match op_key(&vertex.op) {
        Ok(None) => {}
        Ok(Some(key)) => {
            let deps: Vec<Value> = key
                .deps
                .iter()
                .map(|dep| {
                    let selector = dep.selector.map(|s| s.to_string()).unwrap_or_default();
                    json!({"content_func": dep.content.is_some(), "selector": selector})
                })
                .collect();
            // Go leaves a list that never got an element as null.
            let deps = if deps.is_empty() { Value::Null } else { Value::Array(deps) };
            out.insert("cache_map".into(), json!({"deps": deps, "digest": key.digest.to_string()}));
        }
        Err(error) => {
            let error = squeeze(&chain(&error));
            out.insert("cache_map".into(), json!({"deps": null, "digest": "", "error": error}));
        }
    }
    Value::Object(out)
}

fn expected(want: &Value) -> Value {
    let mut want = want.clone();
    if let Some(map) = want.get_mut("cache_map") {
        if let Some(error) = map.get("error").and_then(Value::as_str).map(squeeze) {
            map["error"] = json!(error);
        }
        if map["deps"].as_array().is_some_and(Vec::is_empty) {
            map["deps"] = Value::Null;
        }
    }
    want
}

fn check(name: &str, definition: &pb::Definition, case: &Value) {
    let names = case["entitlements"].as_array().into_iter().flatten();
    let granted = GrantedEntitlements::new(names.map(|n| n.as_str().unwrap().to_owned())).unwrap();
    let platform = host();
    let options = LoadOptions::new(&platform, &granted)
        .with_proxy_network(case["proxy_network"].as_bool().unwrap_or_default());
    let want = &case["load"];
    let graph = match block_on(load(definition, &options)) {
        Ok(graph) => graph,
        Err(error) => {
            assert_eq!(Some(chain(&error).as_str()), want["error"].as_str(), "{name}");
            return;
        }
    };
    let target = graph.target().unwrap();
    assert_eq!(
        json!({"digest": target.digest.to_string(), "index": graph.edge.output}),
        want["edge"],
        "{name}"
    );
    let pruned = (!graph.pruned_cache_ids.is_empty()).then(|| json!(graph.pruned_cache_ids));
    assert_eq!(pruned.as_ref(), want.get("pruned_cache_ids"), "{name}");
    let wanted = want["vertexes"].as_array().unwrap();
    assert_eq!(graph.vertices.len(), wanted.len(), "{name}");
    for want in wanted {
        let digest = want["digest"].as_str().unwrap();
        let vertex = graph.vertices.iter().find(|v| v.digest.to_string() == digest);
        let vertex = vertex.unwrap_or_else(|| panic!("{name}: no vertex {digest}"));
        let sent = definition.entries().map(Result::unwrap).find(|e| e.digest == vertex.sent).unwrap();
        assert_eq!(render_vertex(vertex, &sent.op, name == "enc-unknown-nested"), expected(want), "{name}");
    }
}

#[test]
fn recorded_definitions_load_as_in_the_reference() {
    let mut vectors = Vectors::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../llb/testdata/llb"));
    for entry in fs::read_dir(vectors.dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "pb") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        vectors.check(name, || {
            let definition = pb::Definition::decode(fs::read(&path).unwrap().as_slice()).unwrap();
            let case = serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap();
            check(name, &definition, &case);
            Ok(())
        });
    }
    vectors.finish(139);
}

/// A chain of `length` merges of the vertex before with itself.
fn deep(length: usize) -> pb::Definition {
    let source = pb::SourceOp { identifier: "local://x".to_owned(), ..Default::default() };
    let op = pb::Op { op: Some(pb::op::Op::Source(source)), ..Default::default() };
    let mut def = vec![kiln_llb::marshal_op(&op).unwrap()];
    for _ in 0..length {
        let digest = kiln_llb::VertexDigest::of(def.last().unwrap()).to_string();
        let input = pb::Input { digest, index: 0 };
        let merge = pb::MergeOp { inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }] };
        let op = pb::Op {
            inputs: vec![input.clone(), input],
            op: Some(pb::op::Op::Merge(merge)),
            ..Default::default()
        };
        def.push(kiln_llb::marshal_op(&op).unwrap());
    }
    let digest = kiln_llb::VertexDigest::of(def.last().unwrap()).to_string();
    let last = pb::Op { inputs: vec![pb::Input { digest, index: 0 }], ..Default::default() };
    def.push(kiln_llb::marshal_op(&last).unwrap());
    def.reverse();
    // The last entry must be the final vertex; the others may come in any order.
    let last = def.remove(0);
    def.push(last);
    pb::Definition { def, ..Default::default() }
}

fn try_load(definition: &pb::Definition) -> Result<crate::load::LoadedGraph, String> {
    let (platform, granted) = (host(), GrantedEntitlements::default());
    block_on(load(definition, &LoadOptions::new(&platform, &granted))).map_err(|error| chain(&error))
}

#[test]
fn deep_graphs_need_neither_stack_nor_long_names() {
    let graph = try_load(&deep(10_000)).unwrap();
    assert_eq!(graph.vertices.len(), 10_001);
    let names: usize = graph.vertices.iter().map(|vertex| vertex.name.len()).sum();
    assert!(names < 10_001 * 2100, "{names}");
}

#[test]
fn a_diamond_costs_a_vertex_a_level() {
    assert_eq!(try_load(&deep(20)).unwrap().vertices.len(), 21);
}

fn op(inputs: &[&str], kind: Option<pb::op::Op>) -> Vec<u8> {
    let inputs = inputs.iter().map(|digest| pb::Input { digest: (*digest).to_owned(), index: 0 }).collect();
    kiln_llb::marshal_op(&pb::Op { inputs, op: kind, ..Default::default() }).unwrap()
}

fn source(name: usize) -> Vec<u8> {
    let identifier = format!("local://{name}");
    op(&[], Some(pb::op::Op::Source(pb::SourceOp { identifier, ..Default::default() })))
}

fn digest(bytes: &[u8]) -> String {
    kiln_llb::VertexDigest::of(bytes).to_string()
}

/// `def` and a final vertex on its last entry.
fn on(mut def: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let last = digest(def.last().unwrap());
    def.push(op(&[&last], None));
    def
}

#[test]
fn wide_graphs_load_in_any_order() {
    let mut def: Vec<Vec<u8>> = (0..20_000).map(source).collect();
    let digests: Vec<String> = def.iter().map(|bytes| digest(bytes)).collect();
    let inputs: Vec<&str> = digests.iter().map(String::as_str).collect();
    let merge = pb::MergeOp { inputs: (0..20_000).map(|input| pb::MergeInput { input }).collect() };
    def.insert(0, op(&inputs, Some(pb::op::Op::Merge(merge))));
    let last = op(&[&digest(&def[0])], None);
    def.push(last);
    let graph = try_load(&pb::Definition { def, ..Default::default() }).unwrap();
    assert_eq!(graph.vertices.len(), 20_001);
}

#[test]
fn what_cannot_be_loaded() {
    let nowhere = digest(b"nowhere");
    let negative =
        pb::Op { inputs: vec![pb::Input { digest: digest(&source(0)), index: -1 }], ..Default::default() };
    let exec = |meta: Option<pb::Meta>, mounts: &[&str]| {
        let mounts = mounts.iter().map(|dest| pb::Mount { dest: (*dest).to_owned(), ..Default::default() });
        op(
            &[],
            Some(pb::op::Op::Exec(Box::new(pb::ExecOp {
                meta,
                mounts: mounts.collect(),
                ..Default::default()
            }))),
        )
    };
    let meta = |args: &[&str]| {
        Some(pb::Meta { args: args.iter().map(|arg| (*arg).to_owned()).collect(), ..Default::default() })
    };
    let diff = |lower: Option<i64>, upper: Option<i64>| {
        let lower = lower.map(|input| pb::LowerDiffInput { input });
        let upper = upper.map(|input| pb::UpperDiffInput { input });
        op(&[], Some(pb::op::Op::Diff(pb::DiffOp { lower, upper })))
    };
    let nested = |depth: usize| [[0xf3, 0x07].repeat(depth), [0xf4, 0x07].repeat(depth)].concat();
    let pass = pb::PassthroughOp { id: "i".to_owned(), outputs: vec![1] };
    for (what, def, want) in [
        ("nothing", vec![], "invalid empty definition".to_owned()),
        ("too many", vec![Vec::new(); 100_001], "invalid definition with 100001 vertexes".to_owned()),
        (
            "too many inputs",
            on(vec![op(&vec![""; 100_001], None)]),
            "invalid definition with 100001 or more inputs".to_owned(),
        ),
        ("no op", on(vec![vec![0xff]]), "failed to parse llb proto op: unexpected EOF".to_owned()),
        (
            "nested too deep",
            on(vec![nested(101)]),
            "failed to parse llb proto op: exceeded maximum recursion depth".to_owned(),
        ),
        (
            "an output below zero",
            vec![source(0), kiln_llb::marshal_op(&negative).unwrap()],
            "invalid input 0 output index -1".to_owned(),
        ),
        (
            "a dangling input",
            on(vec![op(&[&nowhere], None)]),
            format!("invalid missing input digest {nowhere}"),
        ),
        (
            "a digest that is none",
            on(vec![op(&["sha256:xyz"], None)]),
            "invalid missing input digest sha256:xyz".to_owned(),
        ),
        // A circle would need digests that cover each other; each is an input that names nothing.
        (
            "a circle",
            on(vec![op(&[&digest(b"second")], None), op(&[&digest(b"first")], None)]),
            format!("invalid missing input digest {}", digest(b"second")),
        ),
        ("one vertex", vec![source(0)], "invalid LLB with 1 vertexes".to_owned()),
        (
            "a last vertex without inputs",
            vec![source(0), source(1)],
            "invalid LLB with no inputs on last vertex".to_owned(),
        ),
        ("exec without meta", on(vec![exec(None, &["/"])]), "invalid exec op with no meta".to_owned()),
        ("exec without args", on(vec![exec(meta(&[]), &["/"])]), "invalid exec op with no args".to_owned()),
        (
            "exec without mounts",
            on(vec![exec(meta(&["a"]), &[])]),
            "invalid exec op with no mounts".to_owned(),
        ),
        (
            "exec without root",
            on(vec![exec(meta(&["a"]), &["/x"])]),
            "invalid exec op with no rootfs".to_owned(),
        ),
        (
            "file without actions",
            on(vec![op(&[], Some(pb::op::Op::File(pb::FileOp::default())))]),
            "invalid file op with no actions".to_owned(),
        ),
        (
            "diff without a side",
            on(vec![diff(Some(-1), None)]),
            "invalid diff op with nil lower or upper input".to_owned(),
        ),
        ("diff of nothing", on(vec![diff(Some(0), Some(-1))]), "invalid diff input index 0".to_owned()),
        (
            "passthrough of nothing",
            on(vec![source(0), op(&[&digest(&source(0))], Some(pb::op::Op::Passthrough(pass)))]),
            "invalid passthrough output input index 1".to_owned(),
        ),
    ] {
        let got = try_load(&pb::Definition { def, ..Default::default() }).map(drop);
        assert_eq!(got, Err(want), "{what}");
    }
}

#[test]
fn capabilities_that_are_not_registered_are_refused_whatever_they_say() {
    let def = on(vec![source(0)]);
    let caps = [("exec.meta.removemountstubs.recursive".to_owned(), false)].into();
    let metadata = [(digest(&def[0]), pb::OpMetadata { caps, ..Default::default() })].into();
    let got = try_load(&pb::Definition { def, metadata, ..Default::default() }).map(drop);
    assert_eq!(got, Err("unknown API capability exec.meta.removemountstubs.recursive".to_owned()));
}
