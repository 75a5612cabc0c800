//! JSON exactly as Go's encoding/json writes it.
//!
//! Cache keys are sha256 sums of such JSON, so every byte counts: struct fields stay in declaration order,
//! `<`, `>`, `&`, U+2028 and U+2029 are escaped, bytes are padded base64, integers of any width are
//! numbers. [`to_string`] does that for serde types; [`message`] for protobuf messages, with proto field
//! names and zero values left out.

use std::fmt::Write as _;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::error::Result;
use crate::schema::{Kind, Schema};
use crate::wire::{Body, Key, Message, Value, Values, is_zero};

/// Writes `value` as Go would.
///
/// # Errors
/// If `value` cannot be JSON, for example a map with keys that are not strings.
pub fn to_string(value: &(impl Serialize + ?Sized)) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, GoFormatter);
    value.serialize(&mut serializer)?;
    String::from_utf8(out).map_err(serde::ser::Error::custom)
}

/// Appends `text` as a quoted string.
pub fn write_text(text: &str, out: &mut String) {
    out.push('"');
    let plain =
        |c: char| !matches!(c, '"' | '\\' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}');
    let mut rest = text;
    while let Some(at) = rest.find(|c| !plain(c)) {
        let (run, special) = rest.split_at(at);
        out.push_str(run);
        let mut chars = special.chars();
        let Some(c) = chars.next() else { break };
        rest = chars.as_str();
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    out.push_str(rest);
    out.push('"');
}

/// Appends `bytes` as a base64 string.
pub fn write_bytes(bytes: &[u8], out: &mut String) {
    out.push('"');
    STANDARD.encode_string(bytes, out);
    out.push('"');
}

/// Writes a protobuf message with proto field names, zero values left out, enums as numbers.
///
/// `Op`, `FileAction` and `UserOpt` have forms of their own in the reference, which are followed.
///
/// # Errors
/// Only if the schema is inconsistent.
pub fn message(message: &Message) -> Result<String> {
    let mut out = String::new();
    write_body(&message.schema, &message.body, &mut out)?;
    Ok(out)
}

/// Writes a message of [`crate::pb`]; see [`message`].
///
/// # Errors
/// If `full_name` is not its type.
pub fn pb(full_name: &str, value: &impl prost::Message) -> Result<String> {
    message(&Message::of(Schema::llb(), full_name, value)?)
}

/// Writes an object in the order of the calls.
#[derive(Debug)]
pub struct Object<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> Object<'a> {
    /// Opens an object at the end of `out`.
    pub fn new(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, first: true }
    }

    /// Writes a key and hands out the place for its value.
    pub fn key(&mut self, key: &str) -> &mut String {
        if !self.first {
            self.out.push(',');
        }
        self.first = false;
        write_text(key, self.out);
        self.out.push(':');
        self.out
    }

    /// Closes the object.
    pub fn end(self) {
        self.out.push('}');
    }
}

fn write_body(schema: &Schema, body: &Body, out: &mut String) -> Result<()> {
    let kind = schema.message(body.kind)?;
    match kind.full_name.as_str() {
        "pb.Op" => return write_with_member(schema, body, "Op", false, &|n| n.to_owned(), out),
        "pb.FileAction" => return write_file_action(schema, body, out),
        "pb.UserOpt" => return write_user(schema, body, out),
        _ => {}
    }
    let mut object = Object::new(out);
    for (position, field) in kind.fields.iter().enumerate() {
        let Some(values) = body.fields.get(position) else { continue };
        if matches!(values, Values::One(value) if is_zero(value)) {
            continue;
        }
        write_values(schema, field.kind, values, object.key(&field.name))?;
    }
    object.end();
    Ok(())
}

/// Writes the plain fields, with the oneof as an object of its own under `wrapper` after the fields that
/// are declared before it.
fn write_with_member(
    schema: &Schema,
    body: &Body,
    wrapper: &str,
    keep_zero: bool,
    rename: &dyn Fn(&str) -> String,
    out: &mut String,
) -> Result<()> {
    let kind = schema.message(body.kind)?;
    let mut object = Object::new(out);
    let mut wrapped = false;
    for (position, field) in kind.fields.iter().enumerate() {
        let values = body.fields.get(position);
        if field.oneof.is_some() {
            if !wrapped {
                wrapped = true;
                write_member(schema, body, rename, object.key(wrapper))?;
            }
            continue;
        }
        match values {
            Some(Values::One(value)) if is_zero(value) && !keep_zero => {}
            Some(values) => write_values(schema, field.kind, values, object.key(&field.name))?,
            None if keep_zero => object.key(&field.name).push('0'),
            None => {}
        }
    }
    object.end();
    Ok(())
}

fn write_member(
    schema: &Schema,
    body: &Body,
    rename: &dyn Fn(&str) -> String,
    out: &mut String,
) -> Result<()> {
    let kind = schema.message(body.kind)?;
    let mut object = Object::new(out);
    for (position, field) in kind.fields.iter().enumerate().filter(|(_, f)| f.oneof.is_some()) {
        let Some(values) = body.fields.get(position) else { continue };
        let name = rename(&field.name);
        if name.is_empty() || matches!(values, Values::One(value) if is_zero(value)) {
            continue;
        }
        write_values(schema, field.kind, values, object.key(&name))?;
    }
    object.end();
    Ok(())
}

fn write_file_action(schema: &Schema, body: &Body, out: &mut String) -> Result<()> {
    // The reference's form has no place for symlinks.
    let rename = |name: &str| if name == "symlink" { String::new() } else { name.to_owned() };
    write_with_member(schema, body, "Action", true, &rename, out)
}

fn write_user(schema: &Schema, body: &Body, out: &mut String) -> Result<()> {
    let rename = |name: &str| if name == "byID" { "byId".to_owned() } else { name.to_owned() };
    write_with_member(schema, body, "User", false, &rename, out)
}

fn write_values(schema: &Schema, kind: Kind, values: &Values, out: &mut String) -> Result<()> {
    match values {
        Values::One(value) => write_value(schema, kind, value, out),
        Values::Many(values) => {
            out.push('[');
            for (i, value) in values.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(schema, kind, value, out)?;
            }
            out.push(']');
            Ok(())
        }
        Values::Map(entries) => {
            // Go sorts numeric keys by their text.
            let mut sorted: Vec<(String, &Value)> = entries
                .iter()
                .map(|(key, value)| match key {
                    Key::Text(text) => (text.clone(), value),
                    Key::Number(number) => (number.to_string(), value),
                })
                .collect();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            let value_kind = match kind {
                Kind::Message(entry) => schema.message(entry)?.field(2).map_or(kind, |(_, f)| f.kind),
                _ => kind,
            };
            let mut object = Object::new(out);
            for (key, value) in sorted {
                write_value(schema, value_kind, value, object.key(&key))?;
            }
            object.end();
            Ok(())
        }
    }
}

fn write_value(schema: &Schema, kind: Kind, value: &Value, out: &mut String) -> Result<()> {
    match value {
        Value::Number(number) => number_text(kind, *number, out),
        Value::Text(text) => write_text(text, out),
        Value::Bytes(bytes) => write_bytes(bytes, out),
        Value::Message(body) => write_body(schema, body, out)?,
    }
    Ok(())
}

pub(crate) fn number_text(kind: Kind, number: u64, out: &mut String) {
    let written = match kind {
        Kind::Bool => write!(out, "{}", number != 0),
        Kind::Uint32 | Kind::Uint64 => write!(out, "{number}"),
        _ => write!(out, "{}", number.cast_signed()),
    };
    // Texts take everything.
    debug_assert!(written.is_ok());
}

struct GoFormatter;

impl serde_json::ser::Formatter for GoFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut start = 0;
        for (at, c) in fragment.char_indices() {
            if matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}') {
                writer.write_all(fragment.get(start..at).unwrap_or_default().as_bytes())?;
                write!(writer, "\\u{:04x}", u32::from(c))?;
                start = at + c.len_utf8();
            }
        }
        writer.write_all(fragment.get(start..).unwrap_or_default().as_bytes())
    }
}
