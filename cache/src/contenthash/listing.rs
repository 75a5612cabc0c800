//! Listings: what a content request covered, entry by entry, for telling later in which file two contents differ.
//!
//! A listing is small: past its bound, directories are listed closed, with one sum for everything below them.

mod compare;
mod form;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use kiln_digest::Digest;

use self::form::Listed;
pub(super) use self::form::Listing;
use super::{
    answer::with_root,
    select::select,
    selector::ContentSelector,
    tree::{Entry, Key, Tree, View, os_path, path_of},
};
use crate::{BlobProvider, Error, Ref, Result, manager::blocking};

/// Entries of a listing.
const MAX_LISTED: usize = 1024;
/// Bytes of a listing; with long names it has fewer entries.
const MAX_BYTES: usize = 32 << 10;
/// Bytes of files that are read for a listing because nobody has read them before; further ones are listed without
/// what tells their content.
const MAX_READ: u64 = 4 << 20;

/// Where two listings differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListingChange {
    /// The path, from the root; empty: outside of what is listed.
    pub path: String,
    /// What differs, in a word or two.
    pub what: &'static str,
    /// What it was, if that is short.
    pub was: Option<String>,
    /// What it is.
    pub is: Option<String>,
    /// In how many further places there are differences.
    pub further: usize,
}

impl Ref {
    /// Lists what the selected parts of it are made of, after [`Ref::content_digest`] has been asked for them.
    ///
    /// # Errors
    /// As [`Ref::content_digest`].
    pub async fn listing(
        &self,
        selectors: &[ContentSelector],
        provider: &dyn BlobProvider,
    ) -> Result<Vec<u8>> {
        let mut slot = self.0.checksums.lock().await;
        let (mut tree, received) = self.take_tree(&mut slot).await?;
        let mount = self.mount(provider).await?;
        let wanted = if selectors.is_empty() { vec![ContentSelector::default()] } else { selectors.to_vec() };
        let (listing, tree) = blocking(move || {
            let listing = with_root(&mount, |root, name| {
                let view = View { root, name, received };
                tree.begin(&view)?;
                list(&mut tree, &view, &wanted)
            });
            Ok((listing, tree))
        })
        .await?;
        *slot = Some(tree);
        listing
    }

    /// Says where `now`, the listing of this state, differs from an older one; `None` if no difference is in them.
    ///
    /// # Errors
    /// [`Error::Damaged`](crate::Error) if one is no listing; else as [`Ref::mount`].
    pub async fn listing_change(
        &self,
        then: &[u8],
        now: &[u8],
        provider: &dyn BlobProvider,
    ) -> Result<Option<ListingChange>> {
        let read =
            |bytes| Listing::decode(bytes).ok_or_else(|| Error::damaged(self.id().as_str(), "listing"));
        let Some(found) = compare::first(&read(then)?, &read(now)?) else { return Ok(None) };
        let Some(doubt) = &found.doubt else { return Ok(Some(found.change)) };
        // Mode or owner differ, and the digest covers both and the content: a look at the file tells.
        if doubt.now.size > MAX_READ {
            return Ok(Some(found.change));
        }
        let mount = self.mount(provider).await?;
        let (path, then) = (found.change.path.clone(), doubt.then.clone());
        let same = blocking(move || {
            with_root(&mount, |root, _| compare::content_is_same(root, std::ffi::OsStr::new(&path), &then))
        });
        Ok(Some(found.resolved(same.await?)))
    }
}

fn list(tree: &mut Tree, view: &View<'_>, selectors: &[ContentSelector]) -> Result<Vec<u8>> {
    let mut room = MAX_LISTED;
    loop {
        let mut listing = Listing::default();
        let mut unread = MAX_READ;
        for selector in selectors {
            let share = (room / selectors.len()).max(1);
            add(&mut listing, tree, view, selector, share, &mut unread)?;
        }
        let bytes = listing.encode();
        if bytes.len() <= MAX_BYTES || room <= 1 {
            return Ok(if bytes.len() <= MAX_BYTES { bytes } else { Listing::default().encode() });
        }
        room /= 2;
    }
}

/// Adds what one selector covers.
fn add(
    listing: &mut Listing,
    tree: &mut Tree,
    view: &View<'_>,
    selector: &ContentSelector,
    room: usize,
    unread: &mut u64,
) -> Result<()> {
    let path = kiln_patterns::clean(&format!("/{}", selector.path));
    if !selector.wildcard && selector.include.is_empty() && selector.exclude.is_empty() {
        return match tree.resolve(Some(view), &path, selector.follow_links)? {
            Some(top) => add_whole(listing, tree, view, top, room, unread),
            None => Ok(()),
        };
    }
    let (_, items) = select(tree, Some(view), &path, selector)?;
    // All that is below a directory goes into its sum, listed or not.
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    let mut above: Vec<&str> = Vec::new();
    let mut marks = Vec::with_capacity(items.len());
    for item in &items {
        while above.last().is_some_and(|dir| !is_below(&item.path, dir)) {
            above.pop();
        }
        let mark = known_mark(tree, view, &item.key, unread)?;
        for dir in &above {
            let sum = sums.entry(dir).or_default();
            *sum = mixed(*sum, &item.path, mark);
        }
        if matches!(tree.entries.get(&item.key), Some(Entry::Dir { .. })) {
            sums.entry(&item.path).or_default();
            above.push(&item.path);
        }
        marks.push(mark);
    }
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&index| items.get(index).map_or(0, |item| item.path.matches('/').count()));
    let (listed, left_out) = order.split_at(order.len().min(room));
    for index in listed {
        let (Some(item), Some(mark)) = (items.get(*index), marks.get(*index)) else { continue };
        let mut entry = looked_at(view, &item.key, *mark)?;
        entry.sum = sums.get(item.path.as_str()).copied();
        entry.open = entry.sum.is_some();
        listing.entries.insert(item.path.clone(), entry);
    }
    for index in left_out {
        let (Some(item), Some(mark)) = (items.get(*index), marks.get(*index)) else { continue };
        let dirs = item.path.match_indices('/').filter_map(|(at, _)| item.path.get(..at));
        match dirs.rev().find(|dir| listing.entries.contains_key(*dir)).map(str::to_owned) {
            Some(dir) => {
                listing.entries.entry(dir).and_modify(|dir| dir.open = false);
            }
            None => listing.rest = mixed(listing.rest, &item.path, *mark),
        }
    }
    Ok(())
}

/// Adds an entry with everything below it, nearest first, as far as there is room.
fn add_whole(
    listing: &mut Listing,
    tree: &mut Tree,
    view: &View<'_>,
    top: Key,
    room: usize,
    unread: &mut u64,
) -> Result<()> {
    let mut planned = 1;
    let mut todo = VecDeque::from([top]);
    while let Some(key) = todo.pop_front() {
        let mark = known_mark(tree, view, &key, unread)?;
        let mut entry = looked_at(view, &key, mark)?;
        if let Some(Entry::Dir { contents, .. }) = tree.entries.get(&key) {
            entry.sum = contents.as_ref().map(mark_of);
            let children = tree.listed_children(view, &key)?;
            if planned + children.len() <= room {
                planned += children.len();
                todo.extend(children);
                entry.open = true;
            }
        }
        let path = path_of(&key);
        let shown = if path.is_empty() { "/".into() } else { String::from_utf8_lossy(&path) };
        listing.entries.insert(shown.into_owned(), entry);
    }
    Ok(())
}

/// What stands for an entry by itself, if that can be had cheaply.
fn known_mark(tree: &mut Tree, view: &View<'_>, key: &[u8], unread: &mut u64) -> Result<Option<u64>> {
    if matches!(tree.entries.get(key), Some(Entry::File { digest: None })) {
        let size =
            view.root.stat(os_path(key), false).map_err(super::tree::io)?.map_or(0, |found| found.size);
        match unread.checked_sub(size) {
            Some(left) => *unread = left,
            None => return Ok(None),
        }
    }
    Ok(Some(mark_of(&tree.own_digest(Some(view), key)?)))
}

fn looked_at(view: &View<'_>, key: &[u8], mark: Option<u64>) -> Result<Listed> {
    let found = view.root.stat(os_path(key), false).map_err(super::tree::io)?;
    Ok(Listed::new(found.as_ref(), mark))
}

fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

fn mark_of(digest: &Digest) -> u64 {
    u64::from_le_bytes(digest.as_bytes().first_chunk().copied().unwrap_or_default())
}

/// A sum that depends on the order, as sums of one walk do. Nobody has to trust it.
fn mixed(sum: u64, path: &str, mark: Option<u64>) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let path = path.bytes().fold(sum, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(PRIME));
    (path ^ mark.unwrap_or_default()).wrapping_mul(PRIME)
}
