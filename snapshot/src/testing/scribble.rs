//! Trees that a script of bytes makes, for laws about any tree.
#![expect(clippy::unwrap_used, reason = "for tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kiln_rootdir::{Kind, Root, Time};

/// Changes the tree at `dir`: every four bytes are one change. One that is impossible is left out.
pub fn scribble(dir: &Path, script: &[[u8; 4]]) {
    let root = Root::open(dir).unwrap();
    for &[what, at, value, mode] in script {
        let path = path_of(at);
        let mode = [0o644, 0o755, 0o600, 0o4755][usize::from(mode % 4)];
        let done = match what % 10 {
            0..=2 => root
                .remove_all(&path)
                .and_then(|()| root.write(&path, &[b'0' + value % 3; 3], mode))
                // Times that say nothing, so that content has to be looked at.
                .and_then(|()| root.set_times(&path, time(value % 2), time(value % 2), true)),
            3 | 4 => root.mkdir(&path, mode),
            5 => root.remove_all(&path),
            6 => root.symlink(format!("to{}", value % 3), &path),
            7 => root.hard_link(path_of(value), &path),
            8 => root.set_xattr(&path, "user.mark", &[value % 3]),
            _ => match value % 4 {
                0 => root.chmod(&path, mode),
                1 => root.chown(&path, u32::from(value % 5), 7),
                2 => root.mknod(&path, Kind::Fifo, mode, (0, 0)),
                _ => root.mknod(&path, Kind::CharDevice, mode, (1, u32::from(value % 2) + 3)),
            },
        };
        drop(done);
    }
}

/// What is in the tree at `dir`, by path; times of directories left out.
pub fn describe(dir: &Path) -> BTreeMap<PathBuf, String> {
    let root = Root::open(dir).unwrap();
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::from("/")];
    while let Some(at) = todo.pop() {
        for (name, metadata) in root.read_dir_stat(&at).unwrap() {
            let path = at.join(name);
            let full = dir.join(path.strip_prefix("/").unwrap());
            let plain = full.symlink_metadata().unwrap();
            let mut text = format!(
                "{:?} {:o} {}:{} {:?}",
                metadata.kind,
                plain.permissions().mode(),
                metadata.uid,
                metadata.gid,
                root.get_xattr(&path, "user.mark").ok().flatten()
            );
            match metadata.kind {
                Kind::Dir => todo.push(path.clone()),
                Kind::File => {
                    write!(text, " {:?} {}", std::fs::read_to_string(&full).unwrap(), plain.mtime()).unwrap();
                }
                Kind::Symlink => write!(text, " -> {}", full.read_link().unwrap().display()).unwrap(),
                _ => write!(text, " {:?}", metadata.rdev).unwrap(),
            }
            found.insert(path, text);
        }
    }
    found
}

/// One of 39 paths up to three directories deep.
fn path_of(byte: u8) -> PathBuf {
    let mut path = PathBuf::from("/");
    let mut rest = byte % 39;
    loop {
        path.push(["a", "b", "c"][usize::from(rest % 3)]);
        if rest < 3 {
            return path;
        }
        rest = rest / 3 - 1;
    }
}

fn time(seconds: u8) -> Time {
    Time { seconds: i64::from(seconds) + 1_000_000, nanoseconds: 5 }
}
