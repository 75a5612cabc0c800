//! The layer tar of an upper directory.
//!
//! Which entries are written, and in which order, follows moby/buildkit: util/overlay/overlay_linux.go (`Changes`)
//! and containerd/continuity: fs/diff.go (double walk, used below opaque directories).

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use kiln_digest::{Digest, HashingWriter};
use kiln_rootdir::{Metadata, OpenOptions, Root};

use crate::error::{Error, Result};
use crate::layer::base::{Base, Dir, Node};
use crate::layer::changes::{Change, ChangeWriter};
use crate::layer::overlay::{at, is_opaque, is_redirect, is_whiteout};

const BUFFER: usize = 128 * 1024;

/// How to make a layer tar.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DiffOptions {
    /// Later modification times become this one (seconds since 1970).
    pub latest_mtime: Option<i64>,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffInfo {
    /// Digest of the tar.
    pub diff_id: Digest,
    /// Length of the tar in bytes.
    pub size: u64,
}

/// Writes the layer tar of `upper`, a directory in overlay upper form over `lowers` (of the same form, bottom first).
///
/// What equals the state below is left out, as is the deletion of what is not there. Blocking; run it on a thread
/// of its own.
///
/// # Errors
/// [`Error::Redirect`] when `upper` has renamed directories; those of the filesystem and of `out`.
pub fn diff(upper: &Path, lowers: &[PathBuf], out: impl Write, options: &DiffOptions) -> Result<DiffInfo> {
    let root = Root::open(upper).map_err(at("open layer", upper))?;
    let base = Base::open(lowers)?;
    let out = BufWriter::with_capacity(BUFFER, HashingWriter::new(out));
    let mut walk =
        Walk { root: &root, base: &base, changes: ChangeWriter::new(out, &root, options.latest_mtime) };
    walk.run()?;
    let out = walk.changes.finish()?;
    let out = out.into_inner().map_err(|error| Error::stream("write layer")(error.into_error()))?;
    let (_, diff_id, size) = out.finish();
    Ok(DiffInfo { diff_id, size })
}

struct Walk<'a, W: Write> {
    root: &'a Root,
    base: &'a Base,
    changes: ChangeWriter<'a, W>,
}

/// A directory whose children are being visited. The stack is ours, because a build can nest directories deeper than
/// a thread's stack allows recursion.
struct Frame {
    path: PathBuf,
    base: Option<Dir>,
    /// Below an opaque directory the two states are compared as trees, and what is gone is deleted by name.
    opaque: bool,
    entries: VecDeque<Entry>,
}

struct Entry {
    name: OsString,
    /// `None` when only the base has the name.
    upper: Option<Metadata>,
}

impl<W: Write> Walk<'_, W> {
    fn run(&mut self) -> Result<()> {
        let root = self.frame(PathBuf::new(), Some(self.base.root()), false)?;
        let mut stack = vec![root];
        while let Some(frame) = stack.last_mut() {
            let Some(entry) = frame.entries.pop_front() else {
                stack.pop();
                continue;
            };
            let below = match &frame.base {
                Some(dir) => self.base.child(dir, &entry.name)?,
                None => None,
            };
            let path = frame.path.join(&entry.name);
            let opaque = frame.opaque;
            if let Some(next) = self.visit(path, entry.upper, below, opaque)? {
                stack.push(next);
            }
        }
        Ok(())
    }

    fn visit(
        &mut self,
        path: PathBuf,
        upper: Option<Metadata>,
        below: Option<Node>,
        in_opaque: bool,
    ) -> Result<Option<Frame>> {
        let Some(upper) = upper.filter(|upper| !is_whiteout(upper)) else {
            // Nothing here: a deletion, if there was something.
            if below.is_some() {
                self.changes.delete(&path)?;
            }
            return Ok(None);
        };
        let is_dir = upper.is_dir();
        if is_dir && is_redirect(self.root, &path)? {
            return Err(Error::Redirect);
        }
        let same = match &below {
            Some(node) => self.is_same(&path, &upper, node)?,
            None => false,
        };
        if !same {
            self.changes.write(Change::Changed, &path, &upper)?;
        } else if in_opaque && !is_dir && upper.nlink > 1 {
            self.changes.write(Change::Unmodified, &path, &upper)?;
        }
        if !is_dir {
            return Ok(None);
        }
        let opaque = in_opaque || (below.is_some() && is_opaque(self.root, &path)?);
        self.frame(path, below.and_then(Node::into_dir), opaque).map(Some)
    }

    fn frame(&self, path: PathBuf, base: Option<Dir>, opaque: bool) -> Result<Frame> {
        let upper = self.root.read_dir_stat(&path).map_err(at("read directory", &path))?;
        let mut entries: VecDeque<Entry> =
            upper.into_iter().map(|(name, upper)| Entry { name, upper: Some(upper) }).collect();
        if let Some(dir) = base.as_ref().filter(|_| opaque) {
            let mut merged = VecDeque::new();
            for name in self.base.names(dir)? {
                while entries.front().is_some_and(|entry| entry.name < name) {
                    merged.extend(entries.pop_front());
                }
                match entries.front().map(|entry| entry.name.cmp(&name)) {
                    Some(Ordering::Equal) => merged.extend(entries.pop_front()),
                    _ => merged.push_back(Entry { name, upper: None }),
                }
            }
            merged.extend(entries);
            entries = merged;
        }
        Ok(Frame { path, base, opaque, entries })
    }

    /// Whether an entry of the upper directory says nothing new.
    ///
    /// Times that may have been cut to seconds by a tar do not count as proof, so content decides then.
    fn is_same(&self, path: &Path, upper: &Metadata, node: &Node) -> Result<bool> {
        let (Some(lower), Some(lower_root)) = (node.metadata(), self.base.root_of(node)) else {
            return Ok(false);
        };
        let key =
            |metadata: &Metadata| (metadata.kind, metadata.mode, metadata.uid, metadata.gid, metadata.rdev);
        if key(upper) != key(lower) {
            return Ok(false);
        }
        let capability = |root: &Root, path: &Path| {
            root.get_xattr(path, "security.capability")
                .map(Option::unwrap_or_default)
                .map_err(at("read attribute of", path))
        };
        if capability(self.root, path)? != capability(lower_root, node.path())? {
            return Ok(false);
        }
        if upper.is_dir() {
            return Ok(true);
        }
        if upper.size != lower.size || upper.mtime.seconds != lower.mtime.seconds {
            return Ok(false);
        }
        if upper.mtime.nanoseconds != 0 || lower.mtime.nanoseconds != 0 {
            return Ok(upper.mtime.nanoseconds == lower.mtime.nanoseconds);
        }
        if upper.is_symlink() {
            let target = |root: &Root, path: &Path| root.read_link(path).map_err(at("read link", path));
            return Ok(target(self.root, path)? == target(lower_root, node.path())?);
        }
        if upper.size == 0 {
            return Ok(true);
        }
        same_content((self.root, path), (lower_root, node.path()))
    }
}

fn same_content(one: (&Root, &Path), other: (&Root, &Path)) -> Result<bool> {
    let open = |(root, path): (&Root, &Path)| {
        root.open_file(path, &OpenOptions::read().follow_last(false)).map_err(at("open", path))
    };
    let mut files = (open(one)?, open(other)?);
    let mut buffers = (vec![0; BUFFER], vec![0; BUFFER]);
    loop {
        let first = fill(&mut files.0, &mut buffers.0).map_err(Error::io("read", one.1))?;
        let second = fill(&mut files.1, &mut buffers.1).map_err(Error::io("read", other.1))?;
        if buffers.0.get(..first) != buffers.1.get(..second) {
            return Ok(false);
        }
        if first < BUFFER {
            return Ok(true);
        }
    }
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
