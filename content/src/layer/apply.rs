//! A layer's tar unpacked into an upper directory.
//!
//! What an entry does follows containerd/containerd: pkg/archive/tar.go (`applyNaive`), with the whiteouts of overlay.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kiln_digest::{Digest, HashingReader};
use kiln_rootdir::{Kind, OpenOptions, Root};

use crate::error::{Error, Result};
use crate::layer::overlay::{at, is_whiteout, make_opaque, make_whiteout};
use crate::layer::{OPAQUE_MARKER, WHITEOUT_META_PREFIX, WHITEOUT_PREFIX};
use crate::tar::{EntryType, Header, Reader, TarError, Time, clean_name};

const BUFFER: usize = 256 * 1024;
type EntryError = Box<dyn std::error::Error + Send + Sync>;

/// What a layer may ask for.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ApplyLimits {
    /// Bytes of the tar stream, and of the files that come out of it.
    pub bytes: u64,
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of a name or link target.
    pub name: usize,
}

impl Default for ApplyLimits {
    /// 1 TiB, 10 million entries, names of 4095 bytes (more than that no system call takes).
    fn default() -> Self {
        Self { bytes: 1 << 40, entries: 10_000_000, name: 4095 }
    }
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the tar stream as it was read, to its very end.
    pub diff_id: Digest,
    /// Length of the tar stream in bytes.
    pub size: u64,
    /// Bytes of file content that were written.
    pub bytes: u64,
    /// Entries that were made.
    pub inodes: u64,
}

/// Unpacks an uncompressed layer tar into `dest`, an empty directory, in overlay upper form.
///
/// Names stay inside `dest`, links in them included. Directories that the tar does not mention are made with mode
/// 0755. Blocking; run it on a thread of its own. On failure `dest` holds a part and is to be thrown away.
///
/// # Errors
/// [`Error::InvalidLayer`] for what no layer may contain or what goes beyond `limits`, [`Error::Entry`] for an entry
/// the filesystem refused, [`Error::Stream`] when `tar` broke off.
pub fn apply(tar: impl Read, dest: &Path, limits: &ApplyLimits) -> Result<Applied> {
    let root = Root::open(dest).map_err(at("open directory", dest))?;
    let input = HashingReader::new(tar.take(limits.bytes.saturating_add(1)));
    let mut reader = Reader::new(BufReader::with_capacity(BUFFER, input));
    let mut unpack = Unpack {
        root,
        limits: *limits,
        parent: None,
        whiteouts: HashSet::new(),
        dirs: Vec::new(),
        bytes: 0,
        inodes: 0,
    };
    let mut entries = 0u64;
    while let Some(header) = reader.next_entry().map_err(stream_error)? {
        entries += 1;
        if entries > limits.entries {
            return Err(Error::InvalidLayer(format!("more than {} entries", limits.entries)));
        }
        unpack.entry(&header, &mut reader)?;
    }
    unpack.restore_dir_times()?;
    let mut input = reader.into_inner();
    io::copy(&mut input, &mut io::sink()).map_err(Error::stream("read layer"))?;
    let (_, diff_id, size) = input.into_inner().finish();
    if size > limits.bytes {
        return Err(too_large(limits));
    }
    Ok(Applied { diff_id, size, bytes: unpack.bytes, inodes: unpack.inodes })
}

struct Unpack {
    root: Root,
    limits: ApplyLimits,
    /// The last parent by its name in the tar, and where that is: entries come directory by directory.
    parent: Option<(Vec<u8>, PathBuf)>,
    /// Deletions made by this layer, whose names a later entry may take.
    whiteouts: HashSet<PathBuf>,
    /// Times of directories, which making their children changes.
    dirs: Vec<(PathBuf, kiln_rootdir::Time, kiln_rootdir::Time)>,
    bytes: u64,
    inodes: u64,
}

impl Unpack {
    fn entry(&mut self, header: &Header, data: &mut impl Read) -> Result<()> {
        let shown = || String::from_utf8_lossy(&header.name).into_owned();
        if header.kind == EntryType::GLOBAL {
            return Ok(());
        }
        if header.name.len() > self.limits.name || header.link_name.len() > self.limits.name {
            return Err(Error::InvalidLayer("name too long".to_owned()));
        }
        let name = inside(&header.name)?;
        if name.is_empty() {
            // The root belongs to whoever made the directory.
            return Ok(());
        }
        let (parent, base) = split(&name);
        self.place(header, parent, base, data).map_err(|error| match error.downcast::<Error>() {
            Ok(error) => *error,
            Err(source) => Error::Entry { name: shown(), source },
        })
    }

    fn place(
        &mut self,
        header: &Header,
        parent: &[u8],
        base: &[u8],
        data: &mut impl Read,
    ) -> Result<(), EntryError> {
        let is_meta = |part: &[u8]| part.starts_with(WHITEOUT_META_PREFIX);
        if parent.split(|byte| *byte == b'/').any(is_meta) || (is_meta(base) && base != OPAQUE_MARKER) {
            // What AUFS kept beside the files.
            return Ok(());
        }
        let dir = self.parent(parent)?;
        if base == OPAQUE_MARKER {
            return Ok(make_opaque(&self.root, &dir)?);
        }
        if let Some(deleted) = base.strip_prefix(WHITEOUT_PREFIX) {
            if matches!(deleted, b"" | b"." | b"..") {
                return Err(Error::InvalidLayer("invalid whiteout name".to_owned()).into());
            }
            return self.delete(dir.join(OsStr::from_bytes(deleted)));
        }
        self.make(header, dir.join(OsStr::from_bytes(base)), data)
    }

    /// Returns where a directory named in the tar is, and makes it when it is missing.
    fn parent(&mut self, name: &[u8]) -> Result<PathBuf, EntryError> {
        if let Some((last, path)) = &self.parent
            && last == name
        {
            return Ok(path.clone());
        }
        let asked = Path::new(OsStr::from_bytes(name));
        let made = self.root.mkdir_all(asked, 0o755)?;
        self.inodes += made.len() as u64;
        let path = self.root.resolve(asked, true)?;
        self.parent = Some((name.to_vec(), path.clone()));
        Ok(path)
    }

    fn delete(&mut self, path: PathBuf) -> Result<(), EntryError> {
        match self.root.stat(&path, false)? {
            // A deletion is about the layers below; what this layer has of that name stays, alone.
            Some(found) if found.is_dir() => make_opaque(&self.root, &path)?,
            Some(_) => {}
            None => {
                make_whiteout(&self.root, &path)?;
                self.inodes += 1;
                self.whiteouts.insert(path);
            }
        }
        Ok(())
    }

    fn make(&mut self, header: &Header, path: PathBuf, data: &mut impl Read) -> Result<(), EntryError> {
        let is_dir = header.kind == EntryType::DIR;
        let mut exists = false;
        let mut hides = false;
        if let Some(found) = self.root.stat(&path, false)? {
            exists = is_dir && found.is_dir();
            if !exists {
                // A directory over a deletion hides what the deletion hid.
                hides = is_whiteout(&found) && self.whiteouts.remove(&path);
                if found.is_dir() || found.is_symlink() {
                    self.parent = None;
                }
                self.root.remove_all(&path)?;
            }
        }
        let mode = (header.mode & 0o7777) as u32;
        let uid = u32::try_from(header.uid)?;
        let gid = u32::try_from(header.gid)?;
        let mtime = bound(header.mtime);
        let atime = bound(header.atime).max(mtime);
        let node = |kind| -> Result<(), EntryError> {
            let device = (u32::try_from(header.dev_major)?, u32::try_from(header.dev_minor)?);
            Ok(self.root.mknod(&path, kind, mode, device)?)
        };
        match header.kind {
            EntryType::FILE | EntryType::GNU_SPARSE => {
                let file = self.root.open_file(&path, &OpenOptions::create_new(0o600))?;
                self.bytes += copy(data, &file, self.limits.bytes.saturating_sub(self.bytes), &self.limits)?;
                let owner = (Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)));
                rustix::fs::fchown(&file, owner.0, owner.1).map_err(io::Error::from)?;
                self.xattrs(header, &path)?;
                // After the owner, whose change clears set-id bits.
                rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode)).map_err(io::Error::from)?;
                let times = rustix::fs::Timestamps {
                    last_access: timespec(atime),
                    last_modification: timespec(mtime),
                };
                rustix::fs::futimens(&file, &times).map_err(io::Error::from)?;
                self.inodes += 1;
                return Ok(());
            }
            EntryType::DIR if exists => {}
            EntryType::DIR => {
                self.root.mkdir(&path, 0o755)?;
                if hides {
                    make_opaque(&self.root, &path)?;
                }
            }
            EntryType::SYMLINK => self.root.symlink(OsStr::from_bytes(&header.link_name), &path)?,
            EntryType::HARD_LINK => {
                let target = inside(&header.link_name)?;
                let (dir, base) = split(&target);
                let dir = self.root.resolve(Path::new(OsStr::from_bytes(dir)), true)?;
                self.root.hard_link(dir.join(OsStr::from_bytes(base)), &path)?;
            }
            EntryType::CHAR => node(Kind::CharDevice)?,
            EntryType::BLOCK => node(Kind::BlockDevice)?,
            EntryType::FIFO => node(Kind::Fifo)?,
            EntryType(kind) => {
                return Err(Error::InvalidLayer(format!("unhandled tar header type {kind}")).into());
            }
        }
        if !exists && header.kind != EntryType::HARD_LINK {
            self.inodes += 1;
        }
        let is_symlink = match header.kind {
            EntryType::SYMLINK => true,
            EntryType::HARD_LINK => self.root.stat(&path, false)?.is_some_and(|found| found.is_symlink()),
            _ => false,
        };
        self.root.chown(&path, uid, gid)?;
        self.xattrs(header, &path)?;
        if !is_symlink {
            self.root.chmod(&path, mode)?;
        }
        if is_dir {
            self.dirs.push((path, atime, mtime));
        } else {
            self.root.set_times(&path, atime, mtime, true)?;
        }
        Ok(())
    }

    fn xattrs(&self, header: &Header, path: &Path) -> Result<(), EntryError> {
        for (name, value) in header.xattrs() {
            // These steer overlayfs and belong to the engine.
            if name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") {
                tracing::debug!(path = %path.display(), "attribute of the engine ignored in layer");
                continue;
            }
            let Err(error) = self.root.set_xattr(path, OsStr::from_bytes(name), value) else { continue };
            // Only files and directories can have `user.` attributes.
            let refused = error.kind() == io::ErrorKind::PermissionDenied
                && name.starts_with(b"user.")
                && !matches!(header.kind, EntryType::FILE | EntryType::DIR);
            let unsupported = error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error());
            if !unsupported && !refused {
                return Err(error.into());
            }
            tracing::debug!(path = %path.display(), %error, "attribute ignored in layer");
        }
        Ok(())
    }

    fn restore_dir_times(&self) -> Result<()> {
        for (path, atime, mtime) in &self.dirs {
            // A later entry may have taken its place.
            if self.root.stat(path, false).map_err(at("stat", path))?.is_some_and(|found| found.is_dir()) {
                self.root.set_times(path, *atime, *mtime, true).map_err(at("set times of", path))?;
            }
        }
        Ok(())
    }
}

/// Returns a name relative to the root, clean, empty for the root itself.
fn inside(name: &[u8]) -> Result<Vec<u8>> {
    let cleaned = clean_name(name);
    let cleaned = cleaned.strip_prefix(b"/").unwrap_or(&cleaned);
    if cleaned == b".." || cleaned.starts_with(b"../") {
        return Err(Error::InvalidLayer(format!("name `{}` leaves the root", String::from_utf8_lossy(name))));
    }
    if name.contains(&0) {
        return Err(Error::InvalidLayer("name contains a zero byte".to_owned()));
    }
    Ok(if cleaned == b"." { Vec::new() } else { cleaned.to_vec() })
}

fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (name.get(..slash).unwrap_or_default(), name.get(slash + 1..).unwrap_or_default()),
        None => (&[], name),
    }
}

fn copy(
    data: &mut impl Read,
    mut file: &File,
    allowed: u64,
    limits: &ApplyLimits,
) -> Result<u64, EntryError> {
    let copied = io::copy(&mut data.take(allowed.saturating_add(1)), &mut file)?;
    if copied > allowed {
        return Err(too_large(limits).into());
    }
    Ok(copied)
}

/// Times that no filesystem holds become zero.
fn bound(time: Option<Time>) -> kiln_rootdir::Time {
    const LAST: i64 = i64::MAX / 1_000_000_000;
    match time {
        Some(Time { seconds, nanoseconds }) if (0..LAST).contains(&seconds) => {
            kiln_rootdir::Time { seconds, nanoseconds }
        }
        _ => kiln_rootdir::Time::default(),
    }
}

fn timespec(time: kiln_rootdir::Time) -> rustix::fs::Timespec {
    rustix::fs::Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() }
}

fn too_large(limits: &ApplyLimits) -> Error {
    Error::InvalidLayer(format!("more than {} bytes", limits.bytes))
}

fn stream_error(error: TarError) -> Error {
    match error {
        TarError::Io(source) => Error::Stream { action: "read layer", source },
        other => Error::InvalidLayer(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
