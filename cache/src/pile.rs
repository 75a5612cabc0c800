//! Records that may go, and which of them go first.

use std::collections::{BTreeMap, HashMap};

use kiln_digest::Digest;

use crate::{RecordId, UsageRecord};

/// Up to this many are ranked again after every removal; of more, a part goes per ranking.
const EXACT: usize = 512;

/// Records on which nothing stands, with their blobs.
#[derive(Debug, Default)]
pub(crate) struct Pile(HashMap<RecordId, (UsageRecord, Vec<Digest>)>);

impl Pile {
    pub(crate) fn add(&mut self, record: UsageRecord, blobs: Vec<Digest>) {
        self.0.insert(record.id.clone(), (record, blobs));
    }

    pub(crate) fn take(&mut self, id: &RecordId) -> Option<(UsageRecord, Vec<Digest>)> {
        self.0.remove(id)
    }

    /// The next ones to go: any few, or, if `ranked`, those that were used the longest ago and the least often.
    pub(crate) fn next(&self, ranked: bool, few: usize) -> Vec<RecordId> {
        if !ranked {
            return self.0.keys().take(few).cloned().collect();
        }
        let records = || self.0.values().map(|(record, _)| record);
        let used = ranks(records().map(|record| record.last_used_at));
        let counts = ranks(records().map(|record| record.usage_count));
        let score = |record: &UsageRecord| {
            used.get(&record.last_used_at).copied().unwrap_or(0.0)
                + counts.get(&record.usage_count).copied().unwrap_or(0.0)
        };
        let mut scored: Vec<(f64, &UsageRecord)> = records().map(|record| (score(record), record)).collect();
        scored.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.id.cmp(&b.1.id)));
        let take = if scored.len() <= EXACT { 1 } else { scored.len() / 64 };
        scored.into_iter().take(take).map(|(_, record)| record.id.clone()).collect()
    }
}

/// The place of each distinct value in order, as a part of one.
#[expect(clippy::cast_precision_loss, reason = "places are compared, not counted")]
fn ranks<T: Ord + Copy + std::hash::Hash>(values: impl Iterator<Item = T>) -> HashMap<T, f64> {
    let distinct: BTreeMap<T, ()> = values.map(|value| (value, ())).collect();
    let count = distinct.len() as f64;
    distinct.into_keys().enumerate().map(|(place, value)| (value, place as f64 / count)).collect()
}
