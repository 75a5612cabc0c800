//! What happens at start: suspects after a power loss, half-written records, orphans.

use std::{sync::Arc, time::Duration};

use kiln_snapshot::SnapshotId;

use crate::{
    Error, RecordId, Result,
    db::{self, keys, rows},
    manager::{Inner, blocking},
    unpack::lose,
};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How long a start waits for orphaned snapshots to go.
const PATIENCE: Duration = Duration::from_millis(100);
/// Snapshots looked up at a time.
const BATCH: usize = 256;

/// Puts the catalogue in order before it is used.
pub(crate) async fn recover(inner: &Arc<Inner>) -> Result<()> {
    let boot =
        blocking(|| std::fs::read_to_string(BOOT_ID).map_err(Error::io(format!("read `{BOOT_ID}`")))).await?;
    let boot = boot.trim().to_owned();
    let (suspects, broken) = inner
        .db()
        .write(move |transaction| {
            let before = db::meta(transaction, "boot")?;
            let clean = db::meta(transaction, "clean")?.is_some();
            let other_boot = before.is_some_and(|before| before != boot.as_bytes());
            let suspects = if other_boot && !clean { rows::unsynced(transaction)? } else { Vec::new() };
            db::set_meta(transaction, "boot", Some(boot.as_bytes()))?;
            db::set_meta(transaction, "clean", None)?;
            db::next_epoch(transaction)?;
            keys::drop_random(transaction)?;
            // A context whose transfer was cut off: its checksums do not say what is in it. After a power loss no row
            // says either which of them were being written to.
            let contexts = if other_boot && !clean { rows::contexts } else { rows::cut_off };
            Ok((suspects, contexts(transaction)?))
        })
        .await?;
    // That this run has begun must outlive a power loss before anything is made that may not.
    inner.db().flush().await?;
    for id in suspects {
        doubt(inner, id).await?;
    }
    for id in broken {
        lose(inner, id).await?;
    }
    // What is in the stores now and is named by nobody was made by a run that did not live to name it. Blobs go at
    // once: a build that finds one there must not see it go.
    for blob in inner.content().list().await? {
        let digest = blob.digest;
        if !inner.db().read(|connection| rows::blob_is_named(connection, &digest))? {
            inner.content().delete(&digest).await?;
        }
    }
    // There may be a great many directories, and nobody waits for them to go.
    let mut collecting = inner.tasks.spawn(collect_orphans(Arc::clone(inner)));
    match tokio::time::timeout(PATIENCE, &mut collecting).await {
        Ok(_done) => {}
        Err(_later) => tracing::debug!("orphaned snapshots are collected beside the builds"),
    }
    Ok(())
}

/// Removes the snapshots that no row names and that this run has not made.
async fn collect_orphans(inner: Arc<Inner>) {
    let outcome = async {
        for batch in inner.snapshotter().list().await?.chunks(BATCH) {
            if inner.cancel.is_cancelled() {
                break;
            }
            let orphans = orphans(&inner, batch)?;
            inner.janitor.remove_snapshots(orphans);
            tokio::task::yield_now().await;
        }
        Ok::<(), Error>(())
    };
    if let Err(error) = outcome.await {
        tracing::warn!(%error, "orphaned snapshots were not collected; the next start tries again");
    }
}

/// Those of `ids` that no row names and that this run is not making.
pub(crate) fn orphans(inner: &Inner, ids: &[SnapshotId]) -> Result<Vec<SnapshotId>> {
    let suspects: Vec<&SnapshotId> = ids.iter().filter(|id| !inner.making.contains(id)).collect();
    inner.db().read(|connection| {
        let mut orphans = Vec::new();
        for id in suspects {
            if !rows::snapshot_is_named(connection, id)? {
                orphans.push(id.clone());
            }
        }
        Ok(orphans)
    })
}

/// Data written after the last checkpoint before a power loss: the files may be there with nothing in them.
async fn doubt(inner: &Arc<Inner>, id: RecordId) -> Result<()> {
    let Some(row) = inner.db().read(|connection| rows::load(connection, &id))? else { return Ok(()) };
    for blob in &row.blobs {
        inner.content().delete(&blob.descriptor.digest).await?;
    }
    let fetchable = row.blobs.iter().any(|blob| !blob.source.is_empty());
    if row.kind.has_snapshot() && !fetchable {
        tracing::warn!(record = %id, "dropping a record that was not safe on disk before the machine stopped");
        return lose(inner, id).await;
    }
    if let Some(snapshot) = row.snapshot {
        inner.snapshotter().remove(&snapshot).await?;
        inner.db().write(move |transaction| rows::set_snapshot(transaction, &id, None, None)).await?;
    }
    Ok(())
}

/// Notes that everything was written and synced before the end.
pub(crate) async fn mark_clean(inner: &Arc<Inner>) -> Result<()> {
    inner.db().write(|transaction| db::set_meta(transaction, "clean", Some(b"1"))).await?;
    inner.db().flush().await
}
