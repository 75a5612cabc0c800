use kiln_cache::{LayerBlob, NoProvider, Ref};
use kiln_solver::{KeyAndSelector, NewKey, OutputIndex};

use crate::support::{Fixture, digest, files, key};

#[tokio::test]
async fn a_saved_result_is_found_after_a_kill() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", "1").await;
    let top = fixture.layer(Some(&base), "b", "2").await;
    fixture.save("op", &top).await;
    assert!(base.is_published() && top.is_published());
    drop((base, top));
    let fixture = fixture.kill().await;
    let found = fixture.find("op").await.unwrap();
    assert_eq!(format!("{:?}", files(&found).await), r#"{"a": "1", "b": "2"}"#);
    assert!(fixture.find("other").await.is_none());
}

#[tokio::test]
async fn the_empty_result_is_always_there() {
    let fixture = Fixture::new().await;
    let keys = fixture.cache.keys();
    let id = keys.save(&[key("scratch")], None).await.unwrap().remove(0);
    let record = keys.records(&id).unwrap().remove(0);
    assert!(keys.load(&record).await.unwrap().unwrap().is_none());
}

#[tokio::test]
async fn a_lost_snapshot_makes_everything_on_it_a_miss() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", "1").await;
    let top = fixture.layer(Some(&base), "b", "2").await;
    fixture.save("base", &base).await;
    fixture.save("top", &top).await;
    let snapshot = base.layers()[0].snapshot.clone().unwrap();
    drop((base, top));
    fixture.snapshots.remove(&snapshot).await.unwrap();
    assert!(fixture.find("top").await.is_none());
    assert!(fixture.find("base").await.is_none());
    let left = fixture.cache.keys().query(&[], &digest("top"), OutputIndex(0)).unwrap();
    assert!(left.keys.is_empty(), "the key has nothing left to lead to");
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.snapshot_count().await, 0);
}

#[tokio::test]
async fn a_lost_snapshot_under_a_live_ref_is_told_when_it_is_used() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", "1").await;
    fixture.save("base", &base).await;
    fixture.snapshots.remove(base.layers()[0].snapshot.as_ref().unwrap()).await.unwrap();
    let error = base.mount(&NoProvider).await.unwrap_err();
    assert!(matches!(error, kiln_cache::Error::Lost(_)), "{error}");
    assert!(fixture.find("base").await.is_none());
}

#[tokio::test]
async fn a_lost_snapshot_comes_back_from_its_blob() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", "1").await;
    let layer = base.layers().remove(0);
    let snapshot = layer.snapshot.unwrap();
    let mut tar = Vec::new();
    let dir = fixture.snapshots.diff_dir(&snapshot).await.unwrap();
    let info = kiln_content::layer::diff(&dir, &[], &mut tar, &Default::default()).unwrap();
    let descriptor = kiln_content::Descriptor::of("application/vnd.oci.image.layer.v1.tar", &tar);
    kiln_content::ContentStoreExt::put(&*fixture.content, tar.into()).await.unwrap();
    let blob = LayerBlob { descriptor, diff_id: info.diff_id, source: String::new() };
    base.set_blob(&layer.record, blob.clone()).await.unwrap();
    fixture.save("base", &base).await;
    drop(base);
    fixture.snapshots.remove(&snapshot).await.unwrap();
    let found: Ref = fixture.find("base").await.unwrap();
    assert_eq!(found.layers()[0].blobs, [blob]);
    assert_eq!(format!("{:?}", files(&found).await), r#"{"a": "1"}"#);
}

#[tokio::test]
async fn keys_are_found_over_several_ways_in() {
    let fixture = Fixture::new().await;
    let keys = fixture.cache.keys();
    let result = fixture.layer(None, "a", "1").await;
    let left = fixture.save("left", &result).await;
    let right = fixture.save("right", &result).await;
    let alternative = |key: &kiln_solver::KeyId| KeyAndSelector { key: key.clone(), selector: None };
    let both = NewKey {
        digest: digest("user"),
        output: OutputIndex(1),
        deps: vec![vec![alternative(&left), alternative(&right)]],
    };
    let id = keys
        .save(std::slice::from_ref(&both), Some(&(std::sync::Arc::new(result.clone()) as _)))
        .await
        .unwrap()
        .remove(0);
    for way in [&left, &right] {
        let found = keys.query(&[vec![alternative(way)]], &digest("user"), OutputIndex(1)).unwrap();
        assert_eq!(found.keys, std::slice::from_ref(&id));
        let other_output = keys.query(&[vec![alternative(way)]], &digest("user"), OutputIndex(0)).unwrap();
        assert_eq!((other_output.keys.len(), other_output.reached), (0, vec![false]));
    }
}

#[tokio::test]
async fn the_store_keeps_the_contract_of_the_solver() {
    let fixture = Fixture::new().await;
    let mut made = 0;
    let result = async || {
        made += 1;
        let layer = fixture.layer(None, &format!("file{made}"), "1").await;
        std::sync::Arc::new(layer) as kiln_solver::ResultRef
    };
    kiln_solver::testing::conformance(&*fixture.cache.keys(), result).await;
}

#[tokio::test]
async fn the_store_keeps_the_contract_of_memos() {
    let fixture = Fixture::new().await;
    let mut made = 0;
    let result = async || {
        made += 1;
        let layer = fixture.layer(None, &format!("file{made}"), "1").await;
        std::sync::Arc::new(layer) as kiln_solver::ResultRef
    };
    kiln_solver::testing::memo_conformance(&*fixture.cache.keys(), result).await;
}

#[tokio::test]
async fn keys_of_one_session_do_not_outlive_the_daemon() {
    let fixture = Fixture::new().await;
    let keys = fixture.cache.keys();
    let random = NewKey {
        digest: kiln_solver::KeyDigest::Random(kiln_digest::Digest::of("session")),
        output: OutputIndex(0),
        deps: Vec::new(),
    };
    keys.save(std::slice::from_ref(&random), None).await.unwrap();
    assert_eq!(keys.query(&[], &random.digest, OutputIndex(0)).unwrap().keys.len(), 1);
    drop(keys);
    let fixture = fixture.reopen().await;
    assert!(fixture.cache.keys().query(&[], &random.digest, OutputIndex(0)).unwrap().keys.is_empty());
}
