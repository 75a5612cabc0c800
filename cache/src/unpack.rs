//! Lazy layers: fetched and unpacked when somebody reads them.

use std::{
    io::{self, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::try_join_all;
use kiln_content::{ContentStoreExt as _, layer};
use kiln_snapshot::SnapshotId;
use kiln_solver::GoneWhy;

use crate::{
    BlobProvider, Error, LayerBlob, LayerPhase, LayerProgress, NoProvider, RecordId, Ref, Result,
    db::rows,
    losses::count,
    manager::{Inner, blocking},
    space::room,
};

/// How often a running extraction reports.
const PROGRESS: Duration = Duration::from_millis(150);

impl Ref {
    /// Unpacks what is lazy and returns the snapshots, bottom first.
    pub(crate) async fn unpack_all(&self, provider: &dyn BlobProvider) -> Result<Vec<SnapshotId>> {
        self.verify().await?;
        // As a rule all are unpacked, and a deep stack would be many futures.
        if let Ok(snapshots) = self.snapshots() {
            return Ok(snapshots);
        }
        try_join_all(self.stack().iter().map(|layer| layer.unpack(provider))).await
    }

    /// Unpacks this one layer, unless it is unpacked. One caller does the work; when its future is dropped, the next
    /// one in line does it with a provider of its own.
    async fn unpack(&self, provider: &dyn BlobProvider) -> Result<SnapshotId> {
        if let Some(snapshot) = self.0.state().snapshot.clone() {
            return Ok(snapshot);
        }
        let _mine = self.0.unpacking.lock().await;
        let (snapshot, blobs) = {
            let state = self.0.state();
            (state.snapshot.clone(), state.blobs.clone())
        };
        if let Some(snapshot) = snapshot {
            return Ok(snapshot);
        }
        let inner = self.0.inner();
        let mut failure = None;
        let mut all_imported = true;
        for blob in self.by_nearness(blobs).await? {
            all_imported &= blob.is_imported();
            match unpack_blob(inner, &blob, provider).await {
                Ok((snapshot, usage)) => {
                    let published = {
                        let mut state = self.0.state();
                        state.snapshot = Some(snapshot.clone());
                        state.usage = Some(usage);
                        state.published
                    };
                    if published {
                        let (id, made) = (self.id().clone(), snapshot.clone());
                        inner
                            .db()
                            .write(move |transaction| {
                                rows::set_snapshot(transaction, &id, Some(&made), Some(usage))
                            })
                            .await?;
                    }
                    return Ok(snapshot);
                }
                Err(error) => {
                    let digest = &blob.descriptor.digest;
                    // If only this store has it, and it is not what it was, the layer is lost. A disk that is full is
                    // no fault of the blob.
                    let only_here = blob.source.is_empty() && error.is_of_blob();
                    if only_here && !inner.content().is_intact(digest).await? {
                        tracing::warn!(record = %self.id(), %error, "a stored layer was damaged and is dropped");
                        inner.content().delete(digest).await?;
                        count(&inner.losses.blobs, 1);
                    } else {
                        failure = Some(error);
                    }
                }
            }
        }
        match failure {
            Some(failure) if all_imported && failure.is_of_blob() => {
                tracing::warn!(record = %self.id(), error = %failure, "an imported layer cannot be had");
                self.lose().await?;
                Err(Error::Lost(self.id().clone()))
            }
            Some(failure) => Err(failure),
            None => {
                self.lose().await?;
                Err(Error::Lost(self.id().clone()))
            }
        }
    }

    /// Its blobs that can be had: those in the content store first.
    pub(crate) async fn by_nearness(&self, blobs: Vec<LayerBlob>) -> Result<Vec<LayerBlob>> {
        let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
        for blob in blobs {
            let inner = self.0.inner();
            if inner.content().has_whole(&blob.descriptor).await? {
                here.push(blob);
                continue;
            }
            if blob.source.is_empty() {
                count(&inner.losses.blobs, 1);
            }
            if inner.has_source(&blob.source) {
                elsewhere.push(blob);
            }
        }
        here.append(&mut elsewhere);
        Ok(here)
    }

    /// A snapshot of one of its layers has gone: the layer is lazy again when a blob of it can be had, else it is lost.
    pub(crate) async fn gone_from_store(&self, snapshot: &SnapshotId) -> Result<()> {
        let owner = self.top_down().find(|layer| layer.0.state().snapshot.as_ref() == Some(snapshot));
        let Some(owner) = owner else { return self.make_skeleton().await.map(drop) };
        let blobs = owner.0.state().blobs.clone();
        tracing::warn!(record = %owner.id(), %snapshot, "a snapshot has gone from the store, or is not whole");
        count(&self.0.inner().losses.snapshots, 1);
        if owner.by_nearness(blobs).await?.is_empty() {
            owner.lose().await?;
            return Err(Error::Lost(owner.id().clone()));
        }
        let published = {
            let mut state = owner.0.state();
            state.snapshot = None;
            state.usage = None;
            state.published
        };
        if published {
            let id = owner.id().clone();
            self.0
                .inner()
                .db()
                .write(move |transaction| rows::set_snapshot(transaction, &id, None, None))
                .await?;
        }
        Ok(())
    }

    /// Unpacks a layer again whose snapshot has gone from the store, if its blob is still here.
    pub(crate) async fn mend(&self, snapshot: &SnapshotId) -> Result<()> {
        self.gone_from_store(snapshot).await?;
        let unpacked = self.unpack_all(&NoProvider).await;
        unpacked.map(drop).map_err(|_gone| Error::NotUnpacked(self.id().clone()))
    }

    /// Forgets it and everything above it: from now on whatever led here is a miss.
    pub(crate) async fn lose(&self) -> Result<()> {
        self.0.state().lost = true;
        count(&self.0.inner().losses.records, 1);
        lose(self.0.inner(), self.id().clone()).await
    }
}

/// Takes a record that has lost its data, and all that stands on it, out of the catalogue.
pub(crate) async fn lose(inner: &Arc<Inner>, id: RecordId) -> Result<()> {
    let held = Arc::clone(inner);
    let gone = inner
        .db()
        .write(move |transaction| {
            let mut gone = Vec::new();
            let mut todo = vec![(id, false)];
            while let Some((id, children_done)) = todo.pop() {
                crate::db::keys::release_results(transaction, &id, GoneWhy::Lost)?;
                if !children_done {
                    todo.push((id.clone(), true));
                    todo.extend(rows::children(transaction, &id)?.into_iter().map(|child| (child, false)));
                    continue;
                }
                if let Some(record) = held.live.peek(&id) {
                    // Its holders find out when they use it; without results nobody new comes here.
                    record.state().lost = true;
                }
                gone.extend(rows::forget(transaction, &id)?);
            }
            Ok(gone)
        })
        .await?;
    for forgotten in gone {
        inner.janitor.remove_forgotten(Some(forgotten));
    }
    Ok(())
}

async fn unpack_blob(
    inner: &Arc<Inner>,
    blob: &LayerBlob,
    provider: &dyn BlobProvider,
) -> Result<(SnapshotId, kiln_snapshot::Usage)> {
    let digest = blob.descriptor.digest;
    let was_here = inner.content().info(&digest).await?.is_some();
    if !was_here {
        fetch(blob, provider).await?;
    }
    match extract(inner, blob, provider).await {
        // A blob that lay here may have been damaged meanwhile; one from outside may be tried once.
        Err(error @ (Error::Content(_) | Error::Io { .. } | Error::DiffId { .. }))
            if was_here && !blob.source.is_empty() =>
        {
            if inner.content().is_intact(&digest).await? {
                return Err(error);
            }
            tracing::warn!(%digest, %error, "a stored layer does not unpack and is fetched again");
            count(&inner.losses.blobs, 1);
            inner.content().delete(&digest).await?;
            fetch(blob, provider).await?;
            extract(inner, blob, provider).await
        }
        outcome => outcome,
    }
}

async fn fetch(blob: &LayerBlob, provider: &dyn BlobProvider) -> Result<()> {
    provider
        .fetch(&blob.source, &blob.descriptor)
        .await
        .map_err(|source| Error::Fetch { digest: blob.descriptor.digest.to_string(), source })
}

async fn extract(
    inner: &Arc<Inner>,
    blob: &LayerBlob,
    provider: &dyn BlobProvider,
) -> Result<(SnapshotId, kiln_snapshot::Usage)> {
    room(inner).await?;
    let _permit = inner.unpacks.acquire().await.map_err(|_closed| Error::Closed)?;
    let digest = blob.descriptor.digest;
    let Some(file) = inner.content().open(&digest).await? else {
        let source = format!("blob `{digest}` is not in the content store after it was fetched").into();
        return Err(Error::Fetch { digest: digest.to_string(), source });
    };
    let id = SnapshotId::new(RecordId::random().as_str())?;
    let working = inner.space.begin(&id);
    inner.making.begin(&id);
    let directory = inner.snapshotter().staging(&id).await?;
    let staged = Staged::new(inner, &id);
    let watch = Arc::new(Watch::default());
    let _stop = StopOnDrop(Arc::clone(&watch));
    let reader = WatchedReader { inner: file, watch: Arc::clone(&watch) };
    let unpacking = blocking(move || {
        // The guard goes along: when nobody waits any more, it removes the directory after the last write to it.
        let applied = apply(reader, &directory)?;
        Ok((applied, staged))
    });
    tokio::pin!(unpacking);
    let progress = |phase| LayerProgress {
        digest,
        current: watch.bytes.load(Ordering::Relaxed),
        total: blob.descriptor.size,
        phase,
    };
    provider.progress(progress(LayerPhase::Extracting));
    let (applied, staged) = loop {
        tokio::select! {
            outcome = &mut unpacking => break outcome?,
            () = working.stop().cancelled() => return Err(working.reason()),
            () = tokio::time::sleep(PROGRESS) => provider.progress(progress(LayerPhase::Extracting)),
        }
    };
    if applied.diff_id != blob.diff_id {
        return Err(Error::DiffId {
            digest: digest.to_string(),
            expected: blob.diff_id.to_string(),
            got: applied.diff_id.to_string(),
        });
    }
    let usage = staged.publish().await?;
    provider.progress(progress(LayerPhase::Done));
    Ok((id, usage))
}

fn apply(reader: WatchedReader, directory: &Path) -> Result<layer::Applied> {
    let tar = kiln_content::decompressor(reader).map_err(Error::io("read a layer"))?;
    Ok(layer::apply(tar, directory, &layer::ApplyLimits::default())?)
}

/// What the waiting side and the unpacking side tell each other.
#[derive(Debug, Default)]
struct Watch {
    bytes: AtomicU64,
    stop: AtomicBool,
}

struct StopOnDrop(Arc<Watch>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Counts, and fails once nobody wants the result: blocking work cannot be aborted from outside.
struct WatchedReader {
    inner: std::fs::File,
    watch: Arc<Watch>,
}

impl Read for WatchedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.watch.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody waits for this layer any more"));
        }
        let count = self.inner.read(buffer)?;
        self.watch.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Removes a staged directory that was not published.
pub(crate) struct Staged {
    inner: Arc<Inner>,
    id: SnapshotId,
    done: bool,
}

impl Staged {
    pub(crate) fn new(inner: &Arc<Inner>, id: &SnapshotId) -> Self {
        Self { inner: Arc::clone(inner), id: id.clone(), done: false }
    }

    /// Makes it a snapshot that stays.
    pub(crate) async fn publish(mut self) -> Result<kiln_snapshot::Usage> {
        let usage = self.inner.snapshotter().publish(&self.id).await?;
        self.done = true;
        Ok(usage)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.done {
            self.inner.janitor.remove_snapshots([self.id.clone()]);
        }
    }
}
