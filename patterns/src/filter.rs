use crate::error::Result;
use crate::list::{MatchState, Patterns};

/// An include and an exclude list, asked together during a walk.
///
/// The walk calls [`visit`](Self::visit) for each path and hands the state of a directory to its entries. A directory
/// that is entered without being selected itself is emitted only once something below it is.
///
/// ```
/// let filter = kiln_patterns::Filter::new(["src"], ["src/gen", "!src/gen/keep"])?;
/// let src = filter.visit("src", true, None);
/// assert!(src.selected && src.enter);
/// let generated = filter.visit("src/gen", true, Some(&src.state));
/// assert!(!generated.selected && generated.enter);
/// assert!(filter.visit("src/gen/keep", false, Some(&generated.state)).selected);
/// assert!(!filter.visit("other", true, None).enter);
/// # Ok::<(), kiln_patterns::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Filter {
    include: Patterns,
    exclude: Patterns,
}

/// What both lists said about a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirState {
    include: Option<MatchState>,
    exclude: Option<MatchState>,
}

/// The answer for one path of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// The path itself is selected.
    pub selected: bool,
    /// The path is a directory below which something may be selected.
    pub enter: bool,
    /// To be handed to the entries of this directory.
    pub state: DirState,
}

impl Filter {
    /// Compiles both lists. An include list without any pattern selects everything.
    ///
    /// # Errors
    /// As [`Patterns::new`].
    pub fn new<I, E>(include: I, exclude: E) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
        E: IntoIterator,
        E::Item: AsRef<str>,
    {
        Ok(Self { include: Patterns::new(include)?, exclude: Patterns::new(exclude)? })
    }

    /// Whether everything is selected, so that a walk need not ask.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Judges `path`, relative to the root of the walk; `parent` is the state of its directory, none at the root.
    pub fn visit(&self, path: &str, is_dir: bool, parent: Option<&DirState>) -> Visit {
        let mut answer =
            Visit { selected: true, enter: is_dir, state: DirState { include: None, exclude: None } };
        if !self.include.is_empty() {
            let above = parent.and_then(|parent| parent.include.as_ref());
            let (included, state) = self.include.matches_with_parents(path, above);
            answer.selected = included;
            answer.enter = is_dir && (included || self.include.may_match_below(path));
            answer.state.include = Some(state);
        }
        if !self.exclude.is_empty() {
            let above = parent.and_then(|parent| parent.exclude.as_ref());
            let (excluded, state) = self.exclude.matches_with_parents(path, above);
            answer.selected &= !excluded;
            answer.enter &= !excluded || self.exclude.may_negate_below(path);
            answer.state.exclude = Some(state);
        }
        answer
    }
}
