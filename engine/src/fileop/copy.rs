use std::cell::OnceCell;
use std::collections::HashMap;

use kiln_patterns::{DirState, Filter};
use kiln_rootdir::{Kind, Metadata, OpenOptions, Root};

use super::simple::component_matches;
use super::unpack::unpack;
use super::{FileError, ModeChange, Owner, Result, apply_timestamp, clean, nanoseconds};

/// Directories nested deeper than this are refused: each level holds two open files.
const MAX_DEPTH: usize = 1000;

/// Copies from one state into another.
#[derive(Clone, Debug)]
pub struct CopyAction {
    /// Path or pattern in the source state.
    pub src: String,
    /// Path in the destination; a trailing `/` or `/.` means a directory.
    pub dest: String,
    /// Owner of what is copied; `None` keeps it.
    pub owner: Option<Owner>,
    /// Permission bits of what is copied; `None` keeps them.
    pub mode: Option<ModeChange>,
    /// Resolve a link that is the source itself.
    pub follow_symlink: bool,
    /// Copy what is in a source directory, not the directory.
    pub dir_copy_contents: bool,
    /// Extract a source file that is an archive.
    pub attempt_unpack: bool,
    /// Make the destination's missing parents.
    pub create_dest_path: bool,
    /// `src` may have wildcards.
    pub allow_wildcard: bool,
    /// A pattern that matches nothing is no error.
    pub allow_empty_wildcard: bool,
    /// Nanoseconds since 1970 for both times, or -1 to keep them.
    pub timestamp: i64,
    /// Relative to a copied directory.
    pub include: Vec<String>,
    /// Relative to a copied directory.
    pub exclude: Vec<String>,
    /// What is in the way is removed first, unless both are directories.
    pub always_replace: bool,
}

/// Copies `action.src` of `src` to `action.dest` of `dest`.
pub fn copy(src: &Root, dest: &Root, action: &CopyAction) -> Result<()> {
    let filter = Filter::new(&action.include, &action.exclude)?;
    let must_be_dir = action.dest.ends_with('/') || action.dest.ends_with("/.");
    let dest_path = dest.resolve(clean(&action.dest), true)?.to_string_lossy().into_owned();
    let parent = if must_be_dir { dest_path.as_str() } else { parent_of(&dest_path) };
    if !action.create_dest_path && dest.stat(parent_of(&dest_path), true)?.is_none() {
        return Err(FileError::NoParent { path: parent_of(&dest_path).to_owned() });
    }
    let sources = sources(src, action)?;
    if sources.is_empty() {
        // Nothing is made for nothing.
        let found = FileError::SourceNotFound { path: clean(&action.src) };
        return if action.allow_empty_wildcard { Ok(()) } else { Err(found) };
    }
    if action.create_dest_path {
        for made in dest.mkdir_all(parent, way_mode(action))?.iter().rev() {
            let made = made.to_string_lossy();
            if let Some(owner) = action.owner {
                dest.chown(made.as_ref(), owner.uid, owner.gid)?;
            }
            apply_timestamp(dest, &made, action.timestamp)?;
        }
    }
    let mut copier = Copier { dest, action, filter, links: HashMap::new() };
    for source in &sources {
        copier.copy_source(src, source, &dest_path, must_be_dir)?;
    }
    Ok(())
}

/// The mode of directories that are made on the way to what is copied.
fn way_mode(action: &CopyAction) -> u32 {
    match &action.mode {
        Some(ModeChange::Octal(bits)) => *bits,
        _ => 0o755,
    }
}

/// The sources a copy names, links in them resolved as the action says.
fn sources(src: &Root, action: &CopyAction) -> Result<Vec<String>> {
    let path = clean(&action.src);
    let components: Vec<&str> = path.split('/').filter(|c| !c.is_empty()).collect();
    let wildcard = if action.allow_wildcard {
        components.iter().position(|c| kiln_patterns::has_wildcard(c))
    } else {
        None
    };
    let Some(first) = wildcard else {
        let unescaped = if action.allow_wildcard { unescape(&path) } else { path.clone() };
        let resolved = src.resolve(&unescaped, action.follow_symlink)?;
        return match src.stat(&resolved, false)? {
            Some(_) => Ok(vec![resolved.to_string_lossy().into_owned()]),
            None => Err(FileError::SourceNotFound { path }),
        };
    };
    let prefix = unescape(&format!("/{}", components[..first].join("/")));
    let mut level = vec![src.resolve(&prefix, action.follow_symlink)?.to_string_lossy().into_owned()];
    for (depth, pattern) in components[first..].iter().enumerate() {
        let mut next = Vec::new();
        for dir in &level {
            if !src.stat(dir, false)?.is_some_and(|m| m.is_dir()) {
                continue;
            }
            for entry in src.read_dir(dir)? {
                let name = entry.name.to_string_lossy();
                if component_matches(pattern, &name)? {
                    next.push(join(dir, &name));
                }
            }
        }
        level = next;
        if depth + 1 == components.len() - first && action.follow_symlink {
            level = level
                .iter()
                .map(|p| Ok(src.resolve(p, true)?.to_string_lossy().into_owned()))
                .collect::<Result<_>>()?;
        }
    }
    Ok(level)
}

fn unescape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    out
}

fn join(dir: &str, name: &str) -> String {
    format!("{}/{name}", dir.trim_end_matches('/'))
}

fn parent_of(path: &str) -> &str {
    match path.rfind('/') {
        None | Some(0) => "/",
        Some(at) => &path[..at],
    }
}

fn base_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

struct Copier<'a> {
    dest: &'a Root,
    action: &'a CopyAction,
    filter: Filter,
    /// First destination path of each source file that has several names.
    links: HashMap<(u64, u64), String>,
}

/// A destination directory that is made only once something is to go into it.
struct LazyDir<'a> {
    parent: Option<&'a LazyDir<'a>>,
    path: String,
    source: Option<(&'a Root, &'a Metadata)>,
    made: OnceCell<Made>,
}

struct Made {
    root: Root,
    /// Was there before, or was made on the way: takes over the source's times at the end, and nothing else.
    existed: bool,
}

impl Copier<'_> {
    fn copy_source(&mut self, src: &Root, source: &str, dest_path: &str, must_be_dir: bool) -> Result<()> {
        let metadata =
            src.stat(source, false)?.ok_or_else(|| FileError::SourceNotFound { path: source.to_owned() })?;
        if self.action.attempt_unpack
            && metadata.is_file()
            && unpack(src, source, self.dest, dest_path, self.action.owner, self.action.timestamp)?
        {
            return Ok(());
        }
        let existing = self.dest.stat(dest_path, true)?;
        let into = if metadata.is_dir() {
            existing.is_some() && !self.action.dir_copy_contents
        } else {
            must_be_dir || existing.as_ref().is_some_and(Metadata::is_dir)
        };
        let target = if into { join(dest_path, base_of(source)) } else { dest_path.to_owned() };
        if metadata.is_dir() {
            let root = src.open_dir(source)?;
            let top = LazyDir {
                parent: None,
                path: target,
                source: Some((&root, &metadata)),
                made: OnceCell::new(),
            };
            if self.filter.is_empty() {
                self.make_dir(&top, true)?;
            }
            self.copy_entries(&root, &top, "", None, 0)?;
            return self.finish_dir(&top);
        }
        let visit = self.filter.visit(base_of(source), false, None);
        if !visit.selected {
            return Ok(());
        }
        let parent = LazyDir {
            parent: None,
            path: parent_of(&target).to_owned(),
            source: None,
            made: OnceCell::new(),
        };
        let (src_dir, name) = (src.open_dir(parent_of(source))?, base_of(source));
        self.copy_entry(&src_dir, name, &metadata, &parent, base_of(&target))
    }

    fn copy_entries(
        &mut self,
        src: &Root,
        dir: &LazyDir<'_>,
        relative: &str,
        state: Option<&DirState>,
        depth: usize,
    ) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(FileError::TooDeep { path: dir.path.clone(), limit: MAX_DEPTH });
        }
        for (name, metadata) in src.read_dir_stat(".")? {
            let name = name.to_string_lossy();
            let path = if relative.is_empty() { name.to_string() } else { format!("{relative}/{name}") };
            let visit = (!self.filter.is_empty()).then(|| self.filter.visit(&path, metadata.is_dir(), state));
            let selected = visit.as_ref().is_none_or(|v| v.selected);
            if !metadata.is_dir() {
                if selected {
                    self.copy_entry(src, &name, &metadata, dir, &name)?;
                }
                continue;
            }
            if !visit.as_ref().is_none_or(|v| v.enter || v.selected) {
                continue;
            }
            let root = src.open_dir(name.as_ref())?;
            let child = LazyDir {
                parent: Some(dir),
                path: join(&dir.path, &name),
                source: Some((&root, &metadata)),
                made: OnceCell::new(),
            };
            if selected {
                self.make_dir(&child, false)?;
            }
            self.copy_entries(&root, &child, &path, visit.as_ref().map(|v| &v.state), depth + 1)?;
            self.finish_dir(&child)?;
        }
        Ok(())
    }

    /// Makes `dir` and its parents if they are not there yet.
    fn make_dir<'d>(&self, dir: &'d LazyDir<'_>, top: bool) -> Result<&'d Root> {
        if let Some(made) = dir.made.get() {
            return Ok(&made.root);
        }
        if let Some(parent) = dir.parent {
            self.make_dir(parent, parent.parent.is_none())?;
        }
        let existing = self.dest.stat(&dir.path, top)?;
        let existed = match existing {
            Some(found) if found.is_dir() => true,
            Some(_) if self.action.always_replace => {
                self.dest.remove_all(&dir.path)?;
                false
            }
            Some(_) => return Err(FileError::DirectoryOverFile { path: dir.path.clone() }),
            None => false,
        };
        let top_level = dir.parent.is_none();
        // Where contents are copied, the directory for them is one of those on the way to them.
        let on_the_way = top_level
            && dir.source.is_some()
            && self.action.dir_copy_contents
            && self.action.create_dest_path;
        if !existed {
            let mode = if on_the_way { way_mode(self.action) } else { 0o755 };
            self.dest.mkdir(&dir.path, mode)?;
            self.dest.chmod(&dir.path, mode)?;
            if let Some(owner) = self.action.owner.filter(|_| on_the_way) {
                self.dest.chown(&dir.path, owner.uid, owner.gid)?;
            }
        }
        let root = self.dest.open_dir(&dir.path)?;
        let made = Made { root, existed: top_level && (existed || on_the_way) };
        Ok(&dir.made.get_or_init(|| made).root)
    }

    /// Gives a directory its metadata, after everything was put into it.
    fn finish_dir(&self, dir: &LazyDir<'_>) -> Result<()> {
        let (Some(made), Some((source, metadata))) = (dir.made.get(), dir.source) else { return Ok(()) };
        if made.existed {
            return self.set_times(&made.root, ".", metadata);
        }
        copy_xattrs(source, ".", &made.root, ".");
        self.stamp(&made.root, ".", metadata)
    }

    fn copy_entry(
        &mut self,
        src: &Root,
        name: &str,
        metadata: &Metadata,
        dir: &LazyDir<'_>,
        target: &str,
    ) -> Result<()> {
        let dest = self.make_dir(dir, true)?;
        let path = join(&dir.path, target);
        if let Some(found) = dest.stat(target, false)? {
            if found.is_dir() && !self.action.always_replace {
                return Err(FileError::FileOverDirectory { path });
            }
            dest.remove_all(target)?;
        }
        if metadata.nlink > 1 && metadata.is_file() {
            if let Some(first) = self.links.get(&(metadata.dev, metadata.ino)) {
                self.dest.hard_link(first, &path)?;
                return Ok(());
            }
            self.links.insert((metadata.dev, metadata.ino), path.clone());
        }
        match metadata.kind {
            Kind::File => {
                let mut input = src.open_file(name, &OpenOptions::read().follow_last(false))?;
                let mut output = dest.open_file(target, &OpenOptions::create_new(0o600))?;
                std::io::copy(&mut input, &mut output)
                    .map_err(|source| FileError::Content { path, source })?;
            }
            Kind::Symlink => dest.symlink(src.read_link(name)?, target)?,
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                dest.mknod(target, metadata.kind, 0o600, metadata.rdev)?
            }
            // A socket means nothing without its owner; the reference makes an empty file of it.
            Kind::Socket | Kind::Unknown | Kind::Dir => {
                dest.open_file(target, &OpenOptions::create_new(0o600))?;
            }
        }
        // Changing the owner clears set-id bits and capabilities, so it comes first.
        if metadata.is_symlink() {
            copy_xattrs(src, name, dest, target);
            return self.stamp(dest, target, metadata);
        }
        self.chown(dest, target, metadata)?;
        copy_xattrs(src, name, dest, target);
        self.stamp_rest(dest, target, metadata)
    }

    fn stamp(&self, root: &Root, path: &str, metadata: &Metadata) -> Result<()> {
        self.chown(root, path, metadata)?;
        self.stamp_rest(root, path, metadata)
    }

    fn chown(&self, root: &Root, path: &str, metadata: &Metadata) -> Result<()> {
        let owner = self.action.owner.unwrap_or(Owner { uid: metadata.uid, gid: metadata.gid });
        root.chown(path, owner.uid, owner.gid)?;
        Ok(())
    }

    fn stamp_rest(&self, root: &Root, path: &str, metadata: &Metadata) -> Result<()> {
        if !metadata.is_symlink() {
            let mode = self
                .action
                .mode
                .as_ref()
                .map_or(metadata.mode, |m| m.apply(metadata.mode, metadata.is_dir()));
            root.chmod(path, mode)?;
        }
        self.set_times(root, path, metadata)
    }

    fn set_times(&self, root: &Root, path: &str, metadata: &Metadata) -> Result<()> {
        let (atime, mtime) = match self.action.timestamp {
            -1 => (metadata.atime, metadata.mtime),
            timestamp => (nanoseconds(timestamp), nanoseconds(timestamp)),
        };
        root.set_times(path, atime, mtime, true)?;
        Ok(())
    }
}

/// Copies what extended attributes it may; the rest is not an error, as filesystems differ in what they take.
fn copy_xattrs(src: &Root, name: &str, dest: &Root, target: &str) {
    for key in src.list_xattrs(name).unwrap_or_default() {
        if let Ok(Some(value)) = src.get_xattr(name, &key)
            && let Err(error) = dest.set_xattr(target, &key, &value)
        {
            tracing::trace!(name, key = %key.to_string_lossy(), %error, "extended attribute not copied");
        }
    }
}
