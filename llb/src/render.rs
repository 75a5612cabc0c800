//! Graphs for people: text, JSON and DOT.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json};

use crate::error::Result;
use crate::gojson;
use crate::pb::{self, file_action::Action, op::Op};
use crate::schema::{Kind, Schema};
use crate::wire::{Body, Key, Message, Value, Values, is_zero};

/// Renders a message with proto field names: populated fields only, enums by name, integers as numbers,
/// bytes as base64, unknown fields as base64 under `(unknown)`.
///
/// # Errors
/// Only if the schema is inconsistent.
pub fn message(message: &Message) -> Result<Json> {
    body(&message.schema, &message.body)
}

/// Renders one line of JSON for each entry: `Op`, `Digest` and `OpMetadata`, as Go would write them.
///
/// # Errors
/// If an entry is not an Op.
pub fn json_lines(definition: &pb::Definition) -> Result<String> {
    let mut out = String::new();
    let none = pb::OpMetadata::default();
    for entry in definition.entries() {
        let entry = entry?;
        let mut object = gojson::Object::new(&mut out);
        object.key("Op").push_str(&gojson::pb("pb.Op", &entry.op)?);
        gojson::write_text(&entry.digest.to_string(), object.key("Digest"));
        let metadata = entry.metadata.unwrap_or(&none);
        object.key("OpMetadata").push_str(&gojson::pb("pb.OpMetadata", metadata)?);
        object.end();
        out.push('\n');
    }
    Ok(out)
}

/// Renders a graph for graphviz.
///
/// # Errors
/// If an entry is not an Op.
pub fn dot(definition: &pb::Definition) -> Result<String> {
    let mut nodes = String::new();
    let mut edges = String::new();
    for entry in definition.entries() {
        let entry = entry?;
        let digest = entry.digest.to_string();
        let (label, shape) = label(&digest, entry.op.op.as_ref());
        let _ = writeln!(nodes, "  {} [label={} shape={}];", quote(&digest), quote(&label), quote(shape));
        for (i, input) in entry.op.inputs.iter().enumerate() {
            let mut label = "";
            if let Some(Op::Exec(exec)) = &entry.op.op {
                for mount in &exec.mounts {
                    if usize::try_from(mount.input) == Ok(i) && mount.dest != "/" {
                        label = &mount.dest;
                    }
                }
            }
            let _ =
                writeln!(edges, "  {} -> {} [label={}];", quote(&input.digest), quote(&digest), quote(label));
        }
    }
    Ok(format!("digraph {{\n{nodes}{edges}}}\n"))
}

/// Renders a graph as short lines in order, vertices named by position: for reading and for tests.
///
/// # Errors
/// If an entry is not an Op.
pub fn text(definition: &pb::Definition) -> Result<String> {
    let mut names = std::collections::HashMap::new();
    let mut out = String::new();
    for (i, entry) in definition.entries().enumerate() {
        let entry = entry?;
        let _ = write!(out, "op{i} ");
        match &entry.op.op {
            None if entry.op.inputs.len() == 1 => out.push_str("result"),
            None => out.push_str("nothing"),
            Some(_) => out.push_str(&describe(&entry.op)?),
        }
        for input in &entry.op.inputs {
            let name = names.get(&input.digest).cloned().unwrap_or_else(|| "missing".to_owned());
            let _ = write!(out, " <{name}:{}>", input.index);
        }
        if let Some(name) = entry.metadata.and_then(|m| m.description.get("llb.customname")) {
            let _ = write!(out, " # {name}");
        }
        out.push('\n');
        names.insert(entry.digest.to_string(), format!("op{i}"));
    }
    Ok(out)
}

/// Returns the inner message of an op as `kind {json}`.
fn describe(op: &pb::Op) -> Result<String> {
    let rendered = message(&Message::of(Schema::llb(), "pb.Op", op)?)?;
    let mut out = String::new();
    if let Json::Object(fields) = rendered {
        for (name, value) in fields {
            if name != "inputs" && name != "constraints" {
                let _ = write!(out, "{}{name} {value}", if out.is_empty() { "" } else { " " });
            }
        }
    }
    Ok(out)
}

fn label(digest: &str, op: Option<&Op>) -> (String, &'static str) {
    match op {
        Some(Op::Source(source)) => (source.identifier.clone(), "ellipse"),
        Some(Op::Exec(exec)) => (exec.meta.as_ref().map(|m| m.args.join(" ")).unwrap_or_default(), "box"),
        Some(Op::Build(_)) => ("build".to_owned(), "box3d"),
        Some(Op::Merge(_)) => ("merge".to_owned(), "invtriangle"),
        Some(Op::Diff(_)) => ("diff".to_owned(), "doublecircle"),
        Some(Op::File(file)) => {
            let names: Vec<String> = file
                .actions
                .iter()
                .map(|action| match &action.action {
                    Some(Action::Copy(a)) => format!("copy{{src={}, dest={}}}", a.src, a.dest),
                    Some(Action::Mkfile(a)) => format!("mkfile{{path={}}}", a.path),
                    Some(Action::Mkdir(a)) => format!("mkdir{{path={}}}", a.path),
                    Some(Action::Rm(a)) => format!("rm{{path={}}}", a.path),
                    Some(Action::Symlink(a)) => {
                        format!("symlink{{oldpath={}, newpath={}}}", a.oldpath, a.newpath)
                    }
                    None => String::new(),
                })
                .collect();
            (names.join(","), "note")
        }
        Some(Op::Passthrough(_)) | None => (digest.to_owned(), "plaintext"),
    }
}

/// Quotes like Go's `%q` for the characters that matter in DOT.
fn quote(text: &str) -> String {
    format!("{text:?}")
}

fn body(schema: &Schema, message: &Body) -> Result<Json> {
    let kind = schema.message(message.kind)?;
    let mut object = Map::new();
    for (position, field) in kind.fields.iter().enumerate() {
        let rendered = match message.fields.get(position) {
            None => continue,
            Some(Values::One(one)) if field.oneof.is_none() && is_zero(one) => continue,
            Some(Values::One(one)) => value(schema, field.kind, one)?,
            Some(Values::Many(many)) => {
                Json::Array(many.iter().map(|v| value(schema, field.kind, v)).collect::<Result<_>>()?)
            }
            Some(Values::Map(entries)) => {
                let value_kind = match field.kind {
                    Kind::Message(entry) => schema.message(entry)?.field(2).map(|(_, f)| f.kind),
                    _ => None,
                };
                let mut map = Map::new();
                for (key, v) in entries {
                    let key = match key {
                        Key::Text(text) => text.clone(),
                        Key::Number(number) => number.to_string(),
                    };
                    map.insert(key, value(schema, value_kind.unwrap_or(field.kind), v)?);
                }
                Json::Object(map)
            }
        };
        object.insert(field.name.clone(), rendered);
    }
    if !message.unknown.is_empty() {
        object.insert("(unknown)".to_owned(), Json::String(STANDARD.encode(&message.unknown)));
    }
    Ok(Json::Object(object))
}

fn value(schema: &Schema, kind: Kind, value: &Value) -> Result<Json> {
    Ok(match value {
        Value::Text(text) => Json::String(text.clone()),
        Value::Bytes(bytes) => Json::String(STANDARD.encode(bytes)),
        Value::Message(message) => body(schema, message)?,
        Value::Number(number) => match kind {
            Kind::Bool => Json::Bool(*number != 0),
            Kind::Uint32 | Kind::Uint64 => Json::from(*number),
            Kind::Enum(position) => {
                let name =
                    i32::try_from(number.cast_signed()).ok().and_then(|n| schema.enum_name(position, n));
                name.map_or_else(|| Json::from(number.cast_signed()), Json::from)
            }
            _ => Json::from(number.cast_signed()),
        },
    })
}
