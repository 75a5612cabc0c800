//! What a call to a registry can run into.

use std::path::PathBuf;
use std::time::Duration;

use kiln_digest::Digest;
use reqwest::StatusCode;

/// An error of a caller's port.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a request to a registry ran into.
///
/// The texts of [`Error::NotFound`], [`Error::PullDenied`], [`Error::PushDenied`] and
/// [`Error::AuthorizationFailed`] are those of the reference, because clients look for them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not an image reference.
    #[error("invalid reference format: {reason}: `{input}`")]
    InvalidReference {
        /// The text, shortened when it is long.
        input: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// No host knows the reference.
    #[error("{what}: not found")]
    NotFound {
        /// The reference or digest.
        what: String,
    },
    /// The registry does not let the caller read.
    #[error("pull access denied, repository does not exist or may require authorization")]
    PullDenied {
        /// What the registry said.
        source: Box<Error>,
    },
    /// The registry does not let the caller write.
    #[error("push access denied, repository does not exist or may require authorization")]
    PushDenied {
        /// What the registry said.
        source: Box<Error>,
    },
    /// The registry refused the credentials that were offered.
    #[error("{}authorization failed", server_message(.message))]
    AuthorizationFailed {
        /// The error code of the challenge; empty when there was none.
        message: String,
    },
    /// The registry asks for a password, and there is none.
    #[error("no basic auth credentials for `{host}`")]
    NoCredentials {
        /// The registry.
        host: String,
    },
    /// The registry asks for a kind of authentication that is not spoken here.
    #[error("failed to find supported auth scheme in `{challenge}`")]
    UnsupportedAuth {
        /// The challenge, shortened.
        challenge: String,
    },
    /// No token came from the token server.
    #[error("failed to fetch {}token for `{host}`", if *.anonymous { "anonymous " } else { "oauth " })]
    TokenFetch {
        /// The registry that the token is for.
        host: String,
        /// Whether it was asked without credentials.
        anonymous: bool,
        /// The failed request.
        source: Box<Error>,
    },
    /// The caller's credentials could not be had.
    #[error("cannot get credentials for `{host}`")]
    Credentials {
        /// The registry they are for.
        host: String,
        /// The port's error.
        source: BoxError,
    },
    /// An answer with a status that the request does not expect.
    #[error("unexpected status from {method} request to {url}: {status}{}", detail(.message))]
    Status {
        /// The request's method.
        method: &'static str,
        /// The request's address, without its query.
        url: String,
        /// The status.
        status: StatusCode,
        /// The registry's own explanation, bounded; may be empty.
        message: String,
    },
    /// The request did not get an answer, or the answer broke off.
    #[error("failed to do request: {method} `{url}`")]
    Transport {
        /// The request's method.
        method: &'static str,
        /// The request's address, without its query.
        url: String,
        /// The transport's error.
        source: reqwest::Error,
    },
    /// The other side stopped sending or reading.
    #[error("no progress for {}s on `{url}`", .after.as_secs_f32())]
    Stalled {
        /// The request's address, without its query.
        url: String,
        /// How long nothing moved.
        after: Duration,
    },
    /// An answer that breaks the protocol.
    #[error("invalid response from `{url}`: {reason}")]
    InvalidResponse {
        /// The request's address, without its query.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A document or blob has more bytes than allowed or said.
    #[error("`{what}` has {actual} bytes or more, the limit is {limit}")]
    TooLarge {
        /// The reference or digest.
        what: String,
        /// Bytes announced or seen.
        actual: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The body ended early.
    #[error("`{digest}` ended after {actual} of {expected} bytes")]
    Truncated {
        /// The blob.
        digest: Digest,
        /// Its size.
        expected: u64,
        /// Bytes received.
        actual: u64,
    },
    /// The bytes are not those that were asked for.
    #[error("content of `{url}` has digest `{actual}`, not `{expected}`")]
    DigestMismatch {
        /// Where the bytes came from.
        url: String,
        /// The digest asked for.
        expected: Digest,
        /// The digest received.
        actual: String,
    },
    /// A manifest or index that is not what it says.
    #[error("invalid manifest: {reason}")]
    InvalidManifest {
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate, key or host entry of the configuration is unusable.
    #[error("cannot use `{}` for registry `{host}`: {reason}", .path.display())]
    Tls {
        /// The host whose entry names the file.
        host: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The content store failed.
    #[error("content store failed")]
    Content {
        /// The store's error.
        source: BoxError,
    },
    /// A blob to be pushed is nowhere to be had.
    #[error("cannot supply `{digest}` for the push")]
    Supply {
        /// The blob.
        digest: Digest,
        /// The supplier's error.
        source: BoxError,
    },
    /// No host of the reference allows the action.
    #[error("no {action} hosts for `{host}`")]
    NoHosts {
        /// `pull` or `push`.
        action: &'static str,
        /// The host of the reference.
        host: String,
    },
}

/// The coarse class of an error: what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// It is not there.
    NotFound,
    /// The caller may not.
    Denied,
    /// The request itself is wrong.
    Input,
    /// Trying again later may help.
    Temporary,
    /// Anything else.
    Other,
}

impl Error {
    /// Returns whether another holder of credentials may have more success.
    pub fn is_of_holder(&self) -> bool {
        self.kind() == Kind::Denied || matches!(self, Self::Credentials { .. })
    }

    /// Returns the coarse class that callers branch on.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } => Kind::NotFound,
            Self::PullDenied { .. }
            | Self::PushDenied { .. }
            | Self::AuthorizationFailed { .. }
            | Self::NoCredentials { .. }
            | Self::UnsupportedAuth { .. } => Kind::Denied,
            Self::InvalidReference { .. } | Self::Tls { .. } => Kind::Input,
            Self::Status { status, .. } => match status.as_u16() {
                404 => Kind::NotFound,
                401 | 403 => Kind::Denied,
                408 | 429 | 500..=599 => Kind::Temporary,
                _ => Kind::Other,
            },
            Self::Stalled { .. } | Self::Truncated { .. } => Kind::Temporary,
            Self::Transport { source, .. } if is_temporary(source) => Kind::Temporary,
            Self::TokenFetch { source, .. } => source.kind(),
            _ => Kind::Other,
        }
    }

    pub(crate) fn is_authorization_failure(&self) -> bool {
        matches!(
            self,
            Self::AuthorizationFailed { .. } | Self::NoCredentials { .. } | Self::UnsupportedAuth { .. }
        )
    }

    pub(crate) fn content(source: impl Into<BoxError>) -> Self {
        Self::Content { source: source.into() }
    }
}

/// Tells the failures of a connection that may pass from those that will not (bad certificates, names
/// that do not exist).
fn is_temporary(error: &reqwest::Error) -> bool {
    if error.is_builder() || error.is_redirect() {
        return false;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind;
            return matches!(
                io.kind(),
                ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::BrokenPipe
                    | ErrorKind::UnexpectedEof
                    | ErrorKind::TimedOut
                    | ErrorKind::NotConnected
            );
        }
        cause = current.source();
    }
    error.is_timeout() || !error.is_connect()
}

fn server_message(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!("server message: {message}: ") }
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
