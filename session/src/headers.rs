//! Metadata of calls: lists that may need encoding.

use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};

use crate::error::{Error, Result};

/// Ends the key that says that all values of the key before it are encoded.
const ENCODED: &str = "-encoded";

/// Appends all values of a key. If one of them cannot go as it is, all are query-escaped, and `<key>-encoded`
/// says so.
pub(crate) fn append(metadata: &mut MetadataMap, key: &'static str, values: &[String]) -> Result<()> {
    let encode = values.iter().any(|value| !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
    for value in values {
        let value = if encode { escape(value) } else { value.clone() };
        metadata.append(key, parse(&value)?);
    }
    if encode {
        let marker = AsciiMetadataKey::from_bytes(format!("{key}{ENCODED}").as_bytes())
            .map_err(|_| Error::protocol(format!("invalid metadata key {key}")))?;
        metadata.insert(marker, AsciiMetadataValue::from_static("1"));
    }
    Ok(())
}

/// All values of a key, decoded if they are marked.
pub(crate) fn values(metadata: &MetadataMap, key: &str) -> Result<Vec<String>> {
    let encoded =
        metadata.get(format!("{key}{ENCODED}")).is_some_and(|value| value.as_encoded_bytes() == b"1");
    metadata
        .get_all(key)
        .iter()
        .map(|value| {
            let text = String::from_utf8_lossy(value.as_encoded_bytes()).into_owned();
            if encoded { unescape(&text) } else { Ok(text) }
        })
        .collect()
}

/// The first value of a key, as it is.
pub(crate) fn first(metadata: &MetadataMap, key: &str) -> Option<String> {
    metadata.get(key).map(|value| String::from_utf8_lossy(value.as_encoded_bytes()).into_owned())
}

pub(crate) fn parse(value: &str) -> Result<AsciiMetadataValue> {
    value.parse().map_err(|_| Error::protocol(format!("invalid metadata value {value:?}")))
}

/// As Go's `url.QueryEscape`.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            b' ' => escaped.push('+'),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

fn unescape(text: &str) -> Result<String> {
    let invalid = || Error::protocol(format!("invalid URL escape in {text:?}"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let (high, low) = (digit().ok_or_else(invalid)?, digit().ok_or_else(invalid)?);
                bytes.push(u8::try_from(high * 16 + low).map_err(|_| invalid())?);
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(list: &[&str], want: &[&str], encoded: bool) {
        let list: Vec<String> = list.iter().map(|value| (*value).to_owned()).collect();
        let mut metadata = MetadataMap::new();
        append(&mut metadata, "followpaths", &list).unwrap();
        let sent: Vec<_> =
            metadata.get_all("followpaths").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(sent, want);
        assert_eq!(metadata.contains_key("followpaths-encoded"), encoded);
        assert_eq!(values(&metadata, "followpaths").unwrap(), list);
    }

    #[test]
    fn lists() {
        check(&["a", "100%", "a+b c"], &["a", "100%", "a+b c"], false);
        check(&["ü", "a+b", "100%"], &["%C3%BC", "a%2Bb", "100%25"], true);
        check(&["*.日本", "tab\there"], &["%2A.%E6%97%A5%E6%9C%AC", "tab%09here"], true);
        check(&[], &[], false);
    }

    #[test]
    fn bad_escapes() {
        for text in ["%", "%1", "%zz", "%ff"] {
            assert!(unescape(text).is_err(), "{text}");
        }
    }
}
