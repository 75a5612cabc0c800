use crate::error::{Error, Result};
use crate::text::with_suggestion;

/// What a flag takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Text,
    Bool,
    /// Text, and the flag may be repeated.
    List,
}

/// The flags of one instruction.
pub(super) struct Flags {
    known: Vec<(&'static str, Type)>,
    given: Vec<(&'static str, String)>,
}

impl Flags {
    pub(super) fn new(known: &[(&'static str, Type)]) -> Self {
        Self { known: known.to_vec(), given: Vec::new() }
    }

    pub(super) fn parse(&mut self, words: &[String]) -> Result<()> {
        for word in words {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word.as_str(), None),
            };
            let Some(key) = name.strip_prefix("--") else {
                return Err(Error::new(format!("arg should start with -- : {word}")));
            };
            let Some(&(key, kind)) = self.known.iter().find(|(known, _)| *known == key) else {
                let names = self.known.iter().map(|(known, _)| *known);
                return Err(Error::new(with_suggestion(format!("unknown flag: {name}"), key, names, true)));
            };
            if kind != Type::List && self.given.iter().any(|(given, _)| *given == key) {
                return Err(Error::new(format!("duplicate flag specified: {name}")));
            }
            let missing = || Error::new(format!("missing a value on flag: {name}"));
            let value = match (kind, value) {
                (Type::Bool, None) => "true".to_owned(),
                (Type::Bool, Some("")) => return Err(missing()),
                (Type::Bool, Some(value)) => match value.to_lowercase().as_str() {
                    lower @ ("true" | "false") => lower.to_owned(),
                    _ => {
                        return Err(Error::new(format!(
                            "expecting boolean value for flag {name}, not: {value}"
                        )));
                    }
                },
                (_, None) => return Err(missing()),
                (_, Some(value)) => value.to_owned(),
            };
            self.given.push((key, value));
        }
        Ok(())
    }

    /// The value of a flag, empty if it is not given.
    pub(super) fn text(&self, name: &str) -> String {
        self.list(name).pop().unwrap_or_default()
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        self.given.iter().filter(|(given, _)| *given == name).map(|(_, value)| value.clone()).collect()
    }

    pub(super) fn bool(&self, name: &str) -> Option<bool> {
        self.list(name).pop().map(|value| value == "true")
    }
}
