use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::metadata::{Kind, Metadata};

/// `openat2` answers EAGAIN when a rename or mount anywhere raced with its walk. A run of this many has not
/// been seen outside of attacks, and then the error is what the attacker gets.
const RACE_RETRIES: usize = 256;

/// An opened directory that paths cannot leave.
///
/// Paths may be absolute or relative, both start at the root. A path's last component is followed where the
/// method says so; the ones before always are.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens the directory at `trusted`, a path of the daemon's own (its links are followed as usual).
    pub fn open(trusted: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, trusted, flags, Mode::empty())
            .map_err(|errno| Error::os("open directory", trusted, errno))?;
        Ok(Self { fd })
    }

    /// Takes an opened directory as a root.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens another handle on the same directory.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(|source| Error::Os {
            operation: "open directory",
            path: PathBuf::from("/"),
            source,
        })?;
        Ok(Self { fd })
    }

    /// Opens the directory at `path` as a root of its own.
    pub fn open_dir(&self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fd = self.open_at(path, OFlags::PATH | OFlags::DIRECTORY, "open directory")?;
        Ok(Self { fd })
    }

    /// A path by which this process (and only it) can name the directory while the handle lives.
    pub fn proc_path(&self) -> PathBuf {
        proc_path(&self.fd)
    }

    /// What is at `path`; `None` if nothing is, also when a directory on the way is missing or no directory.
    pub fn stat(&self, path: impl AsRef<Path>, follow: bool) -> Result<Option<Metadata>> {
        let path = path.as_ref();
        let mut flags = OFlags::PATH;
        if !follow {
            flags |= OFlags::NOFOLLOW;
        }
        match self.open_at(path, flags, "stat") {
            Ok(fd) => fstat(&fd, path).map(Some),
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOENT | Errno::NOTDIR) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Makes a directory with exactly these permission bits, whatever the umask.
    pub fn mkdir(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let path = path.as_ref();
        let (parent, name) = self.open_parent(path, "make directory")?;
        mkdir_at(&parent, name, mode).map_err(|errno| Error::os("make directory", path, errno))
    }

    /// Makes the directories that are missing on the way to `path` and `path` itself; links are followed, also
    /// those that lead to a place that is not there yet. Returns the paths of those that were made, outermost
    /// first and free of links.
    pub fn mkdir_all(&self, path: impl AsRef<Path>, mode: u32) -> Result<Vec<PathBuf>> {
        let path = path.as_ref();
        if let Some(found) = self.stat(path, true)? {
            return match found.kind {
                Kind::Dir => Ok(Vec::new()),
                _ => Err(Error::os("make directory", path, Errno::NOTDIR)),
            };
        }
        let clean = self.resolve(path, true)?;
        let mut created = Vec::new();
        let mut ancestors: Vec<&Path> =
            clean.ancestors().filter(|ancestor| ancestor.parent().is_some()).collect();
        ancestors.reverse();
        for ancestor in ancestors {
            match self.mkdir(ancestor, mode) {
                Ok(()) => created.push(ancestor.to_owned()),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        // What was in the way may have been a file, or have become one since.
        self.open_dir(&clean).map_err(|_| Error::os("make directory", path, Errno::NOTDIR))?;
        Ok(created)
    }

    /// Makes a symbolic link at `path`. `target` is only text here, and may be anything.
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let (parent, name) = self.open_parent(path, "make symbolic link")?;
        rustix::fs::symlinkat(target.as_ref(), &parent, name)
            .map_err(|errno| Error::os("make symbolic link", path, errno))
    }

    /// Gives the file at `existing` (a link there is linked itself) a second name.
    pub fn hard_link(&self, existing: impl AsRef<Path>, new: impl AsRef<Path>) -> Result<()> {
        self.hard_link_to(existing, self, new)
    }

    /// Gives the file at `existing` a second name under another root of the same filesystem.
    pub fn hard_link_to(&self, existing: impl AsRef<Path>, to: &Self, new: impl AsRef<Path>) -> Result<()> {
        let (existing, new) = (existing.as_ref(), new.as_ref());
        let (from_dir, from_name) = self.open_parent(existing, "link")?;
        let (to_dir, to_name) = to.open_parent(new, "make hard link")?;
        rustix::fs::linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty())
            .map_err(|errno| Error::os("make hard link", new, errno))
    }

    /// Makes a device, a named pipe, a socket or an empty regular file, with exactly these permission bits.
    /// `rdev` is the major and minor number.
    pub fn mknod(&self, path: impl AsRef<Path>, kind: Kind, mode: u32, rdev: (u32, u32)) -> Result<()> {
        let path = path.as_ref();
        let (parent, name) = self.open_parent(path, "make node")?;
        let device = rustix::fs::makedev(rdev.0, rdev.1);
        rustix::fs::mknodat(&parent, name, kind.to_type(), Mode::from_raw_mode(mode & 0o7777), device)
            .and_then(|()| chmod_new(&parent, name, mode))
            .map_err(|errno| Error::os("make node", path, errno))
    }

    /// Removes the file at `path`; a link is removed itself, a directory is not.
    pub fn remove_file(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let (parent, name) = self.open_parent(path, "remove")?;
        rustix::fs::unlinkat(&parent, name, AtFlags::empty())
            .map_err(|errno| Error::os("remove", path, errno))
    }

    /// Removes the empty directory at `path`.
    pub fn remove_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let (parent, name) = self.open_parent(path, "remove directory")?;
        rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)
            .map_err(|errno| Error::os("remove directory", path, errno))
    }

    /// Moves `from` to `to`, in place of what is there as `rename(2)` allows. Links at either end are moved
    /// or replaced themselves.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let (from_dir, from_name) = self.open_parent(from, "rename")?;
        let (to_dir, to_name) = self.open_parent(to, "rename to")?;
        rustix::fs::renameat(&from_dir, from_name, &to_dir, to_name)
            .map_err(|errno| Error::os("rename", from, errno))
    }

    /// The text of the symbolic link at `path`.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = path.as_ref();
        let (parent, name) = self.open_parent(path, "read link")?;
        let target = rustix::fs::readlinkat(&parent, name, Vec::new())
            .map_err(|errno| Error::os("read link", path, errno))?;
        Ok(PathBuf::from(OsStr::from_bytes(target.as_bytes())))
    }

    /// A handle that only names what is at `path`, whatever its kind: for `fstat`, mounting, `/proc/self/fd`.
    pub fn open_path(&self, path: impl AsRef<Path>, follow: bool) -> Result<OwnedFd> {
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        self.open_at(path.as_ref(), flags, "open")
    }

    pub(crate) fn open_at(&self, path: &Path, flags: OFlags, operation: &'static str) -> Result<OwnedFd> {
        let path_or_root = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        open_in_root(&self.fd, path_or_root, flags, Mode::empty(), ResolveFlags::empty())
            .map_err(|errno| Error::os(operation, path, errno))
    }

    /// The directory that holds the last component of `path`, and that component.
    pub(crate) fn open_parent<'a>(
        &self,
        path: &'a Path,
        operation: &'static str,
    ) -> Result<(OwnedFd, &'a OsStr)> {
        let (parent, name) = split(path).ok_or_else(|| Error::NoName { path: path.to_owned() })?;
        let fd = self
            .open_at(parent, OFlags::PATH | OFlags::DIRECTORY, operation)
            .map_err(|error| rename_error(error, path))?;
        Ok((fd, name))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(crate) fn proc_path(fd: impl AsFd) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

pub(crate) fn fstat(fd: impl AsFd, path: &Path) -> Result<Metadata> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| Error::os("stat", path, errno))?;
    Ok(Metadata::from(&stat))
}

pub(crate) fn open_in_root(
    root: impl AsFd,
    path: impl rustix::path::Arg + Copy,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < RACE_RETRIES => tries += 1,
            outcome => return outcome,
        }
    }
}

/// Makes a directory and sets bits that `mkdir` itself drops (umask, set-id, sticky).
fn mkdir_at(parent: &OwnedFd, name: &OsStr, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode & 0o777))?;
    chmod_new(parent, name, mode)
}

/// Sets the bits of an entry just made. It is opened without following, so that an entry swapped for a link
/// in between is an error and nothing else.
fn chmod_new(parent: &OwnedFd, name: &OsStr, mode: u32) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    if stat.st_mode & 0o7777 == mode & 0o7777 {
        return Ok(());
    }
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink() {
        return Err(Errno::LOOP);
    }
    rustix::fs::chmod(proc_path(&fd), Mode::from_raw_mode(mode & 0o7777))
}

/// Parent and last component; `None` for paths without one.
fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'/')? + 1;
    let start = bytes[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let name = &bytes[start..end];
    if name == b"." || name == b".." {
        return None;
    }
    let parent = if start == 0 { b"." } else { &bytes[..start] };
    Some((Path::new(OsStr::from_bytes(parent)), OsStr::from_bytes(name)))
}

fn rename_error(error: Error, to: &Path) -> Error {
    match error {
        Error::Os { operation, source, .. } => Error::Os { operation, path: to.to_owned(), source },
        other => other,
    }
}
