//! Archives that a copy extracts. What an entry does follows moby/go-archive: archive.go (`Unpack`,
//! `createTarFile`), with the destination as the root that names and links start at.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bzip2::read::MultiBzDecoder;
use kiln_content::decompressor;
use kiln_content::tar::{EntryType, Header, Reader, clean_name};
use kiln_rootdir::{Kind, OpenOptions, Root, Time};
use lzma_rust2::XzReader;

use super::{FileError, Owner, apply_timestamp};

const BUFFER: usize = 128 * 1024;
/// How many first bytes tell the compressions apart that layers do not have.
const MAGIC_BYTES: usize = 6;
/// The largest dictionary an xz stream may ask for is that of its highest preset, 64 MiB; this leaves room for the rest.
const XZ_MEMORY_KIB: u32 = 128 * 1024;

type EntryError = Box<dyn std::error::Error + Send + Sync>;
type Result<T = (), E = EntryError> = std::result::Result<T, E>;

/// What an archive may ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of the tar, and of the files that come out of it.
    pub(super) bytes: u64,
    /// Entries of the tar.
    pub(super) entries: u64,
    /// Bytes of a name or link target; more than this no system call takes.
    pub(super) name: usize,
    /// Bytes of the names of directories, which are remembered until the end.
    pub(super) dir_names: usize,
}

impl Limits {
    const DEFAULT: Self = Self { bytes: 1 << 40, entries: 10_000_000, name: 4095, dir_names: 256 << 20 };
}

/// Extracts the file `path` of `src` into `dest_path` of `dest`, if it is an archive; `false` if it is none.
pub(super) fn unpack(
    src: &Root,
    path: &str,
    dest: &Root,
    dest_path: &str,
    owner: Option<Owner>,
    timestamp: i64,
) -> Result<bool, FileError> {
    unpack_within(Limits::DEFAULT, src, path, dest, dest_path, owner, timestamp)
}

pub(super) fn unpack_within(
    limits: Limits,
    src: &Root,
    path: &str,
    dest: &Root,
    dest_path: &str,
    owner: Option<Owner>,
    timestamp: i64,
) -> Result<bool, FileError> {
    let file = src.open_file(path, &OpenOptions::read().follow_last(false))?;
    let Some((first, mut reader)) = open(file, &limits) else { return Ok(false) };
    for made in dest.mkdir_all(dest_path, 0o755)? {
        let made = made.to_string_lossy();
        if let Some(owner) = owner {
            dest.chown(made.as_ref(), owner.uid, owner.gid)?;
        }
        apply_timestamp(dest, &made, timestamp)?;
    }
    extract(first, &mut reader, dest.open_dir(dest_path)?, owner, limits).map_err(|error| {
        FileError::Archive { path: path.to_owned(), reason: crate::error::chain(error.as_ref()) }
    })?;
    Ok(true)
}

/// Reads the first header. Whatever goes wrong on the way means that the file is no archive.
fn open(file: File, limits: &Limits) -> Option<(Header, Reader<impl Read + use<>>)> {
    let plain = decompress(file).ok()?.take(limits.bytes);
    let mut reader = Reader::new(BufReader::with_capacity(BUFFER, plain));
    let first = reader.next_entry().ok()??;
    Some((first, reader))
}

/// The plain bytes of a file of any known compression.
fn decompress(mut file: File) -> io::Result<Box<dyn Read>> {
    let mut start = Vec::with_capacity(MAGIC_BYTES);
    file.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut start)?;
    file.rewind()?;
    let buffered = |file| BufReader::with_capacity(BUFFER, file);
    Ok(match start.as_slice() {
        [b'B', b'Z', b'h', ..] => Box::new(MultiBzDecoder::new(buffered(file))),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            Box::new(XzReader::new_mem_limit(buffered(file), true, XZ_MEMORY_KIB))
        }
        _ => Box::new(decompressor(file)?),
    })
}

fn extract(
    first: Header,
    reader: &mut Reader<impl Read>,
    root: Root,
    owner: Option<Owner>,
    limits: Limits,
) -> Result {
    let mut extraction = Extraction { root, owner, limits, dirs: Vec::new(), dir_names: 0, bytes: 0 };
    let mut next = Some(first);
    let mut entries = 0;
    while let Some(header) = next {
        entries += 1;
        if entries > limits.entries {
            return Err(format!("more than {} entries", limits.entries).into());
        }
        extraction.entry(&header, reader).map_err(|error| {
            format!("entry `{}`: {}", header.name.escape_ascii(), crate::error::chain(error.as_ref()))
        })?;
        next = reader.next_entry()?;
    }
    extraction.restore_dir_times()
}

struct Extraction {
    /// The destination: no name and no link in it leads out.
    root: Root,
    owner: Option<Owner>,
    limits: Limits,
    /// Times of directories, which making their children changes.
    dirs: Vec<(PathBuf, Time, Time)>,
    dir_names: usize,
    bytes: u64,
}

impl Extraction {
    fn entry(&mut self, header: &Header, data: &mut impl Read) -> Result {
        if header.kind == EntryType::GLOBAL {
            return Ok(());
        }
        if header.name.len().max(header.link_name.len()) > self.limits.name {
            return Err("name too long".into());
        }
        if header.name.contains(&0) || header.link_name.contains(&0) {
            return Err("name contains a zero byte".into());
        }
        let name = inside(&header.name);
        if name.as_os_str().is_empty() {
            // The destination keeps its own metadata.
            return Ok(());
        }
        let parent = name.parent().unwrap_or(Path::new(""));
        // A link that leads nowhere is not helped.
        if self.root.stat(parent, false)?.is_none() {
            self.root.mkdir_all(parent, 0o755)?;
        }
        let parent = self.root.resolve(parent, true)?;
        self.make(header, parent.join(name.file_name().unwrap_or_default()), data)
    }

    fn make(&mut self, header: &Header, path: PathBuf, data: &mut impl Read) -> Result {
        let is_dir = header.kind == EntryType::DIR;
        let mut exists = false;
        if let Some(found) = self.root.stat(&path, false)? {
            exists = is_dir && found.is_dir();
            if !exists {
                self.root.remove_all(&path)?;
            }
        }
        match header.kind {
            EntryType::FILE | EntryType::GNU_SPARSE => self.file(header, &path, data)?,
            EntryType::DIR if exists => {}
            EntryType::DIR => self.root.mkdir(&path, 0o755)?,
            EntryType::SYMLINK => self.root.symlink(OsStr::from_bytes(&header.link_name), &path)?,
            EntryType::HARD_LINK => self.hard_link(&header.link_name, &path)?,
            EntryType::CHAR => self.node(header, &path, Kind::CharDevice)?,
            EntryType::BLOCK => self.node(header, &path, Kind::BlockDevice)?,
            EntryType::FIFO => self.node(header, &path, Kind::Fifo)?,
            EntryType(kind) => return Err(format!("unhandled tar header type {kind}").into()),
        }
        self.stamp(header, path)
    }

    fn file(&mut self, header: &Header, path: &Path, data: &mut impl Read) -> Result {
        let left = self.limits.bytes - self.bytes;
        let size = u64::try_from(header.size)?;
        if size > left {
            return Err(format!("more than {} bytes of files", self.limits.bytes).into());
        }
        let mut file = self.root.open_file(path, &OpenOptions::create_new(0o600))?;
        self.bytes += io::copy(&mut data.take(size), &mut file)?;
        Ok(())
    }

    fn hard_link(&self, target: &[u8], path: &Path) -> Result {
        let target = inside(target);
        let parent = self.root.resolve(target.parent().unwrap_or(Path::new("")), true)?;
        Ok(self.root.hard_link(parent.join(target.file_name().unwrap_or_default()), path)?)
    }

    fn node(&self, header: &Header, path: &Path, kind: Kind) -> Result {
        let device = match kind {
            Kind::Fifo => (0, 0),
            _ => (u32::try_from(header.dev_major)?, u32::try_from(header.dev_minor)?),
        };
        if kind == Kind::CharDevice && device == (0, 0) {
            // In a layer this is how a deletion looks.
            return Err("character device 0:0 is not allowed".into());
        }
        Ok(self.root.mknod(path, kind, 0o600, device)?)
    }

    /// Gives an entry that was made its metadata.
    fn stamp(&mut self, header: &Header, path: PathBuf) -> Result {
        let owner = match self.owner {
            Some(owner) => owner,
            None => Owner { uid: u32::try_from(header.uid)?, gid: u32::try_from(header.gid)? },
        };
        let is_symlink = match header.kind {
            EntryType::SYMLINK => true,
            EntryType::HARD_LINK => self.root.stat(&path, false)?.is_some_and(|found| found.is_symlink()),
            _ => false,
        };
        // Changing the owner clears set-id bits and capabilities, so it comes first.
        self.root.chown(&path, owner.uid, owner.gid)?;
        self.xattrs(header, &path);
        if !is_symlink {
            self.root.chmod(&path, (header.mode & 0o7777) as u32)?;
        }
        let mtime = bound(header.mtime);
        let atime = bound(header.atime).max(mtime);
        if header.kind != EntryType::DIR {
            return Ok(self.root.set_times(&path, atime, mtime, true)?);
        }
        self.dir_names += path.as_os_str().len() + size_of::<(PathBuf, Time, Time)>();
        if self.dir_names > self.limits.dir_names {
            return Err("too many directories".into());
        }
        self.dirs.push((path, atime, mtime));
        Ok(())
    }

    /// Sets what extended attributes it may; filesystems differ in what they take.
    fn xattrs(&self, header: &Header, path: &Path) {
        for (name, value) in header.xattrs() {
            // These steer overlayfs and belong to the engine.
            let is_ours = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
            if is_ours || name.contains(&0) {
                continue;
            }
            if let Err(error) = self.root.set_xattr(path, OsStr::from_bytes(name), value) {
                tracing::trace!(path = %path.display(), %error, "extended attribute not extracted");
            }
        }
    }

    fn restore_dir_times(&self) -> Result {
        for (path, atime, mtime) in &self.dirs {
            // A later entry may have taken its place.
            if self.root.stat(path, false)?.is_some_and(|found| found.is_dir()) {
                self.root.set_times(path, *atime, *mtime, true)?;
            }
        }
        Ok(())
    }
}

/// A name relative to the root and clean, empty for the root itself; `..` ends there.
fn inside(name: &[u8]) -> PathBuf {
    let cleaned = clean_name(&[b"/", name].concat());
    PathBuf::from(OsStr::from_bytes(cleaned.strip_prefix(b"/").unwrap_or(&cleaned)))
}

/// Times that no filesystem holds become zero.
fn bound(time: Option<kiln_content::tar::Time>) -> Time {
    const LAST: i64 = i64::MAX / 1_000_000_000;
    match time {
        Some(time) if (0..LAST).contains(&time.seconds) => {
            Time { seconds: time.seconds, nanoseconds: time.nanoseconds }
        }
        _ => Time::default(),
    }
}
