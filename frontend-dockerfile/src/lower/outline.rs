//! What a target can be told: its arguments, secrets and agents, with where they are declared.

use std::collections::{BTreeMap, BTreeSet};

use crate::lower::Lowering;
use crate::source::LineRange;

/// Notes taken while a stage is lowered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    pub(super) args: BTreeMap<String, ArgNote>,
    pub(super) used: BTreeSet<String>,
    pub(super) secrets: Vec<Entry>,
    pub(super) ssh: Vec<Entry>,
}

/// An ARG.
#[derive(Clone, Debug, Default)]
pub(crate) struct ArgNote {
    pub(crate) value: String,
    pub(crate) doc: String,
    /// Arguments that its default refers to.
    pub(super) deps: BTreeSet<String>,
    pub(crate) ranges: Vec<LineRange>,
}

/// A secret or an agent.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) required: bool,
    pub(crate) ranges: Vec<LineRange>,
}

/// All that a target can be told, in the order of lines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outline {
    pub(crate) name: String,
    pub(crate) doc: String,
    pub(crate) args: Vec<(String, ArgNote)>,
    pub(crate) secrets: Vec<Entry>,
    pub(crate) ssh: Vec<Entry>,
}

impl Notes {
    pub(super) fn add(list: &mut Vec<Entry>, name: &str, required: bool, ranges: &[LineRange]) {
        if !list.iter().any(|entry| entry.name == name) {
            list.push(Entry { name: name.to_owned(), required, ranges: ranges.to_vec() });
        }
    }

    /// The arguments in use, with those that their defaults refer to.
    fn all_used(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut open: Vec<&String> = self.used.iter().collect();
        while let Some(name) = open.pop() {
            if found.insert(name.clone())
                && let Some(note) = self.args.get(name)
            {
                open.extend(&note.deps);
            }
        }
        found
    }
}

impl Lowering<'_> {
    pub(super) fn outline(&self, target: usize) -> Outline {
        let stage = &self.stages[target];
        let mut out =
            Outline { name: stage.stage.name.clone(), doc: stage.stage.doc.clone(), ..Outline::default() };
        let mut seen = BTreeSet::new();
        self.collect(target, &mut out, &mut seen);
        let line = |ranges: &[LineRange]| ranges.first().map_or(0, |range| range.start);
        out.args.sort_by_key(|(_, note)| line(&note.ranges));
        out.secrets.sort_by_key(|entry| line(&entry.ranges));
        out.ssh.sort_by_key(|entry| line(&entry.ranges));
        out
    }

    /// Collects from a stage, its base and what it takes files from, the first mention of a name counts.
    fn collect(&self, index: usize, out: &mut Outline, seen: &mut BTreeSet<usize>) {
        let mut open = vec![index];
        while let Some(index) = open.pop() {
            if !seen.insert(index) {
                continue;
            }
            let stage = &self.stages[index];
            for name in stage.notes.all_used() {
                if let Some(note) = stage.notes.args.get(&name)
                    && !out.args.iter().any(|(known, _)| *known == name)
                {
                    out.args.push((name, note.clone()));
                }
            }
            for (list, entries) in
                [(&mut out.secrets, &stage.notes.secrets), (&mut out.ssh, &stage.notes.ssh)]
            {
                for entry in entries {
                    Notes::add(list, &entry.name, entry.required, &entry.ranges);
                }
            }
            open.extend(stage.deps.iter().rev().map(|(dep, _)| *dep));
            open.extend(stage.base);
        }
    }
}
