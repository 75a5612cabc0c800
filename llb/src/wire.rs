//! Messages at wire level: nothing is lost in decoding, and encoding is canonical.
//!
//! Canonical bytes are those of Go's deterministic marshaller, because vertex digests are taken of them:
//! fields by number with the members of oneofs after all others, zero scalars left out, map entries sorted
//! with key and value always present, unknown fields last in the order they came.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::schema::{Field, Kind, Schema, Shape};

/// Deeper nesting is refused. The generated decoder has the same limit.
const MAX_DEPTH: u32 = 100;

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const GROUP: u8 = 3;
const GROUP_END: u8 = 4;
const FIXED32: u8 = 5;

/// A message of any type.
#[derive(Clone, Debug)]
pub struct Message {
    pub(crate) schema: Arc<Schema>,
    pub(crate) body: Body,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Body {
    /// Position of the type in the schema.
    pub(crate) kind: usize,
    /// By position of the field in its type.
    pub(crate) fields: Fields,
    pub(crate) unknown: Vec<u8>,
}

/// Fields that are there, by position. Few enough that a search along them is the fastest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(Vec<(usize, Values)>);

#[derive(Clone, Debug)]
pub(crate) enum Values {
    One(Value),
    Many(Vec<Value>),
    Map(BTreeMap<Key, Value>),
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Any scalar, as its varint.
    Number(u64),
    Text(String),
    Bytes(Vec<u8>),
    Message(Body),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Number(i64),
    Text(String),
}

impl Message {
    /// Decodes any valid encoding of the message type `full_name`.
    ///
    /// # Errors
    /// If the bytes are not such a message, or nested too deeply.
    pub fn decode(schema: &Arc<Schema>, full_name: &str, bytes: &[u8]) -> Result<Self> {
        let mut body = Body { kind: schema.find(full_name)?, ..Body::default() };
        merge(schema, &mut body, bytes, MAX_DEPTH)?;
        Ok(Self { schema: schema.clone(), body })
    }

    /// Wraps a typed message of the type `full_name`.
    ///
    /// # Errors
    /// If the schema does not have the type.
    pub fn of(schema: &Arc<Schema>, full_name: &str, message: &impl prost::Message) -> Result<Self> {
        Self::decode(schema, full_name, &message.encode_to_vec())
    }

    /// Returns the canonical bytes.
    ///
    /// # Errors
    /// Only if the schema is inconsistent.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        encode_body(&self.schema, &self.body, &mut out)?;
        Ok(out)
    }

    /// Replaces the string field `name` of every message in the repeated field `list`, in order.
    ///
    /// # Errors
    /// If there are no such fields.
    pub(crate) fn set_each_text(&mut self, list: &str, name: &str, texts: Vec<String>) -> Result<()> {
        let kind = self.schema.message(self.body.kind)?;
        let position = kind.position(list)?;
        let Some(Values::Many(values)) = self.body.fields.get_mut(position) else { return Ok(()) };
        for (value, text) in values.iter_mut().zip(texts) {
            if let Value::Message(body) = value {
                body.set(&self.schema, name, Values::One(Value::Text(text)))?;
            }
        }
        Ok(())
    }

    /// Gives access to the message in the field `name`, if it is there.
    pub(crate) fn child(&mut self, name: &str) -> Result<Option<(&Arc<Schema>, &mut Body)>> {
        let position = self.schema.message(self.body.kind)?.position(name)?;
        Ok(match self.body.fields.get_mut(position) {
            Some(Values::One(Value::Message(body))) => Some((&self.schema, body)),
            _ => None,
        })
    }
}

impl Fields {
    pub(crate) fn get(&self, position: usize) -> Option<&Values> {
        self.0.iter().find(|(at, _)| *at == position).map(|(_, values)| values)
    }

    fn get_mut(&mut self, position: usize) -> Option<&mut Values> {
        self.0.iter_mut().find(|(at, _)| *at == position).map(|(_, values)| values)
    }

    fn insert(&mut self, position: usize, values: Values) {
        match self.get_mut(position) {
            Some(old) => *old = values,
            None => self.0.push((position, values)),
        }
    }

    fn remove(&mut self, position: usize) -> Option<Values> {
        let index = self.0.iter().position(|(at, _)| *at == position)?;
        Some(self.0.swap_remove(index).1)
    }

    fn or_insert_with(&mut self, position: usize, make: impl FnOnce() -> Values) -> &mut Values {
        let found = self.0.iter().position(|(at, _)| *at == position);
        let index = found.unwrap_or_else(|| {
            self.0.push((position, make()));
            self.0.len() - 1
        });
        &mut self.0[index].1
    }
}

impl Body {
    pub(crate) fn set(&mut self, schema: &Schema, name: &str, values: Values) -> Result<()> {
        let position = schema.message(self.kind)?.position(name)?;
        self.fields.insert(position, values);
        Ok(())
    }
}

fn merge(schema: &Schema, body: &mut Body, mut input: &[u8], depth: u32) -> Result<()> {
    if depth == 0 {
        return Err(Error::TooDeep);
    }
    let kind = schema.message(body.kind)?;
    while !input.is_empty() {
        let start = input;
        let (number, wire_type) = take_tag(&mut input)?;
        let Some((position, field)) = kind.field(number) else {
            skip(&mut input, number, wire_type, depth)?;
            let taken = start.len() - input.len();
            body.unknown.extend_from_slice(start.get(..taken).unwrap_or_default());
            continue;
        };
        match field.shape {
            Shape::Single => {
                if let Some(oneof) = field.oneof {
                    // The last member of a oneof wins; the same member again is merged.
                    let rivals = kind.fields.iter().enumerate();
                    for (other, _) in rivals.filter(|(i, f)| f.oneof == Some(oneof) && *i != position) {
                        body.fields.remove(other);
                    }
                }
                let before = match body.fields.remove(position) {
                    Some(Values::One(Value::Message(before))) => Some(before),
                    _ => None,
                };
                let value = take_value(schema, field, &mut input, wire_type, before, depth)?;
                body.fields.insert(position, Values::One(value));
            }
            Shape::Repeated => {
                let values = body.fields.or_insert_with(position, || Values::Many(Vec::new()));
                let Values::Many(values) = values else { return Err(Error::Malformed("mixed field")) };
                let scalar = !matches!(field.kind, Kind::String | Kind::Bytes | Kind::Message(_));
                if scalar && wire_type == LENGTH {
                    let mut packed = take_length(&mut input)?;
                    while !packed.is_empty() {
                        values.push(Value::Number(narrow(field.kind, take_varint(&mut packed)?)));
                    }
                } else {
                    values.push(take_value(schema, field, &mut input, wire_type, None, depth)?);
                }
            }
            Shape::Map => {
                let Value::Message(entry) = take_value(schema, field, &mut input, wire_type, None, depth)?
                else {
                    return Err(Error::Malformed("map entry"));
                };
                let (key, value) = take_entry(schema, entry)?;
                let values = body.fields.or_insert_with(position, || Values::Map(BTreeMap::new()));
                let Values::Map(values) = values else { return Err(Error::Malformed("mixed field")) };
                values.insert(key, value);
            }
        }
    }
    Ok(())
}

fn take_value(
    schema: &Schema,
    field: &Field,
    input: &mut &[u8],
    wire_type: u8,
    before: Option<Body>,
    depth: u32,
) -> Result<Value> {
    let want = match field.kind {
        Kind::String | Kind::Bytes | Kind::Message(_) => LENGTH,
        _ => VARINT,
    };
    if wire_type != want {
        return Err(Error::Malformed("wrong wire type"));
    }
    Ok(match field.kind {
        Kind::String => {
            let bytes = take_length(input)?.to_vec();
            Value::Text(String::from_utf8(bytes).map_err(|_| Error::Malformed("string is not UTF-8"))?)
        }
        Kind::Bytes => Value::Bytes(take_length(input)?.to_vec()),
        Kind::Message(kind) => {
            let mut body = before.unwrap_or(Body { kind, ..Body::default() });
            merge(schema, &mut body, take_length(input)?, depth - 1)?;
            Value::Message(body)
        }
        kind => Value::Number(narrow(kind, take_varint(input)?)),
    })
}

/// Takes key and value out of a decoded map entry; a missing one has its default.
fn take_entry(schema: &Schema, mut entry: Body) -> Result<(Key, Value)> {
    let kind = schema.message(entry.kind)?;
    let (key_at, key_field) = kind.field(1).ok_or(Error::Malformed("map entry"))?;
    let (value_at, value_field) = kind.field(2).ok_or(Error::Malformed("map entry"))?;
    let mut take = |position, field: &Field| match entry.fields.remove(position) {
        Some(Values::One(value)) => value,
        _ => default_value(field.kind),
    };
    let key = match take(key_at, key_field) {
        Value::Text(text) => Key::Text(text),
        Value::Number(number) => Key::Number(number.cast_signed()),
        _ => return Err(Error::Malformed("map key")),
    };
    Ok((key, take(value_at, value_field)))
}

fn default_value(kind: Kind) -> Value {
    match kind {
        Kind::String => Value::Text(String::new()),
        Kind::Bytes => Value::Bytes(Vec::new()),
        Kind::Message(kind) => Value::Message(Body { kind, ..Body::default() }),
        _ => Value::Number(0),
    }
}

/// Brings a varint to the width of its type, sign-extended as it will be written.
fn narrow(kind: Kind, number: u64) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "the wire format truncates")]
    match kind {
        Kind::Bool => u64::from(number != 0),
        Kind::Int32 | Kind::Enum(_) => i64::from(number as i32).cast_unsigned(),
        Kind::Uint32 => u64::from(number as u32),
        _ => number,
    }
}

fn take_varint(input: &mut &[u8]) -> Result<u64> {
    let mut number = 0_u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = input.split_first().ok_or(Error::UnexpectedEnd)?;
        *input = rest;
        if shift < 64 {
            number |= u64::from(byte & 0x7f) << shift;
        }
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Error::Malformed("integer overflow"))
}

fn take_tag(input: &mut &[u8]) -> Result<(u32, u8)> {
    let tag = take_varint(input)?;
    let number = u32::try_from(tag >> 3).map_err(|_| Error::Malformed("illegal tag"))?;
    if number == 0 || number > 0x1fff_ffff {
        return Err(Error::Malformed("illegal tag"));
    }
    Ok((number, u8::try_from(tag & 7).unwrap_or_default()))
}

fn take_length<'a>(input: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = usize::try_from(take_varint(input)?).map_err(|_| Error::UnexpectedEnd)?;
    take_bytes(input, length)
}

fn take_bytes<'a>(input: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(length).ok_or(Error::UnexpectedEnd)?;
    *input = rest;
    Ok(taken)
}

fn skip(input: &mut &[u8], number: u32, wire_type: u8, depth: u32) -> Result<()> {
    if depth == 0 {
        return Err(Error::TooDeep);
    }
    match wire_type {
        VARINT => drop(take_varint(input)?),
        FIXED64 => drop(take_bytes(input, 8)?),
        LENGTH => drop(take_length(input)?),
        FIXED32 => drop(take_bytes(input, 4)?),
        GROUP => loop {
            let (inner, wire_type) = take_tag(input)?;
            if wire_type == GROUP_END {
                if inner != number {
                    return Err(Error::Malformed("unexpected end of group"));
                }
                break;
            }
            skip(input, inner, wire_type, depth - 1)?;
        },
        _ => return Err(Error::Malformed("illegal wire type")),
    }
    Ok(())
}

fn encode_body(schema: &Schema, body: &Body, out: &mut Vec<u8>) -> Result<()> {
    let kind = schema.message(body.kind)?;
    for &position in &kind.wire_order {
        let (Some(field), Some(values)) = (kind.fields.get(position), body.fields.get(position)) else {
            continue;
        };
        match values {
            Values::One(value) => {
                if field.oneof.is_some() || !is_zero(value) {
                    encode_value(schema, field.number, value, out)?;
                }
            }
            Values::Many(values) if values.iter().any(|v| matches!(v, Value::Number(_))) => {
                let mut packed = Vec::new();
                for value in values {
                    if let Value::Number(number) = value {
                        put_varint(*number, &mut packed);
                    }
                }
                put_length(field.number, &packed, out);
            }
            Values::Many(values) => {
                for value in values {
                    encode_value(schema, field.number, value, out)?;
                }
            }
            Values::Map(entries) => {
                for (key, value) in entries {
                    let mut entry = Vec::new();
                    match key {
                        Key::Text(text) => put_length(1, text.as_bytes(), &mut entry),
                        Key::Number(number) => put_number(1, number.cast_unsigned(), &mut entry),
                    }
                    encode_value(schema, 2, value, &mut entry)?;
                    put_length(field.number, &entry, out);
                }
            }
        }
    }
    out.extend_from_slice(&body.unknown);
    Ok(())
}

fn encode_value(schema: &Schema, number: u32, value: &Value, out: &mut Vec<u8>) -> Result<()> {
    match value {
        Value::Number(value) => put_number(number, *value, out),
        Value::Text(text) => put_length(number, text.as_bytes(), out),
        Value::Bytes(bytes) => put_length(number, bytes, out),
        Value::Message(body) => {
            let mut inner = Vec::new();
            encode_body(schema, body, &mut inner)?;
            put_length(number, &inner, out);
        }
    }
    Ok(())
}

/// Whether a field without presence is left out.
pub(crate) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Number(number) => *number == 0,
        Value::Text(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::Message(_) => false,
    }
}

fn put_number(number: u32, value: u64, out: &mut Vec<u8>) {
    put_varint(u64::from(number) << 3, out);
    put_varint(value, out);
}

fn put_length(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(u64::from(number) << 3 | u64::from(LENGTH), out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
