use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use kiln_digest::Digest;
use kiln_frontend::testing::{Recorded, format_platform};
use kiln_frontend::{Error, FrontendResult, Reference, References, ResolveMode, pb};
use prost::Message;
use serde_json::{Value, json};

type Solved = Result<FrontendResult, Error>;

fn read_json(case: &Path, name: &str) -> Option<Value> {
    Some(serde_json::from_str(&std::fs::read_to_string(case.join(name)).ok()?).unwrap())
}

/// Compares everything that was recorded of a case with what happened.
pub(crate) fn compare(case: &Path, solved: Solved, recorded: &Recorded, wrong: &mut String) {
    let forwarded = recorded.solves.iter().find(|solve| !solve.frontend.is_empty());
    match (&solved, read_json(case, "error.json"), read_json(case, "llb.json")) {
        _ if forwarded.is_some() || case.join("forward.json").exists() => {
            let got = forwarded.map(|solve| {
                let inputs: Vec<&String> = solve.inputs.keys().collect();
                json!([{"frontend": solve.frontend, "opts": solve.opts, "inputs": inputs}])
            });
            same("forward", &read_json(case, "forward.json"), &got, wrong);
            return;
        }
        (Err(error), Some(want), _) => compare_error(error, &want, wrong),
        (Ok(_), Some(want), _) => writeln!(wrong, "  no error, want {}", want["message"]).unwrap(),
        (Err(error), None, _) => writeln!(wrong, "  error: {}", error.chain()).unwrap(),
        (Ok(result), None, Some(want)) => compare_llb(result, &want, wrong),
        (Ok(result), None, None) => compare_answer(case, result, wrong),
    }
    if let (Ok(result), Some(want)) = (&solved, read_json(case, "image.json")) {
        compare_metadata(result, &want, wrong);
    }
    let want = read_json(case, "warnings.json").unwrap_or_else(|| json!([]));
    same("warnings", &want, &warnings(recorded), wrong);
    if let Some(want) = read_json(case, "requests.json") {
        let mut want = as_set(&want);
        if solved.is_err() {
            // What was asked for at the same time as what failed is a matter of timing.
            want.retain(|entry| requests(recorded).contains(entry));
        }
        same_set("requests", &want, &requests(recorded), wrong);
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, want: &T, got: &T, wrong: &mut String) {
    if want != got {
        writeln!(wrong, "  {what}\n    want {want:?}\n    got  {got:?}").unwrap();
    }
}

fn same_set(what: &str, want: &BTreeSet<String>, got: &BTreeSet<String>, wrong: &mut String) {
    for entry in want.difference(got) {
        writeln!(wrong, "  {what}: missing {entry}").unwrap();
    }
    for entry in got.difference(want) {
        writeln!(wrong, "  {what}: extra {entry}").unwrap();
    }
}

/// Long runs of one letter are recorded as their number.
fn shortened(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("aaaa") {
        let run = rest[at..].bytes().take_while(|&b| b == b'a').count();
        out.push_str(&rest[..at]);
        if run >= 1000 {
            write!(out, "<a*{run}>").unwrap()
        } else {
            out.push_str(&rest[at..at + run])
        }
        rest = &rest[at + run..];
    }
    out + rest
}

fn ranges(ranges: &[pb::Range]) -> Value {
    let position = |position: Option<pb::Position>| position.unwrap_or_default();
    let range = |range: &pb::Range| {
        let (start, end) = (position(range.start), position(range.end));
        json!([start.line, start.character, end.line, end.character])
    };
    ranges.iter().map(range).collect()
}

fn compare_error(error: &Error, want: &Value, wrong: &mut String) {
    let sorted = |message: &str| match message.split_once("lint violation found for rules: ") {
        None => message.to_owned(),
        Some((before, rules)) => {
            let rules: BTreeSet<&str> = rules.split(", ").collect();
            format!("{before}{rules:?}")
        }
    };
    same("error", &sorted(want["message"].as_str().unwrap()), &sorted(&shortened(&error.chain())), wrong);
    let sources: Value = error
        .sources()
        .iter()
        .map(|source| json!({"filename": source.info.filename, "ranges": ranges(&source.ranges)}))
        .collect();
    same("error sources", &want["sources"], &sources, wrong);
}

fn warnings(recorded: &Recorded) -> Value {
    let warning = |warning: &kiln_frontend::Warning| {
        json!({
            "vertex": warning.vertex, "level": warning.level, "short": shortened(&warning.short),
            "detail": warning.detail, "url": warning.url, "ranges": ranges(&warning.ranges),
            "filename": warning.source.as_ref().map(|source| source.filename.clone()),
        })
    };
    let trimmed = |one: &kiln_frontend::Warning| {
        let mut value = warning(one);
        value.as_object_mut().unwrap().retain(|key, value| key != "url" || *value != json!(""));
        value
    };
    recorded.warnings.iter().map(trimmed).collect()
}

fn as_set(list: &Value) -> BTreeSet<String> {
    // Values with equal content print equally once their keys are sorted.
    let text = |value: &Value| {
        let mut value = sorted(value);
        if let Some(map) = value.as_object_mut() {
            map.retain(|_, value| !value.is_null() && *value != json!({}) && *value != json!("default"));
        }
        value.to_string()
    };
    list.as_array().into_iter().flatten().map(text).collect()
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let map: BTreeMap<&String, Value> = map.iter().map(|(key, value)| (key, sorted(value))).collect();
            json!(map)
        }
        other => other.clone(),
    }
}

fn requests(recorded: &Recorded) -> BTreeSet<String> {
    let mut out = Vec::new();
    for solve in &recorded.solves {
        let Some(definition) = &solve.definition else { continue };
        let ops: Vec<pb::Op> =
            definition.def.iter().map(|op| pb::Op::decode(op.as_slice()).unwrap()).collect();
        let Some(last) = ops.len().checked_sub(2) else { continue };
        let Some(pb::op::Op::Source(source)) = &ops[last].op else { continue };
        let digest = Digest::of(&definition.def[last]).to_string();
        let name = definition.metadata[&digest].description.get("llb.customname");
        out.push(json!({"solve_source": source.identifier, "attrs": source.attrs, "name": name}));
    }
    for resolve in &recorded.resolves {
        let mut entry = json!({"resolve": resolve.source.identifier, "log_name": resolve.log_name});
        if !resolve.source.attrs.is_empty() {
            entry["attrs"] = json!(resolve.source.attrs);
        }
        if let Some(platform) = &resolve.platform {
            let version = match platform.os_version.as_str() {
                "" => String::new(),
                version => format!("({version})"),
            };
            entry["platform"] = json!(format_platform(platform).replacen('/', &format!("{version}/"), 1));
        }
        if let Some(store) = &resolve.oci_store {
            entry["store"] = json!(store.store_id);
        }
        match resolve.resolve_mode {
            ResolveMode::Default => {}
            ResolveMode::ForcePull => entry["resolve_mode"] = json!("pull"),
            ResolveMode::PreferLocal => entry["resolve_mode"] = json!("local"),
        }
        out.push(entry);
    }
    as_set(&Value::Array(out))
}

fn compare_metadata(result: &FrontendResult, want: &Value, wrong: &mut String) {
    let decode = |(key, value): (&String, &Vec<u8>)| {
        let text = String::from_utf8(value.clone()).unwrap();
        (key.clone(), serde_json::from_str(&shortened(&text)).unwrap_or(Value::String(text)))
    };
    let got: serde_json::Map<String, Value> = result.metadata.iter().map(decode).collect();
    let want = want.as_object().unwrap();
    for key in want.keys().chain(got.keys()).collect::<BTreeSet<_>>() {
        let (want, got) = (want.get(key).map(Value::to_string), got.get(key).map(Value::to_string));
        let parse =
            |text: &Option<String>| text.as_ref().map(|text| serde_json::from_str::<Value>(text).unwrap());
        if parse(&want) != parse(&got) {
            writeln!(wrong, "  metadata {key}\n    want {want:?}\n    got  {got:?}").unwrap();
        }
    }
}

fn compare_llb(result: &FrontendResult, want: &Value, wrong: &mut String) {
    let mut got: Vec<(String, &str, Option<pb::Definition>)> = Vec::new();
    let definition =
        |reference: &Option<std::sync::Arc<dyn Reference>>| reference.as_ref().and_then(|r| r.definition());
    match &result.refs {
        References::Single(reference) => got.push((String::new(), "result", definition(reference))),
        References::Map(map) => {
            got.extend(map.iter().map(|(id, reference)| (id.clone(), "result", definition(reference))));
        }
    }
    for (id, attestations) in &result.attestations {
        got.extend(attestations.iter().map(|one| (id.clone(), "attestation", definition(&one.reference))));
    }
    let key = |value: &Value| {
        (value["id"].as_str().unwrap().to_owned(), value["kind"].as_str().unwrap().to_owned())
    };
    let mut wanted: BTreeMap<(String, String), &Value> =
        want["results"].as_array().unwrap().iter().map(|value| (key(value), &value["ops"])).collect();
    for (id, kind, definition) in got {
        match wanted.remove(&(id.clone(), kind.to_owned())) {
            None => writeln!(wrong, "  {kind} `{id}` is not wanted").unwrap(),
            Some(ops) => compare_definition(&definition.unwrap_or_default(), ops, wrong),
        }
    }
    for (id, kind) in wanted.keys() {
        writeln!(wrong, "  {kind} `{id}` is missing").unwrap();
    }
}

fn compare_definition(got: &pb::Definition, want: &Value, wrong: &mut String) {
    let want = want.as_array().unwrap();
    let ops: BTreeMap<String, &Vec<u8>> = got.def.iter().map(|op| (Digest::of(op).to_string(), op)).collect();
    let digests: BTreeSet<&str> = want.iter().map(|op| op["digest"].as_str().unwrap()).collect();
    let mut groups = BTreeMap::new();
    for op in want {
        let digest = op["digest"].as_str().unwrap();
        if !ops.contains_key(digest) {
            writeln!(wrong, "  missing {}", op["op"]).unwrap();
            continue;
        }
        let metadata = got.metadata.get(digest).cloned().unwrap_or_default();
        same(
            &format!("metadata of {}", op["op"]),
            &sorted(&normal(&op["metadata"])),
            &sorted(&meta(&metadata, &mut groups)),
            wrong,
        );
        let locations = got.source.as_ref().and_then(|source| source.locations.get(digest));
        let location = |location: &pb::Location| {
            let index = usize::try_from(location.source_index).unwrap();
            let file = &got.source.as_ref().unwrap().infos[index].filename;
            json!({"source": file, "ranges": ranges(&location.ranges)})
        };
        let locations: Value = locations.into_iter().flat_map(|all| &all.locations).map(location).collect();
        let wanted = op.get("locations").cloned().unwrap_or_else(|| json!([]));
        same("locations", &sorted_list(&wanted), &sorted_list(&locations), wrong);
    }
    for (digest, bytes) in ops.iter().filter(|(digest, _)| !digests.contains(digest.as_str())) {
        let op = pb::Op::decode(bytes.as_slice()).unwrap();
        writeln!(wrong, "  extra {digest} {}", shortened(&format!("{op:?}"))).unwrap();
    }
    let last = got.def.last().map(|op| Digest::of(op).to_string()).unwrap_or_default();
    same("last", &want.last().map_or("", |op| op["digest"].as_str().unwrap()), &last.as_str(), wrong);
}

fn sorted_list(list: &Value) -> Vec<String> {
    let mut list: Vec<String> =
        list.as_array().unwrap().iter().map(|value| sorted(value).to_string()).collect();
    list.sort();
    list
}

/// The recorded form with what it leaves out when empty.
fn normal(metadata: &Value) -> Value {
    let mut out = metadata.clone();
    for key in ["caps", "description"] {
        out[key] = sorted(metadata.get(key).unwrap_or(&json!({})));
    }
    for key in ["progress_group", "linux_resources"] {
        if let Some(value) = metadata.get(key) {
            out[key] = sorted(value);
        }
    }
    out
}

fn meta(metadata: &pb::OpMetadata, groups: &mut BTreeMap<String, String>) -> Value {
    let description: BTreeMap<&String, String> =
        metadata.description.iter().map(|(key, value)| (key, shortened(value))).collect();
    let mut out = json!({"caps": metadata.caps, "description": description});
    if metadata.ignore_cache {
        out["ignore_cache"] = json!(true);
    }
    if let Some(group) = &metadata.progress_group {
        let next = format!("GROUP-{}", groups.len() + 1);
        let id = groups.entry(group.id.clone()).or_insert(next);
        let mut value = json!({"id": id, "name": group.name});
        if group.weak {
            value["weak"] = json!(true);
        }
        out["progress_group"] = sorted(&value);
    }
    if let Some(limits) = &metadata.linux_resources {
        let all = json!({
            "memory": limits.memory, "memorySwap": limits.memory_swap, "cpuShares": limits.cpu_shares,
            "cpuPeriod": limits.cpu_period, "cpuQuota": limits.cpu_quota,
            "cpusetCpus": limits.cpuset_cpus, "cpusetMems": limits.cpuset_mems,
        });
        let given = |(_, value): &(&String, &Value)| **value != json!(0) && **value != json!("");
        let set: serde_json::Map<String, Value> = all
            .as_object()
            .unwrap()
            .iter()
            .filter(given)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        out["linux_resources"] = sorted(&Value::Object(set));
    }
    out
}

fn compare_answer(case: &Path, result: &FrontendResult, wrong: &mut String) {
    let Some(want) = read_json(case, "result.json") else {
        writeln!(wrong, "  there is nothing to compare with").unwrap();
        return;
    };
    let mut got = serde_json::Map::new();
    for (key, value) in &result.metadata {
        let text = String::from_utf8(value.clone()).unwrap();
        if key == "result.json" {
            got.insert("result".to_owned(), serde_json::from_str(&text).unwrap());
        } else if key != "result.txt" {
            got.insert(key.clone(), Value::String(text));
        }
    }
    if want != Value::Object(got.clone()) {
        writeln!(wrong, "  result\n    want {want}\n    got  {}", Value::Object(got)).unwrap();
    }
    if let Ok(text) = std::fs::read_to_string(case.join("result.txt")) {
        let got = result.metadata.get("result.txt").map(|text| String::from_utf8_lossy(text).into_owned());
        same("text", &Some(text), &got, wrong);
    }
}
