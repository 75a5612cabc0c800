//! The metadata file of a build.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize as _;
use serde_json::{Map, Value};

use crate::run::random_id;

/// The response of exporters as JSON: keys in order, two spaces of indent, no newline at the end. A value that is the
/// base64 form of a JSON object with something in it becomes that object.
pub fn render(response: &BTreeMap<String, String>) -> String {
    let mut object = Map::new();
    for (key, value) in response {
        object.insert(key.clone(), embedded(value).unwrap_or_else(|| Value::String(value.clone())));
    }
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"  ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    if Value::Object(object).serialize(&mut serializer).is_err() {
        return String::new();
    }
    // Go escapes these, and JSON has them in texts only.
    String::from_utf8_lossy(&out)
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

fn embedded(value: &str) -> Option<Value> {
    let decoded = STANDARD.decode(value).ok()?;
    let object: Map<String, Value> = serde_json::from_slice(&decoded).ok()?;
    (!object.is_empty()).then_some(Value::Object(object))
}

/// Writes the file in one step; an empty response writes nothing.
///
/// # Errors
/// Of the file system.
pub fn write(path: &Path, response: &BTreeMap<String, String>) -> io::Result<()> {
    if response.is_empty() {
        return Ok(());
    }
    replace(path, render(response).as_bytes())
}

/// Puts a file in place in one step.
///
/// # Errors
/// Of the file system.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", random_id()));
    let outcome = std::fs::write(&temporary, content).and_then(|()| std::fs::rename(&temporary, path));
    if outcome.is_err() {
        // Not there if it could not be written.
        let _gone = std::fs::remove_file(&temporary);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn objects_are_embedded_and_the_rest_stays_text() {
        let encode = |text: &str| STANDARD.encode(text);
        let response = [
            ("z", "sha256:aa".to_owned()),
            ("containerimage.descriptor", encode(r#"{"size":1,"digest":"<x>"}"#)),
            ("cache.manifest", r#"{"a":1}"#.to_owned()),
            ("empty", encode("{}")),
            ("list", encode("[1]")),
        ];
        let response = response.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        expect![[r#"
            {
              "cache.manifest": "{\"a\":1}",
              "containerimage.descriptor": {
                "size": 1,
                "digest": "\u003cx\u003e"
              },
              "empty": "e30=",
              "list": "WzFd",
              "z": "sha256:aa"
            }"#]]
        .assert_eq(&render(&response));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("md.json");
        write(&file, &BTreeMap::new()).unwrap();
        assert!(!file.exists());
        write(&file, &response).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), render(&response));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
