//! Copying one entry of a difference directory, with all that belongs to it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use kiln_rootdir::{Error, Kind, Metadata, OpenOptions, Root};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::marks;

/// Copies that other names of the same file are links to, by device and inode.
pub(crate) type Copied = HashMap<(u64, u64), PathBuf>;

/// Copies an entry that is no directory to a place where nothing is.
pub(crate) fn copy(
    source: &Root,
    target: &Root,
    path: &Path,
    shown: &Metadata,
    copied: &mut Copied,
) -> kiln_rootdir::Result<()> {
    let key = (shown.dev, shown.ino);
    if let Some(first) = copied.get(&key) {
        return target.hard_link(first, path);
    }
    match shown.kind {
        Kind::File => {
            let from = source.open_file(path, &OpenOptions::read())?;
            let to = target.open_file(path, &OpenOptions::create_new(0o600))?;
            let failed = |source| Error::Os { operation: "copy", path: path.to_owned(), source };
            content(&from, &to, shown.size).map_err(failed)?;
        }
        Kind::Symlink => target.symlink(source.read_link(path)?, path)?,
        kind => target.mknod(path, kind, shown.mode, shown.rdev)?,
    }
    target.chown(path, shown.uid, shown.gid)?;
    if shown.kind != Kind::Symlink {
        target.chmod(path, shown.mode)?;
    }
    // After the owner, whose change takes capabilities away.
    for (name, value) in marks::attributes(source, path)? {
        target.set_xattr(path, &name, &value)?;
    }
    target.set_times(path, shown.atime, shown.mtime, true)?;
    if shown.nlink > 1 {
        copied.insert(key, path.to_owned());
    }
    Ok(())
}

/// Shares the blocks of a file, else copies those that it has.
fn content(from: &File, to: &File, size: u64) -> io::Result<()> {
    if size == 0 || rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd()).is_ok() {
        return Ok(());
    }
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(size);
        range(from, to, start, end)?;
        at = end.max(start + 1);
    }
    Ok(())
}

fn range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let (mut read, mut written) = (start, start);
    while read < end {
        let left = usize::try_from(end - read).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            // Between some filesystems the kernel does not do it.
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                let mut buffer = vec![0; left.min(1 << 20)];
                from.read_exact_at(&mut buffer, read)?;
                to.write_all_at(&buffer, read)?;
                read += buffer.len() as u64;
                written = read;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
