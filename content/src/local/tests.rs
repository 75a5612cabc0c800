use std::io::Write as _;

use super::*;
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
