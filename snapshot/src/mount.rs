use std::path::{Path, PathBuf};

use crate::error::Result;

/// How a filesystem state is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// One directory as it is.
    Bind {
        /// The directory.
        source: PathBuf,
        /// Whether writing is refused.
        read_only: bool,
    },
    /// Directories stacked by overlayfs.
    Overlay {
        /// Bottom first; at least one, and two without an upper.
        lowers: Vec<PathBuf>,
        /// The directory that takes the changes and its work directory; read-only without.
        upper: Option<(PathBuf, PathBuf)>,
    },
}

impl Mount {
    /// Mounts at `target`, an existing directory.
    pub fn mount_at(&self, _target: &Path) -> Result<Mounted> {
        Ok(Mounted {})
    }

    /// Mounts where only this process looks.
    pub fn with_temp(&self) -> Result<TempMounted> {
        Ok(TempMounted { path: PathBuf::new() })
    }

    /// Whether writing is refused.
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::Bind { read_only, .. } => *read_only,
            Self::Overlay { upper, .. } => upper.is_none(),
        }
    }
}

/// A mount that is there for as long as this value.
#[derive(Debug)]
pub struct Mounted {}

/// A mount at a place of its own, there for as long as this value.
#[derive(Debug)]
pub struct TempMounted {
    path: PathBuf,
}

impl TempMounted {
    /// The top directory of what is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
