//! Caches that images carry in their configs: records alone, whose layers are those of the image.

use std::collections::HashMap;

use base64::Engine as _;
use kiln_content::{Descriptor, History, RootFs};
use kiln_digest::Digest;
use kiln_exporter::INLINE_CACHE;
use serde::Deserialize;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::open::{CacheOrigin, MAX_DOCUMENT, Outline, document};
use crate::{CREATED_AT, DESCRIPTION, UNCOMPRESSED};

/// Manifests and indexes that one import reads.
const MAX_MANIFESTS: usize = 128;
/// The largest config of an image, in bytes; its cache is in it.
const MAX_IMAGE_CONFIG: u64 = 4 << 20;

/// What was found in images.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) config: Config,
    pub(crate) layers: HashMap<Digest, Descriptor>,
    /// What people may want to know.
    pub(crate) notes: Vec<String>,
}

/// Reads the caches of all images that a root leads to; those of several platforms are one then.
pub(crate) async fn read(origin: &dyn CacheOrigin, root: Digest, outline: Outline) -> Result<Found> {
    let mut found = Found::default();
    let mut todo = vec![outline];
    let mut manifests = 1;
    let mut carried = false;
    while let Some(outline) = todo.pop() {
        if let Some(entries) = outline.manifests {
            manifests += entries.len();
            if manifests > MAX_MANIFESTS {
                return Err(Error::Records(format!("more than {MAX_MANIFESTS} manifests in {root}")));
            }
            for entry in &entries {
                todo.push(Outline::parse(&document(origin, entry, MAX_DOCUMENT).await?)?);
            }
            continue;
        }
        let Some(config) = outline.config else { continue };
        let bytes = document(origin, &config, MAX_IMAGE_CONFIG).await?;
        let image: Image = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Document { what: "image config", reason: error.to_string() })?;
        carried |= image.add_to(&mut found, outline.layers.unwrap_or_default())?;
    }
    if !carried {
        found
            .notes
            .push(format!("no cache in {root}: neither a cache config nor an image with `{INLINE_CACHE}`"));
    }
    Ok(found)
}

/// The config of an image, as far as it matters here.
#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    rootfs: Option<RootFs>,
    #[serde(default)]
    history: Option<Vec<History>>,
    /// [`INLINE_CACHE`].
    #[serde(default, rename = "moby.buildkit.cache.v0")]
    cache: Option<String>,
}

impl Image {
    /// Adds its cache; whether it has one.
    fn add_to(self, found: &mut Found, layers: Vec<Descriptor>) -> Result<bool> {
        let Some(cache) = self.cache.filter(|cache| !cache.is_empty()) else { return Ok(false) };
        let diff_ids = self.rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default();
        if diff_ids.len() != layers.len() {
            found.notes.push("invalid image with mismatching manifest and config".to_owned());
            return Ok(true);
        }
        let records = base64::engine::general_purpose::STANDARD
            .decode(cache)
            .map_err(|error| Error::Document { what: "inline cache", reason: error.to_string() })?;
        let blobs: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
        found.config.append(Config::parse_inline(&records, &blobs)?);
        let mut history = self.history.into_iter().flatten().filter(|line| !line.empty_layer);
        for (mut layer, diff_id) in layers.into_iter().zip(diff_ids) {
            let History { created, created_by, .. } = history.next().unwrap_or_default();
            layer.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
            layer.annotations.extend(created.map(|created| (CREATED_AT.to_owned(), created)));
            layer.annotations.insert(DESCRIPTION.to_owned(), created_by);
            found.layers.insert(layer.digest, layer);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::open::{Opened, open};

    /// Documents by digest.
    #[derive(Debug, Default)]
    struct Documents(HashMap<Digest, Bytes>);

    impl Documents {
        fn put(&mut self, document: &Value) -> Value {
            let bytes = Bytes::from(document.to_string());
            let descriptor = Descriptor::of(document["mediaType"].as_str().unwrap_or("config"), &bytes);
            self.0.insert(descriptor.digest, bytes);
            serde_json::to_value(descriptor).unwrap()
        }

        /// An image of layers `<name>0`, `<name>1`, …
        fn image(&mut self, name: &str, layers: usize, mut config: Value, records: Option<&Value>) -> Value {
            if let Some(records) = records {
                let text = base64::engine::general_purpose::STANDARD.encode(records.to_string());
                config[INLINE_CACHE] = json!(text);
            }
            let config = self.put(&config);
            let layers: Vec<Value> = (0..layers)
                .map(|layer| {
                    json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                        "digest": Digest::of(format!("{name}{layer}")), "size": 5})
                })
                .collect();
            self.put(&json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
                "layers": layers}))
        }

        async fn open(&self, root: &Value) -> Result<Opened> {
            open(self, &serde_json::from_value(root.clone()).unwrap()).await
        }
    }

    #[async_trait]
    impl CacheOrigin for Documents {
        async fn read(&self, document: &Descriptor, _limit: u64) -> Result<Bytes> {
            self.0.get(&document.digest).cloned().ok_or(Error::NotFound(document.digest))
        }

        async fn has(&self, _blob: &Descriptor) -> Result<bool> {
            Ok(true)
        }

        fn layer_source(&self, _root: &Digest) -> String {
            String::new()
        }
    }

    fn diff_ids(name: &str, layers: usize) -> Value {
        let ids: Vec<_> = (0..layers).map(|layer| Digest::of(format!("diff {name}{layer}"))).collect();
        json!({"type": "layers", "diff_ids": ids})
    }

    fn records(name: &str, top: usize) -> Value {
        json!([
            {"digest": Digest::of(name)},
            {"layers": [{"layer": top, "createdAt": "2024-01-01T00:00:00Z"}],
             "chains": [{"layers": [0], "createdAt": "0001-01-01T00:00:00Z"}],
             "digest": Digest::of(format!("{name} op")), "inputs": [[{"link": 0}]]},
        ])
    }

    #[tokio::test]
    async fn caches_of_all_platforms_are_one() {
        let mut documents = Documents::default();
        let history = json!([{"created": "2024-02-03T04:05:06Z", "created_by": "RUN first"},
            {"created_by": "ENV", "empty_layer": true}, {"created_by": "RUN second"}]);
        let one = json!({"rootfs": diff_ids("a", 2), "history": history});
        let one = documents.image("a", 2, one, Some(&records("a", 1)));
        let two = documents.image("b", 1, json!({"rootfs": diff_ids("b", 1)}), Some(&records("b", 0)));
        let plain = documents.image("c", 1, json!({"rootfs": diff_ids("c", 1)}), None);
        let root =
            json!({"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [one, two, plain]});
        let root = documents.put(&root);
        let opened = documents.open(&root).await.unwrap();
        assert_eq!(opened.notes, Vec::<String>::new());
        assert_eq!((opened.config.layers.len(), opened.config.records.len(), opened.layers.len()), (3, 4, 3));
        for (name, top) in [("a", 1), ("b", 0)] {
            let digest = Digest::of(format!("{name} op"));
            let record = opened.config.records.iter().find(|record| record.digest == digest).unwrap();
            let chain: Vec<_> = (0..=top).map(|layer| Digest::of(format!("{name}{layer}"))).collect();
            assert_eq!(opened.config.chain(record.layers[0].layer), chain);
            let bottom = opened.config.layer(record.chains[0].layers[0]).unwrap();
            assert_eq!(bottom.blob, Digest::of(format!("{name}0")));
            let from = usize::try_from(record.inputs[0][0].link).unwrap();
            assert_eq!(opened.config.records[from].digest, Digest::of(name));
        }
        let told = |layer: &str| opened.layers[&Digest::of(layer)].annotations.clone();
        assert_eq!(told("a0")[UNCOMPRESSED], Digest::of("diff a0").to_string());
        assert_eq!(
            (told("a0")[CREATED_AT].as_str(), told("a0")[DESCRIPTION].as_str()),
            ("2024-02-03T04:05:06Z", "RUN first")
        );
        assert_eq!(told("a1")[DESCRIPTION], "RUN second");
    }

    #[tokio::test]
    async fn what_is_no_cache_is_said() {
        for (rootfs, with, want) in [
            (diff_ids("a", 2), false, "no cache in sha256:"),
            (diff_ids("a", 1), true, "invalid image with mismatching manifest and config"),
        ] {
            let mut documents = Documents::default();
            let records = records("a", 1);
            let image = documents.image("a", 2, json!({"rootfs": rootfs}), with.then_some(&records));
            let opened = documents.open(&image).await.unwrap();
            assert!(opened.config.is_empty());
            assert_eq!(opened.notes.len(), 1);
            assert!(opened.notes[0].starts_with(want), "{:?}", opened.notes);
        }
    }

    #[tokio::test]
    async fn hostile_images_are_refused() {
        let mut documents = Documents::default();
        let config = || json!({"rootfs": diff_ids("a", 1)});
        let beyond = documents.image("a", 1, config(), Some(&records("a", 7)));
        let circle = json!([{"digest": Digest::of("x"), "inputs": [[{"link": 0}]]}]);
        let circle = documents.image("a", 1, config(), Some(&circle));
        let mut text = config();
        text[INLINE_CACHE] = json!("not base64!");
        let text = documents.image("a", 1, text, None);
        let mut large = config();
        large["author"] = json!("x".repeat(5 << 20));
        let large = documents.image("a", 1, large, Some(&records("a", 0)));
        let many = documents.put(&json!({"manifests": vec![beyond.clone(); 200]}));
        let itself = documents.put(&json!({"manifests": [
            {"mediaType": "x", "digest": Digest::of("nowhere"), "size": 1}]}));
        for (root, want) in [
            (beyond, "invalid layer index 7"),
            (circle, "invalid looping record"),
            (text, "invalid inline cache: "),
            (large, "is too large"),
            (many, "more than 128 manifests in "),
            (itself, ": not found"),
        ] {
            let error = documents.open(&root).await.unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
