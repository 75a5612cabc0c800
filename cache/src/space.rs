//! The disk's hard limit: what stays free whatever is built.
//!
//! 1. Work that writes begins only while enough is free. Else what no build uses is removed; if that is not enough, work
//!    waits as long as other work may end and free something; then it fails, alone.
//! 2. While work runs, the disk is looked at several times a second. When too little is free, what no build uses is
//!    removed; if that is not enough, the work that takes the most is stopped, one after another.
//! 3. The catalogue has a reserve of its own, so that it can be written to on a disk that is full.

use std::{
    collections::HashMap,
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use kiln_snapshot::SnapshotId;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{CacheManager, Error, Result, manager::Inner};

/// How often the disk is looked at while work runs.
const LOOK: Duration = Duration::from_millis(100);
/// How often waiting work tries again though nothing has ended.
const AGAIN: Duration = Duration::from_secs(1);
/// How long stopped work has to end and let go of its space before other work is stopped.
const ENDING: Duration = Duration::from_secs(10);

/// An amount of disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes and {} inodes", self.bytes, self.inodes)
    }
}

/// Tells how much of a disk is free.
///
/// Implementations keep these: it takes no time worth speaking of; a filesystem without a limit on inodes has the most.
pub trait Disks: fmt::Debug + Send + Sync + 'static {
    /// What is free now.
    ///
    /// # Errors
    /// Where the disk cannot be looked at.
    fn free(&self) -> io::Result<Room>;
}

/// The filesystem that a directory is on.
#[derive(Debug)]
pub(crate) struct FilesystemOf(pub(crate) PathBuf);

impl Disks for FilesystemOf {
    fn free(&self) -> io::Result<Room> {
        let stat = rustix::fs::statvfs(&self.0)?;
        // Some filesystems make inodes as they are needed, and say that there are none.
        let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        Ok(Room { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), inodes })
    }
}

#[derive(Debug)]
pub(crate) struct Space {
    disk: Arc<dyn Disks>,
    floor: Room,
    patience: Duration,
    works: Mutex<Works>,
    /// Work has begun or ended.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Works {
    last: u64,
    running: HashMap<u64, Work>,
}

#[derive(Debug)]
struct Work {
    snapshot: SnapshotId,
    stop: CancellationToken,
}

impl Space {
    pub(crate) fn new(disk: Arc<dyn Disks>, floor: Room, patience: Duration) -> Arc<Self> {
        Arc::new(Self { disk, floor, patience, works: Mutex::default(), changed: Notify::new() })
    }

    fn works(&self) -> MutexGuard<'_, Works> {
        self.works.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> bool {
        self.works().running.is_empty()
    }

    fn free(&self) -> Result<Room> {
        self.disk.free().map_err(Error::io("look at the free space"))
    }

    /// Whether less is free than has to be, and as much again if `more`, so that not every work comes here again.
    fn is_short(&self, more: bool) -> Result<bool> {
        let free = self.free()?;
        let wanted = |floor: u64| if more { floor.saturating_add(floor / 2) } else { floor };
        Ok(free.bytes < wanted(self.floor.bytes) || free.inodes < wanted(self.floor.inodes))
    }

    fn full(&self) -> Error {
        Error::NoSpace { free: self.free().unwrap_or_default(), floor: self.floor }
    }

    /// Notes that work writes into `snapshot`, once [`room`] was found for it.
    pub(crate) fn begin(self: &Arc<Self>, snapshot: &SnapshotId) -> Working {
        let stop = CancellationToken::new();
        let mut works = self.works();
        works.last += 1;
        let id = works.last;
        works.running.insert(id, Work { snapshot: snapshot.clone(), stop: stop.clone() });
        drop(works);
        self.changed.notify_waiters();
        Working { space: Arc::clone(self), id, stop }
    }
}

/// Work that writes into the stores.
#[derive(Debug)]
pub(crate) struct Working {
    space: Arc<Space>,
    id: u64,
    stop: CancellationToken,
}

impl Working {
    /// Cancelled when the work has to stop, because the disk is full.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Why it had to.
    pub(crate) fn reason(&self) -> Error {
        self.space.full()
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.space.works().running.remove(&self.id);
        self.space.changed.notify_waiters();
    }
}

/// Waits until there is room for work that writes. Whoever waits here holds up only what comes behind it, so no lock
/// is to be held.
///
/// # Errors
/// [`Error::NoSpace`] when there is none, and nobody is going to make any.
pub(crate) async fn room(inner: &Arc<Inner>) -> Result<()> {
    let space = &inner.space;
    if !space.is_short(false)? {
        return Ok(());
    }
    let deadline = Instant::now() + space.patience;
    loop {
        let changed = space.changed.notified();
        let released = inner.live.released();
        tokio::pin!(changed, released);
        changed.as_mut().enable();
        released.as_mut().enable();
        reclaim(inner).await?;
        if !space.is_short(false)? {
            return Ok(());
        }
        if space.idle() || Instant::now() >= deadline {
            return Err(space.full());
        }
        tokio::select! {
            () = changed => {}
            () = released => {}
            () = tokio::time::sleep_until(deadline.min(Instant::now() + AGAIN)) => {}
        }
    }
}

/// Removes what no build uses, the least used first, until enough is free.
async fn reclaim(inner: &Arc<Inner>) -> Result<()> {
    let before = inner.space.free()?;
    let space = &inner.space;
    let removed = inner.prune_while(|| space.is_short(true)).await?;
    if removed > 0 {
        let free = inner.space.free()?;
        tracing::warn!(%before, %free, removed, "the disk was nearly full: records that no build used are removed");
    }
    Ok(())
}

/// Watches the disk while there is work, until cancelled or until the catalogue has gone.
pub(crate) async fn watch(inner: Weak<Inner>, cancel: CancellationToken) {
    let Some(space) = inner.upgrade().map(|inner| Arc::clone(&inner.space)) else { return };
    loop {
        let changed = space.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let idle = space.idle();
        tokio::select! {
            () = cancel.cancelled() => return,
            () = changed, if idle => continue,
            () = tokio::time::sleep(LOOK), if !idle => {}
        }
        let Some(inner) = inner.upgrade() else { return };
        if let Err(error) = relieve(&inner).await {
            tracing::warn!(%error, "the free space could not be looked after and is looked at again");
        }
    }
}

async fn relieve(inner: &Arc<Inner>) -> Result<()> {
    let space = &inner.space;
    if !space.is_short(false)? {
        return Ok(());
    }
    reclaim(inner).await?;
    if !space.is_short(false)? {
        return Ok(());
    }
    // What has been stopped and does not end is left to itself.
    let still_on = |(_, work): &(&u64, &Work)| !work.stop.is_cancelled();
    let works: Vec<(u64, SnapshotId)> = space
        .works()
        .running
        .iter()
        .filter(still_on)
        .map(|(id, work)| (*id, work.snapshot.clone()))
        .collect();
    let mut largest = None;
    for (id, snapshot) in works {
        // What is only being unpacked has no measure, and is stopped last.
        let usage = inner.snapshotter().usage(&snapshot).await.unwrap_or_default();
        largest = largest.max(Some((usage.bytes, usage.inodes, id)));
    }
    let Some((bytes, inodes, id)) = largest else { return Ok(()) };
    let changed = space.changed.notified();
    tokio::pin!(changed);
    changed.as_mut().enable();
    let stop = space.works().running.get(&id).map(|work| work.stop.clone());
    let Some(stop) = stop else { return Ok(()) };
    tracing::warn!(bytes, inodes, "the disk is nearly full: the work that takes the most is stopped");
    stop.cancel();
    // Its end lets go of its space.
    let ended = async {
        while space.works().running.contains_key(&id) {
            changed.as_mut().await;
            changed.set(space.changed.notified());
        }
    };
    drop(tokio::time::timeout(ENDING, ended).await);
    crate::janitor::remove(inner).await
}

impl CacheManager {
    /// What of the disk is free.
    ///
    /// # Errors
    /// Where it cannot be looked at.
    pub fn free(&self) -> Result<Room> {
        self.0.space.free()
    }
}
