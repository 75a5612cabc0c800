use std::path::PathBuf;

use async_trait::async_trait;

use crate::error::{Error, Result};
use crate::mount::Mount;
use crate::snapshotter::{SnapshotId, Snapshotter, Usage};
use crate::usage::measure;

/// A snapshotter that stacks nothing and mounts nothing: each mount is the snapshot's own directory, and the
/// top one stands for a stack. It needs no privilege and keeps every contract that is not about stacking.
#[derive(Debug)]
pub struct PlainSnapshotter {
    root: PathBuf,
}

impl PlainSnapshotter {
    /// Keeps its directories under `root`, an existing directory.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let _ = std::fs::remove_dir_all(root.join("staging"));
        for kind in ["active", "committed", "staging", "empty"] {
            let dir = root.join(kind);
            std::fs::create_dir_all(&dir).map_err(|source| Error::io("make directory", &dir, source))?;
        }
        Ok(Self { root })
    }

    fn dir(&self, kind: &str, id: &SnapshotId) -> PathBuf {
        self.root.join(kind).join(id.as_str())
    }

    fn check(&self, lowers: &[SnapshotId]) -> Result<()> {
        match lowers.iter().find(|id| !self.dir("committed", id).is_dir()) {
            Some(id) => Err(Error::NotFound { id: id.clone() }),
            None => Ok(()),
        }
    }

    fn find(&self, id: &SnapshotId) -> Option<PathBuf> {
        ["active", "committed"].iter().map(|kind| self.dir(kind, id)).find(|dir| dir.is_dir())
    }

    fn make(&self, kind: &str, id: &SnapshotId) -> Result<PathBuf> {
        if self.find(id).is_some() {
            return Err(Error::Exists { id: id.clone() });
        }
        let dir = self.dir(kind, id);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).map_err(|source| Error::io("make directory", &dir, source))?;
        Ok(dir)
    }

    fn seal(&self, kind: &str, id: &SnapshotId) -> Result<Usage> {
        let dir = self.dir(kind, id);
        if !dir.is_dir() {
            return Err(Error::NotFound { id: id.clone() });
        }
        if kind == "staging" && self.find(id).is_some() {
            return Err(Error::Exists { id: id.clone() });
        }
        let usage = measure(&dir)?;
        std::fs::rename(&dir, self.dir("committed", id))
            .map_err(|source| Error::io("rename", &dir, source))?;
        Ok(usage)
    }
}

#[async_trait]
impl Snapshotter for PlainSnapshotter {
    fn name(&self) -> &'static str {
        "plain"
    }

    async fn prepare(&self, id: &SnapshotId, top: Option<&SnapshotId>) -> Result<()> {
        self.check(top.map(std::slice::from_ref).unwrap_or_default())?;
        self.make("active", id).map(drop)
    }

    async fn active_mount(&self, id: &SnapshotId, lowers: &[SnapshotId]) -> Result<Mount> {
        self.check(lowers)?;
        let source = self.dir("active", id);
        if source.is_dir() {
            Ok(Mount::Bind { source, read_only: false })
        } else {
            Err(Error::NotFound { id: id.clone() })
        }
    }

    async fn view(&self, lowers: &[SnapshotId]) -> Result<Mount> {
        self.check(lowers)?;
        let source = match lowers.last() {
            Some(top) => self.dir("committed", top),
            None => self.root.join("empty"),
        };
        Ok(Mount::Bind { source, read_only: true })
    }

    async fn commit(&self, id: &SnapshotId) -> Result<Usage> {
        self.seal("active", id)
    }

    async fn reopen(&self, id: &SnapshotId) -> Result<()> {
        let (committed, active) = (self.dir("committed", id), self.dir("active", id));
        if active.is_dir() {
            return Ok(());
        }
        self.check(std::slice::from_ref(id))?;
        std::fs::rename(&committed, active).map_err(|source| Error::io("rename", &committed, source))
    }

    async fn staging(&self, id: &SnapshotId) -> Result<PathBuf> {
        self.make("staging", id)
    }

    async fn publish(&self, id: &SnapshotId) -> Result<Usage> {
        self.seal("staging", id)
    }

    async fn diff_dir(&self, id: &SnapshotId) -> Result<PathBuf> {
        self.check(std::slice::from_ref(id))?;
        Ok(self.dir("committed", id))
    }

    async fn remove(&self, id: &SnapshotId) -> Result<()> {
        for kind in ["active", "committed", "staging"] {
            match std::fs::remove_dir_all(self.dir(kind, id)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &self.dir(kind, id), error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn exists(&self, id: &SnapshotId) -> Result<bool> {
        Ok(self.find(id).is_some())
    }

    async fn usage(&self, id: &SnapshotId) -> Result<Usage> {
        let dir = self.find(id).ok_or_else(|| Error::NotFound { id: id.clone() })?;
        measure(&dir)
    }

    async fn list(&self) -> Result<Vec<SnapshotId>> {
        let mut ids = Vec::new();
        for kind in ["active", "committed"] {
            let dir = self.root.join(kind);
            let entries = std::fs::read_dir(&dir).map_err(|source| Error::io("list", &dir, source))?;
            let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            ids.extend(names.filter_map(|name| SnapshotId::new(name).ok()));
        }
        ids.sort();
        Ok(ids)
    }
}
