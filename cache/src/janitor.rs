//! Work that waits for a quiet moment: removing what nobody names, counting uses, checkpoints.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use kiln_digest::Digest;
use kiln_snapshot::SnapshotId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    Error, RecordId, Result,
    db::rows::{self, Forgotten},
    manager::{Inner, blocking},
};

/// Collects what has to be done; filled from destructors, which may not wait.
#[derive(Debug, Default)]
pub(crate) struct Janitor {
    work: Mutex<Work>,
    wake: Arc<Notify>,
    /// One at a time removes: whoever comes second waits until the first has made the room.
    removing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Work {
    snapshots: Vec<SnapshotId>,
    blobs: Vec<Digest>,
    uses: HashMap<RecordId, (i64, Option<SystemTime>)>,
    resting: Vec<(RecordId, SnapshotId)>,
    forget: Vec<RecordId>,
}

impl Janitor {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn remove_snapshots(&self, ids: impl IntoIterator<Item = SnapshotId>) {
        let before = {
            let mut work = self.work();
            work.snapshots.extend(ids);
            work.snapshots.len()
        };
        if before > 0 {
            self.wake.notify_one();
        }
    }

    pub(crate) fn remove_blobs(&self, digests: impl IntoIterator<Item = Digest>) {
        let before = {
            let mut work = self.work();
            work.blobs.extend(digests);
            work.blobs.len()
        };
        if before > 0 {
            self.wake.notify_one();
        }
    }

    pub(crate) fn remove_forgotten(&self, forgotten: Option<Forgotten>) {
        if let Some(forgotten) = forgotten {
            self.remove_snapshots(forgotten.snapshot);
            self.remove_blobs(forgotten.blobs);
        }
    }

    /// Counts a use; written with the next batch.
    pub(crate) fn touch(&self, id: &RecordId, last: SystemTime) {
        let mut work = self.work();
        let (times, latest) = work.uses.entry(id.clone()).or_default();
        *times += 1;
        *latest = Some(last);
    }

    /// A cache mount was let go: its size is measured when there is time.
    pub(crate) fn rest(&self, id: RecordId, snapshot: SnapshotId) {
        self.work().resting.push((id, snapshot));
        self.wake.notify_one();
    }

    /// A mutable record was let go in an unknown state.
    pub(crate) fn forget(&self, id: RecordId) {
        self.work().forget.push(id);
        self.wake.notify_one();
    }
}

/// Runs until cancelled, or until the catalogue has gone.
pub(crate) async fn run(inner: Weak<Inner>, cancel: CancellationToken, interval: Duration) {
    let Some(wake) = inner.upgrade().map(|inner| Arc::clone(&inner.janitor.wake)) else { return };
    let interval = interval.max(Duration::from_millis(10));
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let ticked = tokio::select! {
            () = cancel.cancelled() => return,
            () = wake.notified() => false,
            _ = ticks.tick() => true,
        };
        let Some(inner) = inner.upgrade() else { return };
        let outcome = async {
            settle_mutables(&inner).await?;
            remove(&inner).await?;
            if ticked {
                count_uses(&inner).await?;
                end_makings(&inner)?;
                inner.db().restock();
                checkpoint(&inner).await?;
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = outcome.await {
            tracing::warn!(%error, "housekeeping of the catalogue failed and is tried again");
        }
    }
}

/// Does everything that waits.
pub(crate) async fn tidy(inner: &Arc<Inner>) -> Result<()> {
    settle_mutables(inner).await?;
    remove(inner).await?;
    count_uses(inner).await
}

/// Brings mutable records that were let go in order.
pub(crate) async fn settle_mutables(inner: &Arc<Inner>) -> Result<()> {
    let (resting, forget) = {
        let mut work = inner.janitor.work();
        (std::mem::take(&mut work.resting), std::mem::take(&mut work.forget))
    };
    for (id, snapshot) in resting {
        let usage = inner.snapshotter().usage(&snapshot).await.ok();
        inner
            .db()
            .write(move |transaction| {
                rows::measure(transaction, &id, usage)?;
                rows::set_dirty(transaction, &id, false)
            })
            .await?;
    }
    for id in forget {
        let forgotten = inner.db().write(move |transaction| rows::forget(transaction, &id)).await?;
        inner.janitor.remove_forgotten(forgotten);
    }
    Ok(())
}

async fn count_uses(inner: &Arc<Inner>) -> Result<()> {
    let uses = std::mem::take(&mut inner.janitor.work().uses);
    if uses.is_empty() {
        return Ok(());
    }
    inner
        .db()
        .write(move |transaction| {
            for (id, (times, last)) in &uses {
                rows::touch(transaction, id, *times, last.unwrap_or_else(SystemTime::now))?;
            }
            Ok(())
        })
        .await
}

/// What a row names by now is not being made any more.
fn end_makings(inner: &Arc<Inner>) -> Result<()> {
    for snapshot in inner.making.all() {
        if inner.db().read(|connection| rows::snapshot_is_named(connection, &snapshot))? {
            inner.making.end(&snapshot);
        }
    }
    Ok(())
}

/// Removes snapshots and blobs that no row and nobody in this process names.
pub(crate) async fn remove(inner: &Arc<Inner>) -> Result<()> {
    let _one_at_a_time = inner.janitor.removing.lock().await;
    let (snapshots, blobs) = {
        let mut work = inner.janitor.work();
        (std::mem::take(&mut work.snapshots), std::mem::take(&mut work.blobs))
    };
    for snapshot in snapshots {
        if inner.db().read(|connection| rows::snapshot_is_named(connection, &snapshot))? {
            continue;
        }
        if let Err(error) = inner.snapshotter().remove(&snapshot).await {
            tracing::warn!(%snapshot, %error, "a snapshot could not be removed; the next start tries again");
        }
        inner.making.end(&snapshot);
    }
    if blobs.is_empty() {
        return Ok(());
    }
    let used: std::collections::HashSet<Digest> = inner
        .live
        .records()
        .iter()
        .flat_map(|record| record.state().blobs.iter().map(|blob| blob.descriptor.digest).collect::<Vec<_>>())
        .collect();
    for digest in blobs {
        if used.contains(&digest) || inner.db().read(|connection| rows::blob_is_named(connection, &digest))? {
            continue;
        }
        if let Err(error) = inner.content().delete(&digest).await {
            tracing::warn!(%digest, %error, "a blob could not be removed; the next start tries again");
        }
    }
    Ok(())
}

/// Makes what was written so far safe against a power loss, and notes that.
pub(crate) async fn checkpoint(inner: &Arc<Inner>) -> Result<()> {
    let writes = inner.db().writes();
    if writes == inner.db().synced_writes() {
        return Ok(());
    }
    // Whatever a later transaction points at belongs to the next epoch.
    let epoch = inner.db().write(crate::db::next_epoch).await?;
    let root = inner.root().to_owned();
    blocking(move || {
        let directory =
            std::fs::File::open(&root).map_err(Error::io(format!("open `{}`", root.display())))?;
        rustix::fs::syncfs(&directory).map_err(|error| Error::io("sync the stores")(error.into()))
    })
    .await?;
    inner.db().write(move |transaction| crate::db::set_synced(transaction, epoch)).await?;
    // The two writes of the checkpoint itself need no other one.
    inner.db().note_synced(writes + 2);
    Ok(())
}
