use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::{Error, Result};
use crate::mount::{Mount, TempMounted};

/// Names a snapshot: 1 to 64 of `a`-`z` and `0`-`9`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(Arc<str>);

impl SnapshotId {
    /// Takes `text` as an identifier.
    ///
    /// # Errors
    /// [`Error::InvalidId`] if it is none.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text: String = text.into();
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(Error::InvalidId { text: text.chars().take(80).collect() })
        }
    }

    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SnapshotId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

/// What a snapshot takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of allocated blocks, those of the directories that hold it included; a file with several names counts once.
    pub bytes: u64,
    /// Files and directories, the snapshot's own top directory not counted.
    pub inodes: u64,
    /// Lengths of its regular files, by each of their names. Other than `bytes` this is the same on every filesystem
    /// at any time, so whoever finds another sum knows that something has gone.
    pub length: u64,
}

impl Usage {
    /// Whether a snapshot that had this usage once, and has `now`, still has all its files in full.
    pub fn is_still(&self, now: &Self) -> bool {
        self.inodes == now.inodes && self.length == now.length
    }
}

/// Keeps the difference directories of a build.
///
/// Every implementation keeps these, and `testing::conformance` checks them:
/// 1. An identifier names one snapshot: active, staged or committed. `prepare` and `publish` of one in use fail
///    with [`Error::Exists`]; `staging` of one that is staged already empties it.
/// 2. `active_mount` and `view` give mounts of exactly the stack asked for, bottom first; a missing
///    layer is [`Error::NotFound`] naming it, also for `prepare`.
/// 3. What is written through the mount of an active snapshot is in its own directory and in no other.
/// 4. After `commit` the snapshot is immutable, can be a lower, and its directory holds the difference alone.
/// 5. `remove` takes active, staged and committed ones away, whatever others were stacked on them; of one that
///    is not there it succeeds.
/// 6. A dropped future leaves each snapshot as before the call or as after it, never in between.
/// 7. Snapshots outlive the process: whoever opens the same place again finds active and committed ones, while
///    staged ones are gone.
#[async_trait]
pub trait Snapshotter: fmt::Debug + Send + Sync + 'static {
    /// The name used in configuration and paths, such as `overlayfs`.
    fn name(&self) -> &'static str;

    /// Makes a new active snapshot: an empty difference, to be mounted over a stack with this topmost layer, which may
    /// have to be there.
    async fn prepare(&self, id: &SnapshotId, top: Option<&SnapshotId>) -> Result<()>;

    /// The mount of an active snapshot that is there.
    async fn active_mount(&self, id: &SnapshotId, lowers: &[SnapshotId]) -> Result<Mount>;

    /// An active snapshot for somebody who only makes something new at `path` or below, if that needs no mount: the
    /// directory shown has what leads there and what was made in this snapshot, and of `lowers` nothing else. None where
    /// it would not be the same. The caller must have the snapshot for itself.
    async fn to_make(
        &self,
        _id: &SnapshotId,
        _lowers: &[SnapshotId],
        _path: &Path,
    ) -> Result<Option<TempMounted>> {
        Ok(None)
    }

    /// A read-only mount of a stack of committed snapshots; of an empty directory if the stack is empty.
    async fn view(&self, lowers: &[SnapshotId]) -> Result<Mount>;

    /// Makes an active snapshot immutable.
    async fn commit(&self, id: &SnapshotId) -> Result<Usage>;

    /// What has to lie below a stack whose lowest layers are these, if they were not made on each other: a snapshot with
    /// nothing but the directories in which they delete something. Overlayfs shows a deletion as a broken entry where
    /// there is no such directory further down. None if they delete nothing. It goes with the first of the layers.
    async fn skeleton(&self, _layers: &[SnapshotId]) -> Result<Option<SnapshotId>> {
        Ok(None)
    }

    /// Makes a committed snapshot active again, to be changed; one that is active stays so. The caller sees to it that
    /// nothing is stacked on it or mounted from it. A snapshotter that cannot answers [`Error::NotFound`].
    async fn reopen(&self, id: &SnapshotId) -> Result<()> {
        Err(Error::NotFound { id: id.clone() })
    }

    /// An empty directory to unpack a layer into; [`Snapshotter::publish`] makes it a committed snapshot.
    async fn staging(&self, id: &SnapshotId) -> Result<PathBuf>;

    /// Makes what was staged a committed snapshot, in one step.
    async fn publish(&self, id: &SnapshotId) -> Result<Usage>;

    /// The directory of a committed snapshot: its difference, to be read only.
    async fn diff_dir(&self, id: &SnapshotId) -> Result<PathBuf>;

    /// Removes a snapshot.
    async fn remove(&self, id: &SnapshotId) -> Result<()>;

    /// Whether there is an active or committed snapshot of this name.
    async fn exists(&self, id: &SnapshotId) -> Result<bool>;

    /// Those of `ids` that are neither active nor committed, in the same order.
    async fn missing(&self, ids: Vec<SnapshotId>) -> Result<Vec<SnapshotId>> {
        let mut missing = Vec::new();
        for id in ids {
            if !self.exists(&id).await? {
                missing.push(id);
            }
        }
        Ok(missing)
    }

    /// What an active or committed snapshot takes on disk.
    async fn usage(&self, id: &SnapshotId) -> Result<Usage>;

    /// The same for each of `ids`, in order; none for one that is not there.
    async fn usages(&self, ids: Vec<SnapshotId>) -> Result<Vec<Option<Usage>>> {
        let mut usages = Vec::with_capacity(ids.len());
        for id in ids {
            usages.push(match self.usage(&id).await {
                Ok(usage) => Some(usage),
                Err(Error::NotFound { .. }) => None,
                Err(error) => return Err(error),
            });
        }
        Ok(usages)
    }

    /// All active and committed snapshots, in order of their names.
    async fn list(&self) -> Result<Vec<SnapshotId>>;
}
