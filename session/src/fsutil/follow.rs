//! Resolving the paths of a request through the links of a tree.

use std::collections::{BTreeSet, VecDeque};

use kiln_patterns::{Patterns, clean_absolute};
use kiln_rootdir::{Kind, Root};

use crate::error::{Error, Result};
use crate::fsutil::order::compare_paths;

/// How many links all paths of one request may lead through.
const MAX_LINKS: usize = 65_536;
/// Longer paths are not followed: the kernel would not either.
const MAX_PATH: usize = 4096;

/// Returns the paths themselves, every link they lead through and where these end, relative to `root`, sorted and
/// without those that lie below another one. An empty path is the root.
///
/// Paths are resolved component by component. A component with wildcards stays as it is, and the links among its
/// matches are followed too. What is missing is kept. Absolute and escaping targets start at the root.
pub(crate) fn resolve(root: &Root, paths: &[String]) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    let mut queue: VecDeque<(String, bool)> = paths.iter().map(|path| (clean(path), true)).collect();
    let mut seen = BTreeSet::new();
    let mut links = 0;
    while let Some((path, wildcards)) = queue.pop_front() {
        let mut current = String::new();
        let mut rest = path.split('/').filter(|part| !part.is_empty());
        let mut is_link = false;
        while let Some(component) = rest.next() {
            let parent = current.clone();
            current = join(&parent, component);
            let targets = links_at(root, &parent, component, wildcards)?;
            if targets.is_empty() {
                continue;
            }
            is_link = true;
            found.insert(current.clone());
            let rest = rest.collect::<Vec<_>>().join("/");
            for target in targets {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Error::TooManyLinks);
                }
                let next = clean(&join(&target, &rest));
                // A link that leads through itself grows the path without end.
                if next.len() <= MAX_PATH && seen.insert(next.clone()) {
                    queue.push_back((next, false));
                }
            }
            break;
        }
        if !is_link {
            found.insert(current);
        }
    }
    Ok(without_nested(found))
}

/// Where the link of this name leads; of a pattern, where all matching links do.
fn links_at(root: &Root, parent: &str, component: &str, wildcards: bool) -> Result<Vec<String>> {
    let directory = if parent.is_empty() { "." } else { parent };
    if !wildcards || !component.contains(['*', '?', '[', '\\']) {
        return Ok(target(root, parent, component)?.into_iter().collect());
    }
    let patterns = Patterns::new([component]).map_err(|source| Error::Pattern {
        list: "follow",
        patterns: component.to_owned(),
        source,
    })?;
    let mut targets = Vec::new();
    // A pattern in a directory that is missing, or none, matches nothing.
    for entry in root.read_dir(directory).unwrap_or_default() {
        let Some(name) = entry.name.to_str() else { continue };
        if entry.kind == Kind::Symlink && patterns.matches(name) {
            targets.extend(target(root, parent, name)?);
        }
    }
    Ok(targets)
}

fn target(root: &Root, parent: &str, name: &str) -> Result<Option<String>> {
    let path = join(parent, name);
    match root.stat(&path, false)? {
        Some(found) if found.is_symlink() => {}
        _ => return Ok(None),
    }
    let target = root.read_link(&path)?;
    let Some(target) = target.to_str() else { return Err(Error::NotUtf8 { path }) };
    Ok(Some(if target.starts_with('/') { clean(target) } else { clean(&join(parent, target)) }))
}

fn join(parent: &str, name: &str) -> String {
    match (parent.is_empty(), name.is_empty()) {
        (true, _) => name.to_owned(),
        (_, true) => parent.to_owned(),
        _ => format!("{parent}/{name}"),
    }
}

/// Cleans a path as if it were absolute, and drops the leading `/`.
fn clean(path: &str) -> String {
    clean_absolute(path).split_off(1)
}

fn without_nested(paths: BTreeSet<String>) -> Vec<String> {
    let mut sorted: Vec<String> = paths.into_iter().collect();
    sorted.sort_by(|a, b| compare_paths(a, b));
    let mut kept: Vec<String> = Vec::new();
    for path in sorted {
        let nested = kept.last().is_some_and(|last| {
            path.strip_prefix(last.as_str()).is_some_and(|rest| last.is_empty() || rest.starts_with('/'))
        });
        if !nested {
            kept.push(path);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(paths: &[&str], want: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("dir/sub")).unwrap();
        for file in ["a", "dir/b", "dir/sub/c"] {
            std::fs::write(at(file), file).unwrap();
        }
        for (target, link) in [
            ("dir/b", "link"),
            ("dir/sub", "linkdir"),
            ("../../../a", "dir/out"),
            ("/dir/sub/c", "abs"),
            ("loop2", "loop1"),
            ("loop1", "loop2"),
            ("link", "chain"),
            (".", "self"),
        ] {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        assert_eq!(resolve(&Root::open(dir.path()).unwrap(), &paths).unwrap(), want);
    }

    #[test]
    fn paths() {
        check(&["a"], &["a"]);
        check(&["/a", "./missing/x"], &["a", "missing/x"]);
        check(&["link"], &["dir/b", "link"]);
        check(&["linkdir/c"], &["dir/sub/c", "linkdir"]);
        check(&["chain"], &["chain", "dir/b", "link"]);
        check(&["dir/out"], &["a", "dir/out"]);
        check(&["abs"], &["abs", "dir/sub/c"]);
        check(&["loop1"], &["loop1", "loop2"]);
        check(&["loop1/x"], &["loop1", "loop2"]);
        check(&["l*k"], &["dir/b", "l*k"]);
        check(&["dir", "dir/sub"], &["dir"]);
        check(&["self"], &[""]);
    }
}
