use std::path::{Path, PathBuf};

use kiln_rootdir::Root;

/// The mount points that the runtime will make in a root filesystem, to be taken away afterwards.
#[derive(Debug, Default)]
pub struct MountStubs {
    /// Clean paths that were not there, in the order in which they go.
    missing: Vec<PathBuf>,
}

impl MountStubs {
    /// Notes which of `/etc/resolv.conf`, `/etc/hosts` and `dests` are missing; with `recursive`, also which of
    /// the directories above them.
    pub fn note<'a>(root: &Root, dests: impl IntoIterator<Item = &'a Path>, recursive: bool) -> Self {
        let always = [Path::new("/etc/resolv.conf"), Path::new("/etc/hosts")];
        let mut missing = Vec::new();
        for dest in always.into_iter().chain(dests) {
            // What cannot be resolved cannot be mounted on either, and the runtime will say so.
            let Ok(path) = root.resolve(dest, true) else { continue };
            let mut path = path.as_path();
            while path.parent().is_some() && matches!(root.stat(path, false), Ok(None)) {
                missing.push(path.to_owned());
                match path.parent() {
                    Some(parent) if recursive => path = parent,
                    _ => break,
                }
            }
        }
        Self { missing }
    }

    /// Removes those that are there now and are empty, and sets the times of their parents back to what they
    /// were before the removal. Failures are logged: the step has run, and its result counts.
    pub fn remove(self, root: &Root) {
        for path in self.missing {
            if let Err(error) = remove_stub(root, &path) {
                tracing::warn!(path = %path.display(), %error, "mount stub left in place");
            }
        }
    }
}

fn remove_stub(root: &Root, path: &Path) -> kiln_rootdir::Result<()> {
    // A process may have put links on the way; then it is not what was noted.
    if root.resolve(path, false)? != path {
        return Ok(());
    }
    let Some(found) = root.stat(path, false)? else { return Ok(()) };
    let Some(parent) = path.parent() else { return Ok(()) };
    let Some(above) = root.stat(parent, false)? else { return Ok(()) };
    if found.is_dir() {
        if !root.read_dir(path)?.is_empty() {
            return Ok(());
        }
        root.remove_dir(path)?;
    } else if found.size == 0 {
        root.remove_file(path)?;
    } else {
        return Ok(());
    }
    root.set_times(parent, above.atime, above.mtime, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exists(dir: &Path, name: &str) -> bool {
        dir.join(name).symlink_metadata().is_ok()
    }

    #[test]
    fn stubs_go_and_what_was_there_stays() {
        for recursive in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path();
            std::fs::create_dir(path.join("etc")).unwrap();
            std::fs::write(path.join("etc/hosts"), "").unwrap();
            let root = Root::open(path).unwrap();
            let dests = [Path::new("/a/b/c"), Path::new("/used/dir"), Path::new("/used/file")];
            let stubs = MountStubs::note(&root, dests, recursive);
            std::fs::write(path.join("etc/resolv.conf"), "").unwrap();
            std::fs::create_dir_all(path.join("a/b/c")).unwrap();
            std::fs::create_dir_all(path.join("used/dir")).unwrap();
            std::fs::write(path.join("used/file"), "x").unwrap();
            let before = root.stat("etc", false).unwrap().unwrap().mtime;
            stubs.remove(&root);
            assert_eq!(root.stat("etc", false).unwrap().unwrap().mtime, before);
            assert!(!exists(path, "etc/resolv.conf"));
            assert!(exists(path, "etc/hosts"));
            assert!(!exists(path, "a/b/c"));
            assert_eq!(exists(path, "a"), !recursive);
            assert!(!exists(path, "used/dir"));
            assert!(exists(path, "used/file"));
        }
    }

    #[test]
    fn a_link_put_in_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let root = Root::open(path).unwrap();
        let stubs = MountStubs::note(&root, [Path::new("/a/b")], true);
        std::fs::create_dir(path.join("other")).unwrap();
        std::fs::write(path.join("other/b"), "").unwrap();
        std::os::unix::fs::symlink("other", path.join("a")).unwrap();
        stubs.remove(&root);
        assert!(exists(path, "other/b"));
    }
}
