use std::error::Error;
use std::fs;
use std::path::Path;

use kiln_llb::{Message, Schema, pb, render};
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
    let granted = GrantedEntitlements::new(names.map(|n| n.as_str().unwrap().to_owned()));
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
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../llb/testdata/llb");
    let mut count = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "pb") {
            continue;
        }
        let definition = pb::Definition::decode(fs::read(&path).unwrap().as_slice()).unwrap();
        let case: Value = serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap();
        check(path.file_stem().unwrap().to_str().unwrap(), &definition, &case);
        count += 1;
    }
    assert_eq!(count, 139);
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

#[test]
fn deep_graphs_need_neither_stack_nor_long_names() {
    let definition = deep(5000);
    let (platform, granted) = (host(), GrantedEntitlements::default());
    let graph = block_on(load(&definition, &LoadOptions::new(&platform, &granted))).unwrap();
    assert_eq!(graph.vertices.len(), 5001);
    assert!(graph.vertices.iter().all(|v| v.name.len() < 200 << 10));
}
