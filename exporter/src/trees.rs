//! The files of a result, ready to be sent.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_cache::{BlobProvider, Ref};
use kiln_rootdir::{Kind, Root};
use kiln_session::fsutil::{Content, DirTree, FileTree, GoMode, NamedTree, Stat, Tree, WalkOptions};
use kiln_snapshot::TempMounted;

use crate::error::{Error, Result};
use crate::timestamp::Timestamp;

/// The files of a state, with their times set to the epoch.
pub(crate) async fn tree_of(
    state: Option<&Ref>,
    epoch: Option<Timestamp>,
    provider: &dyn BlobProvider,
) -> Result<Arc<dyn Tree>> {
    let Some(state) = state else { return Ok(Arc::new(FileTree::new())) };
    let mount = state.mount(provider).await?;
    let mut options = WalkOptions::default();
    if let Some(epoch) = epoch {
        options.map = Some(Arc::new(move |stat: &mut Stat| {
            stat.mod_time = nanoseconds(epoch);
            true
        }));
    }
    let state = state.clone();
    tokio::task::spawn_blocking(move || {
        let mounted = mount.with_temp()?;
        let tree = DirTree::new(Root::open(mounted.path())?, options);
        Ok(Arc::new(MountedTree { tree, _mounted: Mutex::new(mounted), _state: state }) as Arc<dyn Tree>)
    })
    .await
    .map_err(|_| Error::Interrupted)?
}

/// Puts a tree into the directory of a platform.
pub(crate) fn in_platform_dir(
    tree: Arc<dyn Tree>,
    platform: &str,
    epoch: Option<Timestamp>,
) -> Arc<dyn Tree> {
    let dir = Stat {
        path: dir_name(platform),
        mode: GoMode::new(Kind::Dir, 0o755),
        mod_time: epoch.map_or(0, nanoseconds),
        ..Stat::default()
    };
    Arc::new(NamedTree::new(dir, tree))
}

pub(crate) fn dir_name(platform: &str) -> String {
    platform.replace('/', "_")
}

fn nanoseconds(time: Timestamp) -> i64 {
    time.seconds().saturating_mul(1_000_000_000)
}

/// Notes which platform has which path, and fails when two have the same.
pub(crate) async fn check_overwrites(
    tree: &Arc<dyn Tree>,
    platform: &str,
    visited: &Arc<Mutex<BTreeMap<String, String>>>,
) -> Result<()> {
    let (tree, platform, visited) = (Arc::clone(tree), platform.to_owned(), Arc::clone(visited));
    let listing = tokio::task::spawn_blocking(move || {
        let mut collision = None;
        tree.list(&mut |stat| {
            if stat.mode.is_dir() {
                return Ok(ControlFlow::Continue(()));
            }
            let mut visited = visited.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(first) = visited.insert(stat.path.clone(), platform.clone()) {
                collision = Some(Error::Overwrite { path: stat.path, first, second: platform.clone() });
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        collision.map_or(Ok(()), Err)
    });
    listing.await.map_err(|_| Error::Interrupted)?
}

/// A mounted state; the mount goes with the last use of the tree.
struct MountedTree {
    // Dropped before the mount, whose directory it holds open.
    tree: DirTree,
    _mounted: Mutex<TempMounted>,
    /// Keeps the layers in the store.
    _state: Ref,
}

impl fmt::Debug for MountedTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MountedTree").field(&self._state).finish()
    }
}

impl Tree for MountedTree {
    fn list(
        &self,
        emit: &mut dyn FnMut(Stat) -> kiln_session::Result<ControlFlow<()>>,
    ) -> kiln_session::Result<()> {
        self.tree.list(emit)
    }

    fn open(&self, path: &str) -> kiln_session::Result<Content> {
        self.tree.open(path)
    }
}

/// Counts the bytes that are read from a tree.
#[derive(Debug)]
pub(crate) struct CountedTree {
    tree: Arc<dyn Tree>,
    bytes: Arc<AtomicU64>,
}

impl CountedTree {
    pub(crate) fn new(tree: Arc<dyn Tree>) -> (Self, Arc<AtomicU64>) {
        let bytes = Arc::new(AtomicU64::new(0));
        (Self { tree, bytes: Arc::clone(&bytes) }, bytes)
    }
}

impl Tree for CountedTree {
    fn list(
        &self,
        emit: &mut dyn FnMut(Stat) -> kiln_session::Result<ControlFlow<()>>,
    ) -> kiln_session::Result<()> {
        self.tree.list(emit)
    }

    fn open(&self, path: &str) -> kiln_session::Result<Content> {
        let content = self.tree.open(path)?;
        let reader = CountedReader { reader: content.reader, bytes: Arc::clone(&self.bytes) };
        Ok(Content { reader: Box::new(reader), size: content.size })
    }
}

struct CountedReader {
    reader: Box<dyn Read + Send>,
    bytes: Arc<AtomicU64>,
}

impl Read for CountedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
