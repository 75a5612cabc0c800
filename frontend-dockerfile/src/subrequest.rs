//! Questions about a Dockerfile that are answered without building it.

mod excerpt;
mod table;

use std::collections::BTreeMap;

use kiln_frontend::{Error as FrontendError, FrontendResult};
use kiln_llb::gojson;
use prost::Message;
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::excerpt::excerpt;
use self::table::table;
use crate::context::{Client, MainContext};
use crate::error::{Error, Result};
use crate::image::go_json;
use crate::instruction::parse_stages;
use crate::lint::Linter;
use crate::lower::{Lowered, Request, linter, lower};
use crate::parser::parse;
use crate::source::{LineRange, SourceFile};

/// How long the text of a check gets, in bytes, give or take an excerpt. Its JSON form has everything.
const MAX_TEXT: usize = 8 << 20;

/// Answers a sub-request. An answer has no filesystem, only metadata.
pub(crate) async fn answer(
    name: &str,
    client: &Client,
    main: &MainContext,
    file: &SourceFile,
) -> Result<FrontendResult, FrontendError> {
    let answer = match name {
        "frontend.outline" => outline(client, main, file).await,
        "frontend.targets" => targets(file),
        "frontend.lint" => lint(client, main, file).await,
        "frontend.convertllb" => convert(client, main, file).await,
        "frontend.subrequests.describe" => describe(),
        _ => return Err(FrontendError::UnsupportedRequest { name: name.to_owned() }),
    };
    let mut result = FrontendResult::default();
    // Errors are not placed here: clients print the message as it is.
    result.metadata = answer.map_err(|error| error.into_frontend(None))?;
    Ok(result)
}

type Metadata = BTreeMap<String, Vec<u8>>;

fn metadata(version: &str, answer: &impl Serialize, text: Option<String>) -> Result<Metadata> {
    let json = go_json(answer).map_err(|error| Error::new(error.to_string()))?;
    let mut out: Metadata =
        [("result.json".to_owned(), json), ("version".to_owned(), version.as_bytes().to_vec())].into();
    if let Some(text) = text {
        out.insert("result.txt".to_owned(), text.into_bytes());
    }
    Ok(out)
}

fn ranges(lines: &[LineRange]) -> Value {
    let range = |line: &LineRange| json!({"start": {"line": line.start}, "end": {"line": line.end}});
    lines.iter().map(range).collect()
}

fn location(lines: &[LineRange]) -> Option<Value> {
    (!lines.is_empty()).then(|| json!({"ranges": ranges(lines)}))
}

fn base64(data: &[u8]) -> Value {
    Value::String(crate::base64::encode(data))
}

/// An object with what is empty left out.
fn object(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let given = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    let entries = entries.into_iter().filter(|(_, value)| given(value));
    Value::Object(entries.map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

async fn lowered(
    client: &Client,
    main: &MainContext,
    file: &SourceFile,
    lint: &mut Linter,
    graph: bool,
) -> Result<Lowered> {
    let request = Request { client, file, platform: None, all_stages: false, graph, scanner: None };
    lower(request, main, lint).await
}

async fn outline(client: &Client, main: &MainContext, file: &SourceFile) -> Result<Metadata> {
    let mut lint = linter(client, file)?;
    let outline = lowered(client, main, file, &mut lint, false).await?.outline;
    let args = outline.args.iter().map(|(name, note)| {
        object([
            ("name", json!(name)),
            ("description", json!(note.doc)),
            ("value", json!(note.value)),
            ("location", json!(location(&note.ranges))),
        ])
    });
    let entries = |list: &[crate::lower::OutlineEntry]| -> Value {
        let entry = |entry: &crate::lower::OutlineEntry| {
            object([
                ("name", json!(entry.name)),
                ("required", json!(entry.required)),
                ("location", json!(location(&entry.ranges))),
            ])
        };
        list.iter().map(entry).collect()
    };
    let answer = object([
        ("name", json!(outline.name)),
        ("description", json!(outline.doc)),
        ("args", args.collect()),
        ("secrets", entries(&outline.secrets)),
        ("ssh", entries(&outline.ssh)),
        ("sources", json!([base64(&file.data)])),
    ]);
    let mut text = String::new();
    if !outline.name.is_empty() || !outline.doc.is_empty() {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        let mut rows = vec![vec!["TARGET:".to_owned(), name.to_owned()]];
        if !outline.doc.is_empty() {
            rows.push(vec!["DESCRIPTION:".to_owned(), outline.doc.clone()]);
        }
        text.push_str(&table(&rows, 1));
        text.push('\n');
    }
    let mut block = |header: &[&str], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            let header = header.iter().map(|&title| title.to_owned()).collect();
            text.push_str(&table(&[vec![header], rows].concat(), 3));
            text.push('\n');
        }
    };
    let args =
        outline.args.iter().map(|(name, note)| vec![name.clone(), note.value.clone(), note.doc.clone()]);
    block(&["BUILD ARG", "VALUE", "DESCRIPTION"], args.collect());
    let rows = |list: &[crate::lower::OutlineEntry]| {
        let required =
            |entry: &crate::lower::OutlineEntry| if entry.required { "true" } else { "" }.to_owned();
        list.iter().map(|entry| vec![entry.name.clone(), required(entry)]).collect::<Vec<_>>()
    };
    block(&["SECRET", "REQUIRED"], rows(&outline.secrets));
    block(&["SSH", "REQUIRED"], rows(&outline.ssh));
    metadata("1.0.0", &answer, Some(text))
}

fn targets(file: &SourceFile) -> Result<Metadata> {
    let stages = parse_stages(&parse(&file.data)?.nodes, &mut Linter::muted())?.stages;
    let count = stages.len();
    let mut rows = vec![vec!["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    let mut list = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let last = index + 1 == count;
        list.push(object([
            ("name", json!(stage.name)),
            ("default", json!(last)),
            ("description", json!(stage.doc)),
            ("base", json!(stage.base)),
            ("platform", json!(stage.platform)),
            ("location", json!(location(&stage.ranges))),
        ]));
        let name = match (stage.name.as_str(), last) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        rows.push(vec![name, stage.doc.clone()]);
    }
    let answer = json!({"targets": list, "sources": [base64(&file.data)]});
    metadata("1.0.0", &answer, Some(table(&rows, 1)))
}

async fn lint(client: &Client, main: &MainContext, file: &SourceFile) -> Result<Metadata> {
    let mut lint = Linter::default();
    let outcome = match linter(client, file) {
        Err(error) => Err(error),
        Ok(configured) => {
            lint = configured;
            let all_stages = client.options.target.is_empty();
            let request = Request { client, file, platform: None, all_stages, graph: false, scanner: None };
            lower(request, main, &mut lint).await.map(|_| ())
        }
    };
    let warning = |hit: &crate::lint::Hit| {
        object([
            ("ruleName", json!(hit.rule.name())),
            ("description", json!(hit.rule.description())),
            ("url", json!(hit.rule.url())),
            ("detail", json!(hit.message)),
            ("location", object([("ranges", ranges(&hit.ranges))])),
        ])
    };
    let warnings: Option<Vec<Value>> =
        (!lint.hits.is_empty()).then(|| lint.hits.iter().map(warning).collect());
    let source = gojson::pb("pb.SourceInfo", &file.to_pb()).map_err(|error| Error::new(error.to_string()))?;
    let source: Value = serde_json::from_str(&source).map_err(|error| Error::new(error.to_string()))?;
    let mut answer = json!({"warnings": warnings, "sources": [source]});
    if let Err(error) = &outcome {
        let merged = merged(error.places());
        let location =
            if error.places().is_empty() { json!({}) } else { object([("ranges", ranges(&merged))]) };
        answer["buildError"] = json!({"message": error.message(), "location": location});
    }
    let mut hits: Vec<&crate::lint::Hit> = lint.hits.iter().collect();
    hits.sort_by_key(|hit| hit.ranges.first().map_or(0, |range| range.start));
    let mut text = String::new();
    let content = String::from_utf8_lossy(&file.data);
    let lines: Vec<&str> = content.split('\n').collect();
    let all = hits.len();
    for (shown, hit) in hits.into_iter().enumerate() {
        if text.len() > MAX_TEXT {
            text.push_str(&format!("\n{} more warnings are not shown\n", all - shown));
            break;
        }
        text.push_str(&format!("\nWARNING: {}", hit.rule.name()));
        if !hit.rule.url().is_empty() {
            text.push_str(&format!(" - {}", hit.rule.url()));
        }
        text.push_str(&format!("\n{}\n{}", hit.message, excerpt(file, &lines, &hit.ranges)));
    }
    let mut out = metadata("1.0.0", &answer, Some(text))?;
    let failed = outcome.is_err() || !lint.hits.is_empty();
    out.insert("result.statuscode".to_owned(), if failed { b"1".to_vec() } else { b"0".to_vec() });
    Ok(out)
}

/// The lines of all places, sorted, with those that overlap made one.
fn merged(places: &[Vec<LineRange>]) -> Vec<LineRange> {
    let mut all: Vec<LineRange> = places.iter().flatten().copied().collect();
    all.sort_by_key(|range| range.start);
    let mut out: Vec<LineRange> = Vec::new();
    for range in all {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

async fn convert(client: &Client, main: &MainContext, file: &SourceFile) -> Result<Metadata> {
    let mut lint = linter(client, file)?;
    let definition = lowered(client, main, file, &mut lint, true).await?.definition;
    let broken = |error: kiln_llb::Error| Error::new(error.to_string());
    let proto = |name: &str, message: &[u8]| -> Result<Value> {
        let message = kiln_llb::Message::decode(kiln_llb::Schema::llb(), name, message).map_err(broken)?;
        let text = kiln_llb::protojson::message(&message).map_err(broken)?;
        serde_json::from_str(&text).map_err(|error| Error::new(error.to_string()))
    };
    let (mut ops, mut meta) = (Map::new(), Map::new());
    for bytes in &definition.def {
        ops.insert(kiln_digest::Digest::of(bytes).to_string(), proto("pb.Op", bytes)?);
    }
    for (digest, entry) in &definition.metadata {
        let text = gojson::pb("pb.OpMetadata", entry).map_err(broken)?;
        let value = serde_json::from_str(&text).map_err(|error| Error::new(error.to_string()))?;
        meta.insert(digest.clone(), value);
    }
    let source = proto("pb.Source", &definition.source.unwrap_or_default().encode_to_vec())?;
    metadata("0.1.0", &json!({"def": ops, "metadata": meta, "source": source}), None)
}

fn describe() -> Result<Metadata> {
    let named = |names: &[&str]| -> Value {
        names.iter().map(|name| json!({"name": name, "description": ""})).collect()
    };
    let results = named(&["result.json", "result.txt"]);
    let target = json!([{"name": "target", "description": "Target build stage"}]);
    let list = [
        ("frontend.outline", "List all parameters current build target supports", target),
        ("frontend.targets", "List all targets current build supports", json!([])),
        ("frontend.subrequests.describe", "List available subrequest types", Value::Null),
    ];
    let mut rows = vec![["NAME", "VERSION", "DESCRIPTION"].map(str::to_owned).to_vec()];
    let mut answer = Vec::new();
    for (name, description, opts) in list {
        let short = name.strip_prefix("frontend.").unwrap_or(name);
        rows.push([short, "1.0.0", description].map(str::to_owned).to_vec());
        answer.push(json!({
            "name": name, "version": "1.0.0", "type": "rpc", "description": description, "opts": opts,
            "inputs": null, "metadata": results, "refs": null,
        }));
    }
    metadata("1.0.0", &answer, Some(table(&rows, 1)))
}
