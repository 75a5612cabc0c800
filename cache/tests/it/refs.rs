use kiln_cache::{NoProvider, Ref};

use crate::support::{Fixture, files, options};

#[tokio::test]
async fn a_chain_shows_all_its_layers() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", "1").await;
    let top = fixture.layer(Some(&base), "b", "2").await;
    assert_eq!(format!("{:?}", files(&top).await), r#"{"a": "1", "b": "2"}"#);
    assert_eq!(top.layers().len(), 2);
    assert_eq!(format!("{:?}", files(&base).await), r#"{"a": "1"}"#);
}

#[tokio::test]
async fn what_nobody_saved_goes_with_its_last_ref() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", "1").await;
    let top = fixture.layer(Some(&base), "b", "2").await;
    let (base_id, top_id) = (base.id().clone(), top.id().clone());
    drop(base);
    assert!(fixture.cache.get(&base_id).await.unwrap().is_some(), "held by its child");
    drop(top);
    assert!(fixture.cache.get(&base_id).await.unwrap().is_none());
    let fixture = fixture.reopen().await;
    assert!(fixture.cache.get(&top_id).await.unwrap().is_none());
    assert_eq!(fixture.snapshot_count().await, 0);
}

#[tokio::test]
async fn what_was_finalized_is_there_after_a_restart() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", "1").await;
    let top = fixture.layer(Some(&base), "b", "2").await;
    top.finalize().await.unwrap();
    let id = top.id().clone();
    drop((base, top));
    let fixture = fixture.reopen().await;
    let top = fixture.cache.get(&id).await.unwrap().unwrap();
    assert_eq!(top.description(), "writes b");
    assert_eq!(format!("{:?}", files(&top).await), r#"{"a": "1", "b": "2"}"#);
}

#[tokio::test]
async fn merging_stacks_and_a_repeated_layer_counts_once_at_the_top() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "x", "base").await;
    let left = fixture.layer(Some(&base), "x", "left").await;
    let right = fixture.layer(Some(&base), "y", "right").await;
    let merged =
        fixture.cache.merge(&[left.clone(), right.clone()], options("merge")).await.unwrap().unwrap();
    assert_eq!(merged.layers().len(), 3);
    // The base of the second input lies above the change of the first.
    assert_eq!(format!("{:?}", files(&merged).await), r#"{"x": "base", "y": "right"}"#);
    let child = fixture.layer(Some(&merged), "z", "child").await;
    child.finalize().await.unwrap();
    let id = child.id().clone();
    drop((base, left, right, merged, child));
    let fixture = fixture.reopen().await;
    let child = fixture.cache.get(&id).await.unwrap().unwrap();
    assert_eq!(format!("{:?}", files(&child).await), r#"{"x": "base", "y": "right", "z": "child"}"#);
}

#[tokio::test]
async fn a_difference_is_what_was_built_on_top() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", "1").await;
    let middle = fixture.layer(Some(&base), "b", "2").await;
    let top = fixture.layer(Some(&middle), "c", "3").await;
    let other = fixture.layer(None, "d", "4").await;
    let diff =
        fixture.cache.diff(Some(&base), Some(&top), &NoProvider, options("diff")).await.unwrap().unwrap();
    assert_eq!(format!("{:?}", files(&diff).await), r#"{"b": "2", "c": "3"}"#);
    assert!(fixture.cache.diff(Some(&top), Some(&top), &NoProvider, options("")).await.unwrap().is_none());
    assert!(fixture.cache.diff(None, None, &NoProvider, options("")).await.unwrap().is_none());
    assert_eq!(fixture.snapshot_count().await, 4, "nothing is written");
    let merged = fixture.cache.merge(&[other, diff], options("")).await.unwrap().unwrap();
    assert_eq!(format!("{:?}", files(&merged).await), r#"{"b": "2", "c": "3", "d": "4"}"#);
}

#[tokio::test]
async fn a_difference_of_strangers_is_computed_and_stays() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "kept", "1").await;
    let base = fixture.layer(Some(&base), "gone", "2").await;
    let lower = fixture.layer(Some(&base), "changed", "3").await;
    let upper = fixture.layer(None, "kept", "other").await;
    let upper = fixture.layer(Some(&upper), "changed", "other").await;
    let diff = |lower, upper| fixture.cache.diff(lower, upper, &NoProvider, options("diff"));
    let found = diff(Some(&lower), Some(&upper)).await.unwrap().unwrap();
    let nothing = diff(Some(&lower), None).await.unwrap().unwrap();
    assert_eq!(found.layers().len(), 1);
    let cache = &fixture.cache;
    let merge = |refs: [Ref; 2]| async move { cache.merge(&refs, options("")).await.unwrap().unwrap() };
    let merged = merge([lower.clone(), found.clone()]).await;
    let want = r#"{"changed": "other", "kept": "other"}"#;
    assert_eq!(format!("{:?}", files(&merged).await), want);
    assert!(files(&merge([lower.clone(), nothing]).await).await.is_empty());
    merged.finalize().await.unwrap();
    let id = merged.id().clone();
    drop((base, lower, upper, found, merged));
    let merged = fixture.cache.get(&id).await.unwrap().unwrap();
    assert_eq!(format!("{:?}", files(&merged).await), want);
}

#[tokio::test]
async fn a_diamond_of_merges_costs_what_it_has_records() {
    let fixture = Fixture::new().await;
    let mut top = fixture.layer(None, "x0", "").await;
    for level in 1..=24 {
        let left = fixture.layer(Some(&top), &format!("x{level}"), "").await;
        let right = fixture.layer(Some(&top), &format!("y{level}"), "").await;
        top = fixture.cache.merge(&[left, right], options("")).await.unwrap().unwrap();
        top = fixture.cache.merge(&[top.clone(), top], options("")).await.unwrap().unwrap();
    }
    assert_eq!(top.layers().len(), 49);
    assert_eq!(files(&top).await.len(), 49);
    top.finalize().await.unwrap();
    let id = top.id().clone();
    drop(top);
    let fixture = fixture.reopen().await;
    let again = fixture.cache.get(&id).await.unwrap().unwrap();
    assert_eq!(files(&again).await.len(), 49);
    assert_eq!(fixture.snapshot_count().await, 49);
}

#[tokio::test]
async fn long_and_wide_histories_are_taken_apart_without_running_out_of_stack() {
    let fixture = Fixture::new().await;
    let mut top = fixture.layer(None, "a", "1").await;
    let other = fixture.layer(None, "b", "2").await;
    for _ in 0..5_000 {
        top = fixture.cache.merge(&[top, other.clone()], options("")).await.unwrap().unwrap();
    }
    assert_eq!(top.layers().len(), 2);
    top.finalize().await.unwrap();
    let id = top.id().clone();
    drop(top);
    let again = fixture.cache.get(&id).await.unwrap().unwrap();
    assert!(again.mount(&NoProvider).await.unwrap().with_temp().unwrap().path().join("b").exists());
}

#[tokio::test]
async fn facts_are_kept() {
    let fixture = Fixture::new().await;
    fixture.cache.set_fact("etag:x", Some(b"abc".to_vec())).await.unwrap();
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.cache.fact("etag:x").await.unwrap().as_deref(), Some(&b"abc"[..]));
    fixture.cache.set_fact("etag:x", None).await.unwrap();
    assert_eq!(fixture.cache.fact("etag:x").await.unwrap(), None);
}

#[tokio::test]
async fn records_are_found_by_the_beginning_of_a_name() {
    let fixture = Fixture::new().await;
    let pending = fixture.layer(None, "c", "3").await;
    assert!(pending.add_name("http::x::3").await.is_err(), "nobody could find it");
    for (text, name) in [("1", "http::x::1"), ("2", "http::x::2"), ("4", "http::xx::4"), ("5", "http::")] {
        let made = fixture.layer(None, "f", text).await;
        made.finalize().await.unwrap();
        made.add_name(name).await.unwrap();
        made.add_name(name).await.unwrap();
    }
    let fixture = fixture.reopen().await;
    let found = fixture.cache.named("http::x::").await.unwrap();
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["http::x::2", "http::x::1"], "newest first");
    assert_eq!(format!("{:?}", files(&found[0].1).await), r#"{"f": "2"}"#);

    // One that has lost its data is no longer found.
    let lost = found[0].1.layers()[0].snapshot.clone().unwrap();
    drop(found);
    fixture.snapshots.remove(&lost).await.unwrap();
    let found = fixture.cache.named("http::x::").await.unwrap();
    assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["http::x::1"]);
}
