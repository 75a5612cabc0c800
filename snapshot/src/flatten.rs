//! Stacks deeper than overlayfs takes: their bottom, merged into one directory by hard links.

use std::ffi::OsStr;
use std::hash::{BuildHasher as _, Hasher as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kiln_rootdir::{Kind, Metadata, Root};

use crate::error::{Error, Result};
use crate::overlay::Places;
use crate::snapshotter::SnapshotId;

/// Overlayfs takes this many lower directories.
const MAX_LOWERS: usize = 500;
/// Snapshots are merged in steps of this many, so that a growing stack is merged anew only this often.
const STEP: usize = 250;
/// The file in a merged directory that says which snapshots it is made of.
const MEMBERS: &str = "members";

/// Attributes by which overlayfs marks difference directories: they end in the merge.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Replaces the bottom of a stack that is too deep. `dirs` are the directories of `ids`.
pub(crate) fn shorten(places: &Places, ids: &[SnapshotId], mut dirs: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    if dirs.len() <= MAX_LOWERS {
        return Ok(dirs);
    }
    let steps = (dirs.len() + 1 - MAX_LOWERS).div_ceil(STEP);
    let top = dirs.split_off(steps * STEP);
    let mut stack = vec![merged(places, &ids[..steps * STEP], &dirs)?];
    stack.extend(top);
    Ok(stack)
}

/// Drops the merged directories that `id` is part of.
pub(crate) fn forget(places: &Places, id: &SnapshotId) -> Result<()> {
    let dir = places.merged();
    let root = open(&dir)?;
    for entry in root.read_dir("/").map_err(failed(&dir))? {
        let members = root.read(Path::new(&entry.name).join(MEMBERS), u64::MAX / 2).unwrap_or_default();
        if members.split(|byte| *byte == b'\n').any(|member| member == id.as_str().as_bytes()) {
            places.discard(&dir.join(&entry.name))?;
        }
    }
    Ok(())
}

/// The directory that shows what the snapshots show together, made if it is not there.
fn merged(places: &Places, ids: &[SnapshotId], dirs: &[PathBuf]) -> Result<PathBuf> {
    let members: String = ids.iter().flat_map(|id| [id.as_str(), "\n"]).collect();
    let home = places.merged().join(key(&members));
    let content = home.join("fs");
    if std::fs::read(home.join(MEMBERS)).is_ok_and(|known| known == members.as_bytes()) {
        return Ok(content);
    }
    let beside = places.new_trash();
    let fresh = beside.join("fs");
    for dir in [&beside, &fresh] {
        std::fs::create_dir(dir).map_err(|source| Error::io("make directory", dir, source))?;
    }
    let target = open(&fresh)?;
    let earlier = ids.len() - STEP;
    if earlier == 0 {
        merge(&dirs[0], &target, &fresh)?;
    } else {
        merge(&merged(places, &ids[..earlier], &dirs[..earlier])?, &target, &fresh)?;
    }
    for dir in &dirs[earlier.max(1)..] {
        merge(dir, &target, &fresh)?;
    }
    std::fs::write(beside.join(MEMBERS), &members).map_err(|source| Error::io("write", &beside, source))?;
    match rustix::fs::rename(&beside, &home) {
        Ok(()) => {}
        // Somebody else was faster, and made the same.
        Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) => places.discard(&beside)?,
        Err(errno) => return Err(Error::io("rename", &beside, errno)),
    }
    Ok(content)
}

/// Applies the difference in `from` to `target`.
fn merge(from: &Path, target: &Root, target_path: &Path) -> Result<()> {
    let source = open(from)?;
    let mut todo = vec![PathBuf::from("/")];
    // Times of directories are set last, when nothing is made in them any more.
    let mut times = Vec::new();
    while let Some(dir) = todo.pop() {
        let shown = source.stat(&dir, false).map_err(failed(from))?;
        let Some(shown) = shown else { continue };
        enter(&source, target, &dir, &shown).map_err(failed(target_path))?;
        times.push((dir.clone(), shown));
        for (name, metadata) in source.read_dir_stat(&dir).map_err(failed(from))? {
            let path = dir.join(name);
            if metadata.is_dir() {
                todo.push(path);
                continue;
            }
            target.remove_all(&path).map_err(failed(target_path))?;
            let is_whiteout = metadata.kind == Kind::CharDevice && metadata.rdev == (0, 0);
            if !is_whiteout {
                source.hard_link_to(&path, target, &path).map_err(failed(target_path))?;
            }
        }
    }
    for (dir, shown) in times.iter().rev() {
        target.set_times(dir, shown.atime, shown.mtime, true).map_err(failed(target_path))?;
    }
    Ok(())
}

/// Makes the directory `dir` of the target look as the source's.
fn enter(source: &Root, target: &Root, dir: &Path, shown: &Metadata) -> kiln_rootdir::Result<()> {
    let is_top = dir == Path::new("/");
    let mut opaque = false;
    for name in OPAQUE {
        opaque |= source.get_xattr(dir, name)?.as_deref() == Some(b"y");
    }
    if !is_top {
        let there = target.stat(dir, false)?;
        if there.as_ref().is_some_and(|there| opaque || !there.is_dir()) {
            target.remove_all(dir)?;
        }
        if opaque || !there.is_some_and(|there| there.is_dir()) {
            target.mkdir(dir, shown.mode)?;
        }
    }
    target.chown(dir, shown.uid, shown.gid)?;
    target.chmod(dir, shown.mode)?;
    for name in target.list_xattrs(dir)? {
        target.remove_xattr(dir, &name)?;
    }
    for name in source.list_xattrs(dir)? {
        if !is_overlay(&name)
            && let Some(value) = source.get_xattr(dir, &name)?
        {
            target.set_xattr(dir, &name, &value)?;
        }
    }
    Ok(())
}

fn is_overlay(name: &OsStr) -> bool {
    OVERLAY.iter().any(|prefix| name.as_bytes().starts_with(prefix))
}

/// A name for the members. Two lists of one name only cost a merge: the list itself is compared.
fn key(members: &str) -> String {
    let state = std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default();
    let mut hasher = state.build_hasher();
    hasher.write(members.as_bytes());
    format!("{:016x}", hasher.finish())
}

fn open(dir: &Path) -> Result<Root> {
    Root::open(dir).map_err(failed(dir))
}

fn failed(dir: &Path) -> impl Fn(kiln_rootdir::Error) -> Error + '_ {
    move |source| Error::root("merge layers", dir, source)
}
