use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::root::{Root, fstat, proc_path};

/// How often a file may come and go between two looks at it.
const CREATE_RETRIES: usize = 16;

/// How [`Root::open_file`] opens.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct OpenOptions {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// Make it if it is missing.
    pub create: bool,
    /// Make it, and fail if it is there.
    pub create_new: bool,
    /// Empty it.
    pub truncate: bool,
    /// Permission bits of a file that is made, exactly (the umask has no say).
    pub mode: u32,
    /// Follow a link in the last component; also one that leads nowhere yet, when creating.
    pub follow_last: bool,
}

impl OpenOptions {
    /// For reading, links followed.
    pub fn read() -> Self {
        Self { read: true, follow_last: true, ..Self::default() }
    }

    /// For writing a file that must not be there.
    pub fn create_new(mode: u32) -> Self {
        Self { write: true, create_new: true, mode, ..Self::default() }
    }

    /// For writing a file from its beginning, made if missing; links are followed.
    pub fn overwrite(mode: u32) -> Self {
        Self { write: true, create: true, truncate: true, mode, follow_last: true, ..Self::default() }
    }

    /// Changes whether a link in the last component is followed.
    pub fn follow_last(mut self, follow: bool) -> Self {
        self.follow_last = follow;
        self
    }

    fn flags(&self) -> OFlags {
        let mut flags = match (self.read, self.write || self.append) {
            (true, true) => OFlags::RDWR,
            (false, true) => OFlags::WRONLY,
            (_, false) => OFlags::RDONLY,
        };
        if self.append {
            flags |= OFlags::APPEND;
        }
        if self.truncate {
            flags |= OFlags::TRUNC;
        }
        flags | OFlags::NOCTTY | OFlags::CLOEXEC
    }
}

impl Root {
    /// Opens a regular file.
    ///
    /// # Errors
    /// [`Error::NotRegular`] for everything else: opening a device or a pipe may block or have effects.
    pub fn open_file(&self, path: impl AsRef<Path>, options: &OpenOptions) -> Result<File> {
        let path = path.as_ref();
        if !options.create && !options.create_new {
            return self.open_existing(path, options);
        }
        for _ in 0..CREATE_RETRIES {
            match self.create_file(path, options) {
                Err(error) if is(&error, Errno::EXIST) && !options.create_new => {}
                outcome => return outcome,
            }
            match self.open_existing(path, options) {
                Err(error) if error.is_not_found() => {}
                outcome => return outcome,
            }
            // A link that leads nowhere: the file is made where it leads.
            if options.follow_last {
                let target = self.resolve(path, true)?;
                match self.create_file(&target, options) {
                    Err(error) if is(&error, Errno::EXIST) => {}
                    outcome => return outcome,
                }
            }
        }
        Err(Error::os("create", path, Errno::AGAIN))
    }

    /// Reads a whole regular file of at most `limit` bytes; links are followed.
    pub fn read(&self, path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>> {
        use std::io::Read as _;
        let path = path.as_ref();
        let error = |source| Error::Os { operation: "read", path: path.to_owned(), source };
        let file = self.open_file(path, &OpenOptions::read())?;
        let mut content = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut content).map_err(error)?;
        if content.len() as u64 > limit {
            return Err(Error::os("read", path, Errno::FBIG));
        }
        Ok(content)
    }

    /// Writes a whole file, made if missing; links are followed.
    pub fn write(&self, path: impl AsRef<Path>, content: &[u8], mode: u32) -> Result<()> {
        use std::io::Write as _;
        let path = path.as_ref();
        let mut file = self.open_file(path, &OpenOptions::overwrite(mode))?;
        file.write_all(content).map_err(|source| Error::Os {
            operation: "write",
            path: path.to_owned(),
            source,
        })
    }

    fn create_file(&self, path: &Path, options: &OpenOptions) -> Result<File> {
        let (parent, name) = self.open_parent(path, "create")?;
        let flags = options.flags() | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(options.mode & 0o7777);
        let fd = rustix::fs::openat(&parent, name, flags, mode)
            .and_then(|fd| exact_mode(&fd, options.mode).map(|()| fd))
            .map_err(|errno| Error::os("create", path, errno))?;
        Ok(File::from(fd))
    }

    fn open_existing(&self, path: &Path, options: &OpenOptions) -> Result<File> {
        let named = self.open_path(path, options.follow_last)?;
        let found = fstat(&named, path)?;
        if found.is_symlink() {
            return Err(Error::os("open", path, Errno::LOOP));
        }
        if found.is_dir() && (options.write || options.append) {
            return Err(Error::os("open", path, Errno::ISDIR));
        }
        if !found.is_file() {
            return Err(Error::NotRegular { path: path.to_owned() });
        }
        // The handle names a regular file by now, whatever happens to the path.
        let fd = rustix::fs::open(proc_path(&named), options.flags(), Mode::empty())
            .map_err(|errno| Error::os("open", path, errno))?;
        Ok(File::from(fd))
    }
}

fn exact_mode(fd: &OwnedFd, mode: u32) -> rustix::io::Result<()> {
    let have = rustix::fs::fstat(fd)?.st_mode & 0o7777;
    if have == mode & 0o7777 {
        return Ok(());
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode & 0o7777))
}

fn is(error: &Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}
