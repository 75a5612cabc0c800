use std::io;
use std::path::{Path, PathBuf};

use crate::snapshotter::SnapshotId;

/// What a call on a snapshotter or a mount ran into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such snapshot (any more). Callers take it for a miss.
    #[error("snapshot `{id}` is not there")]
    NotFound {
        /// The one asked for.
        id: SnapshotId,
    },
    /// The identifier is in use.
    #[error("snapshot `{id}` is there already")]
    Exists {
        /// The one asked for.
        id: SnapshotId,
    },
    /// The text is no identifier.
    #[error("`{text}` is no snapshot id: 1 to 64 letters a-z and digits")]
    InvalidId {
        /// What was given, shortened.
        text: String,
    },
    /// The classic mount call takes one page of options, and these do not fit.
    #[error(
        "the options of an overlay of {layers} layers take {bytes} bytes, more than the {limit} of mount(2); \
         Linux 6.8 has no such limit"
    )]
    OptionsTooLong {
        /// How many lower directories.
        layers: usize,
        /// How long the options are.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The kernel refused a mount.
    #[error("cannot mount {what} at `{}`{}", target.display(), detail(kernel_log))]
    Mount {
        /// What was to be mounted.
        what: String,
        /// Where.
        target: PathBuf,
        /// What the kernel had to say about it; often empty.
        kernel_log: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An operation under a root failed.
    #[error("cannot {operation} in `{}`", path.display())]
    Root {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// The directory that is the root.
        path: PathBuf,
        /// Why not.
        source: kiln_rootdir::Error,
    },
    /// A task of blocking work ended without an answer: the process is shutting down.
    #[error("interrupted")]
    Interrupted,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the snapshot is missing, which callers take for a miss.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    pub(crate) fn io(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, path: path.to_owned(), source: source.into() }
    }

    pub(crate) fn root(operation: &'static str, path: &Path, source: kiln_rootdir::Error) -> Self {
        Self::Root { operation, path: path.to_owned(), source }
    }
}

fn detail(kernel_log: &str) -> String {
    if kernel_log.is_empty() { String::new() } else { format!(" ({kernel_log})") }
}
