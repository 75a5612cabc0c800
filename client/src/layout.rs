//! The index of an OCI layout on our own disk.

use std::collections::HashSet;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Annotation of an entry: its tag.
const TAG: &str = "org.opencontainers.image.ref.name";
/// How long an index may be, in bytes; manifests and indexes among the blobs too.
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

/// Whether the blob of a descriptor is there.
pub(crate) fn has(dir: &Path, descriptor: &Value) -> bool {
    descriptor["digest"].as_str().and_then(|digest| blob(dir, digest)).is_some_and(|path| path.is_file())
}

/// Removes the blobs that no entry of the index leads to.
pub(crate) fn remove_unreferenced(dir: &Path) -> Result<()> {
    let Some(index) = read(dir)? else { return Ok(()) };
    let mut referenced = HashSet::new();
    let mut documents = vec![index];
    while let Some(document) = documents.pop() {
        let lists = ["manifests", "layers"].into_iter().filter_map(|key| document[key].as_array());
        for descriptor in lists.flatten().chain(document.get("config")) {
            let Some(path) = descriptor["digest"].as_str().and_then(|digest| blob(dir, digest)) else {
                continue;
            };
            let kind = descriptor["mediaType"].as_str().unwrap_or_default();
            let leads_on = ["index.v1+json", "manifest.v1+json", "manifest.v2+json", "manifest.list.v2+json"];
            if referenced.insert(path.clone()) && leads_on.iter().any(|end| kind.ends_with(end)) {
                // What cannot be read may lead to anything, so nothing is removed then.
                documents.extend(read_json(dir, &path)?);
            }
        }
    }
    let removed = std::fs::read_dir(dir.join("blobs/sha256")).and_then(|entries| {
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if is_hex(name) && !referenced.contains(&path) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    });
    removed.map_err(|error| invalid(dir, &error.to_string()))
}

fn blob(dir: &Path, digest: &str) -> Option<PathBuf> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| is_hex(hex))?;
    Some(dir.join("blobs/sha256").join(hex))
}

fn is_hex(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn read(dir: &Path) -> Result<Option<Value>> {
    read_json(dir, &dir.join("index.json"))
}

fn read_json(dir: &Path, path: &Path) -> Result<Option<Value>> {
    let mut content = Vec::new();
    let outcome = std::fs::File::open(path).and_then(|file| file.take(MAX_INDEX).read_to_end(&mut content));
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
    fn what_nothing_leads_to_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = dir.path().join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let name = |letter: char| letter.to_string().repeat(64);
        let digest = |letter: char| format!("sha256:{}", name(letter));
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let of_layer = |layer: char| json!({ "config": { "digest": digest('c') }, "layers": [{ "digest": digest(layer) }] });
        for (letter, content) in [
            ('a', of_layer('1')),
            ('b', of_layer('2')),
            ('c', json!({})),
            ('d', json!({})),
            ('1', json!(1)),
            ('2', json!(2)),
        ] {
            std::fs::write(blobs.join(name(letter)), content.to_string()).unwrap();
        }
        std::fs::write(blobs.join("notes"), "not ours").unwrap();
        let entry = |letter: char| json!({ "digest": digest(letter), "mediaType": manifest });
        put(dir.path(), entry('b'), Some("latest")).unwrap();
        put(dir.path(), entry('a'), Some("latest")).unwrap();
        assert!(has(dir.path(), &entry('b')) && !has(dir.path(), &entry('e')));
        remove_unreferenced(dir.path()).unwrap();
        let left = |path: &Path| {
            let names = std::fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut first: Vec<_> = names.map(|name| name.chars().next().unwrap()).collect();
            first.sort_unstable();
            first.into_iter().collect::<String>()
        };
        assert_eq!(left(&blobs), "1acn");
        // A manifest that cannot be read may lead to anything.
        std::fs::write(blobs.join(name('a')), "{").unwrap();
        std::fs::write(blobs.join(name('d')), "{}").unwrap();
        assert!(remove_unreferenced(dir.path()).is_err());
        assert_eq!(left(&blobs), "1acdn");
    }

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
