//! Telling canonical bytes from others without building the message.
//!
//! Nearly all clients send canonical bytes, whose digest needs no second encoding. What this does not take for
//! canonical is decoded and encoded to find out, so it may err on that side only.

use crate::schema::{Field, Kind, Schema, Shape};

/// Deeper nesting is for the decoder to judge.
const MAX_DEPTH: u32 = 100;

const VARINT: u64 = 0;
const LENGTH: u64 = 2;

/// Whether `bytes` are the canonical encoding of an Op; if so, they are one.
pub fn is_canonical_op(bytes: &[u8]) -> bool {
    let schema = Schema::llb();
    schema.find("pb.Op").is_ok_and(|kind| message(schema, kind, bytes, MAX_DEPTH).is_some())
}

/// `Some` if the bytes are canonical; an option for the sake of `?`.
fn message(schema: &Schema, kind: usize, mut input: &[u8], depth: u32) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    let kind = schema.message(kind).ok()?;
    let mut last = None;
    let mut oneofs: u64 = 0;
    let mut key = None;
    while !input.is_empty() {
        let tag = varint(&mut input)?;
        let (position, field) = kind.field(u32::try_from(tag >> 3).ok()?)?;
        let rank = kind.wire_order.iter().position(|at| *at == position);
        let again = last == rank;
        if last > rank || (again && field.shape == Shape::Single) {
            return None;
        }
        last = rank;
        match field.shape {
            Shape::Single => {
                if let Some(oneof) = field.oneof {
                    let member = 1_u64.checked_shl(u32::try_from(oneof).ok()?)?;
                    if oneofs & member != 0 {
                        return None;
                    }
                    oneofs |= member;
                }
                value(schema, field.kind, tag & 7, &mut input, depth, field.oneof.is_none())?;
            }
            Shape::Repeated if is_number(field.kind) => {
                let mut packed = (!again && tag & 7 == LENGTH).then(|| length(&mut input)).flatten()?;
                if packed.is_empty() {
                    return None;
                }
                while !packed.is_empty() {
                    number(field.kind, varint(&mut packed)?)?;
                }
            }
            Shape::Repeated => value(schema, field.kind, tag & 7, &mut input, depth, false)?,
            Shape::Map => {
                let entry = (tag & 7 == LENGTH).then(|| length(&mut input)).flatten()?;
                let found = map_entry(schema, field, entry, depth)?;
                if again && key >= Some(found) {
                    return None;
                }
                key = Some(found);
            }
        }
    }
    Some(())
}

/// A key of a map entry that has both key and value, in this order. Keys of maps in these messages are texts.
fn map_entry<'a>(schema: &Schema, field: &Field, mut entry: &'a [u8], depth: u32) -> Option<&'a [u8]> {
    let depth = depth.checked_sub(1)?;
    let Kind::Message(kind) = field.kind else { return None };
    let kind = schema.message(kind).ok()?;
    let ((_, key_field), (_, value_field)) = (kind.field(1)?, kind.field(2)?);
    if key_field.kind != Kind::String || varint(&mut entry)? != 1 << 3 | LENGTH {
        return None;
    }
    let key = length(&mut entry)?;
    std::str::from_utf8(key).ok()?;
    let tag = varint(&mut entry)?;
    if tag >> 3 != 2 {
        return None;
    }
    value(schema, value_field.kind, tag & 7, &mut entry, depth, false)?;
    entry.is_empty().then_some(key)
}

/// One value; `nonzero` if its zero would have been left out.
fn value(schema: &Schema, kind: Kind, wire: u64, input: &mut &[u8], depth: u32, nonzero: bool) -> Option<()> {
    let fits = match kind {
        Kind::String | Kind::Bytes | Kind::Message(_) => wire == LENGTH,
        _ => wire == VARINT,
    };
    if !fits {
        return None;
    }
    let zero = match kind {
        Kind::String => std::str::from_utf8(length(input)?).ok()?.is_empty(),
        Kind::Bytes => length(input)?.is_empty(),
        Kind::Message(kind) => {
            message(schema, kind, length(input)?, depth)?;
            false
        }
        kind => number(kind, varint(input)?)? == 0,
    };
    (!zero || !nonzero).then_some(())
}

fn is_number(kind: Kind) -> bool {
    !matches!(kind, Kind::String | Kind::Bytes | Kind::Message(_))
}

/// A number as it would be written for its type.
fn number(kind: Kind, value: u64) -> Option<u64> {
    let fits = match kind {
        Kind::Bool => value <= 1,
        Kind::Int32 | Kind::Enum(_) => i32::try_from(value.cast_signed()).is_ok(),
        Kind::Uint32 => u32::try_from(value).is_ok(),
        _ => true,
    };
    fits.then_some(value)
}

fn length<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(varint(input)?).ok()?;
    let (taken, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(taken)
}

/// A varint in its shortest form.
fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for (index, &byte) in input.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if index == 9 && bits > 1 {
            return None;
        }
        number |= bits << (7 * index);
        if byte & 0x80 == 0 {
            *input = input.get(index + 1..)?;
            return (bits != 0 || index == 0).then_some(number);
        }
    }
    None
}
