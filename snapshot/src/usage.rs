use std::collections::HashSet;
use std::path::{Path, PathBuf};

use kiln_rootdir::{Metadata, Root};

use crate::error::{Error, Result};
use crate::known::Collected;
use crate::marks;
use crate::snapshotter::Usage;

/// What the tree at `dir` takes, its top directory's own name not counted.
pub(crate) fn measure(dir: &Path) -> Result<Usage> {
    survey(dir).map(|survey| survey.usage)
}

/// What was found in a tree.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) usage: Usage,
    /// The directories in which it deletes something.
    pub(crate) deletes: Vec<PathBuf>,
    pub(crate) names: Collected,
}

/// Looks through the tree at `dir`.
pub(crate) fn survey(dir: &Path) -> Result<Survey> {
    let failed = |source| Error::root("measure", dir, source);
    let root = Root::open(dir).map_err(failed)?;
    let mut found = Survey::default();
    let mut linked = HashSet::new();
    let mut todo = vec![PathBuf::from("/")];
    while let Some(path) = todo.pop() {
        let entries = match root.read_dir_stat(&path) {
            Ok(entries) => entries,
            // Deeper than a path can say. What lies there is not counted, and cannot be put in a layer either.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidFilename => {
                tracing::warn!(dir = %dir.display(), "tree too deep to be measured");
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        if entries.iter().any(|(_, metadata)| marks::is_whiteout(metadata)) {
            found.deletes.push(path.clone());
        }
        let dir = path.strip_prefix("/").unwrap_or(&path);
        for (name, metadata) in entries {
            if counts(&metadata, &mut linked) {
                found.usage.inodes += 1;
                found.usage.bytes += metadata.blocks * 512;
            }
            if metadata.is_file() {
                found.usage.length += metadata.size;
            }
            found.names.add(|| dir.join(&name), metadata.is_dir());
            if metadata.is_dir() {
                todo.push(path.join(name));
            }
        }
    }
    Ok(found)
}

/// Whether the file was not seen under another name.
fn counts(metadata: &Metadata, linked: &mut HashSet<(u64, u64)>) -> bool {
    metadata.is_dir() || metadata.nlink < 2 || linked.insert((metadata.dev, metadata.ino))
}
