//! Which memo comes nearest.

use crate::keys::KeyAndSelector;
use crate::reason::fingerprint::Fingerprint;
use crate::reason::memo::Remembered;
use crate::reason::miss::{Change, Difference};
use crate::reason::study::{InputFacts, RunFacts};

/// How a remembered step differs from the one at hand.
#[derive(Debug)]
pub(super) struct Near {
    pub(super) remembered: Remembered,
    changes: Vec<Change>,
    /// Positions of inputs that differ.
    pub(super) inputs: Vec<usize>,
}

impl Near {
    pub(super) fn new(remembered: Remembered, facts: &RunFacts, fingerprint: &Fingerprint) -> Self {
        let mut changes = fingerprint.changes_from(&remembered.memo.fingerprint);
        if changes.is_empty() && !facts.digests.contains(&remembered.digest) {
            // Something that the op has not named.
            let name = "operation".to_owned();
            changes.push(Change { name, was: None, is: None, hidden: true });
        }
        let count = facts.inputs.len().max(remembered.deps.len());
        let differs = |index: &usize| match (facts.inputs.get(*index), remembered.deps.get(*index)) {
            (Some(now), Some(then)) => !now.agrees(then),
            _ => true,
        };
        Self { inputs: (0..count).filter(differs).collect(), remembered, changes }
    }

    fn distance(&self) -> usize {
        self.changes.len() + self.inputs.len()
    }

    pub(super) fn is_same(&self) -> bool {
        self.distance() == 0
    }

    /// The differences, those in contents without saying where.
    pub(super) fn differences(&self, facts: &RunFacts) -> Vec<Difference> {
        let input = |index: &usize| {
            let (index, now) = (*index, facts.inputs.get(*index));
            let was = self.remembered.memo.inputs.get(index);
            match (now, was) {
                (Some(now), Some(_)) if now.content => {
                    Difference::Content { index, name: now.name.clone(), change: None }
                }
                _ => Difference::Input {
                    index,
                    name: now.map(|now| now.name.clone()).unwrap_or_default(),
                    was: was.map(|was| was.name.clone()).unwrap_or_default(),
                    anew: now.is_some_and(|now| now.anew),
                },
            }
        };
        self.changes.iter().cloned().map(Difference::Op).chain(self.inputs.iter().map(input)).collect()
    }
}

impl InputFacts {
    /// Whether any alternative is one of those.
    pub(super) fn agrees(&self, then: &[KeyAndSelector]) -> bool {
        self.offered.iter().any(|now| !now.key.is_random() && then.contains(now))
    }
}

/// The nearest: fewest differences, then the same name, then the newest.
pub(super) fn nearest(
    remembered: Vec<Remembered>,
    facts: &RunFacts,
    fingerprint: &Fingerprint,
) -> Option<Near> {
    let all = remembered.into_iter().map(|remembered| Near::new(remembered, facts, fingerprint));
    all.min_by_key(|near| {
        let other_name = near.remembered.memo.name != facts.name;
        (near.distance(), other_name, std::cmp::Reverse(near.remembered.created_at))
    })
}
