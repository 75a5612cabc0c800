//! From a reference to files on disk.

use std::path::Path;
use std::sync::Arc;

use kiln_cache::{BlobProvider, CacheManager, CacheOptions, RecordType};
use kiln_content::testing::MemoryStore;
use kiln_content::{ContentStore, ContentStoreExt, Descriptor, LocalStore, Platform, media_type};
use kiln_digest::Digest;
use kiln_registry::testing::RegistryProcess;
use kiln_registry::{Access, Anonymous, Config, PushOptions, Reference, Registry};
use kiln_snapshot::testing::PlainSnapshotter;
use kiln_solver::VertexProgress;
use kiln_source::image::{Image, ImageProvider, ImageRequest, Images, Resolutions};

pub(crate) const MULTI: &str = "sha256:5fa8b8b8e3fce7e15d0a8ced8f35aacfab67e6a6a88c97c8a163fcd2e59cb240";

pub(crate) struct Bench {
    _dir: tempfile::TempDir,
    pub(crate) content: Arc<dyn ContentStore>,
    pub(crate) cache: CacheManager,
    pub(crate) images: Images,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let content: Arc<dyn ContentStore> = Arc::new(LocalStore::open(dir.path().join("content")).unwrap());
        let snapshotter = Arc::new(PlainSnapshotter::open(dir.path().join("snapshots")).unwrap());
        let options = CacheOptions::new(dir.path().join("cache"), snapshotter, content.clone());
        let cache = CacheManager::open(options).await.unwrap();
        let registry = Registry::new(Config::default());
        let images = Images::new(registry, content.clone(), cache.clone());
        Self { _dir: dir, content, cache, images }
    }

    async fn resolve(&self, request: &ImageRequest, memory: &Resolutions) -> kiln_source::Result<Arc<Image>> {
        let progress = VertexProgress::discard();
        self.images.resolve(request, memory, Access::anonymous(), &(), &progress).await
    }

    fn provider(&self) -> impl BlobProvider {
        let progress = VertexProgress::discard();
        ImageProvider::new(self.images.clone(), Arc::new(Anonymous), Arc::new(()), progress)
    }
}

/// Starts a registry that has the recorded index as `a/multi:latest`.
pub(crate) async fn registry() -> Option<(RegistryProcess, Reference)> {
    let process = RegistryProcess::start().unwrap()?;
    let store = MemoryStore::new();
    let blobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/multi/blobs/sha256");
    for blob in std::fs::read_dir(blobs).unwrap() {
        store.put(std::fs::read(blob.unwrap().path()).unwrap().into()).await.unwrap();
    }
    let digest: Digest = MULTI.parse().unwrap();
    let bytes = store.get(&digest, 1 << 20).await.unwrap();
    let root = Descriptor::of(media_type::OCI_INDEX, &bytes);
    let reference = process.reference("a/multi:latest").unwrap();
    let access = Access::anonymous();
    Registry::new(Config::default())
        .push(&reference, &root, &store, PushOptions::default(), access)
        .await
        .unwrap();
    Some((process, reference))
}

pub(crate) fn amd64() -> Platform {
    Platform::new("linux", "amd64", "")
}

#[tokio::test]
async fn an_image_is_resolved_without_its_layers_and_unpacked_when_read() {
    let Some((_process, reference)) = registry().await else { return };
    let bench = Bench::new().await;
    let request = ImageRequest::new(&reference.to_string(), amd64()).unwrap();
    let memory = Resolutions::new();
    let image = bench.resolve(&request, &memory).await.unwrap();
    assert_eq!(image.root.digest.to_string(), MULTI);
    assert_eq!(image.layers.len(), 2);
    let config = kiln_content::ImageConfig::parse(&image.config_bytes).unwrap();
    assert_eq!(config.config.env, ["PATH=/bin"]);

    let top = bench.images.snapshot(&image, &request).await.unwrap().unwrap();
    assert_eq!(top.description(), format!("pulled from {reference}"));
    for layer in &image.layers {
        assert!(bench.content.info(&layer.digest).await.unwrap().is_none(), "fetched too early");
    }
    let again = bench.images.snapshot(&image, &request).await.unwrap().unwrap();
    assert_eq!(again.id(), top.id());

    let mount = top.mount(&bench.provider()).await.unwrap();
    let mounted = mount.with_temp().unwrap();
    // This snapshotter shows the top layer alone.
    assert_eq!(std::fs::read(mounted.path().join("data/sub/b.txt")).unwrap().len(), 2);
    assert!(top.layers().iter().all(|layer| layer.snapshot.is_some()));
    drop(mounted);
    drop((top, again));
    bench.cache.close().await.unwrap();
}

#[tokio::test]
async fn keys_are_those_that_the_reference_recorded() {
    // The records of a build of `FROM base2`, whose image is the index's amd64 part, name these two keys for a
    // request of the manifest by its own digest.
    let Some((process, _)) = registry().await else { return };
    let bench = Bench::new().await;
    let digest = "sha256:97171de7940f9454e47b57c63a5796e7b148f015adc2868679166f24bb52b9d8";
    let reference = process.reference("a/multi").unwrap().with_digest(digest.parse().unwrap());
    let request = ImageRequest::new(&reference.to_string(), amd64()).unwrap();
    let image = bench.resolve(&request, &Resolutions::new()).await.unwrap();
    let keys = [0, 1].map(|index| {
        let part = image.cache_map(&request, index).unwrap();
        assert_eq!(part.last, index == 1);
        part.map.digest.root(kiln_solver::OutputIndex(0)).to_string()
    });
    assert_eq!(keys, RECORDED_KEYS);
}

const RECORDED_KEYS: [&str; 2] = [
    "sha256:69215a051ad8317d74facfed5eb356907bcd816c516dfb84dfc23363ad1b1d8e",
    "sha256:085e54df072e4d5e9b0da3f12c0c7ea0fb38804b72e05fdb3844099a25a1a2e6",
];

#[tokio::test]
async fn a_build_resolves_a_reference_once() {
    let Some((process, reference)) = registry().await else { return };
    let bench = Bench::new().await;
    let request = ImageRequest::new(&reference.to_string(), amd64()).unwrap();
    let memory = Resolutions::new();
    let first = bench.resolve(&request, &memory).await.unwrap();
    let pinned = reference.clone().with_digest(first.root.digest);
    drop(process);
    let second = bench.resolve(&request, &memory).await.unwrap();
    assert!(Arc::ptr_eq(&first, &second));

    // What is here from that repository is found by digest without the registry, from another one it is not.
    let by_digest = ImageRequest::new(&pinned.to_string(), amd64()).unwrap();
    let third = bench.resolve(&by_digest, &Resolutions::new()).await.unwrap();
    assert_eq!((&third.root, &third.manifest), (&first.root, &first.manifest));
    let elsewhere = pinned.to_string().replace("a/multi", "a/other");
    let elsewhere = ImageRequest::new(&elsewhere, amd64()).unwrap();
    bench.resolve(&elsewhere, &Resolutions::new()).await.unwrap_err();
    let anew = bench.resolve(&request, &Resolutions::new()).await.unwrap_err();
    assert!(matches!(anew, kiln_source::Error::Registry(_)), "{anew}");
}

#[tokio::test]
async fn what_does_not_fit_is_refused() {
    let Some((_process, reference)) = registry().await else { return };
    let bench = Bench::new().await;
    let memory = Resolutions::new();
    let other = Platform::new("linux", "s390x", "");
    let request = ImageRequest::new(&reference.to_string(), other).unwrap();
    let error = bench.resolve(&request, &memory).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "{reference}: no match for platform in manifest {MULTI}: not found (wanted linux/s390x, it has \
             linux/amd64, linux/arm64)"
        )
    );

    let mut request = ImageRequest::new(&reference.to_string(), amd64()).unwrap();
    request.checksum = Some(Digest::of("x"));
    let error = bench.resolve(&request, &memory).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("image digest {MULTI} for {reference} does not match expected checksum {}", Digest::of("x"))
    );
}

#[tokio::test]
async fn a_limit_keeps_the_first_layers() {
    let Some((_process, reference)) = registry().await else { return };
    let bench = Bench::new().await;
    let mut request = ImageRequest::new(&reference.to_string(), amd64()).unwrap();
    request.layer_limit = Some(1);
    request.record_type = Some(RecordType::Frontend);
    let image = bench.resolve(&request, &Resolutions::new()).await.unwrap();
    let top = bench.images.snapshot(&image, &request).await.unwrap().unwrap();
    assert_eq!(top.layers().len(), 1);
    assert_eq!(top.record_type(), RecordType::Frontend);
    let part = image.cache_map(&request, 1).unwrap();
    let first = "sha256:e04d128052b5896070548ebd21256b9bd5e61030f8d31530589cd29423ade341";
    assert_eq!(part.map.digest, kiln_source::key_digest(first));
    request.layer_limit = Some(3);
    let error = bench.images.snapshot(&image, &request).await.unwrap_err().to_string();
    assert_eq!(error, "layer limit 3 is greater than the number of layers in the image 2");
}

#[tokio::test]
async fn two_who_want_a_blob_fetch_it_once() {
    let Some((_process, reference)) = registry().await else { return };
    let bench = Bench::new().await;
    let request = ImageRequest::new(&reference.to_string(), amd64()).unwrap();
    let image = bench.resolve(&request, &Resolutions::new()).await.unwrap();
    let (one, two) = (bench.provider(), bench.provider());
    let source = image.origin.to_string();
    let layer = &image.layers[0];
    // Whoever goes away half way leaves the work to the other.
    let mut gone = Box::pin(one.fetch(&source, layer));
    assert!(futures::poll!(gone.as_mut()).is_pending());
    let waiting = two.fetch(&source, layer);
    let mut waiting = Box::pin(waiting);
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    drop(gone);
    waiting.await.unwrap();
    assert!(bench.content.info(&layer.digest).await.unwrap().is_some());
}
