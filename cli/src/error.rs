/// What a command line ran into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option cannot be used; the text is the reference's.
    #[error("{message}")]
    Option {
        /// Why.
        message: String,
    },
    /// A call of the daemon failed.
    #[error("{}{}", context, crate::report::describe(source))]
    Client {
        /// What was tried, with `: `, or nothing.
        context: &'static str,
        /// What the client says.
        source: kiln_client::Error,
    },
    /// The user stopped the command.
    #[error("{message}")]
    Stopped {
        /// What was stopped.
        message: &'static str,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An option that cannot be used.
    pub fn option(message: impl Into<String>) -> Self {
        Self::Option { message: message.into() }
    }

    /// A failed operation on a path, as Go prints it: `open /x: no such file or directory`.
    pub fn io(operation: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::Option { message: format!("{operation} {}: {}", path.display(), crate::go::io_text(error)) }
    }

    /// Puts `context: ` before a message.
    #[must_use]
    pub fn within(self, context: &str) -> Self {
        match self {
            Self::Option { message } => Self::Option { message: format!("{context}: {message}") },
            other => other,
        }
    }
}

impl From<kiln_client::Error> for Error {
    fn from(source: kiln_client::Error) -> Self {
        Self::Client { context: "", source }
    }
}
