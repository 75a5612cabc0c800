use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::entries::list;
use crate::error::{Error, Result};
use crate::metadata::Kind;
use crate::root::{Root, open_in_root};

/// Directories kept open on the way down. Above them, the way back up is by `..`, checked.
const OPEN_LEVELS: usize = 64;
/// How often a directory is looked at again because somebody adds to it while it is being removed.
const REFILL_RETRIES: usize = 16;

impl Root {
    /// Removes what is at `path` and everything below; fine if there is nothing. Links are removed, never
    /// followed, and mounts below are not entered.
    ///
    /// Needs neither stack nor open files in proportion to the depth. Others may change the tree meanwhile:
    /// the worst they get is an error and a part left over.
    pub fn remove_all(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let (parent, name) = match self.open_parent(path, "remove") {
            Ok(found) => found,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        };
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Linux says ISDIR, POSIX PERM.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(Error::os("remove", path, errno)),
        }
        let error = |errno| Error::os("remove", path, errno);
        let top = match open_child(&parent, &name.to_owned()) {
            Err(Errno::NOENT) => return Ok(()),
            opened => opened.map_err(error)?,
        };
        remove_tree(top).map_err(error)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(error(errno)),
        }
    }
}

/// One directory on the way down.
struct Level {
    /// Inode and device, to know it again on the way up.
    identity: (u64, u64),
    /// Subdirectories still to be emptied.
    pending: Vec<OsString>,
    refills: usize,
}

/// Empties the directory, without recursion.
fn remove_tree(top: OwnedFd) -> rustix::io::Result<()> {
    let mut levels = vec![enter(&top)?];
    // The innermost open directories; the last belongs to the last level.
    let mut open = VecDeque::from([top]);
    while let (Some(level), Some(dir)) = (levels.last_mut(), open.back()) {
        let Some(name) = level.pending.last() else {
            let above = leave(&mut levels, &mut open)?;
            if let Some(above) = above {
                finish_child(&mut levels, &above)?;
                open.push_back(above);
            }
            continue;
        };
        match rustix::fs::unlinkat(dir, name.as_os_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {
                level.pending.pop();
                continue;
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(Errno::NOTDIR) => {
                rustix::fs::unlinkat(dir, name.as_os_str(), AtFlags::empty())?;
                level.pending.pop();
                continue;
            }
            Err(errno) => return Err(errno),
        }
        let child = open_child(dir, name)?;
        levels.push(enter(&child)?);
        open.push_back(child);
        if open.len() > OPEN_LEVELS {
            open.pop_front();
        }
    }
    Ok(())
}

/// Removes the files of a directory, and notes its subdirectories.
fn enter(dir: &OwnedFd) -> rustix::io::Result<Level> {
    let stat = rustix::fs::fstat(dir)?;
    Ok(Level { identity: (stat.st_ino, stat.st_dev), pending: clear_files(dir)?, refills: 0 })
}

fn clear_files(dir: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut pending = Vec::new();
    for entry in list(dir)? {
        if entry.kind == Kind::Dir {
            pending.push(entry.name);
            continue;
        }
        match rustix::fs::unlinkat(dir, entry.name.as_os_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => pending.push(entry.name),
            Err(errno) => return Err(errno),
        }
    }
    Ok(pending)
}

/// Drops the innermost level; returns the directory above, to be the innermost again (`None` at the top).
fn leave(levels: &mut Vec<Level>, open: &mut VecDeque<OwnedFd>) -> rustix::io::Result<Option<OwnedFd>> {
    levels.pop();
    let left = open.pop_back();
    let Some(level) = levels.last() else { return Ok(None) };
    if let Some(above) = open.pop_back() {
        return Ok(Some(above));
    }
    let Some(left) = left else { return Err(Errno::BADF) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = rustix::fs::openat(&left, "..", flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&above)?;
    // Somebody moved the directory we were in: what is above it now is not ours.
    if (stat.st_ino, stat.st_dev) != level.identity {
        return Err(Errno::AGAIN);
    }
    Ok(Some(above))
}

/// Removes the emptied child that the innermost level waited for.
fn finish_child(levels: &mut [Level], dir: &OwnedFd) -> rustix::io::Result<()> {
    let Some(level) = levels.last_mut() else { return Ok(()) };
    let Some(name) = level.pending.pop() else { return Ok(()) };
    match rustix::fs::unlinkat(dir, name.as_os_str(), AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) if level.refills < REFILL_RETRIES => {
            level.refills += 1;
            level.pending.push(name);
            Ok(())
        }
        Err(errno) => Err(errno),
    }
}

fn open_child(dir: &OwnedFd, name: &OsString) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    open_in_root(dir, name.as_os_str(), flags, Mode::empty(), ResolveFlags::NO_XDEV)
}
