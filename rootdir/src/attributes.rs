use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::metadata::Time;
use crate::root::{Root, fstat, proc_path};

/// The kernel allows 64 KiB each for a value and for the list of names; sizes may change between two calls.
const XATTR_MAX: usize = 64 * 1024;

impl Root {
    /// Sets the times of what is at `path`, to the nanosecond.
    pub fn set_times(&self, path: impl AsRef<Path>, atime: Time, mtime: Time, nofollow: bool) -> Result<()> {
        let path = path.as_ref();
        let times = Timestamps { last_access: atime.to_timespec(), last_modification: mtime.to_timespec() };
        let error = |errno| Error::os("set times of", path, errno);
        if nofollow && let Some((dir, name)) = self.parent_if_named(path, "set times of")? {
            return rustix::fs::utimensat(&dir, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(error);
        }
        let fd = self.open_path(path, true)?;
        rustix::fs::utimensat(rustix::fs::CWD, proc_path(&fd), &times, AtFlags::empty()).map_err(error)
    }

    /// Sets owner and group of what is at `path`; a link's own, if it is one. Set-id bits may go with it.
    pub fn chown(&self, path: impl AsRef<Path>, uid: u32, gid: u32) -> Result<()> {
        let path = path.as_ref();
        let fd = self.open_path(path, false)?;
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(&fd, "", owner.0, owner.1, AtFlags::EMPTY_PATH)
            .map_err(|errno| Error::os("change owner of", path, errno))
    }

    /// Sets the permission bits of what is at `path`. A link there is an error: links have none.
    pub fn chmod(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let path = path.as_ref();
        let fd = self.open_path(path, false)?;
        let error = |errno| Error::os("change mode of", path, errno);
        if fstat(&fd, path)?.is_symlink() {
            return Err(error(Errno::OPNOTSUPP));
        }
        rustix::fs::chmod(proc_path(&fd), Mode::from_raw_mode(mode & 0o7777)).map_err(error)
    }

    /// The names of the extended attributes at `path` (a link's own), sorted. None where there is no support.
    pub fn list_xattrs(&self, path: impl AsRef<Path>) -> Result<Vec<OsString>> {
        let path = path.as_ref();
        let (_dir, named) = self.name_for_xattrs(path)?;
        let error = |errno| Error::os("list attributes of", path, errno);
        match rustix::fs::llistxattr_query(&named) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(errno) => return Err(error(errno)),
        }
        let mut buffer = vec![0u8; XATTR_MAX];
        let length = rustix::fs::llistxattr(&named, &mut buffer[..]).map_err(error)?;
        let mut names: Vec<OsString> = buffer[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| OsStr::from_bytes(name).to_owned())
            .collect();
        names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        Ok(names)
    }

    /// The value of one extended attribute at `path` (a link's own); `None` if it is not set.
    pub fn get_xattr(&self, path: impl AsRef<Path>, name: impl AsRef<OsStr>) -> Result<Option<Vec<u8>>> {
        let path = path.as_ref();
        let (_dir, named) = self.name_for_xattrs(path)?;
        let mut small = [0u8; 256];
        match rustix::fs::lgetxattr(&named, name.as_ref(), &mut small[..]) {
            Ok(length) => return Ok(Some(small[..length].to_vec())),
            Err(Errno::RANGE) => {}
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(Error::os("read attribute of", path, errno)),
        }
        let mut buffer = vec![0u8; XATTR_MAX];
        match rustix::fs::lgetxattr(&named, name.as_ref(), &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                Ok(Some(buffer))
            }
            Err(Errno::NODATA) => Ok(None),
            Err(errno) => Err(Error::os("read attribute of", path, errno)),
        }
    }

    /// Sets one extended attribute of what is at `path` (a link's own).
    pub fn set_xattr(&self, path: impl AsRef<Path>, name: impl AsRef<OsStr>, value: &[u8]) -> Result<()> {
        let path = path.as_ref();
        let (_dir, named) = self.name_for_xattrs(path)?;
        rustix::fs::lsetxattr(&named, name.as_ref(), value, XattrFlags::empty())
            .map_err(|errno| Error::os("set attribute of", path, errno))
    }

    /// Removes one extended attribute of what is at `path` (a link's own); fine if it is not set.
    pub fn remove_xattr(&self, path: impl AsRef<Path>, name: impl AsRef<OsStr>) -> Result<()> {
        let path = path.as_ref();
        let (_dir, named) = self.name_for_xattrs(path)?;
        match rustix::fs::lremovexattr(&named, name.as_ref()) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(errno) => Err(Error::os("remove attribute of", path, errno)),
        }
    }

    /// The attribute calls take paths only, so the parent is named through its handle. It must outlive the path.
    fn name_for_xattrs(&self, path: &Path) -> Result<(OwnedFd, PathBuf)> {
        match self.parent_if_named(path, "open")? {
            Some((dir, name)) => {
                let named = proc_path(&dir).join(name);
                Ok((dir, named))
            }
            None => {
                let dir = self.open_at(path, OFlags::PATH | OFlags::DIRECTORY, "open")?;
                let named = proc_path(&dir).join(".");
                Ok((dir, named))
            }
        }
    }

    fn parent_if_named<'a>(
        &self,
        path: &'a Path,
        operation: &'static str,
    ) -> Result<Option<(OwnedFd, &'a OsStr)>> {
        match self.open_parent(path, operation) {
            Ok(found) => Ok(Some(found)),
            Err(Error::NoName { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
