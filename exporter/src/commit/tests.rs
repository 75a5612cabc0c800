//! Images recorded from the reference (`testdata/images`): the same layers and configs make the same documents.

use std::sync::Arc;

use kiln_cache::{CacheManager, CacheOptions, LayerBlob, NoProvider, RecordOptions};
use kiln_content::testing::MemoryStore;
use kiln_content::{CodecPool, ContentStore, json};
use kiln_session::Sessions;
use kiln_snapshot::testing::PlainSnapshotter;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::*;
use crate::archive;
use crate::error::BoxError;
use crate::exporter::{Compatibility, InlineCache, Kind};
use crate::source::Source;

#[derive(Deserialize)]
struct Case {
    case: String,
    kind: String,
    attrs: BTreeMap<String, String>,
    index: bool,
    platforms: Vec<Recorded>,
    want: Want,
}

#[derive(Deserialize)]
struct Recorded {
    platform: Platform,
    layers: Vec<RecordedLayer>,
    #[serde(default)]
    base: Option<Value>,
    config: Map<String, Value>,
}

#[derive(Deserialize)]
struct RecordedLayer {
    descriptor: Descriptor,
    diff_id: Digest,
}

#[derive(Deserialize)]
struct Want {
    metadata: Map<String, Value>,
    #[serde(rename = "index.json")]
    index: Option<Value>,
    #[serde(rename = "manifest.json")]
    docker: Option<Value>,
}

struct Bench {
    _dir: tempfile::TempDir,
    cache: CacheManager,
    tools: Tools,
}

async fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = dir.path().join("snapshots");
    std::fs::create_dir(&snapshots).unwrap();
    let content: Arc<dyn ContentStore> = Arc::new(MemoryStore::new());
    let snapshotter = Arc::new(PlainSnapshotter::open(snapshots).unwrap());
    let options = CacheOptions::new(dir.path().join("kiln"), snapshotter, Arc::clone(&content));
    let cache = CacheManager::open(options).await.unwrap();
    Bench { _dir: dir, cache, tools: Tools::new(content, CodecPool::new(2)) }
}

async fn source(bench: &Bench, case: &Case) -> Source {
    let mut source = Source::default();
    let mut list = Vec::new();
    for recorded in &case.platforms {
        let id = recorded.platform.to_string();
        let mut state: Option<Ref> = None;
        for layer in &recorded.layers {
            let blob = LayerBlob {
                descriptor: layer.descriptor.clone(),
                diff_id: layer.diff_id,
                source: "recorded".to_owned(),
            };
            let made = bench.cache.lazy_layer(state.as_ref(), blob, RecordOptions::default()).await;
            state = Some(made.unwrap());
        }
        // The exporter finds the order of the keys itself.
        let config: Map<String, Value> = recorded.config.clone().into_iter().rev().collect();
        let suffix = if case.index { format!("/{id}") } else { String::new() };
        source
            .metadata
            .insert(format!("{}{suffix}", keys::CONFIG), serde_json::to_vec_pretty(&config).unwrap());
        if let Some(base) = &recorded.base {
            source
                .metadata
                .insert(format!("{}{suffix}", keys::BASE_CONFIG), serde_json::to_vec(base).unwrap());
        }
        if case.index {
            list.push(serde_json::json!({"ID": id, "Platform": recorded.platform}));
            source.refs.insert(id, state);
        } else {
            source.single = state;
        }
    }
    if case.index {
        let list = serde_json::json!({ "Platforms": list });
        source.metadata.insert(keys::PLATFORMS.to_owned(), serde_json::to_vec(&list).unwrap());
    }
    source
}

fn request(source: Source) -> ExportRequest {
    ExportRequest {
        source,
        compatibility: Compatibility::CURRENT,
        provider: Arc::new(NoProvider),
        sessions: Sessions::new(),
        session: String::new(),
        inline_cache: None,
        progress: VertexProgress::discard(),
    }
}

#[tokio::test]
async fn documents_are_those_of_the_reference() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../testdata/images/images.json")).unwrap();
    assert!(cases.len() > 30);
    let bench = bench().await;
    for case in cases {
        let kind = match case.kind.as_str() {
            "oci" => Kind::Oci,
            "docker" => Kind::Docker,
            _ => Kind::Image,
        };
        let (mut attrs, _) = ImageAttrs::load(&case.attrs).unwrap();
        attrs.complete(kind, Compatibility::CURRENT).unwrap();
        let request = request(source(&bench, &case).await);
        let committed = commit(&bench.tools, &request, &attrs).await.unwrap();
        let name = &case.case;
        let wanted = |key: &str| case.want.metadata.get(key).and_then(Value::as_str).map(str::to_owned);
        let response = response(&committed);
        if response.get(keys::CONFIG_DIGEST).cloned() != wanted(keys::CONFIG_DIGEST) {
            let config = bench.tools.content.get(&committed.config.unwrap(), 1 << 20).await.unwrap();
            panic!("{name}: {}", String::from_utf8_lossy(&config));
        }
        assert_eq!(response.get(keys::DIGEST).cloned(), wanted(keys::DIGEST), "{name}");
        if kind == Kind::Image {
            continue;
        }
        let (top, names) = archive::name(&committed, &attrs, &request).unwrap();
        let descriptor: Value = serde_json::from_slice(&json::compact(&top)).unwrap();
        assert_eq!(Some(&descriptor), case.want.metadata.get(keys::DESCRIPTOR), "{name}");
        assert_eq!((!names.is_empty()).then(|| names.join(",")), wanted(keys::IMAGE_NAME), "{name}");
        let index = archive::layout_index(&top, &names).unwrap();
        let index: Value = serde_json::from_slice(&json::compact(&index)).unwrap();
        assert_eq!(Some(&index), case.want.index.as_ref(), "{name}");
        if kind == Kind::Docker {
            let manifest = bench.tools.content.get(&top.digest, 1 << 20).await.unwrap();
            let manifest = Manifest::parse(&manifest).unwrap();
            let docker = archive::DockerManifest::new(&manifest, &names).unwrap();
            let docker: Value = serde_json::from_slice(&json::compact(&[docker])).unwrap();
            assert_eq!(Some(&docker), case.want.docker.as_ref(), "{name}");
        }
    }
}

/// Records that name the platform and the layers.
#[derive(Debug)]
struct Told;

#[async_trait::async_trait]
impl InlineCache for Told {
    async fn records(
        &self,
        platform: &str,
        layers: &[ExportedLayer],
        _options: &LayerOptions,
    ) -> Result<Option<Vec<u8>>, BoxError> {
        let layers: Vec<_> = layers.iter().map(|layer| layer.descriptor.digest.to_string()).collect();
        Ok(Some(format!("{platform} {}", layers.join(" ")).into_bytes()))
    }
}

#[tokio::test]
async fn configs_carry_the_cache_of_their_layers() {
    use base64::Engine as _;
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../testdata/images/images.json")).unwrap();
    let case = cases.iter().find(|case| !case.index && case.platforms[0].layers.len() > 1).unwrap();
    let bench = bench().await;
    let (mut attrs, _) = ImageAttrs::load(&BTreeMap::new()).unwrap();
    attrs.complete(Kind::Image, Compatibility::CURRENT).unwrap();
    let mut request = request(source(&bench, case).await);
    request.inline_cache = Some(Arc::new(Told));
    let committed = commit(&bench.tools, &request, &attrs).await.unwrap();
    let config = bench.tools.content.get(&committed.config.unwrap(), 1 << 20).await.unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let cache = config[config::INLINE_CACHE].as_str().unwrap();
    let cache = base64::engine::general_purpose::STANDARD.decode(cache).unwrap();
    let platform = &case.platforms[0];
    let layers: Vec<_> = platform.layers.iter().map(|layer| layer.descriptor.digest.to_string()).collect();
    assert_eq!(String::from_utf8(cache).unwrap(), format!("{} {}", platform.platform, layers.join(" ")));
}

#[track_caller]
fn check_refused(attrs: &[(&str, &str)], want: &str) {
    let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let got = ImageAttrs::load(&attrs).and_then(|(mut attrs, _)| {
        attrs.complete(Kind::Image, Compatibility::CURRENT)?;
        check(&Source::default(), &attrs)
    });
    assert_eq!(got.unwrap_err().to_string(), want);
}

#[test]
fn conflicts() {
    check_refused(
        &[("oci-mediatypes", "false"), ("oci-artifact", "true")],
        "exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\"",
    );
    check_refused(
        &[("oci-mediatypes", "false"), ("annotation-index.a", "b")],
        "cannot export annotations with \"oci-mediatypes=false\"",
    );
    check_refused(
        &[("oci-mediatypes", "maybe")],
        "non-bool value specified for oci-mediatypes: strconv.ParseBool: parsing \"maybe\": invalid syntax",
    );
    check_refused(&[("compression", "lzma")], "unsupported compression type lzma");
    check_refused(&[("compression", "estargz")], "unsupported: compression type estargz");
    check_refused(
        &[("source-date-epoch", "x")],
        "invalid source-date-epoch: strconv.ParseInt: parsing \"x\": invalid syntax",
    );
    check_refused(&[("annotation-x.a", "b")], "unrecognized annotation type x");
}

#[tokio::test]
async fn index_annotations_need_an_index() {
    let attrs = BTreeMap::from([("annotation-index.a".to_owned(), "b".to_owned())]);
    let (mut attrs, _) = ImageAttrs::load(&attrs).unwrap();
    attrs.complete(Kind::Oci, Compatibility::CURRENT).unwrap();
    let bench = bench().await;
    let error = commit(&bench.tools, &request(Source::default()), &attrs).await.unwrap_err();
    assert_eq!(error.to_string(), "index annotations not supported for single platform export");
}

#[tokio::test]
async fn layers_are_made_converted_and_reused() {
    use std::io::Read as _;

    let bench = bench().await;
    let mutable = bench.cache.new_mutable(None, RecordOptions::default()).await.unwrap();
    let kiln_snapshot::Mount::Bind { source: path, .. } = mutable.mount().await.unwrap() else { panic!() };
    std::fs::write(path.join("file"), "content").unwrap();
    let state = mutable.commit().await.unwrap();
    let maker = bench.tools.layers();
    let make = async |compression: &str, force: bool| {
        let options = crate::LayerOptions {
            compression: compression.parse().unwrap(),
            force,
            ..crate::LayerOptions::default()
        };
        let mut layers = maker.layers(&state, &options, &NoProvider).await.unwrap();
        assert_eq!(layers.len(), 1);
        layers.remove(0)
    };
    let gzip = make("gzip", false).await;
    assert_eq!(gzip.descriptor.media_type, media_type::OCI_LAYER_GZIP);
    // What is there is taken, unless another compression is forced.
    assert_eq!(make("zstd", false).await.descriptor, gzip.descriptor);
    let zstd = make("zstd", true).await;
    assert_eq!(zstd.descriptor.media_type, media_type::OCI_LAYER_ZSTD);
    assert_eq!(zstd.diff_id, gzip.diff_id);
    assert_eq!(make("gzip", true).await.descriptor, gzip.descriptor);
    assert_eq!(make("zstd", false).await.descriptor, zstd.descriptor);
    // A blob that went away is made again, with the same bytes.
    bench.tools.content.delete(&gzip.descriptor.digest).await.unwrap();
    bench.tools.content.delete(&zstd.descriptor.digest).await.unwrap();
    assert_eq!(make("gzip", false).await.descriptor, gzip.descriptor);
    let mut tar = Vec::new();
    let file = bench.tools.content.open(&gzip.descriptor.digest).await.unwrap().unwrap();
    kiln_content::decompressor(file).unwrap().read_to_end(&mut tar).unwrap();
    assert_eq!(Digest::of(&tar), gzip.diff_id);
}

#[tokio::test]
async fn layers_of_an_overlay_hold_what_changed() {
    use std::io::Read as _;

    let dir = tempfile::tempdir().unwrap();
    let content: Arc<dyn ContentStore> = Arc::new(MemoryStore::new());
    let Ok(snapshotter) = kiln_snapshot::OverlaySnapshotter::open(dir.path().join("snapshots")) else {
        return;
    };
    let options = CacheOptions::new(dir.path().join("kiln"), Arc::new(snapshotter), Arc::clone(&content));
    let cache = CacheManager::open(options).await.unwrap();
    let tools = Tools::new(Arc::clone(&content), CodecPool::new(2));
    let mut state: Option<Ref> = None;
    let steps: [fn(&std::path::Path); 2] = [
        |root| {
            std::fs::create_dir(root.join("d")).unwrap();
            for name in ["d/kept", "d/gone", "d/same"] {
                std::fs::write(root.join(name), name).unwrap();
            }
        },
        |root| {
            std::fs::remove_file(root.join("d/gone")).unwrap();
            std::fs::write(root.join("d/new"), "new").unwrap();
            // Copied up, but as it was.
            let same = std::fs::File::options().append(true).open(root.join("d/same")).unwrap();
            drop(same);
        },
    ];
    for step in steps {
        let mutable = cache.new_mutable(state.as_ref(), RecordOptions::default()).await.unwrap();
        let Ok(mounted) = mutable.mount().await.unwrap().with_temp() else {
            println!("skipped: overlayfs cannot be mounted here");
            return;
        };
        step(mounted.path());
        drop(mounted);
        state = Some(mutable.commit().await.unwrap());
    }
    let options = crate::LayerOptions { compression: "uncompressed".parse().unwrap(), ..Default::default() };
    let layers = tools.layers().layers(&state.unwrap(), &options, &NoProvider).await.unwrap();
    let mut found = Vec::new();
    for layer in &layers {
        let file = content.open(&layer.descriptor.digest).await.unwrap().unwrap();
        let mut reader = kiln_content::tar::Reader::new(file);
        let mut entries = String::new();
        while let Some(header) = reader.next_entry().unwrap() {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            entries += &format!("{} {text:?}; ", String::from_utf8_lossy(&header.name));
        }
        found.push(entries);
    }
    assert_eq!(
        found,
        [
            r#"d/ ""; d/gone "d/gone"; d/kept "d/kept"; d/same "d/same"; "#,
            r#"d/ ""; d/.wh.gone ""; d/new "new"; "#,
        ]
    );
}
