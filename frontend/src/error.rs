use kiln_llb::pb;

/// Any error, kept as the cause of one of ours.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of what frontends and bridges do.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a frontend or its bridge could not do what was asked.
///
/// A message leaves its cause out; [`chain`](Self::chain) joins all of them as clients show it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input of the build is wrong: its options, its Dockerfile, its context.
    #[error("{message}")]
    Input {
        /// What is wrong.
        message: String,
        /// Where.
        sources: Vec<ErrorSource>,
    },
    /// The input asks for something that this frontend does not do.
    #[error("{message}")]
    Unimplemented {
        /// What it asks for.
        message: String,
        /// Where.
        sources: Vec<ErrorSource>,
    },
    /// `requestid` names an unknown sub-request.
    #[error("unsupported request {name}")]
    UnsupportedRequest {
        /// The name.
        name: String,
    },
    /// `frontend.caps` names a capability that this frontend lacks.
    #[error("unsupported frontend capability {name}")]
    UnsupportedCapability {
        /// The capability.
        name: String,
    },
    /// A path is not there.
    #[error("open {path}: no such file or directory")]
    NotFound {
        /// The path, as asked for.
        path: String,
    },
    /// A source could not be resolved.
    #[error("{message}")]
    Resolve {
        /// What was tried.
        message: String,
        /// Why it failed.
        source: Option<BoxError>,
    },
    /// A solve failed. The cause is the engine's own error, with the vertex and the output it has.
    #[error("{source}")]
    Solve {
        /// The engine's error.
        source: BoxError,
        /// Places in the input that belong to it, where the frontend knows better than the graph.
        sources: Vec<ErrorSource>,
    },
    /// What was being done when `source` happened.
    #[error("{message}")]
    Context {
        /// What was being done.
        message: String,
        /// Places in the input where it was asked for.
        sources: Vec<ErrorSource>,
        /// What happened.
        source: Box<Error>,
    },
    /// The build was cancelled.
    #[error("context canceled")]
    Cancelled,
    /// Something that is no fault of the input.
    #[error("{message}")]
    Internal {
        /// What happened.
        message: String,
        /// Why.
        source: Option<BoxError>,
    },
}

/// The coarse class of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's input is wrong.
    Input,
    /// The caller asks for something unknown here.
    Unimplemented,
    /// A path or reference is not there.
    NotFound,
    /// A step of the build failed.
    Build,
    /// Cancelled.
    Cancelled,
    /// Ours.
    Internal,
}

/// A place in the input of a build.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ErrorSource {
    /// The file with its text, so that a client can print an excerpt.
    pub info: pb::SourceInfo,
    /// Lines of it; counted from one, characters from zero.
    pub ranges: Vec<pb::Range>,
}

impl Error {
    /// An [`Error::Input`] without a place.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input { message: message.into(), sources: Vec::new() }
    }

    /// An [`Error::Internal`] without a cause.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::Internal { message: message.into(), source: None }
    }

    /// Says what was being done when this happened.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Self {
        Self::Context { message: message.into(), sources: Vec::new(), source: Box::new(self) }
    }

    /// Adds a place in the input. Where the variant has no room for one, it is wrapped.
    #[must_use]
    pub fn with_source(mut self, place: ErrorSource) -> Self {
        match &mut self {
            Self::Input { sources, .. }
            | Self::Unimplemented { sources, .. }
            | Self::Solve { sources, .. }
            | Self::Context { sources, .. } => {
                sources.push(place);
                self
            }
            _ => Self::Context { message: String::new(), sources: vec![place], source: Box::new(self) },
        }
    }

    /// The coarse class. Context does not change it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Input { .. } => ErrorKind::Input,
            Self::Unimplemented { .. }
            | Self::UnsupportedRequest { .. }
            | Self::UnsupportedCapability { .. } => ErrorKind::Unimplemented,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Resolve { .. } | Self::Solve { .. } => ErrorKind::Build,
            Self::Context { source, .. } => source.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Internal { .. } => ErrorKind::Internal,
        }
    }

    /// Places in the input, outermost first. Errors inside a [`Error::Solve`] cause are the engine's to look at.
    pub fn sources(&self) -> Vec<&ErrorSource> {
        match self {
            Self::Input { sources, .. }
            | Self::Unimplemented { sources, .. }
            | Self::Solve { sources, .. } => sources.iter().collect(),
            Self::Context { sources, source, .. } => sources.iter().chain(source.sources()).collect(),
            _ => Vec::new(),
        }
    }

    /// The whole message: this one and its causes, joined by `: `, as clients show it.
    pub fn chain(&self) -> String {
        let mut parts = Vec::new();
        self.messages(&mut parts);
        parts.retain(|part| !part.is_empty());
        parts.join(": ")
    }

    fn messages(&self, parts: &mut Vec<String>) {
        let foreign = match self {
            Self::Context { message, source, .. } => {
                parts.push(message.clone());
                return source.messages(parts);
            }
            // Its message is that of its cause.
            Self::Solve { source, .. } => Some(source.as_ref() as &(dyn std::error::Error + 'static)),
            other => {
                parts.push(other.to_string());
                std::error::Error::source(other)
            }
        };
        let mut cause = foreign;
        while let Some(error) = cause {
            if let Some(ours) = error.downcast_ref::<Self>() {
                return ours.messages(parts);
            }
            parts.push(error.to_string());
            cause = error.source();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: &Error, message: &str, kind: ErrorKind, places: usize) {
        assert_eq!(error.chain(), message);
        assert_eq!(error.kind(), kind);
        assert_eq!(error.sources().len(), places);
    }

    #[test]
    fn chains_read_as_clients_show_them() {
        let missing = || Error::NotFound { path: "Dockerfile".to_owned() };
        check(&missing(), "open Dockerfile: no such file or directory", ErrorKind::NotFound, 0);
        let read = missing().context("failed to read dockerfile");
        let text = "failed to read dockerfile: open Dockerfile: no such file or directory";
        check(&read, text, ErrorKind::NotFound, 0);
        check(&read.with_source(ErrorSource::default()), text, ErrorKind::NotFound, 1);
        check(&missing().with_source(ErrorSource::default()), &missing().to_string(), ErrorKind::NotFound, 1);
    }

    #[test]
    fn a_failed_solve_speaks_for_itself() {
        let cause = Error::Resolve { message: "busybox".to_owned(), source: Some("not found".into()) };
        let solve = Error::Solve { source: Box::new(cause), sources: Vec::new() };
        check(&solve, "busybox: not found", ErrorKind::Build, 0);
        check(&solve.context("failed to solve"), "failed to solve: busybox: not found", ErrorKind::Build, 0);
    }
}
