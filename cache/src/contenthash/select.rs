//! One selector's digest.

use kiln_digest::{Digest, Hasher};
use kiln_patterns::{MatchState, Patterns, has_wildcard};

use super::{
    selector::ContentSelector,
    tree::{Entry, Key, Tree, View, key_of, not_found, path_of},
    wildcard::path_match,
};
use crate::{Error, Result};

/// One entry that a selector with patterns takes.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) path: String,
    pub(super) key: Key,
    /// It is what the path or wildcard itself matched, not something below.
    top: bool,
}

/// A directory above the entry at hand.
#[derive(Debug)]
struct Above {
    item: Option<Item>,
    path: String,
    include: Option<MatchState>,
    exclude: Option<MatchState>,
}

pub(super) fn digest(tree: &mut Tree, view: Option<&View<'_>>, selector: &ContentSelector) -> Result<Digest> {
    let path = kiln_patterns::clean(&format!("/{}", selector.path));
    if !selector.wildcard && selector.include.is_empty() && selector.exclude.is_empty() {
        return plain(tree, view, &path, selector.follow_links);
    }
    let (prefix, items) = select(tree, view, &path, selector)?;
    for required in &selector.required {
        if !items.iter().any(|item| item.path.starts_with(required.as_str())) {
            return Err(not_found(required));
        }
    }
    let mut digests = Vec::with_capacity(items.len());
    for item in &items {
        let link = matches!(tree.entries.get(&item.key), Some(Entry::Symlink { .. }));
        digests.push(if link && item.top && selector.wildcard && selector.follow_links {
            plain(tree, view, &item.path, true)?
        } else {
            tree.own_digest(view, &item.key)?
        });
    }
    if let ([item], [digest]) = (items.as_slice(), digests.as_slice())
        && base(&item.path) == base(&path)
    {
        return Ok(*digest);
    }
    let mut hasher = Hasher::new();
    for (item, digest) in items.iter().zip(digests) {
        let rest = item.path.strip_prefix(&prefix).unwrap_or(&item.path);
        let key = if rest.is_empty() { "\0".to_owned() } else { rest.replace('/', "\0") };
        hasher.update(key.as_bytes());
        hasher.update(digest.to_string().as_bytes());
    }
    Ok(hasher.finish())
}

fn plain(tree: &mut Tree, view: Option<&View<'_>>, path: &str, follow: bool) -> Result<Digest> {
    let key = tree.resolve(view, path, follow)?.ok_or_else(|| not_found(path))?;
    tree.digest(view, &key)
}

fn base(path: &str) -> &str {
    match path.rsplit('/').next() {
        Some("") | None => "/",
        Some(name) => name,
    }
}

/// What the path, wildcard and patterns take, in the order of a walk, and the prefix that is not part of their names.
pub(super) fn select(
    tree: &mut Tree,
    view: Option<&View<'_>>,
    path: &str,
    selector: &ContentSelector,
) -> Result<(String, Vec<Item>)> {
    let patterns = |list: &[String]| {
        Patterns::new(list)
            .map_err(|error| Error::Filter { filter: list.join(","), reason: error.to_string() })
    };
    let (include, exclude) = (patterns(&selector.include)?, patterns(&selector.exclude)?);
    let whole = path.trim_end_matches('/');
    let (prefix, follow) = if selector.wildcard { split(whole) } else { (whole.to_owned(), false) };
    let Some(start) = tree.resolve(view, if prefix.is_empty() { "/" } else { &prefix }, follow)? else {
        return Ok((prefix, Vec::new()));
    };
    let mut items = Vec::new();
    let mut above: Vec<Above> = Vec::new();
    let mut matched: Option<String> = None;
    for key in tree.below(view, &start)? {
        let real = path_of(key.get(start.len()..).unwrap_or_default());
        let name = format!("{prefix}{}", String::from_utf8_lossy(&real));
        let is_dir = matches!(tree.entries.get(&key), Some(Entry::Dir { .. }));
        while above.last().is_some_and(|dir| !name.starts_with(&format!("{}/", dir.path))) {
            above.pop();
        }
        let below_match = |top: &str| name.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'));
        let top = if !selector.wildcard {
            whole.to_owned()
        } else {
            match matched.take().filter(|top| below_match(top)) {
                Some(top) => top,
                None => {
                    let hit = path_match(whole, &name)
                        .map_err(|_malformed| Error::ContentPath("syntax error in pattern".into()))?;
                    if !hit {
                        continue;
                    }
                    name.clone()
                }
            }
        };
        if selector.wildcard {
            matched = Some(top.clone());
        }
        if name.is_empty() {
            // The root has no header of its own here.
            continue;
        }
        let candidate = name.strip_prefix(&top).unwrap_or(&name).trim_start_matches('/');
        let (mut included, mut include_state, mut exclude_state) = (true, None, None);
        if !selector.include.is_empty() {
            let parent = above.last().and_then(|dir| dir.include.as_ref());
            let (hit, state) = include.matches_with_parents(candidate, parent);
            (included, include_state) = (hit, Some(state));
        }
        if included && !selector.exclude.is_empty() {
            let parent = above.last().and_then(|dir| dir.exclude.as_ref());
            let (hit, state) = exclude.matches_with_parents(candidate, parent);
            (included, exclude_state) = (!hit, Some(state));
        }
        let item = Item { top: name == top, path: name.clone(), key };
        let mut waiting = Some(item);
        if included {
            items.extend(above.iter_mut().filter_map(|dir| dir.item.take()));
            items.extend(waiting.take());
        }
        if is_dir {
            above.push(Above { item: waiting, path: name, include: include_state, exclude: exclude_state });
        }
    }
    Ok((prefix, items))
}

/// The components before the first one with a wildcard, and whether a link at their end is followed.
fn split(path: &str) -> (String, bool) {
    let mut prefix = String::new();
    for part in path.split('/').skip(1) {
        if has_wildcard(part) {
            return (prefix, true);
        }
        prefix.push('/');
        prefix.push_str(part);
    }
    (prefix, false)
}

/// The key under which an answer to several selectors is kept.
pub(super) fn request(selectors: &[ContentSelector]) -> Vec<u8> {
    let mut request = Hasher::new();
    let mut text = |text: &str| {
        request.update(&(text.len() as u64).to_le_bytes());
        request.update(text.as_bytes());
    };
    for selector in selectors {
        text(&selector.path);
        text(if selector.wildcard { "wildcard" } else { "" });
        text(if selector.follow_links { "follow" } else { "" });
        for list in [&selector.include, &selector.exclude, &selector.required] {
            text(&list.len().to_string());
            list.iter().for_each(|entry| text(entry));
        }
    }
    request.finish().as_bytes().to_vec()
}

/// The slow key of several selectors: their digests as texts joined by NUL, hashed. None is the whole tree.
pub(super) fn combined(
    tree: &mut Tree,
    view: Option<&View<'_>>,
    selectors: &[ContentSelector],
) -> Result<Digest> {
    let whole = [ContentSelector::default()];
    let selectors = if selectors.is_empty() { &whole } else { selectors };
    let mut texts = Vec::with_capacity(selectors.len());
    for selector in selectors {
        texts.push(digest(tree, view, selector)?.to_string());
    }
    Ok(Digest::of(texts.join("\0")))
}

/// The slow key of an empty state.
pub(super) fn of_nothing(selectors: &[ContentSelector]) -> Result<Digest> {
    let whole = [ContentSelector::default()];
    let selectors = if selectors.is_empty() { &whole } else { selectors };
    let mut texts = Vec::with_capacity(selectors.len());
    for selector in selectors {
        let path = kiln_patterns::clean(&format!("/{}", selector.path));
        if !key_of(&path).is_empty() {
            return Err(Error::ContentPath(format!("{}: no such file or directory", selector.path)));
        }
        texts.push(Digest::of("").to_string());
    }
    Ok(Digest::of(texts.join("\0")))
}
