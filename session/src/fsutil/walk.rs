use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use kiln_patterns::{DirState, Filter, Patterns};
use kiln_rootdir::{Kind, Metadata, Root};

use crate::error::{Error, Result};
use crate::fsutil::follow;
use crate::fsutil::stat::Stat;

/// How deep a walk goes. The kernel's limit on paths is below twice that.
const MAX_DEPTH: usize = 4096;

/// Changes a stat before it is used; `false` leaves the entry out (and of a directory, all below it).
pub type MapStat = Arc<dyn Fn(&mut Stat) -> bool + Send + Sync>;

/// What a [`walk`] lists.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct WalkOptions {
    /// Patterns of what to list; everything if there is none.
    pub include: Vec<String>,
    /// Patterns of what to leave out.
    pub exclude: Vec<String>,
    /// Paths to list together with the links they lead through; like more of `include`.
    pub follow_paths: Vec<String>,
    /// Applied to each stat before it is listed.
    pub map: Option<MapStat>,
}

impl fmt::Debug for WalkOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalkOptions")
            .field("include", &self.include)
            .field("exclude", &self.exclude)
            .field("follow_paths", &self.follow_paths)
            .finish_non_exhaustive()
    }
}

impl WalkOptions {
    /// Whether the patterns can be used, said before anything is listed.
    ///
    /// # Errors
    /// [`Error::Pattern`].
    pub fn check(&self) -> Result<()> {
        check_patterns("include", &self.include)?;
        check_patterns("exclude", &self.exclude)
    }
}

/// Lists the tree below `root` in protocol order, the root itself left out.
///
/// Directories that are entered without being selected come once something below them does. The first name of a
/// file with several carries the data; later ones have its path as `linkname`. Blocks; `emit` may stop the walk.
///
/// # Errors
/// [`Error::Pattern`], or what the disk answered. What vanishes meanwhile is left out.
pub fn walk(
    root: &Root,
    options: &WalkOptions,
    emit: &mut dyn FnMut(Stat) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let filter = filter(root, options)?;
    let mut walk = Walk { root, filter, map: options.map.clone(), seen: HashMap::new(), emit };
    // A listing that is stopped is no error.
    let _stopped = walk.directory("", None, &mut Vec::new())?;
    Ok(())
}

fn filter(root: &Root, options: &WalkOptions) -> Result<Filter> {
    let mut include = options.include.clone();
    if !options.follow_paths.is_empty() {
        let followed = follow::resolve(root, &options.follow_paths)?;
        if followed.iter().any(String::is_empty) {
            // A path that leads to the root itself selects everything.
            include.clear();
        } else {
            include.extend(followed);
        }
    }
    check_patterns("include", &include)?;
    check_patterns("exclude", &options.exclude)?;
    Filter::new(&include, &options.exclude).map_err(|source| Error::Pattern {
        list: "include",
        patterns: String::new(),
        source,
    })
}

fn check_patterns(list: &'static str, patterns: &[String]) -> Result<()> {
    Patterns::new(patterns).map(drop).map_err(|source| Error::Pattern {
        list,
        patterns: format!("[{}]", patterns.join(" ")),
        source,
    })
}

struct Walk<'a> {
    root: &'a Root,
    filter: Filter,
    map: Option<MapStat>,
    /// First path of each file with several names, by device and inode.
    seen: HashMap<(u64, u64), String>,
    emit: &'a mut dyn FnMut(Stat) -> Result<ControlFlow<()>>,
}

impl Walk<'_> {
    /// `pending` are the directories above that were entered but not listed yet.
    fn directory(
        &mut self,
        path: &str,
        above: Option<&DirState>,
        pending: &mut Vec<Stat>,
    ) -> Result<ControlFlow<()>> {
        let entries = match self.root.read_dir_stat(if path.is_empty() { "." } else { path }) {
            Ok(entries) => entries,
            // The directory was replaced or removed since it was seen.
            Err(error) if !path.is_empty() && error.is_not_found() => return Ok(ControlFlow::Continue(())),
            Err(error) => return Err(error.into()),
        };
        if path.matches('/').count() > MAX_DEPTH {
            return Err(Error::TooDeep { path: path.to_owned() });
        }
        for (name, metadata) in entries {
            let Some(name) = name.to_str() else {
                return Err(Error::NotUtf8 { path: format!("{path}/{}", name.to_string_lossy()) });
            };
            let child = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            if self.entry(child, &metadata, above, pending)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn entry(
        &mut self,
        path: String,
        metadata: &Metadata,
        above: Option<&DirState>,
        pending: &mut Vec<Stat>,
    ) -> Result<ControlFlow<()>> {
        let visit = self.filter.visit(&path, metadata.is_dir(), above);
        if !visit.selected && !visit.enter {
            return Ok(ControlFlow::Continue(()));
        }
        let Some(mut stat) = self.stat(path.clone(), metadata)? else {
            return Ok(ControlFlow::Continue(()));
        };
        if let Some(map) = &self.map
            && !map(&mut stat)
        {
            return Ok(ControlFlow::Continue(()));
        }
        if !metadata.is_dir() {
            self.mark_hard_link(&mut stat, metadata);
            return self.list(stat, pending);
        }
        let waiting = pending.len();
        if visit.selected {
            if self.list(stat, pending)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        } else {
            pending.push(stat);
        }
        let mut flow = ControlFlow::Continue(());
        if visit.enter {
            flow = self.directory(&path, Some(&visit.state), pending)?;
        }
        pending.truncate(waiting);
        Ok(flow)
    }

    fn list(&mut self, stat: Stat, pending: &mut Vec<Stat>) -> Result<ControlFlow<()>> {
        for parent in pending.drain(..) {
            if (self.emit)(parent)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        (self.emit)(stat)
    }

    fn stat(&self, path: String, metadata: &Metadata) -> Result<Option<Stat>> {
        let mut stat = Stat::from_metadata(path, metadata);
        if metadata.is_symlink() {
            match self.root.read_link(&stat.path) {
                Ok(target) => match target.into_os_string().into_string() {
                    Ok(target) => stat.linkname = target,
                    Err(_) => return Err(Error::NotUtf8 { path: stat.path }),
                },
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            // The size of a link is that of its target, whatever the filesystem says.
            stat.size = i64::try_from(stat.linkname.len()).unwrap_or_default();
        }
        // Unreadable attributes are left out, as by the reference.
        for name in self.root.list_xattrs(&stat.path).unwrap_or_default() {
            let Some(name) = name.to_str().filter(|name| !name.starts_with("com.apple.")) else { continue };
            if let Ok(Some(value)) = self.root.get_xattr(&stat.path, name) {
                stat.xattrs.insert(name.to_owned(), value);
            }
        }
        Ok(Some(stat))
    }

    fn mark_hard_link(&mut self, stat: &mut Stat, metadata: &Metadata) {
        if metadata.kind != Kind::File || metadata.nlink < 2 {
            return;
        }
        match self.seen.get(&(metadata.dev, metadata.ino)) {
            Some(first) => stat.linkname.clone_from(first),
            None => {
                self.seen.insert((metadata.dev, metadata.ino), stat.path.clone());
            }
        }
    }
}
