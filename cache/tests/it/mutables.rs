use std::time::Duration;

use kiln_cache::{RecordOptions, RecordType, Sharing};

use crate::support::{Fixture, files, files_of, write};

fn context() -> RecordOptions {
    RecordOptions::new("local source for context", RecordType::LocalSource)
}

fn mount_options() -> RecordOptions {
    RecordOptions::new("cached mount /c", RecordType::CacheMount)
}

#[tokio::test]
async fn a_received_context_is_used_again_once_nobody_reads_it() {
    let fixture = Fixture::new().await;
    let first = fixture.cache.local_source("ctx", context()).await.unwrap();
    assert!(first.is_fresh());
    write(&first.mount().await.unwrap(), "a", "1");
    let id = first.id().clone();
    let view = first.commit().await.unwrap();
    assert_eq!(format!("{:?}", files(&view).await), r#"{"a": "1"}"#);

    let meanwhile = fixture.cache.local_source("ctx", context()).await.unwrap();
    assert_ne!(meanwhile.id(), &id, "the first one is being read");
    drop(meanwhile);
    drop(view);
    let fixture = fixture.reopen().await;
    let again = fixture.cache.local_source("ctx", context()).await.unwrap();
    assert_eq!(again.id(), &id);
    assert!(!again.is_fresh());
    assert_eq!(format!("{:?}", files_of(&again.mount().await.unwrap())), r#"{"a": "1"}"#);
}

#[tokio::test]
async fn a_context_that_was_not_finished_is_not_used_again() {
    let fixture = Fixture::new().await;
    let first = fixture.cache.local_source("ctx", context()).await.unwrap();
    let id = first.id().clone();
    first.commit().await.unwrap();
    let second = fixture.cache.local_source("ctx", context()).await.unwrap();
    assert_eq!(second.id(), &id);
    drop(second);
    let third = fixture.cache.local_source("ctx", context()).await.unwrap();
    assert_ne!(third.id(), &id);
    let third_id = third.id().clone();
    std::mem::forget(third);
    let fixture = fixture.kill().await;
    let fourth = fixture.cache.local_source("ctx", context()).await.unwrap();
    assert_ne!(fourth.id(), &third_id, "a kill in the middle of a transfer");
}

#[tokio::test]
async fn a_context_that_becomes_a_base_stays_as_it_is() {
    let fixture = Fixture::new().await;
    let first = fixture.cache.local_source("ctx", context()).await.unwrap();
    write(&first.mount().await.unwrap(), "a", "1");
    let view = first.commit().await.unwrap();
    let child = fixture.layer(Some(&view), "b", "2").await;
    assert_eq!(format!("{:?}", files(&child).await), r#"{"a": "1", "b": "2"}"#);
    fixture.save("child", &child).await;
    let id = view.id().clone();
    drop((view, child));
    let other = fixture.cache.local_source("ctx", context()).await.unwrap();
    assert_ne!(other.id(), &id);
    let fixture = fixture.reopen().await;
    let child = fixture.find("child").await.unwrap();
    assert_eq!(format!("{:?}", files(&child).await), r#"{"a": "1", "b": "2"}"#);
}

#[tokio::test]
async fn a_saved_context_is_a_hit_until_somebody_changes_it() {
    let fixture = Fixture::new().await;
    let first = fixture.cache.local_source("ctx", context()).await.unwrap();
    let view = first.commit().await.unwrap();
    fixture.save("session", &view).await;
    drop(view);
    assert!(fixture.find("session").await.is_some());
    let second = fixture.cache.local_source("ctx", context()).await.unwrap();
    assert!(fixture.find("session").await.is_none(), "it is being written to");
    second.commit().await.unwrap();
    assert!(fixture.find("session").await.is_none(), "it may hold something else now");
}

#[tokio::test]
async fn shared_mounts_are_one_directory() {
    let fixture = Fixture::new().await;
    let one = fixture.cache.cache_mount("id", Sharing::Shared, None, mount_options()).await.unwrap();
    let two = fixture.cache.cache_mount("id", Sharing::Shared, None, mount_options()).await.unwrap();
    assert_eq!(one.id(), two.id());
    write(&one.mount().await.unwrap(), "f", "x");
    let id = one.id().clone();
    drop((one, two));
    let fixture = fixture.reopen().await;
    let three = fixture.cache.cache_mount("id", Sharing::Shared, None, mount_options()).await.unwrap();
    assert_eq!(three.id(), &id);
    assert_eq!(format!("{:?}", files_of(&three.mount().await.unwrap())), r#"{"f": "x"}"#);
}

#[tokio::test]
async fn private_mounts_are_one_each() {
    let fixture = Fixture::new().await;
    let one = fixture.cache.cache_mount("id", Sharing::Private, None, mount_options()).await.unwrap();
    let two = fixture.cache.cache_mount("id", Sharing::Private, None, mount_options()).await.unwrap();
    assert_ne!(one.id(), two.id());
    let id = one.id().clone();
    drop(one);
    let three = fixture.cache.cache_mount("id", Sharing::Private, None, mount_options()).await.unwrap();
    assert_eq!(three.id(), &id);
}

#[tokio::test]
async fn a_locked_mount_waits_and_a_waiter_that_leaves_holds_nothing() {
    let fixture = Fixture::new().await;
    let one = fixture.cache.cache_mount("id", Sharing::Locked, None, mount_options()).await.unwrap();
    let id = one.id().clone();
    let leaver = fixture.cache.cache_mount("id", Sharing::Locked, None, mount_options());
    assert!(tokio::time::timeout(Duration::from_millis(20), leaver).await.is_err());
    let waiter = fixture.cache.cache_mount("id", Sharing::Locked, None, mount_options());
    let release = async {
        tokio::task::yield_now().await;
        drop(one);
    };
    let (two, ()) = tokio::join!(waiter, release);
    assert_eq!(two.unwrap().id(), &id);
}

#[tokio::test]
async fn a_mount_with_a_base_starts_from_it_and_is_another_one() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "seed", "s").await;
    let plain = fixture.cache.cache_mount("id", Sharing::Shared, None, mount_options()).await.unwrap();
    let based = fixture.cache.cache_mount("id", Sharing::Shared, Some(&base), mount_options()).await.unwrap();
    assert_ne!(plain.id(), based.id());
    write(&based.mount().await.unwrap(), "f", "x");
    let id = based.id().clone();
    fixture.save("base", &base).await;
    drop((plain, based, base));
    let fixture = fixture.reopen().await;
    let base = fixture.find("base").await.unwrap();
    let based = fixture.cache.cache_mount("id", Sharing::Shared, Some(&base), mount_options()).await.unwrap();
    assert_eq!(based.id(), &id);
    assert_eq!(format!("{:?}", files_of(&based.mount().await.unwrap())), r#"{"f": "x", "seed": "s"}"#);
}

#[tokio::test]
async fn pruned_mounts_begin_empty() {
    let fixture = Fixture::new().await;
    let one = fixture.cache.cache_mount("id", Sharing::Shared, None, mount_options()).await.unwrap();
    let id = one.id().clone();
    fixture.cache.prune_cache_mounts(&["id".into()]).await.unwrap();
    drop(one);
    let two = fixture.cache.cache_mount("id", Sharing::Shared, None, mount_options()).await.unwrap();
    assert_eq!(two.id(), &id, "it was in use");
    drop(two);
    fixture.cache.prune_cache_mounts(&["id".into()]).await.unwrap();
    let three = fixture.cache.cache_mount("id", Sharing::Shared, None, mount_options()).await.unwrap();
    assert_ne!(three.id(), &id);
}

#[tokio::test]
async fn a_context_that_is_part_of_a_merge_stays_as_it_is() {
    let fixture = Fixture::new().await;
    let first = fixture.cache.local_source("ctx", context()).await.unwrap();
    write(&first.mount().await.unwrap(), "a", "1");
    let view = first.commit().await.unwrap();
    let other = fixture.layer(None, "b", "2").await;
    let merged = fixture
        .cache
        .merge(&[view.clone(), other.clone()], crate::support::options("merge"))
        .await
        .unwrap()
        .unwrap();
    fixture.save("merged", &merged).await;
    let id = view.id().clone();
    drop((view, other, merged));
    let second = fixture.cache.local_source("ctx", context()).await.unwrap();
    assert_ne!(second.id(), &id);
    let merged = fixture.find("merged").await.unwrap();
    assert_eq!(format!("{:?}", files(&merged).await), r#"{"a": "1", "b": "2"}"#);
}

#[tokio::test]
async fn what_was_tried_on_a_context_does_not_keep_it() {
    let fixture = Fixture::new().await;
    let first = fixture.cache.local_source("ctx", context()).await.unwrap();
    let view = first.commit().await.unwrap();
    let id = view.id().clone();
    drop(fixture.layer(Some(&view), "b", "2").await);
    drop(view);
    assert_eq!(fixture.cache.local_source("ctx", context()).await.unwrap().id(), &id);
}
