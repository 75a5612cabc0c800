//! Where two listings differ.

use std::{
    collections::{BTreeSet, HashSet},
    ffi::OsStr,
    io::Read,
};

use kiln_rootdir::{OpenOptions, Root};

use super::{Listed, Listing, ListingChange, mark_of};
use crate::{Error, Result, contenthash::ContentHeader};

const DIR: u64 = 1;
const SYMLINK: u64 = 2;

/// A difference, and whether it is one of metadata alone.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) change: ListingChange,
    /// Both sides, where only the file tells whether its content is the same.
    pub(super) doubt: Option<Doubt>,
}

#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) then: Listed,
    pub(super) now: Listed,
}

impl Found {
    /// Settles the doubt.
    pub(super) fn resolved(mut self, same_content: bool) -> ListingChange {
        if !same_content && let Some(doubt) = &self.doubt {
            self.change.what =
                if doubt.then.mode != doubt.now.mode { "content and mode" } else { "content and owner" };
        }
        self.change
    }
}

/// The first difference in the order of paths, one that is known exactly rather than one somewhere below a directory.
pub(super) fn first(then: &Listing, now: &Listing) -> Option<Found> {
    let mut all = Vec::new();
    // What is below these is told with them.
    let mut done: HashSet<&str> = HashSet::new();
    let paths: BTreeSet<&str> = then.entries.keys().chain(now.entries.keys()).map(String::as_str).collect();
    for path in paths {
        if ancestors(path).any(|above| done.contains(above)) {
            continue;
        }
        match (then.entries.get(path), now.entries.get(path)) {
            (Some(old), Some(new)) => {
                if old.kind != new.kind {
                    done.insert(path);
                    all.push(plain(path, "type"));
                    continue;
                }
                if let (Some(a), Some(b)) = (old.mark, new.mark)
                    && a != b
                {
                    all.push(changed(path, old, new));
                }
                if old.kind == DIR && !(old.open && new.open) {
                    done.insert(path);
                    if let (Some(a), Some(b)) = (old.sum, new.sum)
                        && a != b
                    {
                        all.push(plain(path, "something below it"));
                    }
                }
            }
            (Some(_), None) => {
                done.insert(path);
                all.push(plain(path, "removed"));
            }
            (None, Some(_)) => {
                done.insert(path);
                all.push(plain(path, "added"));
            }
            (None, None) => {}
        }
    }
    if all.is_empty() && then.rest != now.rest {
        all.push(plain("", "something past the files that are listed"));
    }
    // A sum covers the directory itself as well, so that it may differ for no other reason than the mode.
    let own: HashSet<String> = all.iter().filter(|f| !f.is_vague()).map(|f| f.change.path.clone()).collect();
    all.retain(|found| !found.is_vague() || !own.contains(&found.change.path));
    let further = all.len().saturating_sub(1);
    let exact = all.iter().position(|found| !found.is_vague()).unwrap_or(0);
    let mut found = (exact < all.len()).then(|| all.swap_remove(exact))?;
    found.change.further = further;
    Some(found)
}

impl Found {
    fn is_vague(&self) -> bool {
        self.change.what.starts_with("something")
    }
}

/// The directories above a path, the root among them.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let below = path.match_indices('/').filter(|(at, _)| *at > 0).filter_map(|(at, _)| path.get(..at));
    below.chain((path != "/").then_some("/"))
}

fn plain(path: &str, what: &'static str) -> Found {
    let change = ListingChange { path: path.to_owned(), what, was: None, is: None, further: 0 };
    Found { change, doubt: None }
}

fn changed(path: &str, old: &Listed, new: &Listed) -> Found {
    let (mode, owner) = (old.mode != new.mode, (old.uid, old.gid) != (new.uid, new.gid));
    let mut found = plain(path, "content");
    let modes = |entry: &Listed| Some(format!("{:04o}", entry.mode));
    let owners = |entry: &Listed| Some(format!("{}:{}", entry.uid, entry.gid));
    if mode && old.kind != SYMLINK {
        found.change.what = "mode";
        (found.change.was, found.change.is) = (modes(old), modes(new));
    } else if owner {
        found.change.what = "owner";
        (found.change.was, found.change.is) = (owners(old), owners(new));
    } else if old.kind == SYMLINK {
        found.change.what = "target of the link";
    } else if old.kind != 0 {
        found.change.what = "attributes";
    }
    if old.kind == 0 && found.change.what != "content" {
        if old.size == new.size {
            found.doubt = Some(Doubt { then: old.clone(), now: new.clone() });
        } else {
            found.change.what = if mode { "content and mode" } else { "content and owner" };
        }
    }
    found
}

/// Whether a file would have its old checksum if its mode and owner were the old ones.
pub(super) fn content_is_same(root: &Root, path: &OsStr, then: &Listed) -> Result<bool> {
    let io = super::super::tree::io;
    let inside =
        std::path::Path::new(path).strip_prefix("/").unwrap_or(std::path::Path::new(path)).as_os_str();
    let Some(metadata) = root.stat(inside, false).map_err(io)? else { return Ok(false) };
    let mut header = ContentHeader::read(root, inside, &metadata, false)?;
    (header.mode, header.uid, header.gid) = (then.mode, then.uid, then.gid);
    let mut hasher = header.hasher();
    let mut file = root.open_file(inside, &OpenOptions::read().follow_last(false)).map_err(io)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer).map_err(Error::io("compare a file"))? {
            0 => break,
            count => hasher.update(buffer.get(..count).unwrap_or_default()),
        }
    }
    Ok(then.mark == Some(mark_of(&hasher.finish())))
}
