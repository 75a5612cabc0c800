//! Imported caches as stores of keys.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use kiln_cache::{CacheManager, CacheOptions, Ref};
use kiln_content::{ContentStore, Descriptor, LocalStore, media_type};
use kiln_digest::Digest;
use kiln_remotecache::{CONFIG_TYPE, CacheOrigin, Error, ImportedKeys, LayerStore, Result, open};
use kiln_snapshot::OverlaySnapshotter;
use kiln_solver::testing::{SourceEntry, source_conformance};
use kiln_solver::{KeyDigest, KeyId, KeySource, OutputIndex};
use serde_json::{Value, json};

/// A cache in memory.
#[derive(Debug, Default)]
struct Memory {
    documents: HashMap<Digest, Bytes>,
    /// Blobs of layers it says it has.
    layers: Vec<Digest>,
    asked: AtomicUsize,
}

impl Memory {
    fn put(&mut self, kind: &str, value: &Value) -> Descriptor {
        let bytes = serde_json::to_vec(value).unwrap();
        let descriptor = Descriptor::of(kind, &bytes);
        self.documents.insert(descriptor.digest, bytes.into());
        descriptor
    }
}

#[async_trait]
impl CacheOrigin for Memory {
    async fn read(&self, document: &Descriptor, _limit: u64) -> Result<Bytes> {
        self.documents.get(&document.digest).cloned().ok_or(Error::NotFound(document.digest))
    }

    async fn has(&self, blob: &Descriptor) -> Result<bool> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(self.layers.contains(&blob.digest))
    }

    fn layer_source(&self, root: &Digest) -> String {
        format!("memory/{}", root.hex())
    }
}

struct Fixture {
    _dir: tempfile::TempDir,
    target: LayerStore,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Arc::new(OverlaySnapshotter::open(dir.path().join("snapshots")).unwrap());
        let content: Arc<dyn ContentStore> = Arc::new(LocalStore::open(dir.path().join("content")).unwrap());
        let options = CacheOptions::new(dir.path().join("kiln"), snapshots, content.clone());
        let cache = CacheManager::open(options).await.unwrap();
        Self { _dir: dir, target: LayerStore { cache, content } }
    }

    /// Opens a cache with these layers (name, parent) and records.
    async fn import(&self, layers: &[(&str, i64)], records: Value, has: &[&str]) -> Result<ImportedKeys> {
        let mut memory = Memory { layers: has.iter().map(Digest::of).collect(), ..Memory::default() };
        let listed = layers.iter().map(|(name, parent)| json!({"blob": Digest::of(name), "parent": parent}));
        let config = json!({"layers": listed.collect::<Vec<_>>(), "records": records});
        let config = memory.put(CONFIG_TYPE, &config);
        let described = layers.iter().map(|(name, _)| {
            let mut layer = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(name), 100);
            layer
                .annotations
                .insert("containerd.io/uncompressed".into(), Digest::of(format!("{name} tar")).to_string());
            layer.annotations.insert("buildkit/createdat".into(), "2020-01-02T03:04:05.5Z".into());
            layer
        });
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": described.collect::<Vec<_>>()});
        let root = memory.put(media_type::OCI_MANIFEST, &manifest);
        let opened = open(&memory, &root).await?;
        Ok(ImportedKeys::new("it", root.digest, opened, Arc::new(memory), self.target.clone()))
    }
}

fn key(text: &str, output: i64) -> String {
    KeyId::root(&Digest::of(text), output).to_string()
}

#[tokio::test]
async fn the_contract_of_sources_is_kept() {
    let fixture = Fixture::new().await;
    let make = async |entries: &[SourceEntry]| {
        let records = entries.iter().map(|entry| {
            let way = |(selector, link): &(Option<Digest>, usize)| match selector {
                Some(selector) => json!({"selector": selector, "link": link}),
                None => json!({"link": link}),
            };
            let inputs = entry.inputs.iter().map(|ways| ways.iter().map(way).collect::<Vec<_>>());
            let layers = if entry.result {
                json!([{"layer": 0, "createdAt": "2020-01-02T03:04:05Z"}])
            } else {
                json!([])
            };
            json!({
                "digest": KeyId::root(&entry.digest, entry.output).to_string(),
                "inputs": inputs.collect::<Vec<_>>(),
                "layers": layers,
            })
        });
        fixture.import(&[("layer", -1)], records.collect(), &["layer"]).await.unwrap()
    };
    source_conformance(make).await;
}

#[tokio::test]
async fn results_are_lazy_layers_with_the_times_of_the_cache() {
    let fixture = Fixture::new().await;
    let records = json!([
        {"digest": key("base", 0)},
        {"digest": key("op", 0), "inputs": [[{"link": 0}]], "layers": [{"layer": 1, "createdAt": "2021-01-01T00:00:00Z"}]},
        {"digest": key("chained", 0), "inputs": [[{"link": 0}]], "chains": [{"layers": [1, 0, 1], "createdAt": "0001-01-01T00:00:00Z"}]},
        {"digest": key("half", 0), "inputs": [[{"link": 0}]], "layers": [{"layer": 2}]},
    ]);
    let layers = [("a", -1), ("b", 0), ("c", 1)];
    let cache = fixture.import(&layers, records, &["a", "b"]).await.unwrap();
    let base = vec![kiln_solver::KeyAndSelector { key: KeyId::root(&Digest::of("base"), 0), selector: None }];
    let find = async |op: &str| -> Option<Ref> {
        let digest = KeyDigest::Stable(Digest::of(op));
        let found = cache.query(std::slice::from_ref(&base), &digest, OutputIndex(0)).await.keys;
        let record = cache.records(&found[0]).remove(0);
        cache.load(&record).await.map(|result| result.unwrap().downcast::<Ref>().unwrap().clone())
    };
    let names = |state: &Ref| -> Vec<Digest> {
        state.layers().iter().map(|layer| layer.blobs[0].descriptor.digest).collect()
    };
    let op = find("op").await.unwrap();
    assert_eq!(names(&op), ["a", "b"].map(Digest::of));
    let layer = op.layers().remove(1);
    assert_eq!(layer.blobs[0].diff_id, Digest::of("b tar"));
    assert!(layer.blobs[0].is_imported() && layer.snapshot.is_none());
    assert_eq!(layer.description, format!("imported {}", Digest::of("b")));
    let since = layer.created_at.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(since.as_millis(), 1_577_934_245_500);
    assert_eq!(names(&find("chained").await.unwrap()), ["b", "a", "b"].map(Digest::of));
    assert!(find("half").await.is_none(), "one of its layers is not there");
}

#[tokio::test]
async fn documents_are_told_by_their_content() {
    let config = json!({"records": [{"digest": Digest::of("x")}]});
    for (with, want) in [
        ("manifest", "application/vnd.oci.image.manifest.v1+json"),
        ("index", "application/vnd.oci.image.index.v1+json"),
        ("large", "is too large (1048577 > 1048576)"),
        ("other", "has digest "),
    ] {
        let mut memory = Memory::default();
        let config = memory.put(CONFIG_TYPE, &config);
        let layer = Descriptor::new(media_type::OCI_LAYER, Digest::of("layer"), 1);
        let mut root = match with {
            "index" => memory.put("", &json!({"manifests": [layer, config]})),
            _ => memory.put("", &json!({"config": config, "layers": [layer]})),
        };
        match with {
            "large" => root.size = 1_048_577,
            "other" => drop(memory.documents.insert(root.digest, Bytes::from_static(b"{}"))),
            _ => {}
        }
        let got = match open(&memory, &root).await {
            Ok(opened) => {
                assert_eq!(opened.layers.len(), 1);
                opened.kind
            }
            Err(error) => error.to_string(),
        };
        assert!(got.contains(want), "{with}: {got}");
    }
}
