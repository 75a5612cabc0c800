//! Recorded answers, held against the binaries under test.

pub mod cache_keys;

use std::fmt;

/// How the cases of a folder went.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many passed.
    pub passed: usize,
    /// The names of those that did not, with what was wrong.
    pub failed: Vec<(String, String)>,
    /// The names of those that could not be tried, with what is missing.
    pub skipped: Vec<(String, String)>,
}

impl fmt::Display for Tally {
    /// What is wrong or missing, a line each, and the numbers last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, reason) in &self.skipped {
            writeln!(f, "skipped {name}: {reason}")?;
        }
        for (name, reason) in &self.failed {
            writeln!(f, "failed {name}: {reason}")?;
        }
        write!(f, "{} passed, {} failed", self.passed, self.failed.len())?;
        if !self.skipped.is_empty() {
            write!(f, ", {} skipped", self.skipped.len())?;
        }
        Ok(())
    }
}
