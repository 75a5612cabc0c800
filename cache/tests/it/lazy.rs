use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use kiln_cache::{LayerBlob, NoProvider};
use kiln_digest::Digest;

use crate::support::{Fixture, Remote, files_of, options, remote_layer};

#[tokio::test]
async fn layers_are_fetched_when_somebody_reads_them() {
    let fixture = Fixture::new().await;
    let layers = [remote_layer("a", "1"), remote_layer("b", "2"), remote_layer("c", "3")];
    let remote = Remote::new(&fixture, &layers, 10);
    let mut top = None;
    for (blob, _) in &layers {
        top = Some(fixture.cache.lazy_layer(top.as_ref(), blob.clone(), options("pulled")).await.unwrap());
    }
    let top = top.unwrap();
    fixture.save("image", &top).await;
    drop(top);
    let fixture = fixture.reopen().await;
    let top = fixture.find("image").await.unwrap();
    assert_eq!(remote.fetched.load(Ordering::SeqCst), 0);
    let error = top.mount(&NoProvider).await.unwrap_err();
    assert!(error.to_string().starts_with("failed to fetch layer `sha256:"), "{error}");
    assert!(matches!(
        fixture.cache.new_mutable(Some(&top), options("")).await.unwrap_err(),
        kiln_cache::Error::NotUnpacked(_)
    ));
    let remote = Remote::new(&fixture, &layers, 10);
    let mount = top.mount(&remote).await.unwrap();
    assert_eq!(format!("{:?}", files_of(&mount)), r#"{"a": "1", "b": "2", "c": "3"}"#);
    assert_eq!(remote.fetched.load(Ordering::SeqCst), 3);
    drop((top, mount));
    let fixture = fixture.reopen().await;
    let top = fixture.find("image").await.unwrap();
    top.mount(&NoProvider).await.unwrap();
}

#[tokio::test]
async fn the_same_layer_is_one_record() {
    let fixture = Fixture::new().await;
    let (blob, _) = remote_layer("a", "1");
    let one = fixture.cache.lazy_layer(None, blob.clone(), options("pulled")).await.unwrap();
    let two = fixture.cache.lazy_layer(None, blob.clone(), options("pulled")).await.unwrap();
    assert_eq!(one.id(), two.id());
    let on_one = fixture.cache.lazy_layer(Some(&one), blob.clone(), options("pulled")).await.unwrap();
    assert_ne!(on_one.id(), one.id());
    one.finalize().await.unwrap();
    let id = one.id().clone();
    drop((one, two, on_one));
    let other = LayerBlob { descriptor: kiln_content::Descriptor::new("x", Digest::of("zstd"), 4), ..blob };
    let three = fixture.cache.lazy_layer(None, other, options("pulled")).await.unwrap();
    assert_eq!(three.id(), &id);
    assert_eq!(three.layers()[0].blobs.len(), 2);
}

#[tokio::test]
async fn one_caller_fetches_and_the_next_takes_over_when_it_goes_away() {
    let fixture = Fixture::new().await;
    let layers = [remote_layer("a", "1")];
    let layer = fixture.cache.lazy_layer(None, layers[0].0.clone(), options("pulled")).await.unwrap();
    let stuck = Arc::new(Remote::new(&fixture, &layers, 0));
    let good = Remote::new(&fixture, &layers, 1);
    let mut first = Box::pin(layer.mount(&*stuck));
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut first).await.is_err());
    assert_eq!(stuck.fetched.load(Ordering::SeqCst), 1);
    let mut second = Box::pin(layer.mount(&good));
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut second).await.is_err());
    assert_eq!(good.fetched.load(Ordering::SeqCst), 0, "the first is at it");
    drop(first);
    second.await.unwrap();
    assert_eq!(good.fetched.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn many_callers_fetch_once() {
    let fixture = Fixture::new().await;
    let layers = [remote_layer("a", "1"), remote_layer("b", "2")];
    let base = fixture.cache.lazy_layer(None, layers[0].0.clone(), options("pulled")).await.unwrap();
    let top = fixture.cache.lazy_layer(Some(&base), layers[1].0.clone(), options("pulled")).await.unwrap();
    let remote = Remote::new(&fixture, &layers, 10);
    let all = (0..8).map(|_| top.mount(&remote));
    for outcome in futures::future::join_all(all).await {
        outcome.unwrap();
    }
    assert_eq!(remote.fetched.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn bytes_that_are_not_what_the_image_promised_are_refused() {
    let fixture = Fixture::new().await;
    let (mut blob, tar) = remote_layer("a", "1");
    blob.diff_id = Digest::of("something else");
    let layers = [(blob, tar)];
    let layer = fixture.cache.lazy_layer(None, layers[0].0.clone(), options("pulled")).await.unwrap();
    let error = layer.mount(&Remote::new(&fixture, &layers, 10)).await.unwrap_err();
    assert!(matches!(error, kiln_cache::Error::DiffId { .. }), "{error}");
    fixture.cache.close().await.unwrap();
    assert_eq!(fixture.snapshot_count().await, 0);
}

#[tokio::test]
async fn a_damaged_blob_in_the_store_is_fetched_again() {
    let fixture = Fixture::new().await;
    let layers = [remote_layer("a", "1")];
    let digest = layers[0].0.descriptor.digest;
    let remote = Remote::new(&fixture, &layers, 10);
    kiln_cache::BlobProvider::fetch(&remote, "example.org/image:1", &layers[0].0.descriptor).await.unwrap();
    let path = fixture.dir.path().join("content/blobs/sha256").join(digest.hex());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &layers[0].1[..700]).unwrap();
    let layer = fixture.cache.lazy_layer(None, layers[0].0.clone(), options("pulled")).await.unwrap();
    let mount = layer.mount(&remote).await.unwrap();
    assert_eq!(format!("{:?}", files_of(&mount)), r#"{"a": "1"}"#);
    assert_eq!(remote.fetched.load(Ordering::SeqCst), 2);
}
