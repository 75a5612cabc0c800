//! What lies below layers that were not made on each other.
//!
//! Overlayfs hides a whiteout only in a directory that it merges, which takes a directory of the same path further down.
//! Layers made on one another have it: there was something to be deleted. Below others an empty one is put.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::flatten;
use crate::overlay::Places;
use crate::snapshotter::{SnapshotId, Usage};
use crate::usage::{self, Survey};

/// Names of skeletons begin with this; those of layers are random and of another length.
const PREFIX: &str = "skeleton";
const NAME_LEN: usize = PREFIX.len() + 16;
/// The file beside a layer that lists where it deletes something, each path ended by a zero byte.
const DELETES: &str = "deletes";

/// Whether `id` names a skeleton.
pub(crate) fn is_one(id: &SnapshotId) -> bool {
    id.as_str().len() == NAME_LEN && id.as_str().starts_with(PREFIX)
}

/// Measures the layer whose home is `home`, and notes where it deletes something.
pub(crate) fn survey(home: &Path) -> Result<Survey> {
    let mut found = usage::survey(&home.join("fs"))?;
    let list = home.join(DELETES);
    let noted = match found.deletes.is_empty() {
        true => match std::fs::remove_file(&list) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        false => {
            let paths = found.deletes.iter().flat_map(|path| [path.as_os_str().as_bytes(), b"\0"]);
            std::fs::write(&list, paths.collect::<Vec<_>>().concat())
        }
    };
    noted.map_err(|source| Error::io("write", &list, source))?;
    found.usage = with_home(found.usage, home);
    Ok(found)
}

/// Adds what a layer takes beside its files: the directories that hold them, and the list of what it deletes.
pub(crate) fn with_home(mut usage: Usage, home: &Path) -> Usage {
    use std::os::unix::fs::MetadataExt as _;
    for own in [home.to_owned(), home.join("fs"), home.join(DELETES)] {
        usage.bytes += own.symlink_metadata().map_or(0, |metadata| metadata.blocks() * 512);
    }
    usage
}

/// The skeleton for a stack of these layers, made if it is not there.
pub(crate) fn make(places: &Places, layers: &[SnapshotId]) -> Result<Option<SnapshotId>> {
    let mut dirs: BTreeSet<PathBuf> = BTreeSet::new();
    for layer in layers {
        let Some(home) = places.committed(layer)?.parent().map(|home| home.join(DELETES)) else { continue };
        match std::fs::read(&home) {
            Ok(paths) => {
                let paths = paths.split(|byte| *byte == 0).filter(|path| !path.is_empty());
                dirs.extend(paths.map(|path| PathBuf::from(OsStr::from_bytes(path))));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", &home, error)),
        }
    }
    // The top directory of a stack of several is always merged.
    if layers.len() > 1 {
        dirs.remove(Path::new("/"));
    }
    if dirs.is_empty() {
        return Ok(None);
    }
    let text: Vec<u8> =
        layers.iter().flat_map(|layer| [layer.as_str().as_bytes(), b"\n"]).collect::<Vec<_>>().concat();
    let name = format!("{PREFIX}{:016x}", flatten::hash(&text));
    flatten::made(places, name.clone(), layers, |target, path| {
        let failed = |source| Error::root("make directories", path, source);
        dirs.iter().try_for_each(|dir| target.mkdir_all(dir, 0o755).map(drop).map_err(failed))
    })?;
    SnapshotId::new(name).map(Some)
}
