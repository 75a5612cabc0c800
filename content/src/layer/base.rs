//! The state below an upper directory, without mounting it: lower directories looked at together, as overlayfs would.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use kiln_rootdir::{Metadata, Root};

use crate::error::Result;
use crate::layer::overlay::{at, is_opaque, is_whiteout};

/// The lower directories, bottom first.
#[derive(Debug)]
pub(super) struct Base {
    layers: Vec<Root>,
}

/// Something in the merged state.
#[derive(Debug)]
pub(super) enum Node {
    Dir(Dir),
    Other(Other),
}

/// A directory merged from one or more layers.
#[derive(Debug)]
pub(super) struct Dir {
    pub(super) path: PathBuf,
    /// Indexes of the layers that have a part of it, top first; never empty but for the root without layers.
    layers: Vec<usize>,
    /// Of the topmost part; `None` for the root without layers.
    metadata: Option<Metadata>,
}

/// Anything else, from one layer.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) path: PathBuf,
    pub(super) metadata: Metadata,
    layer: usize,
}

impl Node {
    pub(super) fn metadata(&self) -> Option<&Metadata> {
        match self {
            Self::Dir(dir) => dir.metadata.as_ref(),
            Self::Other(other) => Some(&other.metadata),
        }
    }

    pub(super) fn path(&self) -> &PathBuf {
        match self {
            Self::Dir(dir) => &dir.path,
            Self::Other(other) => &other.path,
        }
    }

    pub(super) fn into_dir(self) -> Option<Dir> {
        match self {
            Self::Dir(dir) => Some(dir),
            Self::Other(_) => None,
        }
    }
}

impl Base {
    pub(super) fn open(layers: &[PathBuf]) -> Result<Self> {
        let open = |path: &PathBuf| Root::open(path).map_err(at("open layer", path));
        Ok(Self { layers: layers.iter().map(open).collect::<Result<_>>()? })
    }

    pub(super) fn root(&self) -> Dir {
        Dir { path: PathBuf::new(), layers: (0..self.layers.len()).rev().collect(), metadata: None }
    }

    /// Looks up a name in a merged directory.
    pub(super) fn child(&self, dir: &Dir, name: &OsStr) -> Result<Option<Node>> {
        let path = dir.path.join(name);
        let mut found: Option<Dir> = None;
        for &layer in &dir.layers {
            let Some(root) = self.layers.get(layer) else { continue };
            let Some(metadata) = root.stat(&path, false).map_err(at("stat", &path))? else { continue };
            if is_whiteout(&metadata) {
                break;
            }
            if !metadata.is_dir() {
                // Below a directory it is hidden.
                if found.is_none() {
                    return Ok(Some(Node::Other(Other { path, metadata, layer })));
                }
                break;
            }
            let dir = found.get_or_insert_with(|| Dir {
                path: path.clone(),
                layers: Vec::new(),
                metadata: Some(metadata),
            });
            dir.layers.push(layer);
            if is_opaque(root, &path)? {
                break;
            }
        }
        Ok(found.map(Node::Dir))
    }

    /// Lists the names of a merged directory that may exist; [`Base::child`] decides.
    pub(super) fn names(&self, dir: &Dir) -> Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for root in dir.layers.iter().filter_map(|layer| self.layers.get(*layer)) {
            let entries = root.read_dir(&dir.path).map_err(at("read directory", &dir.path))?;
            names.extend(entries.into_iter().map(|entry| entry.name));
        }
        Ok(names)
    }

    /// Returns the layer directory in which a node's own file or attributes are.
    pub(super) fn root_of(&self, node: &Node) -> Option<&Root> {
        let layer = match node {
            Node::Dir(dir) => dir.layers.first()?,
            Node::Other(other) => &other.layer,
        };
        self.layers.get(*layer)
    }
}
