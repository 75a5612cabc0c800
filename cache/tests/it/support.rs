use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use kiln_cache::{
    BlobProvider, BoxError, CacheManager, CacheOptions, CheckOptions, LayerBlob, NoProvider, RecordOptions,
    RecordType, Ref,
};
use kiln_content::{ContentStore, ContentStoreExt, Descriptor, LocalStore, layer};
use kiln_digest::Digest;
use kiln_snapshot::{Mount, OverlaySnapshotter, Snapshotter};
use kiln_solver::{KeyDigest, KeyId, NewKey, OutputIndex, ResultRef};

/// A catalogue with stores of its own.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cache: CacheManager,
    pub(crate) content: Arc<dyn ContentStore>,
    pub(crate) snapshots: Arc<dyn Snapshotter>,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap()).await
    }

    pub(crate) async fn open(dir: tempfile::TempDir) -> Self {
        Self::open_with(dir, |_| ()).await
    }

    pub(crate) async fn open_with(dir: tempfile::TempDir, change: impl FnOnce(&mut CacheOptions)) -> Self {
        let (snapshots, content) = stores(dir.path());
        let mut options =
            CacheOptions::new(dir.path().join("kiln"), Arc::clone(&snapshots), Arc::clone(&content));
        // What is synced when is up to the test.
        options.checkpoint = std::time::Duration::from_secs(3600);
        change(&mut options);
        let cache = CacheManager::open(options).await.unwrap();
        Self { dir, cache, content, snapshots }
    }

    pub(crate) async fn reopen(self) -> Self {
        self.cache.close().await.unwrap();
        Self::open(self.dir).await
    }

    /// Ends without a word, as a killed process does.
    pub(crate) async fn kill(self) -> Self {
        let Self { dir, cache, content, snapshots } = self;
        drop((cache, content, snapshots));
        Self::open(dir).await
    }

    /// The files of a layer, as they lie in the store.
    pub(crate) fn directory(&self, layer: &Ref) -> PathBuf {
        let snapshot = layer.layers().pop().unwrap().snapshot.unwrap();
        self.dir.path().join("snapshots/committed").join(snapshot.as_str()).join("fs")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("content/blobs/sha256").join(digest.hex())
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.dir.path().join("kiln/catalogue.db")
    }

    /// A layer on `parent` with one file in it.
    pub(crate) async fn layer(&self, parent: Option<&Ref>, file: &str, text: &str) -> Ref {
        let step = self.cache.new_mutable(parent, options(&format!("writes {file}"))).await.unwrap();
        write(&step.mount().await.unwrap(), file, text);
        step.commit().await.unwrap()
    }

    pub(crate) async fn save(&self, op: &str, result: &Ref) -> KeyId {
        let result: ResultRef = Arc::new(result.clone());
        self.cache.keys().save(&[key(op)], Some(&result)).await.unwrap().remove(0)
    }

    /// What the key of `op` leads to.
    pub(crate) async fn find(&self, op: &str) -> Option<Ref> {
        let keys = self.cache.keys();
        let found = keys.query(&[], &digest(op), OutputIndex(0)).unwrap().keys;
        let record = keys.records(found.first()?).unwrap().into_iter().next()?;
        let result = keys.load(&record).await.unwrap()??;
        result.downcast::<Ref>().cloned()
    }

    pub(crate) async fn snapshot_count(&self) -> usize {
        self.snapshots.list().await.unwrap().len()
    }
}

pub(crate) fn stores(dir: &Path) -> (Arc<dyn Snapshotter>, Arc<dyn ContentStore>) {
    (
        Arc::new(OverlaySnapshotter::open(dir.join("snapshots")).unwrap()),
        Arc::new(LocalStore::open(dir.join("content")).unwrap()),
    )
}

/// What a check finds: fault, and whether it was mended.
pub(crate) async fn check(cache: &CacheManager, options: CheckOptions) -> Vec<String> {
    let (tell, mut told) = tokio::sync::mpsc::channel::<kiln_cache::Finding>(1);
    let collect = async {
        let mut all = Vec::new();
        while let Some(found) = told.recv().await {
            all.push(format!("{}{}", found.fault, if found.mended { " mended" } else { "" }));
        }
        all
    };
    let (summary, all) = tokio::join!(cache.check(options, tell), collect);
    assert_eq!(summary.unwrap().findings, all.len() as u64);
    all
}

pub(crate) fn digest(op: &str) -> KeyDigest {
    KeyDigest::Stable(Digest::of(op))
}

pub(crate) fn key(op: &str) -> NewKey {
    NewKey { digest: digest(op), output: OutputIndex(0), deps: Vec::new() }
}

pub(crate) fn options(description: &str) -> RecordOptions {
    RecordOptions::new(description, RecordType::Regular)
}

pub(crate) fn write(mount: &Mount, file: &str, text: &str) {
    let mounted = mount.with_temp().unwrap();
    let path = mounted.path().join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Path and text of every file of a ref.
pub(crate) async fn files(one: &Ref) -> BTreeMap<String, String> {
    let mount = one.mount(&NoProvider).await.unwrap();
    files_of(&mount)
}

pub(crate) fn files_of(mount: &Mount) -> BTreeMap<String, String> {
    let mounted = mount.with_temp().unwrap();
    let mut found = BTreeMap::new();
    walk(mounted.path(), mounted.path(), &mut found);
    found
}

fn walk(root: &Path, at: &Path, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(root, &path, found);
        } else {
            let name = path.strip_prefix(root).unwrap().display().to_string();
            found.insert(name, std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The tar of one layer with one file.
pub(crate) fn layer_tar(file: &str, text: &str) -> (Vec<u8>, Digest) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(file), text).unwrap();
    let mut tar = Vec::new();
    let info = layer::diff(dir.path(), &[], &mut tar, &layer::DiffOptions::default()).unwrap();
    (tar, info.diff_id)
}

/// A layer that only the provider has.
pub(crate) fn remote_layer(file: &str, text: &str) -> (LayerBlob, Vec<u8>) {
    let (tar, diff_id) = layer_tar(file, text);
    let descriptor = Descriptor::of("application/vnd.oci.image.layer.v1.tar", &tar);
    (LayerBlob { descriptor, diff_id, source: "example.org/image:1".into() }, tar)
}

/// Gives what it was told to have.
pub(crate) struct Remote {
    pub(crate) content: Arc<dyn ContentStore>,
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
    pub(crate) fetched: AtomicUsize,
    /// Fetches wait for a permit.
    pub(crate) gate: tokio::sync::Semaphore,
}

impl Remote {
    pub(crate) fn new(fixture: &Fixture, layers: &[(LayerBlob, Vec<u8>)], permits: usize) -> Self {
        Self {
            content: Arc::clone(&fixture.content),
            blobs: layers.iter().map(|(blob, tar)| (blob.descriptor.digest, tar.clone())).collect(),
            fetched: AtomicUsize::new(0),
            gate: tokio::sync::Semaphore::new(permits),
        }
    }
}

#[async_trait::async_trait]
impl BlobProvider for Remote {
    async fn fetch(&self, source: &str, descriptor: &Descriptor) -> Result<(), BoxError> {
        assert_eq!(source, "example.org/image:1");
        self.fetched.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await?.forget();
        let bytes = self.blobs.get(&descriptor.digest).ok_or("no such blob")?;
        self.content.put(bytes.clone().into()).await?;
        Ok(())
    }
}
