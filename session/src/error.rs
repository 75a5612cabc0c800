use std::io;

use tonic::{Code, Status};

/// What a session or a call into one ran into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No session of this id appeared while it was waited for.
    #[error("no active session for {id}: context deadline exceeded")]
    NoSession {
        /// The id asked for.
        id: String,
    },
    /// Nobody who waits for the work has a live session.
    #[error("no active sessions")]
    NoSessions,
    /// The session ended.
    #[error("session `{id}` closed")]
    Closed {
        /// Its id.
        id: String,
    },
    /// The client does not offer the service.
    #[error("method {method} not supported by the client")]
    Unsupported {
        /// Full name of the gRPC method.
        method: &'static str,
    },
    /// The client offers no directories at all.
    #[error("no local sources enabled")]
    NoLocalSources,
    /// The headers of a session are incomplete or malformed.
    #[error("invalid session: {reason}")]
    InvalidSession {
        /// What is wrong.
        reason: String,
    },
    /// The peer answered a call with an error.
    #[error("{}", status.message())]
    Call {
        /// The peer's answer.
        status: Box<Status>,
    },
    /// A call was not answered in time.
    #[error("no answer from the client to {method}: context deadline exceeded")]
    Timeout {
        /// Full name of the gRPC method.
        method: &'static str,
    },
    /// The peer of a file transfer reported a failure.
    #[error("error from {role}: {text}")]
    Peer {
        /// What the peer is in the transfer.
        role: &'static str,
        /// Its words.
        text: String,
    },
    /// The peer of a file transfer broke the protocol.
    #[error("{reason}")]
    Protocol {
        /// How.
        reason: String,
    },
    /// The peer of a file transfer sent more than is accepted.
    #[error("transfer exceeds the limit of {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is accepted.
        limit: u64,
    },
    /// The stream ended in the middle of a transfer.
    #[error("transfer ended early: unexpected EOF")]
    Interrupted,
    /// A list of patterns is malformed.
    #[error("invalid {list}patterns: {patterns}")]
    Pattern {
        /// Which list.
        list: &'static str,
        /// The list.
        patterns: String,
        /// What is wrong with it.
        source: kiln_patterns::Error,
    },
    /// The protocol has no way to name this file.
    #[error("`{path}` is not valid UTF-8")]
    NotUtf8 {
        /// The path, as far as it can be shown.
        path: String,
    },
    /// Links lead on and on.
    #[error("too many symbolic links to follow")]
    TooManyLinks,
    /// Directories in directories beyond what is walked.
    #[error("`{path}` is nested too deeply")]
    TooDeep {
        /// The directory.
        path: String,
    },
    /// Trees laid over each other have the same file.
    #[error("`{path}` comes from more than one tree")]
    Collision {
        /// The path.
        path: String,
    },
    /// A file of the tree could not be read.
    #[error("cannot read `{path}`")]
    Read {
        /// Its path in the tree.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A received file could not be written.
    #[error("cannot write `{path}`")]
    Write {
        /// Its path in the tree.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk refused an operation.
    #[error(transparent)]
    Root(#[from] kiln_rootdir::Error),
    /// Something on the client's machine could not be used.
    #[error("cannot {operation}")]
    Io {
        /// What was tried, as a verb phrase.
        operation: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A file on the client's machine has an unexpected form.
    #[error("cannot use {what}: {reason}")]
    Invalid {
        /// The file or value.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A task of this crate panicked.
    #[error("internal error")]
    Task(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn protocol(reason: impl Into<String>) -> Self {
        Self::Protocol { reason: reason.into() }
    }

    pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source }
    }

    pub(crate) fn task(error: tokio::task::JoinError) -> Self {
        Self::Task(Box::new(error))
    }

    /// The message and those of all causes, joined by `: `.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }

    /// The gRPC code that tells a peer about this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Call { status } => status.code(),
            Self::Unsupported { .. } | Self::NoLocalSources => Code::Unimplemented,
            Self::Closed { .. } | Self::Interrupted => Code::Cancelled,
            Self::Timeout { .. } => Code::DeadlineExceeded,
            _ => Code::Unknown,
        }
    }

    /// Whether the peer says that it does not have what was asked for, or not the service.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Unsupported { .. } | Self::NoLocalSources)
            || matches!(self, Self::Call { status }
                if matches!(status.code(), Code::NotFound | Code::Unimplemented))
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Call { status: Box::new(status) }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            // Details are passed on.
            Error::Call { status } => *status,
            error => Self::new(error.code(), error.chain()),
        }
    }
}
