//! Differences of states of which none is built on the other.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use kiln_snapshot::{SnapshotId, Usage};

use crate::{
    BlobProvider, RecordId, Ref, Result,
    manager::{Inner, blocking},
    unpack::Staged,
};

/// Makes a snapshot of what `upper` has over `lower`.
pub(crate) async fn compare(
    inner: &Arc<Inner>,
    lower: Option<&Ref>,
    upper: Option<&Ref>,
    provider: &dyn BlobProvider,
) -> Result<(SnapshotId, Usage)> {
    let (lower_dirs, upper_dirs) =
        futures::future::try_join(dirs(lower, provider), dirs(upper, provider)).await?;
    let id = SnapshotId::new(RecordId::random().as_str())?;
    inner.making.begin(&id);
    let to = inner.snapshotter().staging(&id).await?;
    let staged = Staged::new(inner, &id);
    let stopped = Arc::new(AtomicBool::new(false));
    let _stop = StopOnDrop(Arc::clone(&stopped));
    // What is compared must stay until the last look at it, also when nobody waits for the answer any more.
    let held = (lower.cloned(), upper.cloned());
    let staged = blocking(move || {
        let stopped = || stopped.load(Ordering::Relaxed);
        kiln_snapshot::difference(&lower_dirs, &upper_dirs, &to, &stopped)?;
        drop(held);
        Ok(staged)
    })
    .await?;
    Ok((id, staged.publish().await?))
}

async fn dirs(state: Option<&Ref>, provider: &dyn BlobProvider) -> Result<Vec<PathBuf>> {
    match state {
        Some(state) => state.diff_dirs(provider).await,
        None => Ok(Vec::new()),
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
