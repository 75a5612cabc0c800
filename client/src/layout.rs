//! The index of an OCI layout on our own disk.

use std::io::{ErrorKind, Read as _};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Annotation of an entry: its tag.
const TAG: &str = "org.opencontainers.image.ref.name";
/// How long an index may be, in bytes.
const MAX_INDEX: u64 = 16 << 20;

/// The digest of the entry with this tag; `None` if the layout or the entry is not there.
pub(crate) fn resolve(dir: &Path, tag: &str) -> Result<Option<String>> {
    let Some(index) = read(dir)? else { return Ok(None) };
    let entries = index["manifests"].as_array().map(Vec::as_slice).unwrap_or_default();
    let tagged = entries.iter().find(|entry| entry["annotations"][TAG].as_str() == Some(tag));
    Ok(tagged.and_then(|entry| entry["digest"].as_str()).map(str::to_owned))
}

/// Puts an entry into the index, in place of the one with its tag; with no tag, of the one with its digest.
pub(crate) fn put(dir: &Path, mut descriptor: Value, tag: Option<&str>) -> Result<()> {
    let mut index = read(dir)?.unwrap_or_else(|| {
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [],
        })
    });
    if let Some(tag) = tag
        && let Some(descriptor) = descriptor.as_object_mut()
    {
        let annotations = descriptor.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(TAG.to_owned(), tag.into());
        }
    }
    let index_object = index.as_object_mut().ok_or_else(|| invalid(dir, "index.json is no object"))?;
    let entries = index_object.entry("manifests").or_insert_with(|| json!([]));
    if entries.is_null() {
        *entries = json!([]);
    }
    let entries = entries.as_array_mut().ok_or_else(|| invalid(dir, "its manifests are no list"))?;
    entries.retain(|entry| match tag {
        Some(tag) => entry["annotations"][TAG].as_str() != Some(tag),
        None => entry["digest"] != descriptor["digest"],
    });
    entries.push(descriptor);
    write(dir, "index.json", &index)?;
    write(dir, "oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))
}

fn read(dir: &Path) -> Result<Option<Value>> {
    let mut content = Vec::new();
    let outcome = std::fs::File::open(dir.join("index.json"))
        .and_then(|file| file.take(MAX_INDEX).read_to_end(&mut content));
    match outcome {
        Ok(_) => serde_json::from_slice(&content).map(Some).map_err(|error| invalid(dir, &error.to_string())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(invalid(dir, &error.to_string())),
    }
}

fn write(dir: &Path, name: &str, value: &Value) -> Result<()> {
    let temporary = dir.join(format!(".{name}.{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&temporary, value.to_string()))
        .and_then(|()| std::fs::rename(&temporary, dir.join(name)))
        .map_err(|error| invalid(dir, &error.to_string()))
}

fn invalid(dir: &Path, reason: &str) -> Error {
    Error::Layout { dir: dir.display().to_string(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_tag_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(resolve(dir.path(), "latest").unwrap(), None);
        for (digest, tag) in [("sha256:a", "latest"), ("sha256:b", "other"), ("sha256:c", "latest")] {
            put(dir.path(), json!({ "digest": digest }), Some(tag)).unwrap();
        }
        assert_eq!(resolve(dir.path(), "latest").unwrap().as_deref(), Some("sha256:c"));
        assert_eq!(resolve(dir.path(), "other").unwrap().as_deref(), Some("sha256:b"));
        assert_eq!(resolve(dir.path(), "none").unwrap(), None);
        let index = read(dir.path()).unwrap().unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
        std::fs::write(dir.path().join("index.json"), "{").unwrap();
        assert!(resolve(dir.path(), "latest").is_err());
    }
}
