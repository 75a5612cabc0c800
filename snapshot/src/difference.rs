//! The difference of two states, found by comparing them where none is built on the other.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use kiln_rootdir::{Kind, Metadata, OpenOptions, Root, Time};

use crate::error::{Error, Result};
use crate::marks;

/// Bytes compared at once.
const CHUNK: usize = 128 << 10;

/// Writes to `to`, an empty directory on the same filesystem, what `upper` has over `lower`: stacked on `lower` it
/// shows what `upper` shows. Both are the difference directories of their layers, bottom first. Files are linked,
/// not copied. Of directories that are in both, the times do not count.
///
/// Directories that come from the same layers on both sides are not looked into. Ends early, with
/// [`Error::Interrupted`], once `stopped` says so. Blocks.
pub fn difference(lower: &[PathBuf], upper: &[PathBuf], to: &Path, stopped: &dyn Fn() -> bool) -> Result<()> {
    difference_since(lower, upper, to, stopped, None)
}

/// The same, where the files of `upper` were copied from `lower` before `since`: one of which nothing has changed after
/// that, by the filesystem's own account, is not read.
pub(crate) fn difference_since(
    lower: &[PathBuf],
    upper: &[PathBuf],
    to: &Path,
    stopped: &dyn Fn() -> bool,
    since: Option<Time>,
) -> Result<()> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    let mut numbers = BTreeMap::new();
    let mut number = |dir: &PathBuf| {
        *numbers.entry(dir.clone()).or_insert_with(|| {
            dirs.push(dir.clone());
            dirs.len() - 1
        })
    };
    let lower: Vec<usize> = lower.iter().rev().map(&mut number).collect();
    let upper: Vec<usize> = upper.iter().rev().map(&mut number).collect();
    let target = Root::open(to).map_err(failed(to))?;
    Comparison { dirs, target, to, stopped, since, times: Vec::new() }.run(lower, upper)
}

/// When a file last changed.
pub(crate) fn changed_at(path: &Path) -> Result<Time> {
    let (dir, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
    let found = Root::open(dir).and_then(|root| root.stat(name, false)).map_err(failed(dir))?;
    let missing = || Error::io("stat", path, std::io::Error::from(std::io::ErrorKind::NotFound));
    found.map(|metadata| metadata.ctime).ok_or_else(missing)
}

/// One entry of a state.
#[derive(Debug)]
struct Node {
    metadata: Metadata,
    /// The layers it is made of, top first; of anything but a directory, the one that it is in.
    layers: Vec<usize>,
    /// Whether layers further down can add to it.
    open: bool,
}

/// A directory of the upper state, and of the difference as soon as something below it is.
#[derive(Debug)]
struct Dir {
    path: PathBuf,
    /// Absent at the top of an empty state.
    shown: Option<(usize, Metadata)>,
    parent: Option<Rc<Self>>,
    made: Cell<bool>,
}

/// A directory to be compared: its layers in both states, top first.
struct Pair {
    dir: Rc<Dir>,
    lower: Vec<usize>,
    upper: Vec<usize>,
}

struct Comparison<'a> {
    dirs: Vec<PathBuf>,
    target: Root,
    to: &'a Path,
    stopped: &'a dyn Fn() -> bool,
    since: Option<Time>,
    /// Set last, when nothing is made in a directory any more.
    times: Vec<(PathBuf, Metadata)>,
}

impl Comparison<'_> {
    fn run(mut self, lower: Vec<usize>, upper: Vec<usize>) -> Result<()> {
        let shown = match upper.first() {
            Some(top) => self.layer(*top)?.stat("/", false).map_err(self.failed())?.map(|m| (*top, m)),
            None => None,
        };
        let top = Rc::new(Dir { path: "/".into(), shown, parent: None, made: Cell::new(false) });
        self.make(&top)?;
        let mut todo = vec![Pair { dir: top, lower, upper }];
        while let Some(pair) = todo.pop() {
            self.go_on()?;
            self.compare(&pair, &mut todo)?;
        }
        for (path, shown) in self.times.iter().rev() {
            self.target.set_times(path, shown.atime, shown.mtime, true).map_err(self.failed())?;
        }
        Ok(())
    }

    fn compare(&mut self, pair: &Pair, todo: &mut Vec<Pair>) -> Result<()> {
        let mut before = self.list(&pair.lower, &pair.dir.path)?;
        let after = self.list(&pair.upper, &pair.dir.path)?;
        for (name, node) in after {
            let was = before.remove(&name);
            let path = pair.dir.path.join(&name);
            let Some(&layer) = node.layers.first() else { continue };
            if !node.metadata.is_dir() {
                let same = match &was {
                    Some(was) => self.same(was, &node, &path)?,
                    None => false,
                };
                if !same {
                    self.make(&pair.dir)?;
                    let linked = self.layer(layer)?.hard_link_to(&path, &self.target, &path);
                    linked.map_err(self.failed())?;
                }
                continue;
            }
            let was = was.filter(|was| was.metadata.is_dir());
            // The same parts on top of each other are the same directory, all the way down.
            if was.as_ref().is_some_and(|was| was.layers == node.layers) {
                continue;
            }
            let unchanged = match &was {
                Some(was) => self.same(was, &node, &path)?,
                None => false,
            };
            let dir = Rc::new(Dir {
                path,
                shown: Some((layer, node.metadata)),
                parent: Some(Rc::clone(&pair.dir)),
                made: Cell::new(false),
            });
            if !unchanged {
                self.make(&dir)?;
            }
            let lower = was.map(|was| was.layers).unwrap_or_default();
            todo.push(Pair { dir, lower, upper: node.layers });
        }
        for name in before.keys() {
            self.make(&pair.dir)?;
            marks::make_whiteout(&self.target, &pair.dir.path.join(name)).map_err(self.failed())?;
        }
        Ok(())
    }

    /// What the layers show together in a directory.
    fn list(&self, layers: &[usize], dir: &Path) -> Result<BTreeMap<OsString, Node>> {
        let mut nodes: BTreeMap<OsString, Node> = BTreeMap::new();
        for (depth, &layer) in layers.iter().enumerate() {
            let root = self.layer(layer)?;
            for (name, metadata) in root.read_dir_stat(dir).map_err(self.failed())? {
                let is_last = depth + 1 == layers.len();
                let ends = |path: &Path| -> Result<bool> {
                    Ok(is_last || marks::is_opaque(&root, path).map_err(self.failed())?)
                };
                match nodes.get_mut(&name) {
                    None => {
                        let open = metadata.is_dir() && !ends(&dir.join(&name))?;
                        nodes.insert(name, Node { metadata, layers: vec![layer], open });
                    }
                    Some(node) if node.open && metadata.is_dir() => {
                        node.open = !ends(&dir.join(&name))?;
                        node.layers.push(layer);
                    }
                    Some(node) => node.open = false,
                }
            }
        }
        nodes.retain(|_, node| !marks::is_whiteout(&node.metadata));
        Ok(nodes)
    }

    /// Whether two entries of one kind look the same; what is in directories is not compared.
    fn same(&self, a: &Node, b: &Node, path: &Path) -> Result<bool> {
        let (&[left, ..], &[right, ..]) = (&a.layers[..], &b.layers[..]) else { return Ok(false) };
        if left == right {
            return Ok(true);
        }
        let (x, y) = (&a.metadata, &b.metadata);
        let is_dir = x.is_dir();
        if (x.kind, x.mode, x.uid, x.gid, x.rdev) != (y.kind, y.mode, y.uid, y.gid, y.rdev)
            || !is_dir && (x.size, x.mtime) != (y.size, y.mtime)
        {
            return Ok(false);
        }
        if (x.dev, x.ino) == (y.dev, y.ino) {
            return Ok(true);
        }
        if let (false, Some(since)) = (is_dir, self.since) {
            if y.ctime < since {
                return Ok(true);
            }
            // It may have got another name, and goes with it.
            if y.nlink > 1 {
                return Ok(false);
            }
        }
        let (left, right) = (self.layer(left)?, self.layer(right)?);
        let of = |root: &Root| marks::attributes(root, path).map_err(self.failed());
        if of(&left)? != of(&right)? {
            return Ok(false);
        }
        match x.kind {
            Kind::Symlink => {
                let targets = (left.read_link(path), right.read_link(path));
                Ok(targets.0.map_err(self.failed())? == targets.1.map_err(self.failed())?)
            }
            Kind::File => self.same_content(&left, &right, path),
            _ => Ok(true),
        }
    }

    fn same_content(&self, left: &Root, right: &Root, path: &Path) -> Result<bool> {
        let open = |root: &Root| root.open_file(path, &OpenOptions::read()).map_err(self.failed());
        let (mut left, mut right) = (open(left)?, open(right)?);
        let (mut a, mut b) = (Vec::with_capacity(CHUNK), Vec::with_capacity(CHUNK));
        loop {
            self.go_on()?;
            a.clear();
            b.clear();
            for (file, buffer) in [(&mut left, &mut a), (&mut right, &mut b)] {
                let read = file.take(CHUNK as u64).read_to_end(buffer);
                read.map_err(|source| Error::io("read", &self.to.join(path), source))?;
            }
            if a != b {
                return Ok(false);
            }
            if a.is_empty() {
                return Ok(true);
            }
        }
    }

    /// Makes a directory of the difference and those above it, unless they are there.
    fn make(&mut self, dir: &Rc<Dir>) -> Result<()> {
        let mut missing = Vec::new();
        let mut next = Some(dir);
        while let Some(dir) = next.filter(|dir| !dir.made.get()) {
            missing.push(dir);
            next = dir.parent.as_ref();
        }
        for dir in missing.into_iter().rev() {
            dir.made.set(true);
            let Some((layer, shown)) = &dir.shown else { continue };
            let attributes = marks::attributes(&self.layer(*layer)?, &dir.path).map_err(self.failed())?;
            let target = &self.target;
            let made = (|| {
                if dir.parent.is_some() {
                    target.mkdir(&dir.path, shown.mode)?;
                }
                target.chown(&dir.path, shown.uid, shown.gid)?;
                target.chmod(&dir.path, shown.mode)?;
                attributes.iter().try_for_each(|(name, value)| target.set_xattr(&dir.path, name, value))
            })();
            made.map_err(self.failed())?;
            self.times.push((dir.path.clone(), shown.clone()));
        }
        Ok(())
    }

    /// A handle on a layer. They are opened as needed: a state may have more layers than a process has handles.
    fn layer(&self, number: usize) -> Result<Root> {
        let dir = self.dirs.get(number).map_or(Path::new(""), PathBuf::as_path);
        Root::open(dir).map_err(failed(dir))
    }

    fn go_on(&self) -> Result<()> {
        if (self.stopped)() { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn failed(&self) -> impl Fn(kiln_rootdir::Error) -> Error + '_ {
        failed(self.to)
    }
}

fn failed(dir: &Path) -> impl Fn(kiln_rootdir::Error) -> Error + '_ {
    move |source| Error::root("compare layers", dir, source)
}
