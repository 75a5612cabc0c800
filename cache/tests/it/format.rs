//! Catalogues of other formats, and such that are none.

use std::path::Path;

use kiln_cache::{CacheManager, CacheOptions, CheckOptions, Sharing, UsageQuery};
use kiln_content::ContentStoreExt as _;
use kiln_snapshot::SnapshotId;
use rusqlite::Connection;

use crate::support::{Fixture, check, digest, files, options, stores, write};

const V1: &str = include_str!("../../testdata/format/v1.sql");
const NEWEST: u32 = 3;

fn version(database: &Path) -> u32 {
    let connection = Connection::open(database).unwrap();
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

/// The tables and indexes, as SQL.
fn schema(database: &Path) -> Vec<String> {
    let connection = Connection::open(database).unwrap();
    let mut statement = connection
        .prepare("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type, name")
        .unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn a_catalogue_of_the_first_format_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let (snapshots, content) = stores(dir.path());
    for name in ["base", "top", "mount", "cutoff"] {
        let id = SnapshotId::new(name).unwrap();
        snapshots.prepare(&id, None).await.unwrap();
        write(&snapshots.active_mount(&id, &[]).await.unwrap(), name, "text");
        snapshots.commit(&id).await.unwrap();
    }
    content.put("hello".into()).await.unwrap();
    std::fs::create_dir(dir.path().join("kiln")).unwrap();
    let database = dir.path().join("kiln/catalogue.db");
    Connection::open(&database).unwrap().execute_batch(V1).unwrap();
    assert_eq!(version(&database), 1);
    drop((snapshots, content));

    let fixture = Fixture::open(dir).await;
    assert_eq!(version(&fixture.database()), NEWEST);
    let top = fixture.find("top").await.unwrap();
    assert_eq!(format!("{:?}", files(&top).await), r#"{"base": "text", "top": "text"}"#);
    assert_eq!(top.layers()[0].blobs[0].source, "example.org/image:1");
    assert_eq!(fixture.cache.fact("etag").await.unwrap().unwrap(), b"\"abc\"");
    let mount = fixture.cache.cache_mount("/c", Sharing::Shared, None, options("mount")).await.unwrap();
    assert!(!mount.is_fresh());
    drop(mount);
    let keys = fixture.cache.keys();
    let key = digest("top").root(kiln_solver::OutputIndex(0));
    let parent = kiln_solver::KeyAndSelector { key, selector: None };
    let found = keys.query(&[vec![parent]], &digest("child"), kiln_solver::OutputIndex(0)).unwrap();
    assert_eq!(found.keys.len(), 1);
    let usage = fixture.cache.disk_usage(&UsageQuery::default()).await.unwrap();
    assert_eq!(usage.len(), 4, "what was cut off has gone: {usage:?}");
    drop(top);
    assert_eq!(check(&fixture.cache, CheckOptions::default()).await, [] as [String; 0]);
}

#[tokio::test]
async fn an_old_catalogue_ends_as_a_new_one_begins() {
    let fixture = Fixture::new().await;
    let old = tempfile::tempdir().unwrap();
    std::fs::create_dir(old.path().join("kiln")).unwrap();
    Connection::open(old.path().join("kiln/catalogue.db")).unwrap().execute_batch(V1).unwrap();
    let old = Fixture::open(old).await;
    assert_eq!(schema(&old.database()), schema(&fixture.database()));
}

#[tokio::test]
async fn a_newer_catalogue_is_refused_and_left_alone() {
    let fixture = Fixture::new().await;
    let database = fixture.database();
    fixture.cache.close().await.unwrap();
    Connection::open(&database).unwrap().pragma_update(None, "user_version", NEWEST + 1).unwrap();
    let (snapshots, content) = stores(fixture.dir.path());
    let error =
        CacheManager::open(CacheOptions::new(fixture.dir.path().join("kiln"), snapshots, content)).await;
    let error = error.unwrap_err().to_string();
    let want = format!("has format {}, this program knows formats up to {NEWEST}: use the newer", NEWEST + 1);
    assert!(error.contains(&want), "{error}");
    assert_eq!(version(&database), NEWEST + 1);
}

#[tokio::test]
async fn what_is_no_catalogue_is_set_aside() {
    for offset in [0, 100, 4096] {
        let fixture = Fixture::new().await;
        let base = fixture.layer(None, "a", "1").await;
        fixture.save("base", &base).await;
        drop(base);
        let database = fixture.database();
        fixture.cache.close().await.unwrap();
        let mut bytes = std::fs::read(&database).unwrap();
        bytes[offset..offset + 64].fill(0xa5);
        std::fs::write(&database, bytes).unwrap();
        let fixture = Fixture::open(fixture.dir).await;
        assert!(fixture.find("base").await.is_none());
        let base = fixture.layer(None, "a", "1").await;
        fixture.save("base", &base).await;
        let names = std::fs::read_dir(fixture.dir.path().join("kiln")).unwrap();
        let aside =
            names.filter(|name| name.as_ref().unwrap().path().extension().is_some_and(|e| e == "bak"));
        assert_eq!(aside.count(), 1, "offset {offset}");
        assert!(fixture.reopen().await.find("base").await.is_some());
    }
}
