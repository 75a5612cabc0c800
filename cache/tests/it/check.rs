//! What the stores lose under an open catalogue: it is found, mended, and a miss in any case.

use std::path::Path;

use kiln_cache::{CheckOptions, Losses, NoProvider, RecordOptions, RecordType, Sharing};
use kiln_content::{ContentStoreExt as _, Descriptor};
use kiln_digest::Digest;
use kiln_snapshot::SnapshotId;
use rusqlite::Connection;

use crate::support::{Fixture, Remote, check, files, files_of, options, remote_layer, write};

const LOOK: CheckOptions = CheckOptions { digests: false, repair: false };
const REPAIR: CheckOptions = CheckOptions { digests: true, repair: true };

/// A layer that can be fetched again, with one on it that cannot.
struct Site {
    fixture: Fixture,
    remote: Remote,
    blob: Digest,
}

impl Site {
    async fn new() -> Self {
        let fixture = Fixture::new().await;
        let layers = [remote_layer("a", "text of a")];
        let remote = Remote::new(&fixture, &layers, 10);
        let base = fixture.cache.lazy_layer(None, layers[0].0.clone(), options("pulled")).await.unwrap();
        base.unlazy(&remote).await.unwrap();
        fixture.save("base", &base).await;
        let top = fixture.layer(Some(&base), "b", "text of b").await;
        fixture.save("top", &top).await;
        Self { fixture, remote, blob: layers[0].0.descriptor.digest }
    }

    async fn files(&self, op: &str) -> Option<String> {
        let found = self.fixture.find(op).await?;
        let mount = found.mount(&self.remote).await;
        assert!(mount.as_ref().err().is_none_or(kiln_cache::Error::is_lost), "{mount:?}");
        mount.ok().map(|mount| format!("{:?}", files_of(&mount)))
    }

    async fn directory(&self, op: &str) -> std::path::PathBuf {
        self.fixture.directory(&self.fixture.find(op).await.unwrap())
    }
}

const BOTH: &str = r#"{"a": "text of a", "b": "text of b"}"#;

/// What it is, and how it is done to a directory.
type Way = (&'static str, Box<dyn Fn(&Path)>);

/// Ways in which a directory loses a part of itself, or all.
fn ways(file: &'static str) -> [Way; 4] {
    [
        ("its home", Box::new(|dir| std::fs::remove_dir_all(dir.parent().unwrap()).unwrap())),
        ("the directory", Box::new(|dir| std::fs::remove_dir_all(dir).unwrap())),
        ("a file", Box::new(move |dir| std::fs::remove_file(dir.join(file)).unwrap())),
        (
            "half of a file",
            Box::new(move |dir| {
                std::fs::File::options().write(true).open(dir.join(file)).unwrap().set_len(4).unwrap();
            }),
        ),
    ]
}

#[tokio::test]
async fn a_layer_that_can_be_fetched_comes_back() {
    for (way, lose) in ways("a") {
        for blob_too in [false, true] {
            let site = Site::new().await;
            lose(&site.directory("base").await);
            if blob_too {
                std::fs::write(site.fixture.blob(&site.blob), "x").unwrap();
            }
            assert_eq!(site.files("top").await.as_deref(), Some(BOTH), "{way}");
            let losses = site.fixture.cache.losses();
            assert_eq!((losses.snapshots, losses.records), (1, 0), "{way}");
        }
    }
}

#[tokio::test]
async fn a_layer_that_cannot_be_fetched_is_a_miss() {
    for (way, lose) in ways("b") {
        let site = Site::new().await;
        lose(&site.directory("top").await);
        assert_eq!(site.files("top").await, None, "{way}");
        assert!(site.fixture.find("top").await.is_none(), "{way}: it is not found again");
        assert_eq!(site.files("base").await.as_deref(), Some(r#"{"a": "text of a"}"#));
        assert_eq!(site.fixture.cache.losses(), Losses { snapshots: 1, blobs: 0, records: 1 }, "{way}");
    }
}

#[tokio::test]
async fn a_layer_that_only_a_damaged_blob_has_is_a_miss() {
    let fixture = Fixture::new().await;
    let (mut blob, tar) = remote_layer("a", "text");
    blob.source = String::new();
    fixture.content.put(tar.clone().into()).await.unwrap();
    let layer = fixture.cache.lazy_layer(None, blob.clone(), options("local")).await.unwrap();
    fixture.save("layer", &layer).await;
    let mut bytes = tar;
    bytes[600] ^= 1;
    std::fs::write(fixture.blob(&blob.descriptor.digest), bytes).unwrap();
    let error = layer.mount(&NoProvider).await.unwrap_err();
    assert!(error.is_lost(), "{error}");
    assert!(fixture.find("layer").await.is_none());
    assert_eq!(fixture.cache.losses(), Losses { snapshots: 0, blobs: 1, records: 1 });
}

#[tokio::test]
async fn a_check_finds_what_is_lost_and_repair_makes_it_a_miss() {
    for (way, lose) in ways("a") {
        let site = Site::new().await;
        let fault = if way.contains("file") { "snapshot-damaged" } else { "snapshot-missing" };
        let cache = &site.fixture.cache;
        assert_eq!(check(cache, REPAIR).await, [] as [&str; 0]);
        lose(&site.directory("base").await);
        assert_eq!(check(cache, LOOK).await, [fault]);
        assert_eq!(check(cache, REPAIR).await, [format!("{fault} mended")]);
        assert_eq!(check(cache, REPAIR).await, [] as [&str; 0], "{way}");
        assert_eq!(site.files("top").await.as_deref(), Some(BOTH), "{way}");
    }
    for (way, lose) in ways("b") {
        let site = Site::new().await;
        lose(&site.directory("top").await);
        let found = check(&site.fixture.cache, REPAIR).await;
        assert!(found.iter().all(|one| one.ends_with("mended")), "{way}: {found:?}");
        assert_eq!(check(&site.fixture.cache, REPAIR).await, [] as [&str; 0], "{way}");
        assert!(site.fixture.find("top").await.is_none(), "{way}");
        assert_eq!(site.files("base").await.as_deref(), Some(r#"{"a": "text of a"}"#), "{way}");
    }
}

#[tokio::test]
async fn a_check_reads_blobs_when_asked() {
    let site = Site::new().await;
    let path = site.fixture.blob(&site.blob);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[700] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let cache = &site.fixture.cache;
    assert_eq!(check(cache, LOOK).await, [] as [&str; 0]);
    assert_eq!(check(cache, CheckOptions { digests: true, ..LOOK }).await, ["blob-damaged"]);
    std::fs::write(&path, &bytes[..700]).unwrap();
    assert_eq!(check(cache, LOOK).await, ["blob-damaged"]);
    assert_eq!(check(cache, REPAIR).await, ["blob-damaged mended"]);
    assert!(!path.exists());
    assert_eq!(site.files("top").await.as_deref(), Some(BOTH));
}

#[tokio::test]
async fn a_check_finds_orphans_and_spares_what_is_being_made() {
    let site = Site::new().await;
    let (cache, fixture) = (&site.fixture.cache, &site.fixture);
    let making = cache.new_mutable(None, options("being made")).await.unwrap();
    let pending = fixture.layer(None, "p", "pending").await;
    fixture.snapshots.prepare(&SnapshotId::new("orphan").unwrap(), None).await.unwrap();
    let blob = fixture.content.put("orphan".into()).await.unwrap();
    assert_eq!(check(cache, LOOK).await, ["blob-orphaned", "snapshot-orphaned"]);
    assert_eq!(check(cache, REPAIR).await, ["blob-orphaned", "snapshot-orphaned mended"]);
    assert_eq!(check(cache, LOOK).await, ["blob-orphaned"]);
    write(&making.mount().await.unwrap(), "m", "made");
    fixture.save("made", &making.commit().await.unwrap()).await;
    fixture.save("pending", &pending).await;
    drop(pending);
    let fixture = site.fixture.reopen().await;
    assert!(!fixture.content.contains(&blob).await.unwrap());
    assert_eq!(check(&fixture.cache, LOOK).await, [] as [&str; 0]);
    for op in ["made", "pending"] {
        files(&fixture.find(op).await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_check_finds_what_no_transaction_leaves() {
    let site = Site::new().await;
    let cache = &site.fixture.cache;
    let mount = RecordOptions::new("mount", RecordType::CacheMount);
    let mount = cache.cache_mount("m", Sharing::Shared, None, mount).await.unwrap();
    let directory = site.fixture.dir.path().join("snapshots/active").join(mount.id().as_str());
    drop(mount);
    assert_eq!(check(cache, LOOK).await, [] as [&str; 0]);
    std::fs::remove_dir_all(directory).unwrap();
    let database = Connection::open(site.fixture.database()).unwrap();
    database
        .execute_batch(
            "INSERT INTO key_results VALUES ('k', 'nobody', 1);
             INSERT INTO key_links VALUES ('from', 0, 'd', 0, '', 'unknown');
             INSERT INTO cache_keys VALUES ('idle'), ('k');
             UPDATE meta SET value = value + 1 WHERE key = 'inodes';
             INSERT INTO blob_leases VALUES ('old', 'sha256:00', 1), ('new', 'sha256:00', NULL);",
        )
        .unwrap();
    let want = [
        "ledger",
        "result-without-record",
        "link-without-key",
        "idle-key",
        "snapshot-missing",
        "lease-without-blob",
        "lease-ended",
    ];
    assert_eq!(check(cache, LOOK).await, want);
    assert_eq!(check(cache, REPAIR).await, want.map(|fault| format!("{fault} mended")));
    assert_eq!(check(cache, LOOK).await, [] as [&str; 0]);
    assert_eq!(site.files("top").await.as_deref(), Some(BOTH));
    // A layer with nothing at all.
    let descriptor = Descriptor::of("application/vnd.oci.image.layer.v1.tar", b"nowhere");
    let blob = kiln_cache::LayerBlob { diff_id: descriptor.digest, descriptor, source: String::new() };
    let lost = cache.lazy_layer(None, blob, options("lost")).await.unwrap();
    lost.finalize().await.unwrap();
    drop(lost);
    assert_eq!(check(cache, REPAIR).await, ["layer-unavailable mended"]);
}
