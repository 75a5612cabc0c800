/// What is wrong with a pattern list.
///
/// The first two texts are matched by clients, which is why they follow the reference word for word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A `!` with nothing after it.
    #[error("illegal exclusion pattern: \"!\"")]
    BareNegation,
    /// A bracket expression that does not close, is empty or has a half range; or a trailing backslash.
    #[error("syntax error in pattern")]
    Syntax {
        /// The pattern as given.
        pattern: String,
    },
    /// More patterns than [`MAX_PATTERNS`](crate::MAX_PATTERNS).
    #[error("too many patterns: `{count}`, at most `{limit}` are allowed")]
    TooMany {
        /// How many were given.
        count: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// A pattern longer than [`MAX_PATTERN_LEN`](crate::MAX_PATTERN_LEN) bytes.
    #[error("pattern of `{length}` bytes is too long, at most `{limit}` are allowed")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// How long it may be, in bytes.
        limit: usize,
    },
}

/// The result of reading patterns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
