use std::cmp::Ordering;

use crate::error::{Error, Result};

/// Longest path accepted from a peer, in bytes: the kernel takes no longer ones.
const MAX_PATH: usize = 4096;

/// Compares two paths in listing order: component by component, that is with `/` below every other byte.
pub fn compare_paths(a: &str, b: &str) -> Ordering {
    let rank = |byte: u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
    a.bytes().map(rank).cmp(b.bytes().map(rank))
}

/// Checks that the paths of a listing are clean, rise, and come after their directories.
#[derive(Debug, Default)]
pub struct Order {
    last: String,
    /// Directories that the last path lies in, itself included if it is one; outermost first.
    open: Vec<String>,
}

impl Order {
    /// Starts a listing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next path.
    ///
    /// # Errors
    /// [`Error::Peer`] if the path is not clean and relative, does not rise, or its directory was not listed.
    pub fn accept(&mut self, path: &str, is_dir: bool) -> Result<()> {
        check_clean(path)?;
        let rises = self.last.is_empty() || compare_paths(&self.last, path) == Ordering::Less;
        while let Some(dir) = self.open.last() {
            if is_below(path, dir) {
                break;
            }
            self.open.pop();
        }
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let has_parent = self.open.last().map_or("", String::as_str) == parent;
        if !rises || !has_parent {
            return Err(Error::protocol(format!("changes out of order: {path:?} {:?}", self.last)));
        }
        if is_dir {
            self.open.push(path.to_owned());
        }
        path.clone_into(&mut self.last);
        Ok(())
    }
}

fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

fn check_clean(path: &str) -> Result<()> {
    if path.len() > MAX_PATH {
        return Err(Error::protocol(format!("path of {} bytes is too long", path.len())));
    }
    if path.starts_with('/') {
        return Err(Error::protocol(format!("absolute path {path:?} not allowed")));
    }
    let mut components = path.split('/');
    if path.contains('\0') || components.clone().any(|part| part.is_empty() || part == ".") {
        return Err(Error::protocol(format!("unclean path {path:?}")));
    }
    if components.any(|part| part == "..") {
        return Err(Error::protocol(format!("escape check: path {path:?} leaves the root")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories are written with a `/` at the end.
    #[track_caller]
    fn check(paths: &[&str], want: Option<&str>) {
        let mut order = Order::new();
        let outcome = paths.iter().try_for_each(|path| match path.strip_suffix('/') {
            Some(dir) if !dir.is_empty() => order.accept(dir, true),
            _ => order.accept(path, false),
        });
        assert_eq!(outcome.err().map(|error| error.to_string()).as_deref(), want);
    }

    #[test]
    fn listings() {
        check(&["a/", "a/b", "a-b", "a.b", "b"], None);
        check(&["a/", "a/b/", "a/b/c", "a/c", "b/"], None);
        check(&["b", "a"], Some(r#"changes out of order: "a" "b""#));
        check(&["a", "a"], Some(r#"changes out of order: "a" "a""#));
        check(&["a/", "a-b", "a/b"], Some(r#"changes out of order: "a/b" "a-b""#));
        check(&["a", "a/b"], Some(r#"changes out of order: "a/b" "a""#));
        check(&["a/b"], Some(r#"changes out of order: "a/b" """#));
        check(&["/a"], Some(r#"absolute path "/a" not allowed"#));
        check(&["a/", "a//b"], Some(r#"unclean path "a//b""#));
        check(&["./a"], Some(r#"unclean path "./a""#));
        check(&[""], Some(r#"unclean path """#));
        check(&["a/", "a/../../b"], Some(r#"escape check: path "a/../../b" leaves the root"#));
        check(&[".."], Some(r#"escape check: path ".." leaves the root"#));
        check(&["..a", "..b"], None);
    }
}
