//! What happens at start: suspects after a power loss, half-written records, orphans.

use std::{collections::HashSet, sync::Arc};

use kiln_digest::Digest;
use kiln_snapshot::SnapshotId;

use crate::{
    Error, RecordId, Result,
    db::{self, keys, rows},
    manager::{Inner, blocking},
    unpack::lose,
};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

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
            // A context whose transfer was cut off: its checksums do not say what is in it.
            Ok((suspects, rows::cut_off(transaction)?))
        })
        .await?;
    for id in suspects {
        doubt(inner, id).await?;
    }
    for id in broken {
        let forgotten = inner.db().write(move |transaction| rows::forget(transaction, &id)).await?;
        inner.janitor.remove_forgotten(forgotten);
    }
    // What is in the stores now and is named by nobody was made by a run that did not live to name it. The lists are
    // made before anything new can come, so nothing that is only being made is on them.
    let snapshots = inner.snapshotter().list().await?;
    let blobs: Vec<Digest> = inner.content().list().await?.into_iter().map(|blob| blob.digest).collect();
    let (named_snapshots, named_blobs) = inner.db().read(|connection| {
        let snapshots: HashSet<SnapshotId> = rows::all_snapshots(connection)?;
        let blobs: HashSet<Digest> = rows::all_blobs(connection)?;
        Ok((snapshots, blobs))
    })?;
    inner.janitor.remove_snapshots(snapshots.into_iter().filter(|id| !named_snapshots.contains(id)));
    // Blobs go at once: a build that finds one there must not see it go. Directories may take longer.
    for digest in blobs.into_iter().filter(|digest| !named_blobs.contains(digest)) {
        inner.content().delete(&digest).await?;
    }
    Ok(())
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
    inner.db().write(|transaction| db::set_meta(transaction, "clean", Some(b"1"))).await
}
