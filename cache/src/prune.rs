//! What is on disk, and removing what nobody needs.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use kiln_digest::Digest;
use tokio::sync::mpsc;

use crate::{
    CacheManager, Error, GcPolicy, PruneOptions, RecordId, RecordType, Result, UsageQuery, UsageRecord,
    db::{bulk, rows},
    filter::{Fields, Filters},
    janitor,
    manager::{Inner, blocking},
};

/// Records removed before somebody else gets a turn.
const BATCH: usize = 10;
/// Removed records that wait to be told of.
const TOLD: usize = 64;
/// Up to this many candidates are ranked again after every removal; of more, a part goes per ranking.
const EXACT: usize = 512;

impl CacheManager {
    /// Lists records, oldest first.
    ///
    /// # Errors
    /// [`Error::Filter`] for a filter that does not parse.
    pub async fn disk_usage(&self, query: &UsageQuery) -> Result<Vec<UsageRecord>> {
        let filters = Filters::parse(&query.filters)?;
        let newest = query.age_limit.and_then(|age| SystemTime::now().checked_sub(age));
        let recent = |record: &UsageRecord| {
            newest.is_some_and(|newest| record.last_used_at.is_some_and(|used| used > newest))
        };
        let mut records = survey(&self.0).await?;
        records.retain(|record| filters.matches(record, Fields::All) && !recent(record));
        Ok(records)
    }

    /// Removes records; each one removed is sent. Ends early when nobody receives any more.
    ///
    /// # Cancel safety
    /// Every record is either removed or untouched.
    pub async fn prune(&self, options: &PruneOptions, removed: mpsc::Sender<UsageRecord>) -> Result<()> {
        let filters = Filters::parse(&options.filters)?;
        let _one_at_a_time = self.0.pruning.lock().await;
        janitor::tidy(&self.0).await?;
        let records = survey(&self.0).await?;
        let total: i64 = records.iter().filter(|record| !record.shared).map(|record| record.size).sum();
        let disk = disk(&self.0).await?;
        let target = match options.target(total, disk.free) {
            Target::Keep => return Ok(()),
            Target::All => None,
            Target::Below(bytes) if total < bytes => return Ok(()),
            Target::Below(bytes) => Some(bytes),
        };
        let oldest = options.keep_duration.and_then(|age| SystemTime::now().checked_sub(age));
        let wanted = |record: &UsageRecord| {
            let kind =
                options.all || !matches!(record.record_type, RecordType::Internal | RecordType::Frontend);
            let old = match (oldest, record.last_used_at) {
                (Some(oldest), Some(used)) => used <= oldest,
                _ => true,
            };
            kind && old && filters.matches(record, Fields::Removal)
        };
        let mut pile = Pile::new(records, wanted);
        let mut total = total;
        loop {
            let batch = pile.next(target.is_some());
            if batch.is_empty() {
                return Ok(());
            }
            for id in batch {
                if target.is_some_and(|target| total < target) {
                    return Ok(());
                }
                if !self.0.take_away(&id).await? {
                    pile.keep(&id);
                    continue;
                }
                if let Some(record) = pile.remove(&id) {
                    total -= record.size;
                    if removed.send(record).await.is_err() {
                        return Ok(());
                    }
                }
            }
            janitor::remove(&self.0).await?;
            tokio::task::yield_now().await;
        }
    }

    /// Applies each policy in turn.
    pub async fn gc(&self, policies: &[GcPolicy]) -> Result<()> {
        for GcPolicy(options) in policies {
            let (tell, mut told) = mpsc::channel::<UsageRecord>(TOLD);
            let count = async {
                let (mut records, mut bytes) = (0_u64, 0_i64);
                while let Some(record) = told.recv().await {
                    records += 1;
                    bytes += record.size;
                }
                (records, bytes)
            };
            let (outcome, (records, bytes)) = tokio::join!(self.prune(options, tell), count);
            outcome?;
            if records > 0 {
                tracing::debug!(records, bytes, "garbage collected");
            }
        }
        Ok(())
    }

    /// Size and free space of the file system that the catalogue is on, in bytes.
    pub async fn disk(&self) -> Result<Disk> {
        disk(&self.0).await
    }
}

/// A file system's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Bytes in all.
    pub total: i64,
    /// Bytes that can still be written.
    pub free: i64,
}

async fn disk(inner: &Arc<Inner>) -> Result<Disk> {
    let root = inner.root().to_owned();
    blocking(move || {
        let stat =
            rustix::fs::statvfs(&root).map_err(|error| Error::io("look at the free space")(error.into()))?;
        let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(stat.f_frsize)).unwrap_or(i64::MAX);
        Ok(Disk { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
    })
    .await
}

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Keep,
    All,
    Below(i64),
}

impl PruneOptions {
    fn target(&self, total: i64, free: i64) -> Target {
        if self.reserved_space == 0 && self.max_used_space == 0 && self.min_free_space == 0 {
            return Target::All;
        }
        let mut target = (self.max_used_space > 0).then_some(self.max_used_space);
        let missing = self.min_free_space - free;
        if self.min_free_space > 0 && missing > 0 {
            let lower = total - missing;
            target = Some(target.map_or(lower, |target| target.min(lower)));
        }
        match target {
            None if self.reserved_space == 0 => Target::Keep,
            target => Target::Below(target.unwrap_or(0).max(self.reserved_space).max(1)),
        }
    }
}

/// Every record with its size; records that are pending are in use by definition.
async fn survey(inner: &Arc<Inner>) -> Result<Vec<UsageRecord>> {
    let mut blobs: HashMap<Digest, u64> =
        inner.content().list().await?.into_iter().map(|blob| (blob.digest, blob.size)).collect();
    let used: HashSet<RecordId> = inner.live.used().into_iter().collect();
    let pending: Vec<_> = inner
        .live
        .records()
        .into_iter()
        .filter(|record| !record.state().published)
        .map(|r| r.row())
        .collect();
    let reader = Arc::clone(inner);
    let mut rows = blocking(move || reader.db().read(bulk::all)).await?;
    rows.extend(pending);
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        let in_use = used.contains(&row.id);
        let files = match (&row.snapshot, row.usage) {
            _ if row.mutable && in_use => 0,
            (Some(_), Some(usage)) => usage.bytes,
            (Some(snapshot), None) => {
                inner.snapshotter().usage(snapshot).await.map_or(0, |usage| usage.bytes)
            }
            (None, _) => 0,
        };
        // A blob that several records have counts once.
        let stored: u64 = row.blobs.iter().filter_map(|blob| blobs.remove(&blob.descriptor.digest)).sum();
        records.push(UsageRecord {
            id: row.id,
            mutable: row.mutable,
            in_use,
            size: i64::try_from(files.saturating_add(stored)).unwrap_or(i64::MAX),
            parents: row.parents.into_iter().map(|(_, parent)| parent).collect(),
            created_at: row.created_at,
            last_used_at: row.last_used_at,
            usage_count: row.usage_count,
            description: row.description,
            record_type: row.record_type,
            shared: false,
        });
    }
    Ok(records)
}

impl Inner {
    /// Removes one record that nobody uses and nothing stands on; `false`: it is needed.
    async fn take_away(self: &Arc<Self>, id: &RecordId) -> Result<bool> {
        if !self.live.doom(id) {
            return Ok(false);
        }
        let doomed = Doomed { inner: self, id };
        let gone = doomed.id.clone();
        let forgotten = self.db().write(move |transaction| rows::forget(transaction, &gone)).await?;
        let taken = forgotten.is_some();
        self.janitor.remove_forgotten(forgotten);
        Ok(taken)
    }
}

/// Ends the claim on a record also when the removal is dropped: the transaction ends before anybody can load it, or
/// finds it whole.
struct Doomed<'a> {
    inner: &'a Inner,
    id: &'a RecordId,
}

impl Drop for Doomed<'_> {
    fn drop(&mut self) {
        self.inner.live.undoom(self.id);
    }
}

/// Records that may go, leaves first.
struct Pile {
    records: HashMap<RecordId, UsageRecord>,
    /// Records directly above.
    children: HashMap<RecordId, usize>,
    /// Wanted, and nothing stands on them.
    leaves: HashSet<RecordId>,
    wanted: HashSet<RecordId>,
}

impl Pile {
    fn new(records: Vec<UsageRecord>, wanted: impl Fn(&UsageRecord) -> bool) -> Self {
        let mut children: HashMap<RecordId, usize> = HashMap::new();
        for record in &records {
            for parent in record.parents.iter().collect::<HashSet<_>>() {
                *children.entry(parent.clone()).or_default() += 1;
            }
        }
        let wanted: HashSet<RecordId> = records
            .iter()
            .filter(|record| !record.in_use && wanted(record))
            .map(|record| record.id.clone())
            .collect();
        let leaves = wanted.iter().filter(|id| !children.contains_key(*id)).cloned().collect();
        let records = records.into_iter().map(|record| (record.id.clone(), record)).collect();
        Self { records, children, leaves, wanted }
    }

    /// The next ones to go.
    fn next(&self, ranked: bool) -> Vec<RecordId> {
        if !ranked {
            return self.leaves.iter().take(BATCH).cloned().collect();
        }
        let leaves: Vec<&UsageRecord> = self.leaves.iter().filter_map(|id| self.records.get(id)).collect();
        let used = ranks(leaves.iter().map(|record| record.last_used_at));
        let counts = ranks(leaves.iter().map(|record| record.usage_count));
        let score = |record: &UsageRecord| {
            used.get(&record.last_used_at).copied().unwrap_or(0.0)
                + counts.get(&record.usage_count).copied().unwrap_or(0.0)
        };
        let mut scored: Vec<(f64, &UsageRecord)> =
            leaves.into_iter().map(|record| (score(record), record)).collect();
        scored.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.id.cmp(&b.1.id)));
        let take = if scored.len() <= EXACT { 1 } else { scored.len() / 64 };
        scored.into_iter().take(take).map(|(_, record)| record.id.clone()).collect()
    }

    /// It turned out to be needed.
    fn keep(&mut self, id: &RecordId) {
        self.leaves.remove(id);
        self.wanted.remove(id);
    }

    fn remove(&mut self, id: &RecordId) -> Option<UsageRecord> {
        self.keep(id);
        let record = self.records.remove(id)?;
        for parent in record.parents.iter().collect::<HashSet<_>>() {
            if let Some(count) = self.children.get_mut(parent) {
                *count -= 1;
                if *count == 0 {
                    self.children.remove(parent);
                    if self.wanted.contains(parent) {
                        self.leaves.insert(parent.clone());
                    }
                }
            }
        }
        Some(record)
    }
}

/// The place of each distinct value in order, as a part of one.
#[expect(clippy::cast_precision_loss, reason = "places are compared, not counted")]
fn ranks<T: Ord + Copy + std::hash::Hash>(values: impl Iterator<Item = T>) -> HashMap<T, f64> {
    let distinct: BTreeMap<T, ()> = values.map(|value| (value, ())).collect();
    let count = distinct.len() as f64;
    distinct.into_keys().enumerate().map(|(place, value)| (value, place as f64 / count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reserved: i64, max: i64, min_free: i64, total: i64, free: i64, want: Target) {
        let options = PruneOptions {
            reserved_space: reserved,
            max_used_space: max,
            min_free_space: min_free,
            ..PruneOptions::default()
        };
        assert_eq!(options.target(total, free), want);
    }

    #[test]
    fn targets() {
        check(0, 0, 0, 100, 10, Target::All);
        check(0, 50, 0, 100, 10, Target::Below(50));
        check(60, 50, 0, 100, 10, Target::Below(60));
        check(60, 0, 0, 100, 10, Target::Below(60));
        check(0, 0, 5, 100, 10, Target::Keep);
        check(0, 0, 30, 100, 10, Target::Below(80));
        check(0, 90, 30, 100, 10, Target::Below(80));
        check(85, 90, 30, 100, 10, Target::Below(85));
        check(0, 0, 300, 100, 10, Target::Below(1));
        check(20, 0, 5, 100, 10, Target::Below(20));
    }
}
