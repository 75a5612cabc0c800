//! Files of a mounted state, as callers of a bridge read them.

use kiln_frontend::{BoxError, Error as FrontendError, FileRange, FileStat};
use kiln_rootdir::{Kind, Metadata, Root};

use crate::error::chain;

/// A file read through a bridge is at most this large.
const MAX_FILE: u64 = 64 << 20;

type Result<T, E = FrontendError> = std::result::Result<T, E>;

/// Reads files off the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(internal)?
}

/// A regular file, whole or in part.
pub(crate) fn read(root: &Root, path: &str, range: Option<FileRange>) -> Result<Vec<u8>> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let found = root
        .stat(path, true)
        .map_err(|e| not_found_or(e, path))?
        .ok_or_else(|| FrontendError::NotFound { path: path.to_owned() })?;
    if !found.is_file() {
        return Err(FrontendError::internal(format!("{path} is not a regular file")));
    }
    let mut file =
        root.open_file(path, &kiln_rootdir::OpenOptions::read()).map_err(|e| not_found_or(e, path))?;
    let limit = match range {
        Some(range) => {
            file.seek(SeekFrom::Start(range.offset)).map_err(internal)?;
            range.length.min(MAX_FILE)
        }
        None if found.size > MAX_FILE => {
            return Err(FrontendError::internal(format!(
                "{path} has {} bytes, more than the {MAX_FILE} that can be read at once",
                found.size
            )));
        }
        None => MAX_FILE,
    };
    let mut data = Vec::new();
    file.take(limit).read_to_end(&mut data).map_err(internal)?;
    Ok(data)
}

/// The entries of a directory by name, of which a pattern may select some.
pub(crate) fn list(root: &Root, path: &str, pattern: &str) -> Result<Vec<FileStat>> {
    let mut entries = root.read_dir_stat(path).map_err(|e| not_found_or(e, path))?;
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let mut stats = Vec::new();
    for (name, metadata) in entries {
        let name = name.to_string_lossy().into_owned();
        if !pattern.is_empty() && !crate::fileop::component_matches(pattern, &name).map_err(internal)? {
            continue;
        }
        let link = format!("{}/{name}", path.trim_end_matches('/'));
        stats.push(file_stat(root, name, &link, &metadata)?);
    }
    Ok(stats)
}

/// One path, by its last name.
pub(crate) fn stat(root: &Root, path: &str) -> Result<FileStat> {
    let found = root
        .stat(path, false)
        .map_err(|e| not_found_or(e, path))?
        .ok_or_else(|| FrontendError::NotFound { path: path.to_owned() })?;
    let name =
        path.trim_end_matches('/').rsplit('/').next().filter(|n| !n.is_empty()).unwrap_or("/").to_owned();
    file_stat(root, name, path, &found)
}

pub(crate) fn internal(error: impl Into<BoxError>) -> FrontendError {
    let error = error.into();
    FrontendError::Internal {
        message: error.to_string(),
        source: error.source().map(|s| s.to_string().into()),
    }
}

fn not_found_or(error: kiln_rootdir::Error, path: &str) -> FrontendError {
    if error.is_not_found() {
        FrontendError::NotFound { path: path.to_owned() }
    } else {
        FrontendError::internal(chain(&error))
    }
}

fn file_stat(root: &Root, name: String, path: &str, metadata: &Metadata) -> Result<FileStat, FrontendError> {
    let linkname = match metadata.kind {
        Kind::Symlink => {
            root.read_link(path).map_err(|e| not_found_or(e, path))?.to_string_lossy().into_owned()
        }
        _ => String::new(),
    };
    Ok(FileStat {
        path: name,
        mode: go_mode(metadata),
        uid: metadata.uid,
        gid: metadata.gid,
        size: if metadata.is_file() { i64::try_from(metadata.size).unwrap_or(i64::MAX) } else { 0 },
        mod_time: metadata
            .mtime
            .seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::from(metadata.mtime.nanoseconds)),
        linkname,
        dev_major: i64::from(metadata.rdev.0),
        dev_minor: i64::from(metadata.rdev.1),
    })
}

/// Mode bits as Go's `fs.FileMode` has them.
fn go_mode(metadata: &Metadata) -> u32 {
    let kind = match metadata.kind {
        Kind::Dir => 1 << 31,
        Kind::Symlink => 1 << 27,
        Kind::BlockDevice => 1 << 26,
        Kind::CharDevice => 1 << 26 | 1 << 21,
        Kind::Fifo => 1 << 25,
        Kind::Socket => 1 << 24,
        Kind::File | Kind::Unknown => 0,
    };
    let special = [(0o4000, 23), (0o2000, 22), (0o1000, 20)];
    let special =
        special.iter().filter(|(bit, _)| metadata.mode & bit != 0).fold(0, |all, (_, go)| all | 1 << go);
    kind | special | (metadata.mode & 0o777)
}
