use std::io;
use std::path::{Path, PathBuf};

/// What a call on a [`Root`](crate::Root) ran into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused the operation.
    #[error("cannot {operation} `{}`", path.display())]
    Os {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// The path as given.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The path names no entry that could be made or removed: it is empty, or ends in `.` or `..`.
    #[error("`{}` does not name an entry", path.display())]
    NoName {
        /// The path as given.
        path: PathBuf,
    },
    /// The path has more symbolic links, or more bytes once they are expanded, than are followed.
    #[error("too many levels of symbolic links in `{}`", path.display())]
    TooManyLinks {
        /// The path as given.
        path: PathBuf,
    },
    /// The file is something other than a regular file, and opening it could have effects.
    #[error("`{}` is not a regular file", path.display())]
    NotRegular {
        /// The path as given.
        path: PathBuf,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn os(operation: &'static str, path: &Path, errno: rustix::io::Errno) -> Self {
        Self::Os { operation, path: path.to_owned(), source: errno.into() }
    }

    /// The coarse class of the error.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Os { source, .. } => source.kind(),
            Self::NoName { .. } | Self::NotRegular { .. } => io::ErrorKind::InvalidInput,
            Self::TooManyLinks { .. } => io::Error::from(rustix::io::Errno::LOOP).kind(),
        }
    }

    /// The kernel's error number, if the kernel gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Os { source, .. } => source.raw_os_error(),
            Self::TooManyLinks { .. } => Some(rustix::io::Errno::LOOP.raw_os_error()),
            Self::NoName { .. } | Self::NotRegular { .. } => None,
        }
    }

    /// Whether the path, or a directory on the way to it, is not there.
    pub fn is_not_found(&self) -> bool {
        self.kind() == io::ErrorKind::NotFound
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}
