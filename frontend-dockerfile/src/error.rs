use kiln_frontend::{Error as FrontendError, ErrorSource, pb};

use crate::source::{LineRange, SourceFile};

/// The result of reading and lowering Dockerfiles.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with a Dockerfile or its build, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The Dockerfile or an option is wrong. The text is the one that clients of the reference see.
    #[error("{message}")]
    Language {
        /// What is wrong.
        message: String,
        /// Where, one list of lines for each place.
        places: Vec<Vec<LineRange>>,
    },
    /// What the frontend called back for failed.
    #[error("{source}")]
    Bridge {
        /// The failure.
        source: Box<FrontendError>,
        /// Which lines asked for it.
        places: Vec<Vec<LineRange>>,
    },
}

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Language { message: message.into(), places: Vec::new() }
    }

    /// Adds a place.
    #[must_use]
    pub(crate) fn at(mut self, lines: &[LineRange]) -> Self {
        self.places_mut().push(lines.to_vec());
        self
    }

    /// Replaces the places.
    #[must_use]
    pub(crate) fn only_at(mut self, lines: &[LineRange]) -> Self {
        *self.places_mut() = vec![lines.to_vec()];
        self
    }

    /// Says what was being done.
    #[must_use]
    pub(crate) fn context(self, what: impl std::fmt::Display) -> Self {
        match self {
            Self::Language { message, places } => {
                Self::Language { message: format!("{what}: {message}"), places }
            }
            Self::Bridge { source, places } => {
                Self::Bridge { source: Box::new(source.context(what.to_string())), places }
            }
        }
    }

    /// Appends to the message.
    #[must_use]
    pub(crate) fn map_message(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Language { message, places } => Self::Language { message: change(message), places },
            other => other,
        }
    }

    /// Appends a hint to the whole message.
    #[must_use]
    pub(crate) fn with_suffix(self, suffix: &str) -> Self {
        match self {
            Self::Language { message, places } => {
                Self::Language { message: format!("{message}{suffix}"), places }
            }
            Self::Bridge { source, places } => {
                let message = format!("{}{suffix}", source.chain());
                Self::Bridge { source: Box::new(FrontendError::Resolve { message, source: None }), places }
            }
        }
    }

    /// The whole message with its causes.
    pub fn message(&self) -> String {
        match self {
            Self::Language { message, .. } => message.clone(),
            Self::Bridge { source, .. } => source.chain(),
        }
    }

    /// The places, one list of lines for each.
    pub fn places(&self) -> &[Vec<LineRange>] {
        match self {
            Self::Language { places, .. } | Self::Bridge { places, .. } => places,
        }
    }

    fn places_mut(&mut self) -> &mut Vec<Vec<LineRange>> {
        match self {
            Self::Language { places, .. } | Self::Bridge { places, .. } => places,
        }
    }

    /// Turns it into what frontends return, with the file's text for each place.
    pub(crate) fn into_frontend(self, file: Option<&SourceFile>) -> FrontendError {
        let (mut error, places) = match self {
            Self::Language { message, places } => (FrontendError::input(message), places),
            Self::Bridge { source, places } => (*source, places),
        };
        if let Some(file) = file {
            for lines in places {
                let ranges: Vec<pb::Range> = lines.iter().map(|line| line.to_pb()).collect();
                error = error.with_source(ErrorSource { info: file.to_pb(), ranges });
            }
        }
        error
    }
}

impl From<FrontendError> for Error {
    fn from(source: FrontendError) -> Self {
        Self::Bridge { source: Box::new(source), places: Vec::new() }
    }
}
