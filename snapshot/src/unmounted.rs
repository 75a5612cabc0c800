//! Adding to a stack of directories without mounting it.
//!
//! Mounting an overlay costs milliseconds once it is some hundred layers deep, and most steps only add something that
//! was not there. What overlayfs would then leave in the upper directory can be put there directly.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use kiln_rootdir::{Metadata, Root};
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::known::Names;
use crate::mount::open_path;

/// Deeper paths are left to the kernel.
const MAX_COMPONENTS: usize = 64;
/// Attributes of the overlay itself, which are not copied up.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// What leads to a place, and is not in the upper directory yet.
struct Missing {
    path: PathBuf,
    /// The topmost layer that has it.
    layer: PathBuf,
}

/// Makes the directories that lead to `path` in the upper directory over layers, bottom first, if what is made there
/// is then the same as through a mount; else does nothing and says no. `layers` is what is known of each, and `dir_of`
/// gives their directories.
///
/// It is the same when no layer has anything of that name and all that leads to it are plain directories, which
/// are copied up as overlayfs does it. The caller must have the snapshot for itself.
pub(crate) fn make_way(
    upper: &Path,
    layers: &[Option<Names>],
    dir_of: impl Fn(usize) -> PathBuf,
    path: &Path,
) -> Result<bool> {
    let Some(names) = plain_names(path) else { return Ok(false) };
    let Some(missing) = free(upper, layers, dir_of, &names)? else { return Ok(false) };
    copy_up(upper, &missing).map(|()| true)
}

fn plain_names(path: &Path) -> Option<Vec<OsString>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (1..=MAX_COMPONENTS).contains(&names.len()).then_some(names)
}

/// Looks whether nothing is at the place that `names` lead to, and by plain directories; what has to be copied up then.
///
/// Says no in doubt, as when a directory is hidden by one above it. Paths are safe to be joined here: each component
/// but the last was found to be a directory, or not to be there, in every layer, and layers do not change.
fn free(
    upper: &Path,
    layers: &[Option<Names>],
    dir_of: impl Fn(usize) -> PathBuf,
    names: &[OsString],
) -> Result<Option<Vec<Missing>>> {
    let mut near = Near::new(upper);
    let mut missing = Vec::new();
    let mut path = PathBuf::new();
    for (index, name) in names.iter().enumerate() {
        path.push(name);
        let last = index + 1 == names.len();
        let mut seen = match near.found(upper, &path)? {
            Found::Nothing => false,
            Found::Directory if !last => true,
            _ => return Ok(None),
        };
        for (layer, known) in layers.iter().enumerate().rev() {
            let found = match known {
                Some(names) => in_names(names, &path),
                None => near.found(&dir_of(layer), &path)?,
            };
            match found {
                Found::Nothing => {}
                Found::Directory if !last => {
                    if !seen {
                        missing.push(Missing { path: path.clone(), layer: dir_of(layer) });
                    }
                    seen = true;
                }
                _ => return Ok(None),
            }
        }
        if !seen {
            // What is not there has nothing below it.
            break;
        }
    }
    Ok(Some(missing))
}

enum Found {
    Nothing,
    Directory,
    /// Also the mark of something deleted.
    Other,
}

fn in_names(names: &Names, path: &Path) -> Found {
    match names.iter().find(|(name, _)| name == path) {
        None => Found::Nothing,
        Some((_, true)) => Found::Directory,
        Some((_, false)) => Found::Other,
    }
}

/// The directory that the layers are in, opened when it is needed. A deep stack is many look-ups, which are short from
/// here.
struct Near<'a> {
    dir: &'a Path,
    handle: Option<OwnedFd>,
}

impl<'a> Near<'a> {
    fn new(upper: &'a Path) -> Self {
        // Two directories of its own, and one of its kind.
        Self { dir: upper.ancestors().nth(3).unwrap_or(upper), handle: None }
    }

    fn found(&mut self, layer: &Path, path: &Path) -> Result<Found> {
        let handle = match &self.handle {
            Some(handle) => handle,
            None => {
                let opened =
                    open_path(self.dir).map_err(|errno| Error::io("open directory", self.dir, errno))?;
                self.handle.insert(opened)
            }
        };
        // A path that does not begin there is absolute, and stays as it is.
        let path = layer.strip_prefix(self.dir).unwrap_or(layer).join(path);
        match rustix::fs::statat(handle, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => Ok(Found::Directory),
            Ok(_) => Ok(Found::Other),
            Err(Errno::NOENT) => Ok(Found::Nothing),
            // The kernel's own answer to names that are too long comes with the action's context.
            Err(Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(Found::Other),
            Err(errno) => Err(Error::io("look for", &path, errno)),
        }
    }
}

/// Makes the directories in the upper one, with all that describes them; times last, as making what is in them
/// changes those.
fn copy_up(upper: &Path, missing: &[Missing]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let failed = |source| Error::root("copy a directory up to", upper, source);
    let to = Root::open(upper).map_err(failed)?;
    let mut made: Vec<(&Path, Metadata)> = Vec::new();
    for Missing { path, layer } in missing {
        let from = Root::open(layer).map_err(failed)?;
        let Some(metadata) = from.stat(path, false).map_err(failed)? else {
            let gone = std::io::Error::from(Errno::NOENT);
            return Err(Error::io("copy up", &layer.join(path), gone));
        };
        to.mkdir(path, metadata.mode).map_err(failed)?;
        to.chown(path, metadata.uid, metadata.gid).map_err(failed)?;
        to.chmod(path, metadata.mode).map_err(failed)?;
        for name in from.list_xattrs(path).map_err(failed)? {
            if OVERLAY.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix)) {
                continue;
            }
            if let Some(value) = from.get_xattr(path, &name).map_err(failed)? {
                to.set_xattr(path, &name, &value).map_err(failed)?;
            }
        }
        made.push((path, metadata));
    }
    for (path, metadata) in made.iter().rev() {
        to.set_times(path, metadata.atime, metadata.mtime, true).map_err(failed)?;
    }
    Ok(())
}
