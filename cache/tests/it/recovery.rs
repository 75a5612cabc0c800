use kiln_content::ContentStoreExt;
use kiln_snapshot::SnapshotId;
use rusqlite::Connection;

use crate::support::{Fixture, Remote, files, files_of, options, remote_layer};

#[tokio::test]
async fn what_nobody_names_is_collected_at_start() {
    let fixture = Fixture::new().await;
    let kept = fixture.layer(None, "a", "1").await;
    fixture.save("kept", &kept).await;
    let leased = fixture.content.put("leased".into()).await.unwrap();
    fixture.cache.lease_blob("history", leased, None).await.unwrap();
    let orphan = fixture.content.put("orphan".into()).await.unwrap();
    fixture.snapshots.prepare(&SnapshotId::new("orphan").unwrap(), None).await.unwrap();
    drop(kept);
    let fixture = fixture.reopen().await.reopen().await;
    assert_eq!(fixture.snapshot_count().await, 1);
    assert!(fixture.content.contains(&leased).await.unwrap());
    assert!(!fixture.content.contains(&orphan).await.unwrap());
    fixture.cache.release_blobs("history").await.unwrap();
    let fixture = fixture.reopen().await;
    assert!(!fixture.content.contains(&leased).await.unwrap());
    assert_eq!(format!("{:?}", files(&fixture.find("kept").await.unwrap()).await), r#"{"a": "1"}"#);
}

/// Makes the database look as if the machine had stopped.
fn power_loss(fixture: &Fixture, synced: Option<i64>) {
    let database = Connection::open(fixture.database()).unwrap();
    database.execute("UPDATE meta SET value = CAST('another boot' AS BLOB) WHERE key = 'boot'", []).unwrap();
    database.execute("DELETE FROM meta WHERE key = 'clean'", []).unwrap();
    if let Some(synced) = synced {
        database.execute("UPDATE meta SET value = ?1 WHERE key = 'synced'", [synced]).unwrap();
    }
}

#[tokio::test]
async fn after_a_power_loss_only_what_was_synced_is_trusted() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", "1").await;
    fixture.save("base", &base).await;
    drop(base);
    // The end of this run synced everything.
    let fixture = fixture.reopen().await;
    let base = fixture.find("base").await.unwrap();
    let top = fixture.layer(Some(&base), "b", "2").await;
    fixture.save("top", &top).await;
    let (blob, tar) = remote_layer("c", "3");
    let layers = [(blob, tar)];
    let remote = Remote::new(&fixture, &layers, 10);
    let pulled = fixture.cache.lazy_layer(None, layers[0].0.clone(), options("pulled")).await.unwrap();
    pulled.mount(&remote).await.unwrap();
    fixture.save("pulled", &pulled).await;
    drop((base, top, pulled));
    let synced = {
        let database = Connection::open(fixture.database()).unwrap();
        database.query_row("SELECT max(changed) - 1 FROM records", [], |row| row.get(0)).unwrap()
    };
    power_loss(&fixture, Some(synced));
    let fixture = fixture.kill().await;
    assert!(fixture.find("base").await.is_some());
    assert!(fixture.find("top").await.is_none(), "its files may be empty");
    let pulled = fixture.find("pulled").await.expect("it can be fetched again");
    assert!(pulled.layers()[0].snapshot.is_none());
    let remote = Remote::new(&fixture, &layers, 10);
    assert_eq!(format!("{:?}", files_of(&pulled.mount(&remote).await.unwrap())), r#"{"c": "3"}"#);
}

#[tokio::test]
async fn a_clean_end_before_a_reboot_leaves_no_doubt() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", "1").await;
    fixture.save("base", &base).await;
    drop(base);
    fixture.cache.close().await.unwrap();
    let database = Connection::open(fixture.database()).unwrap();
    database.execute("UPDATE meta SET value = CAST('another boot' AS BLOB) WHERE key = 'boot'", []).unwrap();
    drop(database);
    let fixture = Fixture::open(fixture.dir).await;
    assert!(fixture.find("base").await.is_some());
}
