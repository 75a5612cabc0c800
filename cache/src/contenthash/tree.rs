//! What is known of a tree: entries, their digests, and how the missing ones are computed.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    io::Read,
    ops::Bound,
    os::unix::ffi::OsStrExt,
};

use kiln_digest::{Digest, Hasher};
use kiln_rootdir::{Kind, OpenOptions, Root};

use super::header::ContentHeader;
use crate::{Error, Result};

/// Links that one path may go through.
const MAX_LINKS: usize = 255;
/// Entries of one tree. Beyond this it is taken for hostile.
const MAX_ENTRIES: usize = 20_000_000;

/// A path with a NUL before every component: `` is the root, `\0a\0b` is `/a/b`. In this form the order of bytes is
/// the order of a walk: parents first, then component by component.
pub(super) type Key = Vec<u8>;

/// One entry. Digests are computed when they are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    File {
        digest: Option<Digest>,
    },
    Symlink {
        digest: Digest,
        target: Vec<u8>,
    },
    Dir {
        header: Digest,
        /// Header and everything below.
        contents: Option<Digest>,
        /// Its entries are in the tree.
        listed: bool,
    },
}

/// The tree of one record as far as it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub(super) entries: BTreeMap<Key, Entry>,
    /// Digests of files with several names.
    inodes: HashMap<(u64, u64), Digest>,
    /// Keys whose stored form is out of date.
    pub(super) stale: std::collections::BTreeSet<Key>,
}

/// A mounted view that fills a tree.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) root: &'a Root,
    /// How the root is called in messages.
    pub(super) name: &'a str,
    /// Digests as for a received context: the root has no header, devices have numbers.
    pub(super) received: bool,
}

pub(super) fn io(error: kiln_rootdir::Error) -> Error {
    Error::io("compute content checksum")(error.into())
}

fn path_error(text: impl Into<String>) -> Error {
    Error::ContentPath(text.into())
}

pub(super) fn not_found(path: &str) -> Error {
    path_error(format!("{path:?}: not found"))
}

/// The key of a cleaned absolute path.
pub(super) fn key_of(path: &str) -> Key {
    path.split('/')
        .filter(|part| !part.is_empty())
        .fold(Key::new(), |key, part| child_key(&key, part.as_bytes()))
}

fn child_key(parent: &[u8], name: &[u8]) -> Key {
    [parent, b"\0", name].concat()
}

/// The path of a key; the root is empty.
pub(super) fn path_of(key: &[u8]) -> Vec<u8> {
    key.iter().map(|&byte| if byte == 0 { b'/' } else { byte }).collect()
}

pub(super) fn os_path(key: &[u8]) -> std::ffi::OsString {
    let path = path_of(key);
    let path = path.strip_prefix(b"/").unwrap_or(&path);
    OsStr::from_bytes(if path.is_empty() { b"." } else { path }).to_owned()
}

impl Tree {
    /// The root of a tree of which every entry is told. Nothing is ever told of the root itself.
    pub(super) fn begin_received(&mut self) {
        // An empty context may have been looked at before, and then has the header of its directory.
        if self.entries.len() <= 1 {
            self.put(Key::new(), Entry::Dir { header: Digest::of(""), contents: None, listed: true });
        }
    }

    /// Whether every entry is in it.
    pub(super) fn is_complete(&self) -> bool {
        self.entries.values().all(|entry| !matches!(entry, Entry::Dir { listed: false, .. }))
            && !self.entries.is_empty()
    }

    pub(super) fn put(&mut self, key: Key, entry: Entry) {
        self.stale.insert(key.clone());
        self.entries.insert(key, entry);
    }

    /// Makes sure that the root is there.
    pub(super) fn begin(&mut self, view: &View<'_>) -> Result<()> {
        if self.entries.contains_key(&Key::new()) {
            return Ok(());
        }
        let dot = OsStr::new(".");
        // Of an empty context nothing was ever told, so it is looked at like any other tree.
        let header = if view.received && !view.root.read_dir(dot).map_err(io)?.is_empty() {
            Digest::of("")
        } else {
            let metadata = view.root.stat(dot, false).map_err(io)?.ok_or_else(|| not_found("/"))?;
            ContentHeader::read(view.root, dot, &metadata, false)?.digest()
        };
        self.put(Key::new(), Entry::Dir { header, contents: None, listed: false });
        Ok(())
    }

    /// Reads the entries of a directory, unless they are known.
    fn list(&mut self, view: Option<&View<'_>>, key: &[u8]) -> Result<()> {
        match self.entries.get_mut(key) {
            Some(Entry::Dir { listed: false, .. }) => {}
            _ => return Ok(()),
        }
        let Some(view) = view else { return Ok(()) };
        let path = os_path(key);
        for (name, metadata) in view.root.read_dir_stat(&path).map_err(io)? {
            // A deletion that shows where one layer is seen alone.
            if metadata.kind == Kind::CharDevice && metadata.rdev == (0, 0) {
                continue;
            }
            let child = child_key(key, name.as_bytes());
            let child_path = os_path(&child);
            let entry = match metadata.kind {
                Kind::File => Entry::File { digest: None },
                Kind::Dir => {
                    let header =
                        ContentHeader::read(view.root, &child_path, &metadata, view.received)?.digest();
                    Entry::Dir { header, contents: None, listed: false }
                }
                Kind::Symlink => {
                    let header = ContentHeader::read(view.root, &child_path, &metadata, view.received)?;
                    Entry::Symlink { digest: header.digest(), target: header.link }
                }
                _ => {
                    let header = ContentHeader::read(view.root, &child_path, &metadata, view.received)?;
                    Entry::File { digest: Some(header.digest()) }
                }
            };
            self.put(child, entry);
            if self.entries.len() > MAX_ENTRIES {
                return Err(Error::Unsupported(format!("a tree of more than {MAX_ENTRIES} entries")));
            }
        }
        if let Some(Entry::Dir { listed, .. }) = self.entries.get_mut(key) {
            *listed = true;
        }
        self.stale.insert(key.to_vec());
        Ok(())
    }

    /// Looks at one entry by its real path.
    pub(super) fn get(&mut self, view: Option<&View<'_>>, key: &[u8]) -> Result<Option<&Entry>> {
        if !self.entries.contains_key(key) && !key.is_empty() {
            let parent = key.iter().rposition(|&byte| byte == 0).map_or(&[][..], |at| &key[..at]);
            self.list(view, parent)?;
        }
        Ok(self.entries.get(key))
    }

    /// Where a cleaned absolute path leads, links resolved inside the root. `Ok(None)`: nowhere.
    pub(super) fn resolve(
        &mut self,
        view: Option<&View<'_>>,
        path: &str,
        follow_last: bool,
    ) -> Result<Option<Key>> {
        let mut rest: Vec<Vec<u8>> = parts(path.as_bytes());
        let (mut key, mut links) = (Key::new(), 0);
        while let Some(part) = rest.pop() {
            match part.as_slice() {
                b"." => continue,
                b".." => {
                    key.truncate(key.iter().rposition(|&byte| byte == 0).unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let next = child_key(&key, &part);
            match self.get(view, &next)? {
                None => {
                    if let Some(view) = view
                        && matches!(self.entries.get(&key), Some(Entry::File { .. }))
                    {
                        return Err(path_error(format!("lstat {}/{path}: not a directory", view.name)));
                    }
                    return Ok(None);
                }
                Some(Entry::Symlink { target, .. }) if follow_last || !rest.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(path_error("too many links"));
                    }
                    if target.starts_with(b"/") {
                        key.clear();
                    }
                    rest.extend(parts(target));
                }
                Some(_) => key = next,
            }
        }
        Ok(Some(key))
    }

    /// The digest of a whole entry: a directory with everything below, anything else by itself.
    pub(super) fn digest(&mut self, view: Option<&View<'_>>, key: &[u8]) -> Result<Digest> {
        match self.entries.get(key) {
            Some(Entry::Dir { contents: Some(contents), .. }) => Ok(*contents),
            Some(Entry::Dir { .. }) => self.sum_dirs(view, key),
            _ => self.own_digest(view, key),
        }
    }

    /// The digest of an entry by itself: a directory's header.
    pub(super) fn own_digest(&mut self, view: Option<&View<'_>>, key: &[u8]) -> Result<Digest> {
        match self.entries.get(key) {
            Some(Entry::Dir { header, .. }) => Ok(*header),
            Some(Entry::Symlink { digest, .. } | Entry::File { digest: Some(digest) }) => Ok(*digest),
            Some(Entry::File { digest: None }) => {
                let view = view.ok_or_else(|| not_found(&String::from_utf8_lossy(&path_of(key))))?;
                let digest = self.read_file(view, key)?;
                self.put(key.to_vec(), Entry::File { digest: Some(digest) });
                Ok(digest)
            }
            None => Err(not_found(&String::from_utf8_lossy(&path_of(key)))),
        }
    }

    fn read_file(&mut self, view: &View<'_>, key: &[u8]) -> Result<Digest> {
        let path = os_path(key);
        let metadata = view
            .root
            .stat(&path, false)
            .map_err(io)?
            .ok_or_else(|| not_found(&String::from_utf8_lossy(&path_of(key))))?;
        let inode = (metadata.dev, metadata.ino);
        if metadata.nlink > 1
            && let Some(digest) = self.inodes.get(&inode)
        {
            return Ok(*digest);
        }
        let mut hasher = ContentHeader::read(view.root, &path, &metadata, view.received)?.hasher();
        let mut file = view.root.open_file(&path, &OpenOptions::read().follow_last(false)).map_err(io)?;
        let mut buffer = vec![0; usize::try_from(metadata.size.clamp(4096, 128 * 1024)).unwrap_or(4096)];
        loop {
            match file.read(&mut buffer).map_err(Error::io("compute content checksum"))? {
                0 => break,
                count => hasher.update(buffer.get(..count).unwrap_or_default()),
            }
        }
        let digest = hasher.finish();
        if metadata.nlink > 1 {
            self.inodes.insert(inode, digest);
        }
        Ok(digest)
    }

    /// Computes the digest of a directory and of all below that have none, without recursion: a tree may be deep.
    fn sum_dirs(&mut self, view: Option<&View<'_>>, top: &[u8]) -> Result<Digest> {
        let mut unlisted = vec![top.to_vec()];
        let mut unsummed = Vec::new();
        while let Some(dir) = unlisted.pop() {
            self.list(view, &dir)?;
            let children = self.children(&dir);
            unlisted.extend(
                children.into_iter().filter(|child| {
                    matches!(self.entries.get(child), Some(Entry::Dir { contents: None, .. }))
                }),
            );
            unsummed.push(dir);
        }
        unsummed.sort_unstable();
        let mut sum = Digest::of("");
        // Backwards, what is below comes before what is above.
        while let Some(dir) = unsummed.pop() {
            let mut hasher = Hasher::new();
            hasher.update(b"\0");
            hasher.update(self.own_digest(view, &dir)?.to_string().as_bytes());
            for child in self.children(&dir) {
                let digest = match self.entries.get(&child) {
                    Some(Entry::Dir { contents: Some(contents), .. }) => *contents,
                    _ => self.own_digest(view, &child)?,
                };
                // The key of a child ends in NUL and name.
                hasher.update(child.get(dir.len()..).unwrap_or_default());
                hasher.update(digest.to_string().as_bytes());
            }
            sum = hasher.finish();
            if let Some(Entry::Dir { contents, .. }) = self.entries.get_mut(&dir) {
                *contents = Some(sum);
            }
            self.stale.insert(dir);
        }
        Ok(sum)
    }

    /// Keys directly below a directory, in order.
    pub(super) fn children(&self, dir: &[u8]) -> Vec<Key> {
        let mut found = Vec::new();
        let prefix = child_key(dir, b"");
        let mut from = prefix.clone();
        while let Some((key, _)) = self.entries.range((Bound::Included(from), Bound::Unbounded)).next() {
            if !key.starts_with(&prefix) {
                break;
            }
            found.push(key.clone());
            // Over everything below this one: those keys go on with a NUL.
            from = [key.as_slice(), b"\x01"].concat();
        }
        found
    }

    /// Keys directly below a directory, which is listed first.
    pub(super) fn listed_children(&mut self, view: &View<'_>, dir: &[u8]) -> Result<Vec<Key>> {
        self.list(Some(view), dir)?;
        Ok(self.children(dir))
    }

    /// The known keys of an entry and everything below it, in order, listed first when a view is there.
    pub(super) fn below(&mut self, view: Option<&View<'_>>, top: &[u8]) -> Result<Vec<Key>> {
        let mut found = Vec::new();
        let mut todo = vec![top.to_vec()];
        while let Some(key) = todo.pop() {
            if matches!(self.entries.get(&key), Some(Entry::Dir { .. })) {
                self.list(view, &key)?;
                todo.extend(self.children(&key).into_iter().rev());
            }
            if self.entries.contains_key(&key) {
                found.push(key);
            }
        }
        Ok(found)
    }

    /// Removes an entry with everything below it.
    pub(super) fn remove(&mut self, key: &[u8]) {
        let below = child_key(key, b"");
        let gone: Vec<Key> = self
            .entries
            .range((Bound::Included(key.to_vec()), Bound::Unbounded))
            .map(|(known, _)| known)
            .take_while(|known| known.as_slice() == key || known.starts_with(&below))
            .cloned()
            .collect();
        // No sibling lies between `a` and what is below it: NUL sorts before every other byte.
        for known in gone {
            self.entries.remove(&known);
            self.stale.insert(known);
        }
    }

    /// Forgets the sums of all directories above a key.
    pub(super) fn touch(&mut self, key: &[u8]) {
        let mut end = key.len();
        loop {
            let above = &key[..end];
            if let Some(Entry::Dir { contents, .. }) = self.entries.get_mut(above)
                && contents.take().is_some()
            {
                self.stale.insert(above.to_vec());
            }
            if end == 0 {
                return;
            }
            end = above.iter().rposition(|&byte| byte == 0).unwrap_or(0);
        }
    }
}

/// The components of a path, last first.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&byte| byte == b'/').rev().filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect()
}
