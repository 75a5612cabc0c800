//! File operations on a mounted filesystem state: mkdir, mkfile, symlink, rm and copy.
//!
//! Everything happens below [`Root`] handles, synchronously; the caller mounts, blocks and commits. Rules are those of
//! the reference's file backend.

mod copy;
mod mode;
mod simple;
mod unpack;

pub use copy::{CopyAction, copy};
pub(crate) use kiln_patterns::clean_absolute as clean;
pub use mode::ModeChange;
pub(crate) use simple::component_matches;
pub use simple::{MkdirAction, MkfileAction, RmAction, SymlinkAction, mkdir, mkfile, rm, symlink};

use kiln_rootdir::Root;
use kiln_rootdir::Time;

/// Who owns what an action makes: user and group ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What an action ran into. Paths are those inside the state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The filesystem refused.
    #[error(transparent)]
    Fs(#[from] kiln_rootdir::Error),
    /// Reading or writing content failed.
    #[error("cannot copy `{path}`")]
    Content {
        /// The path that was written.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A copy's source is not there.
    #[error("{path}: not found")]
    SourceNotFound {
        /// The cleaned source path or pattern.
        path: String,
    },
    /// A file would replace a directory.
    #[error("cannot replace to directory {path} with file")]
    FileOverDirectory {
        /// The directory.
        path: String,
    },
    /// A directory would replace something else.
    #[error("cannot copy to non-directory: {path}")]
    DirectoryOverFile {
        /// What is in the way.
        path: String,
    },
    /// The parent of a copy's destination is not there, and the copy may not make it.
    #[error("failed to stat {path}")]
    NoParent {
        /// The missing parent.
        path: String,
    },
    /// Removing the root of the state.
    #[error("rmPath: invalid empty path")]
    EmptyPath,
    /// A path to remove that is not there.
    #[error("{path}: no such file or directory")]
    NotFound {
        /// The path.
        path: String,
    },
    /// A mode string that does not parse.
    #[error("invalid mode {mode:?}")]
    InvalidMode {
        /// The text.
        mode: String,
    },
    /// An include or exclude pattern that does not parse.
    #[error("invalid pattern")]
    Pattern(#[from] kiln_patterns::Error),
    /// Directories nested deeper than the limit.
    #[error("`{path}` lies deeper than {limit} directories")]
    TooDeep {
        /// Where the walk stopped.
        path: String,
        /// The limit.
        limit: usize,
    },
    /// An archive that cannot be extracted.
    #[error("cannot extract `{path}`: {reason}")]
    Archive {
        /// The archive, as the source names it.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

type Result<T> = std::result::Result<T, FileError>;

/// Sets both times of `path` from nanoseconds since 1970; a negative timestamp of -1 leaves them alone.
fn apply_timestamp(root: &Root, path: &str, timestamp: i64) -> Result<()> {
    if timestamp == -1 {
        return Ok(());
    }
    let time = nanoseconds(timestamp);
    root.set_times(path, time, time, true)?;
    Ok(())
}

fn nanoseconds(timestamp: i64) -> Time {
    let nanoseconds = u32::try_from(timestamp.rem_euclid(1_000_000_000)).unwrap_or_default();
    Time { seconds: timestamp.div_euclid(1_000_000_000), nanoseconds }
}

#[cfg(test)]
mod tests;
