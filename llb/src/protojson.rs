//! The canonical JSON form of protobuf: lowerCamel names, 64-bit integers as strings, enums by name.
//!
//! One error detail (`errdefs.Solve`) travels in this form.

use crate::error::Result;
use crate::gojson::{Object, number_text, write_bytes, write_text};
use crate::schema::{Kind, Schema};
use crate::wire::{Body, Key, Message, Value, Values, is_zero};

/// Writes `message`.
///
/// # Errors
/// Only if the schema is inconsistent.
pub fn message(message: &Message) -> Result<String> {
    let mut out = String::new();
    write_body(&message.schema, &message.body, &mut out)?;
    Ok(out)
}

fn write_body(schema: &Schema, body: &Body, out: &mut String) -> Result<()> {
    let kind = schema.message(body.kind)?;
    let mut object = Object::new(out);
    for (position, field) in kind.fields.iter().enumerate() {
        let Some(values) = body.fields.get(position) else { continue };
        match values {
            Values::One(value) => {
                if field.oneof.is_some() || !is_zero(value) {
                    write_value(schema, field.kind, value, object.key(&field.json_name))?;
                }
            }
            Values::Many(values) => {
                let out = object.key(&field.json_name);
                out.push('[');
                for (i, value) in values.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    write_value(schema, field.kind, value, out)?;
                }
                out.push(']');
            }
            Values::Map(entries) => {
                let value_kind = match field.kind {
                    Kind::Message(entry) => schema.message(entry)?.field(2).map(|(_, f)| f.kind),
                    _ => None,
                };
                let mut map = Object::new(object.key(&field.json_name));
                for (key, value) in entries {
                    let key = match key {
                        Key::Text(text) => text.clone(),
                        Key::Number(number) => number.to_string(),
                    };
                    write_value(schema, value_kind.unwrap_or(field.kind), value, map.key(&key))?;
                }
                map.end();
            }
        }
    }
    object.end();
    Ok(())
}

fn write_value(schema: &Schema, kind: Kind, value: &Value, out: &mut String) -> Result<()> {
    match value {
        Value::Text(text) => write_text(text, out),
        Value::Bytes(bytes) => write_bytes(bytes, out),
        Value::Message(body) => write_body(schema, body, out)?,
        Value::Number(number) => match kind {
            Kind::Int64 | Kind::Uint64 => {
                out.push('"');
                number_text(kind, *number, out);
                out.push('"');
            }
            Kind::Enum(position) => {
                let name =
                    i32::try_from(number.cast_signed()).ok().and_then(|n| schema.enum_name(position, n));
                match name {
                    Some(name) => write_text(name, out),
                    None => number_text(kind, *number, out),
                }
            }
            _ => number_text(kind, *number, out),
        },
    }
    Ok(())
}
