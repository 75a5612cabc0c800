use crate::clean::clean;
use crate::error::{Error, Result};
use crate::glob::Glob;

/// How many patterns a list may have. Lists come from clients and from files in a build context.
pub const MAX_PATTERNS: usize = 65_536;
/// How long one pattern may be, in bytes.
pub const MAX_PATTERN_LEN: usize = 16_384;

/// An ordered list of patterns: the last one that matches decides, `!` in front negates.
///
/// - `*` is any run without `/`, `?` one character but `/`, `[a-z]` and `[^a]` classes, `\` takes the next character
///   as it is, `**` is any number of components, none included.
/// - Patterns are anchored at the root and cover everything below what they match.
/// - A leading `/` is not removed here, so such a pattern never matches; [`ignore_file`](crate::ignore_file) removes it.
///
/// ```
/// let list = kiln_patterns::Patterns::new(["docs", "!docs/keep.md"])?;
/// assert!(list.matches("docs/a/b.md"));
/// assert!(!list.matches("docs/keep.md"));
/// # Ok::<(), kiln_patterns::Error>(())
/// ```
///
/// Follows moby/patternmatcher.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    negated: bool,
    text: String,
    glob: Glob,
}

/// What each pattern said about a directory; handed to the entries of that directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchState {
    matched: Vec<bool>,
}

impl Patterns {
    /// Compiles a list. Entries are trimmed, empty ones dropped, the others cleaned lexically.
    ///
    /// # Errors
    /// Any [`Error`]; the list is bounded by [`MAX_PATTERNS`] and [`MAX_PATTERN_LEN`].
    pub fn new<I>(patterns: I) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut entries = Vec::new();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            if pattern.len() > MAX_PATTERN_LEN {
                return Err(Error::TooLong { length: pattern.len(), limit: MAX_PATTERN_LEN });
            }
            if entries.len() == MAX_PATTERNS {
                return Err(Error::TooMany { count: entries.len() + 1, limit: MAX_PATTERNS });
            }
            let cleaned = clean(pattern);
            let (negated, text) = match cleaned.strip_prefix('!') {
                Some("") => return Err(Error::BareNegation),
                Some(rest) => (true, rest.to_owned()),
                None => (false, cleaned),
            };
            entries.push(Entry { negated, glob: Glob::new(&text)?, text });
        }
        Ok(Self { entries })
    }

    /// Whether the list has no pattern at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether any pattern negates.
    pub fn has_negated(&self) -> bool {
        self.entries.iter().any(|entry| entry.negated)
    }

    /// The patterns in order, cleaned, with whether each negates.
    pub fn iter(&self) -> impl Iterator<Item = (bool, &str)> {
        self.entries.iter().map(|entry| (entry.negated, entry.text.as_str()))
    }

    /// Whether `path`, or a directory above it, is matched by the list as a whole.
    ///
    /// For single paths; a walk uses [`matches_with_parents`](Self::matches_with_parents), which looks at each
    /// path once.
    pub fn matches(&self, path: &str) -> bool {
        self.matches_with_parents(path, None).0
    }

    /// Whether `path` is matched, given what its directory's call returned; also the state for its own entries.
    ///
    /// Without a parent state all directories above `path` are tried too. A state of another list is taken as none.
    pub fn matches_with_parents(&self, path: &str, parent: Option<&MatchState>) -> (bool, MatchState) {
        let parent =
            parent.filter(|state| !state.matched.is_empty() && state.matched.len() == self.entries.len());
        let mut state = MatchState { matched: vec![false; self.entries.len()] };
        let mut matched = false;
        for (i, entry) in self.entries.iter().enumerate() {
            let mut hit = parent.is_some_and(|parent| parent.matched[i]);
            if !hit {
                // Only a pattern that can change the answer so far is worth matching. The reference stores "no match"
                // for the ones it skips, and what lies below sees that.
                if entry.negated != matched {
                    continue;
                }
                hit = entry.glob.matches(path) || (parent.is_none() && entry.matches_parent_of(path));
            }
            state.matched[i] = hit;
            if hit {
                matched = !entry.negated;
            }
        }
        (matched, state)
    }

    /// Whether something below `dir` could be matched by a pattern that does not negate.
    ///
    /// For include lists: a directory that does not match itself and answers `false` here need not be walked.
    pub fn may_match_below(&self, dir: &str) -> bool {
        self.entries.iter().any(|entry| !entry.negated && entry.may_match_below(dir))
    }

    /// Whether something below `dir` could be matched by a negated pattern.
    ///
    /// For exclude lists: a directory that matches and answers `false` here need not be walked.
    pub fn may_negate_below(&self, dir: &str) -> bool {
        self.entries.iter().any(|entry| entry.negated && entry.may_match_below(dir))
    }
}

impl Entry {
    fn matches_parent_of(&self, path: &str) -> bool {
        path.match_indices('/').any(|(at, _)| at > 0 && self.glob.matches(&path[..at]))
    }

    fn may_match_below(&self, dir: &str) -> bool {
        self.glob.matches(dir) || self.matches_parent_of(dir) || self.glob.may_match_below(dir)
    }
}
