//! Trying the credentials of several holders, one after the other.

use std::collections::HashSet;
use std::sync::Arc;

use kiln_registry::Credentials;

use crate::error::{Error, Result};

/// What one client may not, the next one that waits for the same may: its build does not fail for the other's sake.
pub(crate) struct OneByOne<'a> {
    all: &'a dyn Credentials,
    current: Option<Arc<dyn Credentials>>,
    tried: HashSet<String>,
    first: Option<Error>,
}

impl<'a> OneByOne<'a> {
    pub(crate) fn new(all: &'a dyn Credentials) -> Self {
        let tried = HashSet::new();
        Self { all, current: all.next_holder(&tried), tried, first: None }
    }

    /// Who is tried now.
    pub(crate) fn current(&self) -> &dyn Credentials {
        self.current.as_deref().unwrap_or(self.all)
    }

    /// Goes on to the next one after an error.
    ///
    /// # Errors
    /// That error if another holder makes no difference, and that of the preferred holder when nobody is left.
    pub(crate) fn refused(&mut self, error: Error) -> Result<()> {
        let Some(current) = self.current.as_ref().filter(|_| error.is_of_lender()) else { return Err(error) };
        self.tried.insert(current.identity());
        let first = self.first.take().unwrap_or(error);
        self.current = self.all.next_holder(&self.tried);
        if self.current.is_none() {
            return Err(first);
        }
        self.first = Some(first);
        Ok(())
    }
}
