use std::io;

/// What making or starting a container ran into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The spec asks for something that this runtime does not do, or that makes no sense.
    #[error("{reason}")]
    Spec {
        /// What and why.
        reason: String,
    },
    /// A control group could not be made or set up.
    #[error("cannot {operation} control group `{}`", path.display())]
    Cgroup {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// The file or directory.
        path: std::path::PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The helper process could not be started, or does not answer.
    #[error("the runtime's helper process does not work: cannot {operation}")]
    Helper {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The container could not be started; the text is for whoever wrote the step.
    #[error("{message}")]
    Start {
        /// What went wrong in the container.
        message: String,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn spec(reason: impl Into<String>) -> Self {
        Self::Spec { reason: reason.into() }
    }

    pub(crate) fn cgroup(operation: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Cgroup { operation, path: path.to_owned(), source }
    }

    pub(crate) fn helper(operation: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Helper { operation, source: source.into() }
    }
}
