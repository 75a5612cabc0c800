//! Stacks deeper than overlayfs takes: runs of their layers, merged into one directory each by hard links.
//!
//! A merged directory is a difference like those it is made of: whiteouts and opaque marks stay in it. So a run can
//! be merged wherever it lies in a stack, each layer is linked once, and a stack of N layers costs O(N) in all,
//! however often it grows. Where a run ends is told by the names of its layers, not by their positions: stacks that
//! have a part in common share the merged directories of that part.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_rootdir::{Metadata, Root};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::marks;
use crate::native::{Copied, copy};
use crate::overlay::Places;
use crate::snapshotter::SnapshotId;

/// Overlayfs takes this many lower directories.
const MAX_LOWERS: usize = 500;
/// A run has about half of this many layers, and never more.
const MAX_RUN: usize = 256;
/// One name in so many ends a run.
const RUN_ENDS: u64 = 128;
/// The file in a merged directory that says which snapshots it is made of.
const MEMBERS: &str = "members";

/// The merged directories that are there.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    known: Mutex<Known>,
    /// One at a time makes directories: what is made anew may not be what another is about to mount.
    making: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    /// By key.
    runs: HashMap<String, Arc<[SnapshotId]>>,
    /// The keys that a snapshot is part of.
    keys: HashMap<SnapshotId, Vec<String>>,
}

impl Merged {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody else makes directories until it is dropped.
    pub(crate) fn making(&self) -> MutexGuard<'_, ()> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn contains(&self, key: &str, ids: &[SnapshotId]) -> bool {
        self.lock().runs.get(key).is_some_and(|run| **run == *ids)
    }

    fn insert(&self, key: String, ids: &[SnapshotId]) {
        let mut known = self.lock();
        for id in ids {
            known.keys.entry(id.clone()).or_default().push(key.clone());
        }
        known.runs.insert(key, ids.into());
    }

    /// Forgets all that `id` is part of; their keys.
    fn take(&self, id: &SnapshotId) -> Vec<String> {
        let mut known = self.lock();
        let keys = known.keys.remove(id).unwrap_or_default();
        for key in &keys {
            let Some(run) = known.runs.remove(key) else { continue };
            for member in run.iter() {
                if let Some(others) = known.keys.get_mut(member) {
                    others.retain(|other| other != key);
                    if others.is_empty() {
                        known.keys.remove(member);
                    }
                }
            }
        }
        keys
    }
}

/// Finds the merged directories that an earlier process left.
pub(crate) fn load(dir: &Path) -> Result<Merged> {
    let merged = Merged::default();
    let root = open(dir)?;
    for entry in root.read_dir("/").map_err(failed(dir))? {
        let members = root.read(Path::new(&entry.name).join(MEMBERS), u64::MAX / 2).unwrap_or_default();
        let members = String::from_utf8_lossy(&members);
        let ids: Vec<SnapshotId> = members.lines().filter_map(|line| SnapshotId::new(line).ok()).collect();
        match entry.name.to_str() {
            Some(name) if !ids.is_empty() => merged.insert(name.to_owned(), &ids),
            _ => root.remove_all(&entry.name).map_err(failed(dir))?,
        }
    }
    Ok(merged)
}

/// The directories of a stack of committed snapshots, no more than overlayfs takes.
pub(crate) fn lower_dirs(places: &Places, ids: &[SnapshotId]) -> Result<Vec<PathBuf>> {
    let mut surplus = ids.len().saturating_sub(MAX_LOWERS);
    let mut dirs = Vec::with_capacity(ids.len().min(MAX_LOWERS));
    let mut rest = ids;
    while surplus > 0 && !rest.is_empty() {
        let (run, above) = rest.split_at(run_length(rest));
        dirs.push(merged(places, run)?);
        surplus = surplus.saturating_sub(run.len() - 1);
        rest = above;
    }
    for id in rest {
        dirs.push(places.committed(id)?);
    }
    Ok(dirs)
}

/// Drops the merged directories that `id` is part of.
pub(crate) fn forget(places: &Places, id: &SnapshotId) -> Result<()> {
    places.merged.take(id).iter().try_for_each(|key| places.discard(&places.merged_dir().join(key)))
}

/// How many layers the lowest run of a stack has.
fn run_length(ids: &[SnapshotId]) -> usize {
    let end =
        ids.iter().take(MAX_RUN).skip(1).position(|id| hash(id.as_str().as_bytes()).is_multiple_of(RUN_ENDS));
    end.map_or(ids.len().min(MAX_RUN), |end| end + 2)
}

/// The directory that holds what the differences of the snapshots are together, made if it is not there.
fn merged(places: &Places, ids: &[SnapshotId]) -> Result<PathBuf> {
    if let [only] = ids {
        return places.committed(only);
    }
    let key = format!("{:016x}", hash(text(ids).as_bytes()));
    made(places, key, ids, |target, path| {
        ids.iter().try_for_each(|id| apply(&places.committed(id)?, target, path, Take::Difference))
    })
}

/// The directory of this key that is made of these snapshots, filled by `fill` if it is not there.
pub(crate) fn made(
    places: &Places,
    key: String,
    ids: &[SnapshotId],
    fill: impl FnOnce(&Root, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let home = places.merged_dir().join(&key);
    let content = home.join("fs");
    let is_there = || places.merged.contains(&key, ids) && content.is_dir();
    if is_there() {
        return Ok(content);
    }
    let _making = places.merged.making();
    if is_there() {
        return Ok(content);
    }
    let beside = places.new_trash();
    let fresh = beside.join("fs");
    for dir in [&beside, &fresh] {
        std::fs::create_dir(dir).map_err(|source| Error::io("make directory", dir, source))?;
    }
    fill(&open(&fresh)?, &fresh)?;
    std::fs::write(beside.join(MEMBERS), text(ids)).map_err(|source| Error::io("write", &beside, source))?;
    places.discard(&home)?;
    rustix::fs::rename(&beside, &home).map_err(|errno| Error::io("rename", &beside, errno))?;
    places.merged.insert(key, ids);
    Ok(content)
}

/// What is put where several layers come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// A difference, by hard links: deletions are kept.
    Difference,
    /// What the layers show, by hard links.
    Links,
    /// What they show, in files of its own.
    Copies,
}

/// Applies the difference in `from` to what is in `target`, so that it is what both are on top of each other.
pub(crate) fn apply(from: &Path, target: &Root, target_path: &Path, take: Take) -> Result<()> {
    let source = open(from)?;
    let mut copied = Copied::new();
    let mut todo = vec![PathBuf::from("/")];
    // Times of directories are set last, when nothing is made in them any more.
    let mut times = Vec::new();
    while let Some(dir) = todo.pop() {
        let Some(shown) = source.stat(&dir, false).map_err(failed(from))? else { continue };
        let there = enter(&source, target, &dir, &shown, take).map_err(failed(target_path))?;
        times.push((dir.clone(), shown));
        for (name, metadata) in source.read_dir_stat(&dir).map_err(failed(from))? {
            let path = dir.join(name);
            if metadata.is_dir() {
                todo.push(path);
                continue;
            }
            if there {
                target.remove_all(&path).map_err(failed(target_path))?;
            }
            if take != Take::Difference && marks::is_whiteout(&metadata) {
                continue;
            }
            let linked = match take {
                Take::Copies => Ok(false),
                _ => link(&source, target, &path),
            };
            if !linked.map_err(failed(target_path))? {
                copy(&source, target, &path, &metadata, &mut copied).map_err(failed(target_path))?;
            }
        }
    }
    for (dir, shown) in times.iter().rev() {
        target.set_times(dir, shown.atime, shown.mtime, true).map_err(failed(target_path))?;
    }
    Ok(())
}

/// Links a file; says no if it has as many names as it can have.
fn link(source: &Root, target: &Root, path: &Path) -> kiln_rootdir::Result<bool> {
    match source.hard_link_to(path, target, path) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::MLINK.raw_os_error()) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the directory `dir` of the target look as the source's; whether something may be in it already.
fn enter(
    source: &Root,
    target: &Root,
    dir: &Path,
    shown: &Metadata,
    take: Take,
) -> kiln_rootdir::Result<bool> {
    let attributes = marks::attributes(source, dir)?;
    let mut opaque = marks::is_opaque(source, dir)?;
    let is_top = dir == Path::new("/");
    let mut there = is_top;
    if !is_top {
        match target.stat(dir, false)? {
            None => {}
            Some(found) if found.is_dir() && !opaque => {
                there = true;
                opaque = marks::is_opaque(target, dir)?;
            }
            Some(found) => {
                // What hid the layers below goes on doing so.
                opaque |= !found.is_dir();
                target.remove_all(dir)?;
            }
        }
        if !there {
            target.mkdir(dir, shown.mode)?;
        }
    }
    target.chown(dir, shown.uid, shown.gid)?;
    target.chmod(dir, shown.mode)?;
    if there {
        for name in target.list_xattrs(dir)? {
            target.remove_xattr(dir, &name)?;
        }
    }
    for (name, value) in &attributes {
        target.set_xattr(dir, name, value)?;
    }
    if opaque && take == Take::Difference {
        marks::make_opaque(target, dir)?;
    }
    Ok(there)
}

pub(crate) fn text(ids: &[SnapshotId]) -> String {
    ids.iter().flat_map(|id| [id.as_str(), "\n"]).collect()
}

pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let state = std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default();
    let mut hasher = state.build_hasher();
    hasher.write(bytes);
    hasher.finish()
}

fn open(dir: &Path) -> Result<Root> {
    Root::open(dir).map_err(failed(dir))
}

fn failed(dir: &Path) -> impl Fn(kiln_rootdir::Error) -> Error + '_ {
    move |source| Error::root("merge layers", dir, source)
}
