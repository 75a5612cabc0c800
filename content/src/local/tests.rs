use std::io::Write as _;

use super::*;
use crate::store::ContentStoreExt as _;
use crate::testing::conformance;

#[tokio::test]
async fn conforms() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    conformance(&store).await;
    assert_eq!(fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
}

#[test]
fn opening_removes_stale_ingests() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let mut ingest = store.ingest(None).unwrap();
    ingest.write_all(b"half").unwrap();
    std::mem::forget(ingest);
    assert_eq!(fs::read_dir(dir.path().join("ingest")).unwrap().count(), 1);
    LocalStore::open(dir.path()).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
}

#[test]
fn blocking_threads_write_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let mut ingest = store.ingest(None).unwrap();
    ingest.write_all(b"hello ").unwrap();
    ingest.write_all(b"world").unwrap();
    let digest = ingest.commit(None).unwrap();
    assert_eq!(digest, Digest::of("hello world"));
    assert_eq!(fs::read(store.path(&digest)).unwrap(), b"hello world");
}

#[tokio::test]
async fn a_damaged_blob_is_absent() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let digest = store.put("hello world".into()).await.unwrap();
    let descriptor = Descriptor::new("text/plain", digest, 11);
    assert!(store.has_whole(&descriptor).await.unwrap());
    // A descriptor that lies about a good blob costs nothing.
    assert!(!store.has_whole(&Descriptor::new("text/plain", digest, 12)).await.unwrap());
    assert!(store.has_whole(&descriptor).await.unwrap());

    let damage = || fs::write(store.path(&digest), "hello").unwrap();
    damage();
    assert!(!store.has_whole(&descriptor).await.unwrap());
    assert!(!store.contains(&digest).await.unwrap());
    damage();
    assert!(!store.is_intact(&digest).await.unwrap());
    assert_eq!(store.read_all(&digest, 100).await.unwrap(), None);
    assert!(!store.contains(&digest).await.unwrap());
}
