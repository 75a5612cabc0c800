use std::io;

use tonic::Status;

use crate::solve_error::{SolveError, code_name};

/// What a client ran into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be used.
    #[error("invalid address `{address}`: {reason}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The daemon cannot be reached.
    #[error("cannot connect to `{address}`")]
    Connect {
        /// Where it should be.
        address: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file for TLS cannot be used.
    #[error("cannot use `{path}` for TLS: {reason}")]
    Tls {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The daemon answered a call with an error.
    #[error("{}", describe(status))]
    Call {
        /// Its answer.
        status: Box<Status>,
    },
    /// The build failed.
    #[error(transparent)]
    Solve(Box<SolveError>),
    /// The session could not be served.
    #[error("session failed")]
    Session(#[source] kiln_session::Error),
    /// A definition names a directory that was not given.
    #[error("local directory {name} not enabled")]
    LocalNotEnabled {
        /// The name.
        name: String,
    },
    /// A directory to send is none.
    #[error("{name} not a directory")]
    NotADirectory {
        /// Its path.
        name: String,
        /// The system's answer, if there was one.
        source: Option<io::Error>,
    },
    /// The options contradict each other.
    #[error("{reason}")]
    Options {
        /// How.
        reason: String,
    },
    /// An OCI layout cannot be read or written.
    #[error("cannot use the OCI layout `{dir}`: {reason}")]
    Layout {
        /// Its directory.
        dir: String,
        /// What is wrong.
        reason: String,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The gRPC code, if the daemon sent one.
    pub fn code(&self) -> Option<tonic::Code> {
        match self {
            Self::Call { status } => Some(status.code()),
            Self::Solve(error) => Some(error.code),
            _ => None,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Call { status: Box::new(status) }
    }
}

/// The message, with the code before it unless that says nothing.
fn describe(status: &Status) -> String {
    match status.code() {
        tonic::Code::Unknown => status.message().to_owned(),
        code => format!("{}: {}", code_name(code), status.message()),
    }
}
