use std::io;
use std::path::{Path, PathBuf};

/// What running a process ran into. That it exits with a code other than zero is no error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run was cancelled; the process and everything it started are gone.
    #[error("context canceled")]
    Cancelled,
    /// No such container runs, and none did.
    #[error("container {id} not found")]
    ContainerNotFound {
        /// The one asked for.
        id: String,
    },
    /// The container has ended.
    #[error("container {id} has stopped")]
    ContainerStopped {
        /// The one asked for.
        id: String,
    },
    /// The container could not be started.
    #[error("container {id} has exited with error")]
    ContainerFailed {
        /// The one asked for.
        id: String,
    },
    /// A container of this name is there.
    #[error("container {id} exists")]
    ContainerExists {
        /// The one asked for.
        id: String,
    },
    /// The text is no container name.
    #[error("container id `{text}` is not made of letters and digits")]
    InvalidContainerId {
        /// What was given, shortened.
        text: String,
    },
    /// A user or group could not be found, or the files that name them are unusable.
    #[error("unable to find user {user}: {reason}")]
    User {
        /// As asked for.
        user: String,
        /// Why not.
        reason: String,
    },
    /// A file of the root filesystem is larger than anything of its kind.
    #[error("{path:?} exceeds {limit} bytes")]
    FileTooLarge {
        /// Its path inside.
        path: String,
        /// The most that is read.
        limit: u64,
    },
    /// The step asks for something impossible.
    #[error("{reason}")]
    InvalidSpec {
        /// What and why.
        reason: String,
    },
    /// A name server of the configuration is no address.
    #[error("bad nameserver address `{address}`")]
    BadNameserver {
        /// As configured.
        address: String,
    },
    /// A network mode that this machine is not set up for.
    #[error("network mode {mode} is not available: {reason}")]
    NetworkUnavailable {
        /// The mode.
        mode: String,
        /// Why not.
        reason: String,
    },
    /// The network of a step could not be set up.
    #[error("cannot set up the network of the step")]
    Network {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A device of the host cannot be given to a step.
    #[error("device {name} cannot be given to a step: {reason}")]
    Device {
        /// Its name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The runtime's binary is not there or does not work.
    #[error("failed to find {binary} binary")]
    RuntimeMissing {
        /// What was looked for.
        binary: String,
        /// Why it cannot be used.
        source: io::Error,
    },
    /// The runtime could not start the process.
    #[error("{runtime} run failed: {message}")]
    Start {
        /// The runtime's name.
        runtime: String,
        /// What it said.
        message: String,
    },
    /// A mount of the step could not be made.
    #[error("cannot mount `{}`", dest.display())]
    StepMount {
        /// Where in the container.
        dest: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A filesystem state could not be mounted.
    #[error("cannot mount a snapshot")]
    Snapshot {
        /// Why not.
        #[from]
        source: kiln_snapshot::Error,
    },
    /// A file of the step's root filesystem could not be used.
    #[error("cannot {operation} in the root filesystem")]
    Root {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// Why not.
        source: kiln_rootdir::Error,
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
    /// A task of blocking work ended without an answer: the process is shutting down.
    #[error("interrupted")]
    Interrupted,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps a failed file operation.
    pub fn io(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, path: path.to_owned(), source: source.into() }
    }

    /// Wraps a failed operation under a root.
    pub fn root(operation: &'static str) -> impl FnOnce(kiln_rootdir::Error) -> Self {
        move |source| Self::Root { operation, source }
    }
}
