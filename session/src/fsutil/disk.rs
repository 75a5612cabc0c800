//! Writing received entries: beside their place, then renamed into it.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;

use kiln_digest::Hasher;
use kiln_rootdir::{Kind, OpenOptions, Root, Time};
use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use crate::error::{Error, Result};
use crate::fsutil::stat::Stat;

/// How often a name for a temporary file is tried; they are 64 random bits long.
const NAME_TRIES: usize = 8;

/// A regular file on its way in. Dropped, it leaves a temporary file: call [`abandon`](Self::abandon).
#[derive(Debug)]
pub(crate) struct Incoming {
    file: File,
    temporary: String,
    pub(crate) hasher: Hasher,
    pub(crate) written: u64,
}

impl Incoming {
    pub(crate) fn create(root: &Root, path: &str, hasher: Hasher) -> Result<Self> {
        let (temporary, file) =
            with_temporary(path, |temporary| root.open_file(temporary, &OpenOptions::create_new(0o600)))?;
        Ok(Self { file, temporary, hasher, written: 0 })
    }

    pub(crate) fn write(&mut self, path: &str, data: &[u8]) -> Result<()> {
        self.hasher.update(data);
        self.written += data.len() as u64;
        self.file.write_all(data).map_err(|source| Error::Write { path: path.to_owned(), source })
    }

    /// Gives the file its attributes and its name.
    pub(crate) fn place(&self, root: &Root, stat: &Stat) -> Result<()> {
        let error = |errno: rustix::io::Errno| Error::Write { path: stat.path.clone(), source: errno.into() };
        let fd = self.file.as_fd();
        let made = rustix::fs::fstat(fd).map_err(error)?;
        if (made.st_uid, made.st_gid) != (stat.uid, stat.gid) {
            rustix::fs::fchown(fd, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))
                .map_err(error)?;
        }
        // After the owner: changing that takes the set-id bits away.
        rustix::fs::fchmod(fd, Mode::from_raw_mode(stat.mode.posix())).map_err(error)?;
        for (name, value) in kept_xattrs(stat) {
            if let Err(errno) = rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()) {
                tracing::debug!(path = stat.path, name, %errno, "extended attribute not set");
            }
        }
        let time = stat.time();
        let time = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) };
        rustix::fs::futimens(fd, &Timestamps { last_access: time, last_modification: time })
            .map_err(error)?;
        root.rename(&self.temporary, &stat.path)?;
        Ok(())
    }

    pub(crate) fn abandon(self, root: &Root) {
        if let Err(error) = root.remove_file(&self.temporary) {
            tracing::debug!(path = self.temporary, %error, "temporary file not removed");
        }
    }
}

/// Makes a directory, or stamps the one that is there. Its modification time is set by [`finish_directory`].
pub(crate) fn directory(root: &Root, stat: &Stat, exists: bool) -> Result<()> {
    // The owner may have no rights in it, but we have to write into it.
    let mode = stat.mode.posix() | 0o700;
    if !exists {
        root.mkdir(&stat.path, mode)?;
    }
    stamp(root, &stat.path, stat, mode)
}

/// Sets what writing into a directory would have changed or needed.
pub(crate) fn finish_directory(root: &Root, path: &str, mode: u32, time: Time) -> Result<()> {
    if mode & 0o700 != 0o700 {
        root.chmod(path, mode)?;
    }
    root.set_times(path, time, time, true)?;
    Ok(())
}

/// Makes a symbolic link, a device or a named pipe, in place of what is there.
pub(crate) fn special(root: &Root, stat: &Stat, kind: Kind) -> Result<()> {
    let mode = stat.mode.posix();
    let (temporary, ()) = with_temporary(&stat.path, |temporary| match kind {
        Kind::Symlink => root.symlink(&stat.linkname, temporary),
        _ => root.mknod(temporary, kind, mode, device(stat)),
    })?;
    let placed = (|| {
        stamp(root, &temporary, stat, mode)?;
        root.set_times(&temporary, stat.time(), stat.time(), true)?;
        root.rename(&temporary, &stat.path)?;
        Ok(())
    })();
    if placed.is_err() {
        // The first error is the one to report.
        let _removed = root.remove_file(&temporary);
    }
    placed
}

/// Gives the file at `stat.linkname` the name `stat.path` too.
pub(crate) fn hard_link(root: &Root, stat: &Stat) -> Result<()> {
    let (temporary, ()) = with_temporary(&stat.path, |temporary| root.hard_link(&stat.linkname, temporary))?;
    let placed = root.rename(&temporary, &stat.path);
    // Renaming one name of a file onto another one of the same file leaves both.
    match root.remove_file(&temporary) {
        Err(error) if !error.is_not_found() => return Err(error.into()),
        _ => {}
    }
    Ok(placed?)
}

fn stamp(root: &Root, path: &str, stat: &Stat, mode: u32) -> Result<()> {
    let found = root.stat(path, false)?;
    if found.is_none_or(|found| (found.uid, found.gid) != (stat.uid, stat.gid)) {
        root.chown(path, stat.uid, stat.gid)?;
    }
    if stat.mode.kind() != Some(Kind::Symlink) {
        root.chmod(path, mode)?;
    }
    for (name, value) in kept_xattrs(stat) {
        if let Err(error) = root.set_xattr(path, name, value) {
            tracing::debug!(path = stat.path, name, %error, "extended attribute not set");
        }
    }
    Ok(())
}

/// The attributes that reach the disk.
fn kept_xattrs(stat: &Stat) -> impl Iterator<Item = (&str, &[u8])> {
    stat.xattrs.iter().map(|(name, value)| (name.as_str(), value.as_slice())).filter(|(name, _)| {
        // The reference sets capabilities before the owner, which takes them away again; layers must agree.
        *name != "security.capability"
            // What these say to an overlay below a build is not for a client to decide.
            && !name.starts_with("trusted.overlay.")
            && !name.starts_with("user.overlay.")
    })
}

fn device(stat: &Stat) -> (u32, u32) {
    let number = |number: i64| u32::try_from(number).unwrap_or_default();
    (number(stat.dev_major), number(stat.dev_minor))
}

fn with_temporary<T>(path: &str, make: impl Fn(&str) -> kiln_rootdir::Result<T>) -> Result<(String, T)> {
    let mut tries = 0;
    loop {
        let name = format!(".tmp.{:016x}", rand::random::<u64>());
        let temporary = match path.rsplit_once('/') {
            Some((parent, _)) => format!("{parent}/{name}"),
            None => name,
        };
        match make(&temporary) {
            Ok(made) => return Ok((temporary, made)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && tries < NAME_TRIES => {
                tries += 1
            }
            Err(error) => return Err(error.into()),
        }
    }
}
