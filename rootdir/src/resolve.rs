use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::root::{Root, open_in_root};

/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;
/// Components of a path with its links expanded: forty targets of the longest kind would be 80 000.
const MAX_COMPONENTS: usize = 16 * 1024;

impl Root {
    /// The path, absolute and free of links, `.` and `..`, at which `path` arrives. From the first component
    /// that is missing (or is no directory) the rest is kept as it is. Magic links count as the text they show.
    ///
    /// The answer holds for as long as nobody changes the tree; using it through this root is safe in any case.
    pub fn resolve(&self, path: impl AsRef<Path>, follow_last: bool) -> Result<PathBuf> {
        let path = path.as_ref();
        let mut walk = Walk { root: self, asked: path, done: Vec::new(), at: None, missing: false };
        let mut todo: VecDeque<OsString> = components(path).collect();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                walk.up();
                continue;
            }
            if todo.len() + walk.done.len() > MAX_COMPONENTS {
                return Err(Error::TooManyLinks { path: path.to_owned() });
            }
            let Some(target) = walk.enter(name, follow_last || !todo.is_empty())? else { continue };
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::TooManyLinks { path: path.to_owned() });
            }
            if target.as_os_str().as_bytes().starts_with(b"/") {
                walk.restart();
            }
            for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                todo.push_front(component);
            }
        }
        let mut clean = PathBuf::from("/");
        clean.extend(walk.done);
        Ok(clean)
    }
}

/// Where a resolution has come to.
struct Walk<'a> {
    root: &'a Root,
    asked: &'a Path,
    done: Vec<OsString>,
    /// The directory `done` names, if it is open already.
    at: Option<OwnedFd>,
    /// `done` names something that is not there, or no directory.
    missing: bool,
}

impl Walk<'_> {
    fn up(&mut self) {
        self.done.pop();
        self.at = None;
        self.missing = false;
    }

    fn restart(&mut self) {
        self.done.clear();
        self.at = None;
        self.missing = false;
    }

    /// Goes down by one name; if that is a link to follow, stays and returns its target.
    fn enter(&mut self, name: OsString, follow: bool) -> Result<Option<PathBuf>> {
        if self.missing {
            self.done.push(name);
            return Ok(None);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match &self.at {
            Some(dir) => rustix::fs::openat(dir, name.as_os_str(), flags, Mode::empty()),
            None => {
                let mut path = PathBuf::from(".");
                path.extend(&self.done);
                path.push(&name);
                open_in_root(self.root, &path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
            }
        };
        let error = |errno| Error::os("resolve", self.asked, errno);
        let fd = match opened {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.missing = true;
                self.done.push(name);
                return Ok(None);
            }
            Err(errno) => return Err(error(errno)),
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd).map_err(error)?.st_mode);
        if follow && kind == FileType::Symlink {
            let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(error)?;
            return Ok(Some(PathBuf::from(OsStr::from_bytes(target.as_bytes()))));
        }
        self.done.push(name);
        self.at = Some(fd);
        Ok(None)
    }
}

fn components(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}
