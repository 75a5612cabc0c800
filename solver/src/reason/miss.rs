//! Why nothing was found for a vertex.

use std::time::SystemTime;

use crate::reason::memo::GoneWhy;

/// Why a vertex had to run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Miss {
    /// Nothing like it has been recorded.
    New,
    /// Nothing like it has been recorded here. The caches that its builds import do not have it; of what they have they
    /// do not say what it was made of, so that there is nothing to compare with.
    NotImported,
    /// Its keys hold in one session only: it has to be looked at in every build.
    Session,
    /// The same step is recorded, in every part.
    Same {
        /// When it was made.
        created_at: SystemTime,
        /// What became of its result, if that is known.
        gone: Option<(SystemTime, GoneWhy)>,
    },
    /// The nearest thing that is recorded differs.
    Differs {
        /// The name of its vertex.
        name: String,
        /// When it was made.
        created_at: SystemTime,
        /// In what, the decisive ones first; never empty, and bounded.
        differences: Vec<Difference>,
        /// How many further differences there are.
        further: usize,
    },
}

/// In what a vertex differs from a remembered one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// In a component of the op.
    Op(Change),
    /// In an input.
    Input {
        /// Its position.
        index: usize,
        /// The name of the vertex that makes it now; empty if there is none.
        name: String,
        /// What made it then; empty if there was none.
        was: String,
        /// It was made anew without regard to what is known.
        anew: bool,
    },
    /// In the content of an input.
    Content {
        /// Its position.
        index: usize,
        /// The name of the vertex that makes it.
        name: String,
        /// Where in it, if that is known.
        change: Option<ContentChange>,
    },
}

/// A component that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it is called.
    pub name: String,
    /// What it was; none: it was not there.
    pub was: Option<String>,
    /// What it is; none: it is not there any more.
    pub is: Option<String>,
    /// Its values are not for everybody's eyes.
    pub hidden: bool,
}

/// Where the content of an input is not what it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContentChange {
    /// The path, from the root of the input.
    pub path: String,
    /// What differs: `content`, `mode`, `owner`, `added`, `removed` or another word.
    pub what: String,
    /// What it was, if that can be said in short.
    pub was: Option<String>,
    /// What it is.
    pub is: Option<String>,
    /// In how many further places there are differences.
    pub further: usize,
}

impl ContentChange {
    /// Makes one without values.
    pub fn new(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self { path: path.into(), what: what.into(), ..Self::default() }
    }

    /// Adds what it was and is.
    #[must_use]
    pub fn values(mut self, was: impl Into<String>, is: impl Into<String>) -> Self {
        (self.was, self.is) = (Some(was.into()), Some(is.into()));
        self
    }
}
