//! Snapshots where overlayfs cannot be used: states are put together from their layers.

mod copy;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use kiln_rootdir::Root;
use rustix::fs::{CWD, RenameFlags};

use crate::difference::{self, difference_since};
use crate::error::{Error, Result};
use crate::flatten::{self, Take};
use crate::mount::Mount;
pub(crate) use crate::native::copy::{Copied, copy};
use crate::overlay::{OverlaySnapshotter, Places};
use crate::snapshotter::{SnapshotId, Snapshotter, Usage};
use crate::usage::measure;

/// Names of states that are put together to be read begin with this.
const VIEW: &str = "view";
/// In the home of an active snapshot: the state that is being changed, and the layers it was put together from.
const WHOLE: &str = "whole";
const LOWERS: &str = "lowers";

/// Snapshots as directories on one filesystem, without overlayfs.
///
/// They are kept in the same places and form as those of [`OverlaySnapshotter`], so either can open what the other has
/// left. What is only read is put together by hard links, and kept until one of its layers goes. What is written to is a
/// copy, which shares its blocks where the filesystem can do that; `commit` compares it with its layers.
#[derive(Clone, Debug)]
pub struct NativeSnapshotter {
    store: OverlaySnapshotter,
}

impl NativeSnapshotter {
    /// Opens the snapshots under `root`, as [`OverlaySnapshotter::open`] does. Blocks.
    ///
    /// # Errors
    /// Where its directories cannot be made or read.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        OverlaySnapshotter::open_any(root.into()).map(|store| Self { store })
    }
}

#[async_trait]
impl Snapshotter for NativeSnapshotter {
    fn name(&self) -> &'static str {
        "native"
    }

    async fn prepare(&self, id: &SnapshotId, top: Option<&SnapshotId>) -> Result<()> {
        self.store.prepare(id, top).await
    }

    async fn active_mount(&self, id: &SnapshotId, lowers: &[SnapshotId]) -> Result<Mount> {
        let (id, lowers) = (id.clone(), lowers.to_vec());
        self.store.blocking(move |places| active_mount(places, &id, &lowers)).await
    }

    async fn view(&self, lowers: &[SnapshotId]) -> Result<Mount> {
        let lowers = lowers.to_vec();
        self.store.blocking(move |places| view(places, &lowers)).await
    }

    async fn commit(&self, id: &SnapshotId) -> Result<Usage> {
        let id = id.clone();
        let found = id.clone();
        self.store.blocking(move |places| take_difference(places, &found)).await?;
        self.store.commit(&id).await
    }

    async fn reopen(&self, id: &SnapshotId) -> Result<()> {
        self.store.reopen(id).await
    }

    async fn staging(&self, id: &SnapshotId) -> Result<PathBuf> {
        self.store.staging(id).await
    }

    async fn publish(&self, id: &SnapshotId) -> Result<Usage> {
        self.store.publish(id).await
    }

    async fn diff_dir(&self, id: &SnapshotId) -> Result<PathBuf> {
        self.store.diff_dir(id).await
    }

    async fn remove(&self, id: &SnapshotId) -> Result<()> {
        self.store.remove(id).await
    }

    async fn exists(&self, id: &SnapshotId) -> Result<bool> {
        self.store.exists(id).await
    }

    async fn missing(&self, ids: Vec<SnapshotId>) -> Result<Vec<SnapshotId>> {
        self.store.missing(ids).await
    }

    async fn usage(&self, id: &SnapshotId) -> Result<Usage> {
        let found = id.clone();
        let whole = self.store.blocking(move |places| {
            let whole = places.active(&found).join(WHOLE);
            if whole.is_dir() { measure(&whole).map(Some) } else { Ok(None) }
        });
        let own = self.store.usage(id).await?;
        // Until it is committed, what it was put together from belongs to it.
        Ok(whole.await?.map_or(own, |whole| Usage { bytes: whole.bytes + own.bytes, ..whole }))
    }

    async fn list(&self) -> Result<Vec<SnapshotId>> {
        self.store.list().await
    }
}

/// Whether an active snapshot was last written to through this snapshotter: overlayfs would not show it.
pub(crate) fn is_whole(active: &Path) -> bool {
    active.join(WHOLE).is_dir()
}

fn active_mount(places: &Places, id: &SnapshotId, lowers: &[SnapshotId]) -> Result<Mount> {
    let active = places.active(id);
    let upper = active.join("fs");
    if !upper.is_dir() {
        return Err(Error::NotFound { id: id.clone() });
    }
    let dirs: Vec<PathBuf> = lowers.iter().map(|lower| places.committed(lower)).collect::<Result<_>>()?;
    if dirs.is_empty() {
        return Ok(Mount::Bind { source: upper, read_only: false });
    }
    let whole = active.join(WHOLE);
    // One at a time: whoever comes second gets what the first has made.
    let _making = places.merged.making();
    if !whole.is_dir() {
        let beside = places.new_trash();
        std::fs::create_dir(&beside).map_err(|source| Error::io("make directory", &beside, source))?;
        let made = put_together(&dirs, Some(&upper), &beside).and_then(|()| {
            let list = active.join(LOWERS);
            // Last, as its time tells what has changed since.
            std::fs::write(&list, flatten::text(lowers))
                .map_err(|source| Error::io("write", &list, source))?;
            rustix::fs::rename(&beside, &whole).map_err(|errno| Error::io("rename", &beside, errno))
        });
        if let Err(error) = made {
            places.discard(&beside)?;
            return Err(error);
        }
    }
    Ok(Mount::Bind { source: whole, read_only: false })
}

/// Copies a stack of layers, with a difference on top, to an empty directory.
fn put_together(layers: &[PathBuf], top: Option<&PathBuf>, to: &Path) -> Result<()> {
    let target = Root::open(to).map_err(|source| Error::root("copy layers", to, source))?;
    layers.iter().chain(top).try_for_each(|layer| flatten::apply(layer, &target, to, Take::Copies))
}

fn view(places: &Places, lowers: &[SnapshotId]) -> Result<Mount> {
    let source = match lowers {
        [] => places.empty_dir(),
        [only] => places.committed(only)?,
        several => {
            let dirs: Vec<PathBuf> =
                several.iter().map(|lower| places.committed(lower)).collect::<Result<_>>()?;
            let key = format!("{VIEW}{:016x}", flatten::hash(flatten::text(several).as_bytes()));
            flatten::made(places, key, several, |target, path| {
                dirs.iter().try_for_each(|dir| flatten::apply(dir, target, path, Take::Links))
            })?
        }
    };
    Ok(Mount::Bind { source, read_only: true })
}

/// Puts what an active snapshot has over its layers where its difference belongs.
fn take_difference(places: &Places, id: &SnapshotId) -> Result<()> {
    let active = places.active(id);
    let (whole, list) = (active.join(WHOLE), active.join(LOWERS));
    if !whole.is_dir() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&list).map_err(|source| Error::io("read", &list, source))?;
    let lowers: Vec<PathBuf> =
        text.lines().map(|line| places.committed(&SnapshotId::new(line)?)).collect::<Result<_>>()?;
    let since = difference::changed_at(&list)?;
    let beside = active.join("difference");
    places.discard(&beside)?;
    std::fs::create_dir(&beside).map_err(|source| Error::io("make directory", &beside, source))?;
    difference_since(&lowers, std::slice::from_ref(&whole), &beside, &|| false, Some(since))?;
    let upper = active.join("fs");
    rustix::fs::renameat_with(CWD, &beside, CWD, &upper, RenameFlags::EXCHANGE)
        .map_err(|errno| Error::io("rename", &beside, errno))?;
    for gone in [beside, whole] {
        places.discard(&gone)?;
    }
    std::fs::remove_file(&list).map_err(|source| Error::io("remove", &list, source))
}
