use std::collections::BTreeMap;
use std::sync::Arc;

/// Variables by name, in order of their last assignment. Clones are cheap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Env {
    /// Values with the number of their assignment.
    entries: Arc<BTreeMap<String, (u64, String)>>,
    assignments: u64,
}

impl Env {
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.entries.get(key).map(|(_, value)| value.as_str())
    }

    /// Sets a variable; one that is set already moves to the end.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.assignments += 1;
        Arc::make_mut(&mut self.entries).insert(key.to_owned(), (self.assignments, value.to_owned()));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        if self.entries.contains_key(key) {
            Arc::make_mut(&mut self.entries).remove(key);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How long all entries are together, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.entries.iter().map(|(key, (_, value))| key.len() + value.len() + 1).sum()
    }

    pub(crate) fn keys(&self) -> Vec<&str> {
        self.in_order().map(|(key, _)| key).collect()
    }

    /// `KEY=value` entries in order.
    pub(crate) fn to_list(&self) -> Vec<String> {
        self.in_order().map(|(key, value)| format!("{key}={value}")).collect()
    }

    fn in_order(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut all: Vec<_> = self.entries.iter().collect();
        all.sort_by_key(|(_, (assignment, _))| *assignment);
        all.into_iter().map(|(key, (_, value))| (key.as_str(), value.as_str()))
    }
}
