use std::time::Duration;

use kiln_cache::{
    CacheManager, GcPolicy, PruneOptions, RecordOptions, RecordType, Sharing, UsageQuery, UsageRecord,
};

use crate::support::{Fixture, options};

async fn prune(cache: &CacheManager, options: &PruneOptions) -> Vec<UsageRecord> {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let collect = async {
        let mut all = Vec::new();
        while let Some(record) = told.recv().await {
            all.push(record);
        }
        all
    };
    let (outcome, all) = tokio::join!(cache.prune(options, tell), collect);
    outcome.unwrap();
    all
}

fn names(records: &[UsageRecord]) -> Vec<&str> {
    records.iter().map(|record| record.description.as_str()).collect()
}

async fn usage(cache: &CacheManager, filters: &[&str]) -> Vec<UsageRecord> {
    let query = UsageQuery { filters: filters.iter().map(ToString::to_string).collect(), age_limit: None };
    cache.disk_usage(&query).await.unwrap()
}

#[tokio::test]
async fn usage_says_what_is_there() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", &"x".repeat(100_000)).await;
    let top = fixture.layer(Some(&base), "b", "2").await;
    fixture.save("top", &top).await;
    let all = usage(&fixture.cache, &[]).await;
    assert_eq!(names(&all), ["writes a", "writes b"]);
    assert!(all[0].size >= 100_000 && all[0].size < 150_000, "{}", all[0].size);
    assert_eq!(all[1].parents, [base.id().clone()]);
    assert!(all.iter().all(|record| record.in_use && !record.mutable));
    drop((base, top));
    assert!(usage(&fixture.cache, &[]).await.iter().all(|record| !record.in_use));
    assert_eq!(names(&usage(&fixture.cache, &["description~=b$"]).await), ["writes b"]);
    assert!(usage(&fixture.cache, &["mutable"]).await.is_empty());
    let fixture = fixture.reopen().await;
    let all = usage(&fixture.cache, &[]).await;
    assert_eq!((all[1].usage_count, all[1].last_used_at.is_some()), (1, true));
    let recent = UsageQuery { filters: Vec::new(), age_limit: Some(Duration::from_secs(3600)) };
    assert!(fixture.cache.disk_usage(&recent).await.unwrap().is_empty());
}

#[tokio::test]
async fn prune_takes_what_nobody_uses_children_first() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", "1").await;
    let middle = fixture.layer(Some(&base), "b", "2").await;
    let top = fixture.layer(Some(&middle), "c", "3").await;
    let other = fixture.layer(Some(&base), "d", "4").await;
    fixture.save("top", &top).await;
    fixture.save("other", &other).await;
    drop((base, top, other));
    let gone = prune(&fixture.cache, &PruneOptions::default()).await;
    let mut gone = names(&gone);
    gone.sort_unstable();
    assert_eq!(gone, ["writes c", "writes d"], "the middle is in use and holds what is below it");
    assert!(fixture.find("top").await.is_none());
    drop(middle);
    let gone = prune(&fixture.cache, &PruneOptions::default()).await;
    assert_eq!(names(&gone), ["writes b", "writes a"]);
    assert_eq!(fixture.snapshot_count().await, 0);
}

#[tokio::test]
async fn prune_keeps_what_it_is_told_to() {
    let fixture = Fixture::new().await;
    let plain = fixture.layer(None, "a", "1").await;
    fixture.save("plain", &plain).await;
    let internal = fixture
        .cache
        .new_mutable(None, RecordOptions::new("internal", RecordType::Internal))
        .await
        .unwrap()
        .commit()
        .await
        .unwrap();
    fixture.save("internal", &internal).await;
    drop(
        fixture
            .cache
            .cache_mount("id", Sharing::Shared, None, RecordOptions::new("mount", RecordType::CacheMount))
            .await
            .unwrap(),
    );
    drop((plain, internal));
    let recent = PruneOptions { keep_duration: Some(Duration::from_secs(3600)), ..PruneOptions::default() };
    assert!(prune(&fixture.cache, &recent).await.is_empty());
    let mounts = PruneOptions { filters: vec!["type==exec.cachemount".into()], ..PruneOptions::default() };
    assert_eq!(names(&prune(&fixture.cache, &mounts).await), ["mount"]);
    let roomy = PruneOptions { max_used_space: 1 << 40, ..PruneOptions::default() };
    assert!(prune(&fixture.cache, &roomy).await.is_empty());
    assert_eq!(names(&prune(&fixture.cache, &PruneOptions::default()).await), ["writes a"]);
    let all = PruneOptions { all: true, ..PruneOptions::default() };
    assert_eq!(names(&prune(&fixture.cache, &all).await), ["internal"]);
    let broken = PruneOptions { filters: vec!["a b".into()], ..PruneOptions::default() };
    let (tell, _told) = tokio::sync::mpsc::channel(1);
    assert!(fixture.cache.prune(&broken, tell).await.is_err());
}

#[tokio::test]
async fn a_limit_takes_the_least_used_first_and_stops() {
    let fixture = Fixture::new().await;
    for name in ["a", "b", "c"] {
        let layer = fixture.layer(None, name, &"x".repeat(200_000)).await;
        fixture.save(name, &layer).await;
    }
    // `a` is used once more than the others, and last.
    drop(fixture.find("a").await.unwrap());
    fixture
        .cache
        .gc(&[GcPolicy(PruneOptions { max_used_space: 300_000, ..PruneOptions::default() })])
        .await
        .unwrap();
    assert_eq!(names(&usage(&fixture.cache, &[]).await), ["writes a"]);
}

#[tokio::test]
async fn pending_records_are_listed_and_stay() {
    let fixture = Fixture::new().await;
    let pending = fixture.layer(None, "a", "1").await;
    assert_eq!(names(&usage(&fixture.cache, &["inuse"]).await), ["writes a"]);
    assert!(prune(&fixture.cache, &PruneOptions { all: true, ..PruneOptions::default() }).await.is_empty());
    let merged = fixture
        .cache
        .merge(&[pending.clone(), fixture.layer(None, "b", "2").await], options("merge"))
        .await
        .unwrap();
    drop(pending);
    assert_eq!(merged.unwrap().layers().len(), 2);
}
