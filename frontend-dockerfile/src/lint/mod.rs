//! The rules that Dockerfiles are held to, and who has switched them off.

mod config;
mod rules;

pub(crate) use self::config::LintConfig;
pub(crate) use self::rules::Rule;
use crate::error::{Error, Result};
use crate::source::LineRange;

/// A rule that was broken.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) rule: Rule,
    pub(crate) message: String,
    pub(crate) ranges: Vec<LineRange>,
}

/// Collects what the rules find.
#[derive(Clone, Debug, Default)]
pub(crate) struct Linter {
    config: LintConfig,
    /// Nothing is collected, and nothing can fail the build.
    pub(crate) muted: bool,
    pub(crate) hits: Vec<Hit>,
}

impl Linter {
    pub(crate) fn new(config: LintConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// One that reports nothing.
    pub(crate) fn muted() -> Self {
        Self { muted: true, ..Self::default() }
    }

    /// Reports a broken rule. `comments` are those above the instruction; they may switch the rule off or on.
    pub(crate) fn report(&mut self, rule: Rule, comments: &[String], ranges: &[LineRange], message: String) {
        if !self.muted && self.config.applies(rule, comments) {
            self.hits.push(Hit { rule, message, ranges: ranges.to_vec() });
        }
    }

    /// # Errors
    /// If something was found and the file says that this is an error.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.config.fails || self.hits.is_empty() {
            return Ok(());
        }
        let mut names: Vec<&str> = Vec::new();
        for hit in &self.hits {
            if !names.contains(&hit.rule.name()) {
                names.push(hit.rule.name());
            }
        }
        Err(Error::new(format!("lint violation found for rules: {}", names.join(", "))))
    }
}
