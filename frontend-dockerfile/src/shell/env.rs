/// Variables by name, in order of their last assignment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Env {
    entries: Vec<(String, String)>,
}

impl Env {
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.entries.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Sets a variable; one that is set already moves to the end.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.remove(key);
        self.entries.push((key.to_owned(), value.to_owned()));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.entries.retain(|(name, _)| name != key);
    }

    pub(crate) fn keys(&self) -> Vec<&str> {
        self.entries.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// `KEY=value` entries in order.
    pub(crate) fn to_list(&self) -> Vec<String> {
        self.entries.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}
