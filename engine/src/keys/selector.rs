//! Parts of an input whose content matters.

use std::collections::BTreeSet;

/// One part of an input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContentSelector {
    /// Path in the input, as the op gives it.
    pub path: String,
    /// The path has wildcards.
    pub wildcard: bool,
    /// The last component is followed if it is a link.
    pub follow_links: bool,
    /// Only these below the path.
    pub include_patterns: Vec<String>,
    /// Not these below the path.
    pub exclude_patterns: Vec<String>,
    /// These must exist.
    pub required_paths: Vec<String>,
}

impl ContentSelector {
    fn is_plain(&self) -> bool {
        !self.wildcard && self.include_patterns.is_empty() && self.exclude_patterns.is_empty()
    }
}

/// Drops paths below others and duplicates, and sorts the rest. A single path stays as it is.
pub(super) fn without_children(paths: Vec<String>) -> Vec<String> {
    if paths.len() <= 1 {
        return paths;
    }
    let all: BTreeSet<String> = paths.into_iter().collect();
    let is_below = |path: &str| {
        // Every prefix that ends before or after a slash could be a parent.
        path.match_indices('/').any(|(at, _)| {
            let (with, without) = (path.get(..=at), path.get(..at));
            [with, without].into_iter().flatten().any(|parent| parent != path && all.contains(parent))
        })
    };
    all.iter().filter(|path| !is_below(path)).cloned().collect()
}

/// Merges the selectors of one input: plain ones without children of others, then those with filters, all
/// sorted by path.
pub(super) fn merged(selectors: Vec<ContentSelector>) -> Vec<ContentSelector> {
    let (plain, filtered): (Vec<_>, Vec<_>) = selectors.into_iter().partition(ContentSelector::is_plain);
    let paths = |follow: bool| {
        let wanted = plain.iter().filter(|s| s.follow_links == follow).map(|s| s.path.clone());
        without_children(wanted.collect()).into_iter().map(move |path| ContentSelector {
            path,
            follow_links: follow,
            ..ContentSelector::default()
        })
    };
    let mut merged: Vec<ContentSelector> = paths(false).chain(paths(true)).collect();
    merged.extend(filtered);
    merged.sort_by(|a, b| a.path.cmp(&b.path));
    merged
}
