//! What an op is made of, in words.

use std::collections::{BTreeMap, BTreeSet};

use kiln_digest::Digest;

use crate::reason::miss::Change;

/// Components of one fingerprint; the values of further ones are mixed into one.
const MAX_COMPONENTS: usize = 256;
/// Bytes of a value that are kept to be shown.
const MAX_SHOWN: usize = 1024;
/// Bytes of all values that are kept to be shown; of further ones only the mark is.
const MAX_ALL_SHOWN: usize = 16 << 10;
/// Bytes of a name.
const MAX_NAME: usize = 256;
/// What further components are mixed into.
const REST: &str = "further parts";

/// An ordered list of what an op is made of. Of the first components in which two differ, people are told.
///
/// It stays small whatever is added: values are clipped, yet compared as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    kin: String,
    components: Vec<Component>,
    shown: usize,
}

/// One named value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The part of the op it belongs to, such as `mount /src`; empty: the op itself. A part is its kind, a space and
    /// what names it.
    pub part: String,
    /// What it is.
    pub name: String,
    /// The value as far as it may be shown; none for one that is not for everybody's eyes.
    pub shown: Option<String>,
    /// Stands for the whole value in comparisons.
    pub mark: u64,
}

impl Fingerprint {
    /// Puts one together from what was saved of it.
    pub fn from_parts(kin: String, components: Vec<Component>) -> Self {
        Self { kin, components, shown: 0 }
    }

    /// Says what it is a version of, whatever its name: an image's repository, for example.
    pub fn set_kin(&mut self, kin: &str) {
        self.kin = clip(kin, MAX_NAME);
    }

    /// What it is a version of; empty if only its name says that.
    pub fn kin(&self) -> &str {
        &self.kin
    }

    /// Adds a value of the op itself.
    pub fn add(&mut self, name: &str, value: &str) {
        self.add_to("", name, value);
    }

    /// Adds a value of a part.
    pub fn add_to(&mut self, part: &str, name: &str, value: &str) {
        let room = MAX_SHOWN.min(MAX_ALL_SHOWN.saturating_sub(self.shown));
        let shown = clip(value, room);
        self.shown += shown.len();
        self.push(part, name, Some(shown), value);
    }

    /// Adds a value of a part, or of the op itself for none, that is compared but never kept.
    pub fn add_hidden(&mut self, part: &str, name: &str, value: &str) {
        self.push(part, name, None, value);
    }

    fn push(&mut self, part: &str, name: &str, shown: Option<String>, value: &str) {
        if self.components.len() >= MAX_COMPONENTS
            && let Some(last) = self.components.last_mut()
        {
            let whole = format!("{:016x}\0{part}\0{name}\0{value}", last.mark);
            *last = Component { part: String::new(), name: REST.to_owned(), shown: None, mark: mark(&whole) };
            return;
        }
        let (part, name) = (clip(part, MAX_NAME), clip(name, MAX_NAME));
        self.components.push(Component { part, name, shown, mark: mark(value) });
    }

    /// The components in order.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// Everything in which `self`, the new one, differs from `old`: what changed or came in the order of the new one,
    /// then what went.
    pub(crate) fn changes_from(&self, old: &Self) -> Vec<Change> {
        if self.components == old.components {
            return Vec::new();
        }
        let olds: BTreeMap<(&str, &str), &Component> =
            old.components.iter().map(|c| (c.place(), c)).collect();
        let news: BTreeSet<(&str, &str)> = self.components.iter().map(Component::place).collect();
        let old_parts: BTreeSet<&str> = old.components.iter().map(|c| c.part.as_str()).collect();
        let new_parts: BTreeSet<&str> = self.components.iter().map(|c| c.part.as_str()).collect();
        let mut renamed: BTreeSet<&str> = BTreeSet::new();
        let mut told: BTreeSet<&str> = BTreeSet::new();
        let mut changes = Vec::new();
        for component in &self.components {
            let part = component.part.as_str();
            if !old_parts.contains(part) {
                // A part that is new as a whole is one change, and so is one that only has another name.
                if !told.insert(part) {
                    continue;
                }
                let (kind, name) = split(part);
                let twin = old_parts.iter().copied().find(|other| {
                    !new_parts.contains(other)
                        && !renamed.contains(other)
                        && split(other).0 == kind
                        && old.part(other).eq(self.part(part))
                });
                match twin {
                    Some(twin) => {
                        renamed.insert(twin);
                        changes.push(Change {
                            name: format!("name of a {kind}"),
                            was: Some(split(twin).1.to_owned()),
                            is: Some(name.to_owned()),
                            hidden: false,
                        });
                    }
                    None => changes.push(Change {
                        name: part.to_owned(),
                        was: None,
                        is: Some(String::new()),
                        hidden: false,
                    }),
                }
                continue;
            }
            match olds.get(&component.place()) {
                Some(old) if old.mark == component.mark => {}
                Some(old) => changes.push(component.change(Some(old), Some(component))),
                None => changes.push(component.change(None, Some(component))),
            }
        }
        for component in &old.components {
            let part = component.part.as_str();
            if !new_parts.contains(part) {
                if !renamed.contains(part) && told.insert(part) {
                    changes.push(Change {
                        name: part.to_owned(),
                        was: Some(String::new()),
                        is: None,
                        hidden: false,
                    });
                }
            } else if !news.contains(&component.place()) {
                changes.push(component.change(Some(component), None));
            }
        }
        changes
    }

    fn part<'a>(&'a self, part: &'a str) -> impl Iterator<Item = (&'a str, u64)> {
        self.components.iter().filter(move |c| c.part == part).map(|c| (c.name.as_str(), c.mark))
    }
}

impl Component {
    fn place(&self) -> (&str, &str) {
        (&self.part, &self.name)
    }

    fn change(&self, was: Option<&Self>, is: Option<&Self>) -> Change {
        let name =
            if self.part.is_empty() { self.name.clone() } else { format!("{} of {}", self.name, self.part) };
        let hidden = [was, is].into_iter().flatten().any(|side| side.shown.is_none());
        let value = |side: Option<&Self>| side.map(|side| side.shown.clone().unwrap_or_default());
        Change { name, was: value(was), is: value(is), hidden }
    }
}

/// Kind and name of a part.
fn split(part: &str) -> (&str, &str) {
    part.split_once(' ').unwrap_or((part, ""))
}

fn mark(value: &str) -> u64 {
    Digest::of(value).as_bytes().iter().take(8).fold(0, |mark, byte| mark << 8 | u64::from(*byte))
}

/// The first `max` bytes at most, whole characters.
pub(crate) fn clip(text: &str, max: usize) -> String {
    let whole = (0..=max.min(text.len())).rev().find_map(|end| text.get(..end));
    whole.unwrap_or_default().to_owned()
}
