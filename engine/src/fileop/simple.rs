use kiln_rootdir::{OpenOptions, Root};

use super::{FileError, Owner, Result, apply_timestamp, clean};

/// Makes a directory.
#[derive(Clone, Debug)]
pub struct MkdirAction {
    /// Where.
    pub path: String,
    /// Permission bits; only the low nine count.
    pub mode: u32,
    /// Make missing parents too.
    pub make_parents: bool,
    /// Owner; `None` is 0:0.
    pub owner: Option<Owner>,
    /// Nanoseconds since 1970, or -1.
    pub timestamp: i64,
}

/// Writes a file.
#[derive(Clone, Debug)]
pub struct MkfileAction {
    /// Where.
    pub path: String,
    /// Permission bits of a new file.
    pub mode: u32,
    /// The content.
    pub data: Vec<u8>,
    /// Owner; `None` is 0:0.
    pub owner: Option<Owner>,
    /// Nanoseconds since 1970, or -1.
    pub timestamp: i64,
}

/// Makes a symbolic link.
#[derive(Clone, Debug)]
pub struct SymlinkAction {
    /// The text of the link.
    pub target: String,
    /// Where.
    pub path: String,
    /// Owner; `None` is 0:0.
    pub owner: Option<Owner>,
    /// Nanoseconds since 1970, or -1.
    pub timestamp: i64,
}

/// Removes a path and all below it.
#[derive(Clone, Debug)]
pub struct RmAction {
    /// What, or a pattern.
    pub path: String,
    /// A missing path is no error.
    pub allow_not_found: bool,
    /// `path` may have wildcards.
    pub allow_wildcard: bool,
}

/// Makes a directory. An existing one without `make_parents` is left as it is.
pub fn mkdir(root: &Root, action: &MkdirAction) -> Result<()> {
    let path = clean(&action.path);
    let mode = action.mode & 0o777;
    let created = if action.make_parents {
        root.mkdir_all(&path, mode)?
    } else {
        if root.stat(&path, true)?.is_some() {
            return Ok(());
        }
        let path = root.resolve(&path, false)?;
        root.mkdir(&path, mode)?;
        vec![path]
    };
    for path in created.iter().rev() {
        let path = path.to_string_lossy();
        if let Some(owner) = action.owner {
            root.chown(path.as_ref(), owner.uid, owner.gid)?;
        }
        apply_timestamp(root, &path, action.timestamp)?;
    }
    Ok(())
}

/// Creates or truncates a file; an existing one keeps its mode, a link at the end is followed inside the state.
pub fn mkfile(root: &Root, action: &MkfileAction) -> Result<()> {
    use std::io::Write as _;
    let path = root.resolve(clean(&action.path), true)?;
    let mut file = root.open_file(&path, &OpenOptions::overwrite(action.mode & 0o777))?;
    file.write_all(&action.data)
        .map_err(|source| FileError::Content { path: path.display().to_string(), source })?;
    drop(file);
    let path = path.to_string_lossy();
    if let Some(owner) = action.owner {
        root.chown(path.as_ref(), owner.uid, owner.gid)?;
    }
    apply_timestamp(root, &path, action.timestamp)
}

/// Makes a symbolic link; a link that is in the way is followed first, and what it leads to must not exist.
pub fn symlink(root: &Root, action: &SymlinkAction) -> Result<()> {
    let path = root.resolve(clean(&action.path), true)?;
    root.symlink(&action.target, &path)?;
    let path = path.to_string_lossy();
    if let Some(owner) = action.owner {
        root.chown(path.as_ref(), owner.uid, owner.gid)?;
    }
    apply_timestamp(root, &path, action.timestamp)
}

/// Removes. The last component of a path is not followed.
pub fn rm(root: &Root, action: &RmAction) -> Result<()> {
    let path = clean(&action.path);
    if path == "/" {
        return Err(FileError::EmptyPath);
    }
    if !action.allow_wildcard {
        return remove(root, &path, action.allow_not_found);
    }
    let pattern: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let mut matches = Vec::new();
    walk_matches(root, &pattern, &mut matches)?;
    for path in matches {
        remove(root, &path, true)?;
    }
    Ok(())
}

fn remove(root: &Root, path: &str, allow_not_found: bool) -> Result<()> {
    match root.stat(path, false)? {
        Some(_) => Ok(root.remove_all(path)?),
        None if allow_not_found => Ok(()),
        None => Err(FileError::NotFound { path: path.to_owned() }),
    }
}

/// Paths below the root that match all components of `pattern`. Links are not followed on the way.
fn walk_matches(root: &Root, pattern: &[&str], matches: &mut Vec<String>) -> Result<()> {
    let mut level = vec![String::new()];
    for (depth, component) in pattern.iter().enumerate() {
        let last = depth + 1 == pattern.len();
        let mut next = Vec::new();
        for dir in &level {
            let is_dir = root
                .stat(if dir.is_empty() { "/" } else { dir.as_str() }, false)?
                .is_some_and(|m| m.is_dir());
            if !is_dir {
                continue;
            }
            for entry in root.read_dir(if dir.is_empty() { "/" } else { dir.as_str() })? {
                let name = entry.name.to_string_lossy();
                if component_matches(component, &name)? {
                    let path = format!("{dir}/{name}");
                    if last { matches.push(path) } else { next.push(path) }
                }
            }
        }
        level = next;
    }
    Ok(())
}

/// Shell-style match of one name, where `*`, `?`, `[…]` and `\` are special.
pub(crate) fn component_matches(pattern: &str, name: &str) -> Result<bool> {
    glob(&pattern.chars().collect::<Vec<_>>(), &name.chars().collect::<Vec<_>>())
        .ok_or_else(|| FileError::InvalidMode { mode: pattern.to_owned() })
}

/// `None` for a pattern that does not parse. Backtracks to the last star only, so time is bounded by the product.
fn glob(pattern: &[char], name: &[char]) -> Option<bool> {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            None if n == name.len() => return Some(true),
            None => None,
            Some(_) => match (one(&pattern[p..])?, name.get(n)) {
                ((length, matcher), Some(c)) if matcher(*c) => Some(length),
                _ => None,
            },
        };
        match (step, &mut star) {
            (Some(length), _) => {
                p += length;
                n += 1;
            }
            (None, Some((after, from))) if *from < name.len() => {
                *from += 1;
                (p, n) = (*after, *from);
            }
            (None, _) => return Some(false),
        }
    }
}

type Matcher = Box<dyn Fn(char) -> bool>;

/// The first element of a pattern that stands for one character: its length and its test.
fn one(pattern: &[char]) -> Option<(usize, Matcher)> {
    match pattern.first()? {
        '?' => Some((1, Box::new(|_| true))),
        '\\' => {
            let c = *pattern.get(1)?;
            Some((2, Box::new(move |x| x == c)))
        }
        '[' => {
            let negated = pattern.get(1) == Some(&'^');
            let mut at = if negated { 2 } else { 1 };
            let mut ranges = Vec::new();
            while ranges.is_empty() || pattern.get(at) != Some(&']') {
                let low = class_char(pattern, &mut at)?;
                let high = if pattern.get(at) == Some(&'-') {
                    at += 1;
                    class_char(pattern, &mut at)?
                } else {
                    low
                };
                ranges.push((low, high));
            }
            Some((at + 1, Box::new(move |x| ranges.iter().any(|(l, h)| (*l..=*h).contains(&x)) != negated)))
        }
        c => {
            let c = *c;
            Some((1, Box::new(move |x| x == c)))
        }
    }
}

fn class_char(pattern: &[char], at: &mut usize) -> Option<char> {
    let c = *pattern.get(*at)?;
    *at += 1;
    match c {
        '\\' => {
            let c = *pattern.get(*at)?;
            *at += 1;
            Some(c)
        }
        '-' | ']' => None,
        c => Some(c),
    }
}
