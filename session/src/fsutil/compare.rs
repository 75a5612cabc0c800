//! What already lies in the destination, against what the peer lists.

use std::collections::HashMap;

use kiln_rootdir::{Kind, Metadata, Root};

use crate::error::Result;
use crate::fsutil::stat::Stat;

/// Walks the destination in protocol order, one step at a time, while it changes behind the walk.
#[derive(Debug)]
pub(crate) struct Existing {
    root: Root,
    /// What is left of each directory that was entered, in reverse.
    open: Vec<Vec<(String, Metadata)>>,
    seen: HashMap<(u64, u64), String>,
    current: Option<Stat>,
}

impl Existing {
    pub(crate) fn new(root: Root) -> Result<Self> {
        let mut walk = Self { root, open: Vec::new(), seen: HashMap::new(), current: None };
        walk.enter("")?;
        walk.step()?;
        Ok(walk)
    }

    pub(crate) fn current(&self) -> Option<&Stat> {
        self.current.as_ref()
    }

    /// Leaves the current entry; a directory is entered only if `enter` says so.
    pub(crate) fn advance(&mut self, enter: bool) -> Result<()> {
        if let Some(left) = self.current.take()
            && enter
            && left.mode.is_dir()
        {
            self.enter(&left.path)?;
        }
        self.step()
    }

    fn step(&mut self) -> Result<()> {
        while let Some(directory) = self.open.last_mut() {
            if let Some((path, metadata)) = directory.pop() {
                self.current = Some(self.stat(path, &metadata)?);
                return Ok(());
            }
            self.open.pop();
        }
        Ok(())
    }

    fn enter(&mut self, path: &str) -> Result<()> {
        let mut entries = Vec::new();
        for (name, metadata) in self.root.read_dir_stat(if path.is_empty() { "." } else { path })? {
            match name.to_str() {
                Some(name) if path.is_empty() => entries.push((name.to_owned(), metadata)),
                Some(name) => entries.push((format!("{path}/{name}"), metadata)),
                // No peer can list this name, so it is one that the peer does not have.
                None => self.root.remove_all(std::path::Path::new(path).join(name))?,
            }
        }
        entries.reverse();
        self.open.push(entries);
        Ok(())
    }

    fn stat(&mut self, path: String, metadata: &Metadata) -> Result<Stat> {
        let mut stat = Stat::from_metadata(path, metadata);
        if metadata.is_symlink() {
            // One that cannot be shown differs from whatever is listed.
            let target = self.root.read_link(&stat.path)?;
            stat.linkname = target.to_str().unwrap_or_default().to_owned();
            stat.size = i64::try_from(stat.linkname.len()).unwrap_or_default();
        } else if metadata.kind == Kind::File && metadata.nlink > 1 {
            let first = self.seen.entry((metadata.dev, metadata.ino)).or_insert_with(|| stat.path.clone());
            if *first != stat.path {
                stat.linkname.clone_from(first);
            }
        }
        Ok(stat)
    }
}

/// Whether an entry has to be made anew. Extended attributes are not compared.
pub(crate) fn differs(listed: &Stat, existing: &Stat) -> bool {
    if listed.mode.kind() != existing.mode.kind() {
        return true;
    }
    if !listed.mode.is_dir() && (listed.size != existing.size || listed.mod_time != existing.mod_time) {
        return true;
    }
    (listed.mode, listed.uid, listed.gid, listed.dev_major, listed.dev_minor)
        != (existing.mode, existing.uid, existing.gid, existing.dev_major, existing.dev_minor)
        || listed.linkname != existing.linkname
}
