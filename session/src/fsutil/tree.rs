use std::collections::BTreeMap;
use std::fmt;
use std::io::{Cursor, Read};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use kiln_rootdir::{OpenOptions, Root};

use crate::error::{Error, Result};
use crate::fsutil::order::compare_paths;
use crate::fsutil::stat::Stat;
use crate::fsutil::walk::{WalkOptions, walk};

/// A tree that can be sent. All methods may block.
///
/// 1. `list` gives each entry once, in protocol order, a directory before what lies in it.
/// 2. `list` ends early, without an error, when `emit` breaks.
/// 3. `open` knows every path that was listed as a file with content.
pub trait Tree: fmt::Debug + Send + Sync + 'static {
    /// Lists the entries.
    fn list(&self, emit: &mut dyn FnMut(Stat) -> Result<ControlFlow<()>>) -> Result<()>;
    /// Opens the content of a listed file.
    fn open(&self, path: &str) -> Result<Content>;
}

/// Content of a file of a [`Tree`].
pub struct Content {
    /// Gives the bytes.
    pub reader: Box<dyn Read + Send>,
    /// How many there are, as far as known; only used to size buffers.
    pub size: u64,
}

/// A directory on disk.
#[derive(Debug)]
pub struct DirTree {
    root: Root,
    options: WalkOptions,
}

impl DirTree {
    /// Sends what `options` select below `root`.
    pub fn new(root: Root, options: WalkOptions) -> Self {
        Self { root, options }
    }
}

impl Tree for DirTree {
    fn list(&self, emit: &mut dyn FnMut(Stat) -> Result<ControlFlow<()>>) -> Result<()> {
        walk(&self.root, &self.options, emit)
    }

    fn open(&self, path: &str) -> Result<Content> {
        let file = match self.root.open_file(path, &OpenOptions::read().follow_last(false)) {
            Ok(file) => file,
            // Sockets are listed as files; they have no content.
            Err(kiln_rootdir::Error::NotRegular { .. }) => {
                return Ok(Content { reader: Box::new(std::io::empty()), size: 0 });
            }
            Err(error) => return Err(error.into()),
        };
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(Content { reader: Box::new(file), size })
    }
}

/// Files held in memory, all in the root.
#[derive(Clone, Debug, Default)]
pub struct FileTree {
    files: BTreeMap<String, (Stat, Bytes)>,
}

impl FileTree {
    /// Starts without files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a file; `stat.path` is its name, the size is set here.
    pub fn insert(&mut self, mut stat: Stat, content: Bytes) {
        stat.size = i64::try_from(content.len()).unwrap_or(i64::MAX);
        self.files.insert(stat.path.clone(), (stat, content));
    }
}

impl Tree for FileTree {
    fn list(&self, emit: &mut dyn FnMut(Stat) -> Result<ControlFlow<()>>) -> Result<()> {
        for (stat, _) in self.files.values() {
            if emit(stat.clone())?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, path: &str) -> Result<Content> {
        let (_, content) = self.files.get(path).ok_or_else(|| missing(path))?;
        Ok(Content { size: content.len() as u64, reader: Box::new(Cursor::new(content.clone())) })
    }
}

/// A tree below a directory of its own.
#[derive(Debug)]
pub struct NamedTree {
    dir: Stat,
    tree: Arc<dyn Tree>,
}

impl NamedTree {
    /// Puts `tree` below the directory `dir`, whose path is one component.
    pub fn new(dir: Stat, tree: Arc<dyn Tree>) -> Self {
        Self { dir, tree }
    }
}

impl Tree for NamedTree {
    fn list(&self, emit: &mut dyn FnMut(Stat) -> Result<ControlFlow<()>>) -> Result<()> {
        if emit(self.dir.clone())?.is_break() {
            return Ok(());
        }
        self.tree.list(&mut |mut stat| {
            stat.path = format!("{}/{}", self.dir.path, stat.path);
            if stat.is_hard_link() {
                stat.linkname = format!("{}/{}", self.dir.path, stat.linkname);
            }
            emit(stat)
        })
    }

    fn open(&self, path: &str) -> Result<Content> {
        let inner = path.strip_prefix(&self.dir.path).and_then(|rest| rest.strip_prefix('/'));
        self.tree.open(inner.ok_or_else(|| missing(path))?)
    }
}

/// Several trees laid over each other. Directories in more than one are listed once, as the first has them.
#[derive(Debug)]
pub struct MergedTree {
    trees: Vec<Arc<dyn Tree>>,
}

impl MergedTree {
    /// Lays the trees over each other. The listings are held in memory while they are merged.
    pub fn new(trees: Vec<Arc<dyn Tree>>) -> Self {
        Self { trees }
    }
}

impl Tree for MergedTree {
    /// # Errors
    /// [`Error::Collision`] if two trees have the same path, not a directory in both.
    fn list(&self, emit: &mut dyn FnMut(Stat) -> Result<ControlFlow<()>>) -> Result<()> {
        let mut all: Vec<Stat> = Vec::new();
        for tree in &self.trees {
            tree.list(&mut |stat| {
                all.push(stat);
                Ok(ControlFlow::Continue(()))
            })?;
        }
        all.sort_by(|a, b| compare_paths(&a.path, &b.path));
        let mut last: Option<(String, bool)> = None;
        for stat in all {
            let is_dir = stat.mode.is_dir();
            if let Some((path, was_dir)) = &last
                && *path == stat.path
            {
                if is_dir && *was_dir {
                    continue;
                }
                return Err(Error::Collision { path: stat.path });
            }
            last = Some((stat.path.clone(), is_dir));
            if emit(stat)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, path: &str) -> Result<Content> {
        let mut outcome = Err(missing(path));
        for tree in &self.trees {
            outcome = tree.open(path);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}

fn missing(path: &str) -> Error {
    Error::Read { path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() }
}
