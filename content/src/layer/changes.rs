//! Changes written as entries of a layer tar.
//!
//! Headers follow containerd/containerd: pkg/archive/tar.go (`ChangeWriter`).

use std::collections::{HashMap, HashSet};
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kiln_rootdir::{Kind, Metadata, OpenOptions, Root};

use crate::error::{Error, Result};
use crate::layer::WHITEOUT_PREFIX;
use crate::layer::overlay::at;
use crate::tar::{EntryType, Formats, Header, PAX_XATTR, TarError, Time, Writer};

const CAPABILITY: &str = "security.capability";

/// What happened to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// New, or other than before.
    Changed,
    /// As before, but another name of its inode may be new.
    Unmodified,
}

pub(super) struct ChangeWriter<'a, W: Write> {
    tar: Writer<W>,
    root: &'a Root,
    latest_mtime: Option<i64>,
    /// The name under which an inode with several names was written.
    sources: HashMap<u64, Vec<u8>>,
    /// Names of an inode that were met unmodified before any other.
    waiting: HashMap<u64, Vec<Vec<u8>>>,
    /// Directories that need not be written again as somebody's parent.
    dirs: HashSet<PathBuf>,
}

impl<'a, W: Write> ChangeWriter<'a, W> {
    pub(super) fn new(out: W, root: &'a Root, latest_mtime: Option<i64>) -> Self {
        Self {
            tar: Writer::new(out),
            root,
            latest_mtime,
            sources: HashMap::new(),
            waiting: HashMap::new(),
            dirs: HashSet::new(),
        }
    }

    pub(super) fn finish(self) -> Result<W> {
        self.tar.finish().map_err(write_error)
    }

    pub(super) fn delete(&mut self, path: &Path) -> Result<()> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let mut marker = WHITEOUT_PREFIX.to_vec();
        marker.extend_from_slice(name.as_bytes());
        let path = path.with_file_name(std::ffi::OsStr::from_bytes(&marker));
        self.parents(&path)?;
        let header = Header {
            name: path.as_os_str().as_bytes().to_vec(),
            kind: EntryType::FILE,
            mtime: Some(Time::from_seconds(0)),
            ..Header::default()
        };
        self.tar.header(&header).map_err(write_error)
    }

    pub(super) fn write(&mut self, change: Change, path: &Path, metadata: &Metadata) -> Result<()> {
        let Some(mut header) = self.header(path, metadata)? else { return Ok(()) };
        let mut further = Vec::new();
        if metadata.nlink > 1 && !metadata.is_dir() {
            if let Some(source) = self.sources.get(&metadata.ino) {
                header.kind = EntryType::HARD_LINK;
                header.link_name.clone_from(source);
                header.size = 0;
            } else if change == Change::Unmodified {
                self.waiting.entry(metadata.ino).or_default().push(header.name);
                return Ok(());
            } else {
                self.sources.insert(metadata.ino, header.name.clone());
                further = self.waiting.remove(&metadata.ino).unwrap_or_default();
            }
        } else if change == Change::Unmodified {
            return Ok(());
        }
        let capability = self.root.get_xattr(path, CAPABILITY).map_err(at("read attribute of", path))?;
        if let Some(value) = capability.filter(|value| !value.is_empty()) {
            header.pax.insert(format!("{PAX_XATTR}{CAPABILITY}").into_bytes(), value);
        }
        self.parents(path)?;
        if header.kind == EntryType::DIR {
            self.dirs.insert(path.to_owned());
        }
        self.tar.header(&header).map_err(write_error)?;
        if header.kind == EntryType::FILE && header.size > 0 {
            self.content(path, metadata.size)?;
        }
        let source = header.name.clone();
        for name in further {
            header.kind = EntryType::HARD_LINK;
            header.link_name.clone_from(&source);
            header.size = 0;
            self.parents(Path::new(std::ffi::OsStr::from_bytes(&name)))?;
            header.name = name;
            self.tar.header(&header).map_err(write_error)?;
        }
        Ok(())
    }

    /// Writes the directories on the way to `path` that were not written yet, top first.
    fn parents(&mut self, path: &Path) -> Result<()> {
        let missing: Vec<PathBuf> = path
            .ancestors()
            .skip(1)
            .take_while(|parent| !parent.as_os_str().is_empty() && !self.dirs.contains(*parent))
            .map(Path::to_owned)
            .collect();
        for parent in missing.into_iter().rev() {
            let found = self.root.stat(&parent, false).map_err(at("stat", &parent))?;
            let Some(metadata) = found else {
                return Err(Error::io("stat", parent)(io::ErrorKind::NotFound.into()));
            };
            self.write(Change::Changed, &parent, &metadata)?;
        }
        Ok(())
    }

    /// Makes the header of an entry; `None` for what no layer holds.
    fn header(&self, path: &Path, metadata: &Metadata) -> Result<Option<Header>> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        let mut header = Header {
            mode: i64::from(metadata.mode),
            uid: i64::from(metadata.uid),
            gid: i64::from(metadata.gid),
            format: Formats::PAX,
            ..Header::default()
        };
        header.kind = match metadata.kind {
            Kind::File => EntryType::FILE,
            Kind::Dir => EntryType::DIR,
            Kind::Symlink => EntryType::SYMLINK,
            Kind::Fifo => EntryType::FIFO,
            Kind::CharDevice => EntryType::CHAR,
            Kind::BlockDevice => EntryType::BLOCK,
            Kind::Socket | Kind::Unknown => return Ok(None),
        };
        match metadata.kind {
            Kind::File => header.size = i64::try_from(metadata.size).unwrap_or(i64::MAX),
            Kind::Dir => name.push(b'/'),
            Kind::Symlink => {
                let target = self.root.read_link(path).map_err(at("read link", path))?;
                header.link_name = target.as_os_str().as_bytes().to_vec();
            }
            Kind::CharDevice | Kind::BlockDevice => {
                header.dev_major = i64::from(metadata.rdev.0);
                header.dev_minor = i64::from(metadata.rdev.1);
            }
            _ => {}
        }
        header.name = name;
        let seconds = match self.latest_mtime {
            Some(latest) if metadata.mtime.seconds >= latest => latest,
            _ => metadata.mtime.seconds,
        };
        header.mtime = Some(Time::from_seconds(seconds));
        Ok(Some(header))
    }

    fn content(&mut self, path: &Path, size: u64) -> Result<()> {
        let file =
            self.root.open_file(path, &OpenOptions::read().follow_last(false)).map_err(at("open", path))?;
        let copied = io::copy(&mut file.take(size), &mut self.tar).map_err(Error::io("copy", path))?;
        if copied != size {
            return Err(Error::io("copy", path)(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }
}

fn write_error(error: TarError) -> Error {
    Error::stream("write layer")(match error {
        TarError::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    })
}
