use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::mount::detach;

/// Unmounts everything that is mounted below `dir` (not at it), innermost first: what a process left behind
/// that was killed. Returns how many mounts there were.
pub fn detach_below(dir: &Path) -> Result<usize> {
    let dir = dir.canonicalize().map_err(|source| Error::io("resolve", dir, source))?;
    let table = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(table).map_err(|source| Error::io("read", table, source))?;
    let below: Vec<PathBuf> =
        mount_points(&text).into_iter().filter(|point| *point != dir && point.starts_with(&dir)).collect();
    // The table is in order of mounting, so the last is the innermost.
    for point in below.iter().rev() {
        detach(point)?;
    }
    Ok(below.len())
}

/// The fifth field of each line, in which white space and backslashes are octal.
fn mount_points(table: &[u8]) -> Vec<PathBuf> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .collect()
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (first, after) {
            text.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = after;
        } else {
            text.push(*first);
            rest = after;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let table = b"22 27 0:21 / /proc rw - proc proc rw\n23 27 0:2 / /a\\040b\\134c rw - x y rw\n";
        assert_eq!(mount_points(table), [PathBuf::from("/proc"), PathBuf::from("/a b\\c")]);
    }
}
