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

#[tokio::test]
async fn what_was_received_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let count = |name: &str| fs::read_dir(dir.path().join(name)).unwrap().count();
    let text = bytes::Bytes::from("0123456789".repeat(20_000));
    let whole = Descriptor::new("", Digest::of(&text), 200_000);
    let store = LocalStore::open(dir.path()).unwrap();
    let mut ingest = store.take_up(&whole).unwrap();
    ingest.write_all(&text[..150_000]).unwrap();
    std::mem::forget(ingest);

    let store = LocalStore::open(dir.path()).unwrap();
    assert_eq!((count("ingest"), count("partial")), (0, 1));
    // Of two at a time one begins anew, and either may be the first to end.
    let mut second = store.resume(&whole).await.unwrap();
    assert_eq!(second.written(), 150_000);
    let mut third = store.resume(&whole).await.unwrap();
    assert_eq!(third.written(), 0);
    third.write(text.slice(..100_000)).await.unwrap();
    second.write(text.slice(150_000..)).await.unwrap();
    drop(third);
    assert_eq!(count("partial"), 1);
    second.commit(None).await.unwrap();
    assert_eq!((count("ingest"), count("partial")), (0, 0));
    assert!(store.is_intact(&whole.digest).await.unwrap());
    // A little is not worth it.
    let mut writer = store.resume(&whole).await.unwrap();
    writer.write(text.slice(..100)).await.unwrap();
    drop(writer);
    assert_eq!((count("ingest"), count("partial")), (0, 0));
}

#[test]
fn what_was_received_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let count = || fs::read_dir(dir.path().join("partial")).unwrap().count();
    let store = LocalStore::open(dir.path()).unwrap();
    for number in 0..40 {
        let whole = Descriptor::new("", Digest::of(number.to_string()), 1 << 20);
        store.take_up(&whole).unwrap().write_all(&[0; 100_000]).unwrap();
    }
    assert_eq!(count(), 32);
    let old = SystemTime::now() - std::time::Duration::from_secs(25 * 3600);
    for entry in fs::read_dir(dir.path().join("partial")).unwrap().take(10) {
        File::options().write(true).open(entry.unwrap().path()).unwrap().set_modified(old).unwrap();
    }
    LocalStore::open(dir.path()).unwrap();
    assert_eq!(count(), 22);
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
    store.put("hello world".into()).await.unwrap();
    assert!(store.is_intact(&digest).await.unwrap());
    damage();
    assert!(!store.is_intact(&digest).await.unwrap());
    assert_eq!(store.read_all(&digest, 100).await.unwrap(), None);
    assert!(!store.contains(&digest).await.unwrap());
}
