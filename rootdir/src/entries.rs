use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::metadata::{Kind, Metadata};
use crate::root::Root;

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, never `.` or `..`.
    pub name: OsString,
    /// What it names.
    pub kind: Kind,
}

impl Root {
    /// The entries of the directory at `path` (a link to one is followed), sorted by the bytes of their names.
    pub fn read_dir(&self, path: impl AsRef<Path>) -> Result<Vec<Entry>> {
        let path = path.as_ref();
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, "read directory")?;
        let mut entries = list(&fd).map_err(|errno| Error::os("read directory", path, errno))?;
        entries.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        Ok(entries)
    }

    /// As [`Root::read_dir`], with what the kernel says about each entry (links are not followed). Entries
    /// that vanish meanwhile are left out.
    pub fn read_dir_stat(&self, path: impl AsRef<Path>) -> Result<Vec<(OsString, Metadata)>> {
        let path = path.as_ref();
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, "read directory")?;
        let error = |errno| Error::os("read directory", path, errno);
        let mut entries = Vec::new();
        for entry in list(&fd).map_err(error)? {
            match rustix::fs::statat(&fd, entry.name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => entries.push((entry.name, Metadata::from(&stat))),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(error(errno)),
            }
        }
        entries.sort_unstable_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
        Ok(entries)
    }
}

/// The entries of an opened directory, in no order.
pub(crate) fn list(fd: impl AsFd) -> rustix::io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Some filesystems leave the type out.
            FileType::Unknown => match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            },
            known => known,
        };
        entries.push(Entry { name: name.to_owned(), kind: Kind::from_type(kind) });
    }
    Ok(entries)
}
