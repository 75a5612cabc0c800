use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use kiln_rootdir::Root;
use rustix::fs::{AtFlags, CWD, FileType, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::flatten;
use crate::in_place::may_block;
use crate::known::Known;
use crate::mount::{Mount, SharedUpper, TempMounted, open_path};
use crate::mount_table::detach_below;
use crate::native;
use crate::skeleton;
use crate::snapshotter::{SnapshotId, Snapshotter, Usage};
use crate::unmounted;
use crate::usage::measure;

/// Snapshots as directories on one filesystem, stacked by overlayfs.
///
/// Under its root: `active/<id>/{fs,work}`, `committed/<id>/fs`, `staging/<id>/fs`, `merged/<key>/fs` (see
/// below), and `trash`, where what is to go waits for it. Each appears and disappears by one rename.
///
/// Overlayfs stacks 500 directories. Of deeper stacks runs of layers are merged, by hard links, into one directory
/// each, which is kept until one of its snapshots is removed.
#[derive(Clone, Debug)]
pub struct OverlaySnapshotter {
    places: Arc<Places>,
}

impl OverlaySnapshotter {
    /// Opens the snapshots under `root`, which is made if it is missing, and cleans up after a process that was
    /// killed: its mounts are undone now, what was staged or being removed goes away in the background.
    ///
    /// Only one process may have a root open at a time; seeing to that is the caller's task. Blocks.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let store = Self::open_any(root.into())?;
        store.places.forget_wholes()?;
        Ok(store)
    }

    /// Whether overlayfs can be used on the filesystem of `dir`, which is there. Blocks.
    ///
    /// # Errors
    /// Why not.
    pub fn works_at(dir: &Path) -> Result<()> {
        let probe = dir.join(format!("probe-{}", std::process::id()));
        let [lower, above, upper, work] = ["lower", "above", "upper", "work"].map(|name| probe.join(name));
        let tried = make_dirs(&[&probe, &lower, &above, &upper]).and_then(|()| {
            let mount = Mount::Overlay { lowers: vec![lower, above], upper: Some((upper, work)) };
            let mounted = mount.with_temp()?;
            let path = mounted.path().join("file");
            std::fs::write(&path, "").map_err(|source| Error::io("write", &path, source))
        });
        let removed = Root::open(dir).and_then(|root| root.remove_all(probe.file_name().unwrap_or_default()));
        if let Err(error) = removed {
            tracing::warn!(%error, "a trial of overlayfs left something behind");
        }
        tried
    }

    pub(crate) fn open_any(root: PathBuf) -> Result<Self> {
        for dir in ["active", "committed", "staging", "merged", "trash", "empty"] {
            let dir = root.join(dir);
            std::fs::create_dir_all(&dir).map_err(|source| Error::io("make directory", &dir, source))?;
        }
        detach_below(&root)?;
        let home = |kind| {
            let dir = root.join(kind);
            open_path(&dir).map_err(|errno| Error::io("open directory", &dir, errno))
        };
        let (active, committed) = (home("active")?, home("committed")?);
        let merged = flatten::load(&root.join("merged"))?;
        let (known, trashed) = (Known::default(), AtomicU64::new(0));
        let places = Arc::new(Places { root, active, committed, merged, known, trashed });
        places.discard_leftovers()?;
        Ok(Self { places })
    }

    #[cfg(test)]
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Places) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if may_block() {
            return work(&self.places);
        }
        let places = self.places.clone();
        tokio::task::spawn_blocking(move || work(&places)).await.map_err(|_| Error::Interrupted)?
    }
}

#[async_trait]
impl Snapshotter for OverlaySnapshotter {
    fn name(&self) -> &'static str {
        "overlayfs"
    }

    async fn prepare(&self, id: &SnapshotId, top: Option<&SnapshotId>) -> Result<()> {
        let (id, top) = (id.clone(), top.cloned());
        self.blocking(move |places| places.prepare(&id, top.as_ref())).await
    }

    async fn active_mount(&self, id: &SnapshotId, lowers: &[SnapshotId]) -> Result<Mount> {
        let (id, lowers) = (id.clone(), lowers.to_vec());
        self.blocking(move |places| places.active_mount(&id, &lowers)).await
    }

    async fn to_make(
        &self,
        id: &SnapshotId,
        lowers: &[SnapshotId],
        path: &Path,
    ) -> Result<Option<TempMounted>> {
        if may_block() {
            return self.places.to_make(id, lowers, path);
        }
        let (id, lowers, path) = (id.clone(), lowers.to_vec(), path.to_owned());
        self.blocking(move |places| places.to_make(&id, &lowers, &path)).await
    }

    async fn view(&self, lowers: &[SnapshotId]) -> Result<Mount> {
        let lowers = lowers.to_vec();
        self.blocking(move |places| places.view(&lowers)).await
    }

    async fn commit(&self, id: &SnapshotId) -> Result<Usage> {
        let id = id.clone();
        self.blocking(move |places| places.commit(&id)).await
    }

    async fn skeleton(&self, layers: &[SnapshotId]) -> Result<Option<SnapshotId>> {
        let layers = layers.to_vec();
        self.blocking(move |places| skeleton::make(places, &layers)).await
    }

    async fn reopen(&self, id: &SnapshotId) -> Result<()> {
        let id = id.clone();
        self.blocking(move |places| places.reopen(&id)).await
    }

    async fn staging(&self, id: &SnapshotId) -> Result<PathBuf> {
        let id = id.clone();
        self.blocking(move |places| places.stage(&id)).await
    }

    async fn publish(&self, id: &SnapshotId) -> Result<Usage> {
        let id = id.clone();
        self.blocking(move |places| places.publish(&id)).await
    }

    async fn diff_dir(&self, id: &SnapshotId) -> Result<PathBuf> {
        let id = id.clone();
        self.blocking(move |places| places.committed(&id)).await
    }

    async fn remove(&self, id: &SnapshotId) -> Result<()> {
        let id = id.clone();
        self.blocking(move |places| places.remove(&id)).await
    }

    async fn exists(&self, id: &SnapshotId) -> Result<bool> {
        let id = id.clone();
        self.blocking(move |places| Ok(places.find(&id).is_some())).await
    }

    async fn missing(&self, ids: Vec<SnapshotId>) -> Result<Vec<SnapshotId>> {
        self.blocking(move |places| {
            let missing = |id: &SnapshotId| !has(&places.committed, id) && !has(&places.active, id);
            Ok(ids.into_iter().filter(missing).collect())
        })
        .await
    }

    async fn usage(&self, id: &SnapshotId) -> Result<Usage> {
        let id = id.clone();
        self.blocking(move |places| places.usage(&id)?.ok_or(Error::NotFound { id })).await
    }

    async fn usages(&self, ids: Vec<SnapshotId>) -> Result<Vec<Option<Usage>>> {
        self.blocking(move |places| ids.iter().map(|id| places.usage(id)).collect()).await
    }

    async fn list(&self) -> Result<Vec<SnapshotId>> {
        self.blocking(|places| places.list()).await
    }
}

#[derive(Debug)]
pub(crate) struct Places {
    root: PathBuf,
    /// The directories of active and committed snapshots. A deep stack is many look-ups, which are short from here.
    active: OwnedFd,
    committed: OwnedFd,
    pub(crate) merged: flatten::Merged,
    known: Known,
    trashed: AtomicU64,
}

impl Places {
    fn prepare(&self, id: &SnapshotId, top: Option<&SnapshotId>) -> Result<()> {
        // Looked for first, so that a missing layer leaves nothing behind.
        let top = top.map(|top| self.owner(top)).transpose()?;
        if has(&self.committed, id) {
            return Err(Error::Exists { id: id.clone() });
        }
        let beside = self.new_trash();
        let upper = beside.join("fs");
        // The work directory is made by the first mount, if there is one.
        make_dirs(&[&beside, &upper])?;
        // The top directory of the stack shows with the owner of the upper one.
        if let Some((uid, gid)) = top.filter(|owner| *owner != (0, 0)) {
            std::os::unix::fs::chown(&upper, Some(uid), Some(gid))
                .map_err(|source| Error::io("change owner of", &upper, source))?;
        }
        self.rename_new(&beside, &self.dir("active", id), id)
    }

    /// Who owns the top directory of a committed snapshot.
    fn owner(&self, id: &SnapshotId) -> Result<(u32, u32)> {
        use std::os::unix::fs::MetadataExt as _;
        let top = self.layer(id);
        match std::fs::metadata(&top) {
            Ok(top) => Ok((top.uid(), top.gid())),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::NotFound { id: id.clone() })
            }
            Err(source) => Err(Error::io("stat", &top, source)),
        }
    }

    fn to_make(&self, id: &SnapshotId, lowers: &[SnapshotId], path: &Path) -> Result<Option<TempMounted>> {
        let upper = self.dir("active", id).join("fs");
        if lowers.is_empty() || SharedUpper::is_mounted(&upper) {
            return Ok(None);
        }
        let known = self.known.of(lowers);
        let free = unmounted::make_way(&upper, &known, |layer| self.layer(&lowers[layer]), path)?;
        Ok(free.then(|| TempMounted::unmounted(upper)))
    }

    fn active_mount(&self, id: &SnapshotId, lowers: &[SnapshotId]) -> Result<Mount> {
        let active = self.dir("active", id);
        if !active.join("fs").is_dir() {
            return Err(Error::NotFound { id: id.clone() });
        }
        Ok(active_mount(&active, flatten::lower_dirs(self, lowers)?))
    }

    fn view(&self, lowers: &[SnapshotId]) -> Result<Mount> {
        let mut lowers = flatten::lower_dirs(self, lowers)?;
        Ok(match lowers.len() {
            0 => Mount::Bind { source: self.empty_dir(), read_only: true },
            1 => Mount::Bind { source: lowers.remove(0), read_only: true },
            _ => Mount::Overlay { lowers, upper: None },
        })
    }

    fn commit(&self, id: &SnapshotId) -> Result<Usage> {
        let active = self.dir("active", id);
        if !active.join("fs").is_dir() {
            return Err(Error::NotFound { id: id.clone() });
        }
        let found = skeleton::survey(&active)?;
        let committed = self.dir("committed", id);
        self.rename_new(&active, &committed, id)?;
        self.known.insert(id, found.names);
        // From here on it is committed; the work directory is only litter.
        let work = committed.join("work");
        let outcome = if work.exists() {
            Root::open(&committed).and_then(|root| root.remove_all("work"))
        } else {
            Ok(())
        };
        if let Err(error) = outcome {
            tracing::warn!(snapshot = %id, %error, "work directory left behind");
        }
        Ok(found.usage)
    }

    fn reopen(&self, id: &SnapshotId) -> Result<()> {
        let active = self.dir("active", id);
        if active.join("fs").is_dir() {
            return Ok(());
        }
        self.committed(id)?;
        // What was merged from it shares its files.
        flatten::forget(self, id)?;
        self.known.forget(id);
        self.rename_new(&self.dir("committed", id), &active, id)
    }

    fn stage(&self, id: &SnapshotId) -> Result<PathBuf> {
        if self.find(id).is_some() {
            return Err(Error::Exists { id: id.clone() });
        }
        let staging = self.dir("staging", id);
        self.discard(&staging)?;
        let upper = staging.join("fs");
        make_dirs(&[&staging, &upper])?;
        Ok(upper)
    }

    fn publish(&self, id: &SnapshotId) -> Result<Usage> {
        let staging = self.dir("staging", id);
        if !staging.join("fs").is_dir() {
            return Err(Error::NotFound { id: id.clone() });
        }
        if self.dir("active", id).exists() {
            return Err(Error::Exists { id: id.clone() });
        }
        let found = skeleton::survey(&staging)?;
        let committed = self.dir("committed", id);
        self.rename_new(&staging, &committed, id)?;
        self.known.insert(id, found.names);
        Ok(found.usage)
    }

    fn remove(&self, id: &SnapshotId) -> Result<()> {
        flatten::forget(self, id)?;
        self.known.forget(id);
        for kind in ["active", "committed", "staging"] {
            self.discard(&self.dir(kind, id))?;
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<SnapshotId>> {
        let mut ids = Vec::new();
        for kind in ["active", "committed"] {
            let dir = self.root.join(kind);
            let failed = |source| Error::root("list", &dir, source);
            let entries = Root::open(&dir).and_then(|root| root.read_dir("/")).map_err(failed)?;
            let names = entries.into_iter().filter_map(|entry| entry.name.into_string().ok());
            ids.extend(names.filter_map(|name| SnapshotId::new(name).ok()));
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// The directory of a committed snapshot, or of a skeleton.
    pub(crate) fn committed(&self, id: &SnapshotId) -> Result<PathBuf> {
        let there = if skeleton::is_one(id) { self.layer(id).is_dir() } else { has(&self.committed, id) };
        if there { Ok(self.layer(id)) } else { Err(Error::NotFound { id: id.clone() }) }
    }

    /// The same, whether it is there or not.
    fn layer(&self, id: &SnapshotId) -> PathBuf {
        let kind = if skeleton::is_one(id) { "merged" } else { "committed" };
        self.dir(kind, id).join("fs")
    }

    /// Where an active snapshot is, or would be.
    pub(crate) fn active(&self, id: &SnapshotId) -> PathBuf {
        self.dir("active", id)
    }

    /// A directory with nothing in it.
    pub(crate) fn empty_dir(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// Drops active snapshots whose changes overlayfs would not show.
    fn forget_wholes(&self) -> Result<()> {
        let dir = self.root.join("active");
        let failed = |source| Error::root("list", &dir, source);
        for entry in Root::open(&dir).and_then(|root| root.read_dir("/")).map_err(failed)? {
            let active = dir.join(entry.name);
            if native::is_whole(&active) {
                self.discard(&active)?;
            }
        }
        Ok(())
    }

    pub(crate) fn merged_dir(&self) -> PathBuf {
        self.root.join("merged")
    }

    /// A path in the trash that is not taken.
    pub(crate) fn new_trash(&self) -> PathBuf {
        let number = self.trashed.fetch_add(1, Ordering::Relaxed);
        self.root.join("trash").join(format!("{}-{number}", std::process::id()))
    }

    /// Makes a directory disappear in one step, and then go away.
    pub(crate) fn discard(&self, dir: &Path) -> Result<()> {
        let trash = self.new_trash();
        match rustix::fs::rename(dir, &trash) {
            Ok(()) => self.empty_trash(&trash),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::io("remove", dir, errno)),
        }
    }

    /// What a snapshot takes; none if it is not there.
    fn usage(&self, id: &SnapshotId) -> Result<Option<Usage>> {
        let Some(dir) = self.find(id) else { return Ok(None) };
        let home = dir.parent().unwrap_or(&dir);
        Ok(Some(skeleton::with_home(measure(&dir)?, home)))
    }

    fn find(&self, id: &SnapshotId) -> Option<PathBuf> {
        ["committed", "active"].iter().map(|kind| self.dir(kind, id).join("fs")).find(|dir| dir.is_dir())
    }

    fn dir(&self, kind: &str, id: &SnapshotId) -> PathBuf {
        let mut dir = self.root.join(kind);
        dir.push(id.as_str());
        dir
    }

    fn rename_new(&self, from: &Path, to: &Path, id: &SnapshotId) -> Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST | Errno::NOTEMPTY) => {
                if from.starts_with(self.root.join("trash")) {
                    self.empty_trash(from)?;
                }
                Err(Error::Exists { id: id.clone() })
            }
            Err(errno) => Err(Error::io("rename", from, errno)),
        }
    }

    fn empty_trash(&self, trash: &Path) -> Result<()> {
        let name = trash.file_name().unwrap_or_default();
        let dir = self.root.join("trash");
        Root::open(&dir)
            .and_then(|root| root.remove_all(name))
            .map_err(|source| Error::root("remove", &dir, source))
    }

    fn discard_leftovers(self: &Arc<Self>) -> Result<()> {
        let old = self.root.join("trash");
        let mut leftovers = Vec::new();
        for kind in ["staging", "trash"] {
            let dir = self.root.join(kind);
            let failed = |source| Error::root("list", &dir, source);
            for entry in Root::open(&dir).and_then(|root| root.read_dir("/")).map_err(failed)? {
                let moved = old.join(format!("old-{kind}-{}", entry.name.display()));
                let from = dir.join(&entry.name);
                // Leftovers of leftovers keep their names.
                let keeps = kind == "trash" && entry.name.to_string_lossy().starts_with("old-");
                if keeps {
                    leftovers.push(from);
                    continue;
                }
                rustix::fs::rename(&from, &moved).map_err(|errno| Error::io("rename", &from, errno))?;
                leftovers.push(moved);
            }
        }
        if leftovers.is_empty() {
            return Ok(());
        }
        // Without an owner on purpose: if the process ends first, the next one finds what is left.
        let places = self.clone();
        let spawned = std::thread::Builder::new().name("snapshot-trash".into()).spawn(move || {
            for leftover in leftovers {
                if let Err(error) = places.empty_trash(&leftover) {
                    tracing::warn!(%error, "leftover of an earlier process not removed");
                }
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "leftovers of an earlier process not removed");
        }
        Ok(())
    }
}

/// Whether the snapshot is in this directory of snapshots.
fn has(home: &OwnedFd, id: &SnapshotId) -> bool {
    let path = format!("{id}/fs");
    rustix::fs::statat(home, path.as_str(), AtFlags::empty())
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}

fn active_mount(active: &Path, lowers: Vec<PathBuf>) -> Mount {
    let upper = active.join("fs");
    if lowers.is_empty() {
        return Mount::Bind { source: upper, read_only: false };
    }
    Mount::Overlay { lowers, upper: Some((upper, active.join("work"))) }
}

/// Makes directories with mode 0755 (the top of a root filesystem is one of them), whatever the umask.
fn make_dirs(dirs: &[&Path]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    for dir in dirs {
        std::fs::create_dir(dir).map_err(|source| Error::io("make directory", dir, source))?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
            .map_err(|source| Error::io("change mode of", dir, source))?;
    }
    Ok(())
}
