//! JSON as Go's `encoding/json` writes it.
//!
//! Documents are named by the digest of their bytes, so escaping is part of their identity: `<`, `>`, `&`,
//! U+2028 and U+2029 are written as `\u` escapes.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Writes `value` without white space.
pub fn compact<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).map(escape).unwrap_or_default()
}

/// Writes `value` with two spaces of indentation.
pub fn pretty<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec_pretty(value).map(escape).unwrap_or_default()
}

/// Removes the white space outside of strings, so that values that were taken over as they came are compact too.
pub fn compact_raw(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for &byte in json {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if byte.is_ascii_whitespace() {
            continue;
        } else {
            in_string = byte == b'"';
        }
        out.push(byte);
    }
    out
}

/// Rewrites what Go escapes and `serde_json` does not. These characters stand only inside strings.
fn escape(json: Vec<u8>) -> Vec<u8> {
    let special = |byte: &u8| matches!(byte, b'<' | b'>' | b'&' | 0xe2 | b'\\' | 0x7f);
    if !json.iter().any(special) {
        return json;
    }
    let mut out = Vec::with_capacity(json.len() + 64);
    let mut rest = json.as_slice();
    while let Some((&byte, tail)) = rest.split_first() {
        let (replacement, used): (&[u8], usize) = match rest {
            [b'<', ..] => (b"\\u003c", 1),
            [b'>', ..] => (b"\\u003e", 1),
            [b'&', ..] => (b"\\u0026", 1),
            [0xe2, 0x80, 0xa8, ..] => (b"\\u2028", 3),
            [0xe2, 0x80, 0xa9, ..] => (b"\\u2029", 3),
            [b'\\', next, ..] => {
                out.extend_from_slice(&[b'\\', *next]);
                rest = rest.get(2..).unwrap_or_default();
                continue;
            }
            _ => {
                out.push(byte);
                rest = tail;
                continue;
            }
        };
        out.extend_from_slice(replacement);
        rest = rest.get(used..).unwrap_or_default();
    }
    out
}

/// Reads `null` as the default value, as Go does for slices and maps.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A list whose empty form is `null`, as Go writes a nil slice.
pub(crate) mod null_when_empty {
    use super::*;

    pub(crate) fn serialize<S: Serializer, T: Serialize>(
        list: &[T],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if list.is_empty() { serializer.serialize_none() } else { list.serialize(serializer) }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        null_is_default(deserializer)
    }
}
