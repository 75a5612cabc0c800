//! What is on disk, and removing what nobody needs.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use kiln_digest::Digest;
use tokio::sync::mpsc;

use crate::{
    CacheManager, Error, GcPolicy, PruneOptions, RecordId, RecordType, Result, UsageQuery, UsageRecord,
    db::{
        bulk,
        leaves::{self, Cursor, Scope},
        ledger,
        rows::{self, RecordRow},
    },
    filter::{Fields, Filters},
    janitor,
    manager::{Inner, blocking},
    pile::Pile,
};

/// Records removed before somebody else gets a turn.
const BATCH: usize = 10;
/// Leaves looked at together: among so many the least used are found. Also what bounds the memory that this takes.
const LEAVES: usize = 4096;
/// Removed records that wait to be told of.
const TOLD: usize = 64;

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
        let mut total = if options.is_limited() { total(&self.0).await? } else { 0 };
        let target = match options.target(total, disk(&self.0).await?.free) {
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
        let before = oldest.map_or(i64::MAX, rows::nanos);
        let mut heap = Heap::new(&self.0, Scope { types: filters.types(), before }, wanted);
        loop {
            let batch = heap.next(target.is_some()).await?;
            if batch.is_empty() {
                return Ok(());
            }
            for id in batch {
                if target.is_some_and(|target| total < target) {
                    return Ok(());
                }
                let Some(record) = heap.take_away(&id).await? else { continue };
                total -= record.size;
                if removed.send(record).await.is_err() {
                    return Ok(());
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
    fn is_limited(&self) -> bool {
        self.reserved_space != 0 || self.max_used_space != 0 || self.min_free_space != 0
    }

    fn target(&self, total: i64, free: i64) -> Target {
        if !self.is_limited() {
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
        inner.content().list().await?.into_iter().map(|blob| (blob.digest, blob.allocated)).collect();
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
        records.push(record(row, in_use, files.saturating_add(stored)));
    }
    Ok(records)
}

fn record(row: RecordRow, in_use: bool, size: u64) -> UsageRecord {
    UsageRecord {
        id: row.id,
        mutable: row.mutable,
        in_use,
        size: i64::try_from(size).unwrap_or(i64::MAX),
        parents: row.parents.into_iter().map(|(_, parent)| parent).collect(),
        created_at: row.created_at,
        last_used_at: row.last_used_at,
        usage_count: row.usage_count,
        description: row.description,
        record_type: row.record_type,
        shared: false,
    }
}

/// Bytes that all records take.
async fn total(inner: &Arc<Inner>) -> Result<i64> {
    let mut total = 0_u64;
    for blob in inner.content().list().await? {
        if inner.db().read(|connection| rows::blob_size(connection, &blob.digest))?.is_some() {
            total = total.saturating_add(blob.allocated);
        }
    }
    let (measured, _inodes) = inner.db().read(ledger)?;
    Ok(measured.saturating_add(i64::try_from(total).unwrap_or(i64::MAX)))
}

/// The records that may go: leaves from the catalogue, a part at a time, and what becomes a leaf meanwhile.
struct Heap<'a, W> {
    inner: &'a Arc<Inner>,
    wanted: W,
    scope: Scope,
    cursor: Cursor,
    pile: Pile,
    /// Something was removed since the reading last began anew.
    removed: bool,
}

impl<'a, W: Fn(&UsageRecord) -> bool> Heap<'a, W> {
    fn new(inner: &'a Arc<Inner>, scope: Scope, wanted: W) -> Self {
        Self { inner, wanted, scope, cursor: Cursor::default(), pile: Pile::default(), removed: false }
    }

    /// The next ones to go, the least used of those at hand first if `ranked`; none when nothing is left that may.
    async fn next(&mut self, ranked: bool) -> Result<Vec<RecordId>> {
        loop {
            let batch = self.pile.next(ranked, BATCH);
            if !batch.is_empty() {
                return Ok(batch);
            }
            let (reader, scope, mut cursor) = (Arc::clone(self.inner), self.scope.clone(), self.cursor);
            let (seqs, cursor) = blocking(move || {
                reader
                    .db()
                    .read(|connection| Ok((leaves::next(connection, &scope, &mut cursor, LEAVES)?, cursor)))
            })
            .await?;
            self.cursor = cursor;
            if seqs.is_empty() {
                if !std::mem::take(&mut self.removed) {
                    return Ok(Vec::new());
                }
                // What was in use may be free by now, and what was below it, too.
                self.cursor = Cursor::default();
                continue;
            }
            self.add(seqs).await?;
        }
    }

    async fn add(&mut self, seqs: Vec<i64>) -> Result<()> {
        let reader = Arc::clone(self.inner);
        let rows = blocking(move || reader.db().read(|connection| bulk::listed(connection, &seqs))).await?;
        for row in rows {
            if self.inner.live.is_used(&row.id) {
                continue;
            }
            let blobs: Vec<Digest> = row.blobs.iter().map(|blob| blob.descriptor.digest).collect();
            let files = match (&row.snapshot, row.usage) {
                (Some(_), Some(usage)) => usage.bytes,
                (Some(snapshot), None) => {
                    self.inner.snapshotter().usage(snapshot).await.map_or(0, |usage| usage.bytes)
                }
                (None, _) => 0,
            };
            let record = record(row, false, files);
            if (self.wanted)(&record) {
                self.pile.add(record, blobs);
            }
        }
        Ok(())
    }

    /// Removes one record that nobody uses and nothing stands on; none: it is needed.
    async fn take_away(&mut self, id: &RecordId) -> Result<Option<UsageRecord>> {
        let Some((mut record, blobs)) = self.pile.take(id) else { return Ok(None) };
        // Blobs that others have, too, are theirs from now on.
        let mut stored = 0_u64;
        for digest in blobs {
            if self.inner.db().read(|connection| rows::blob_is_of_one(connection, &digest))? {
                stored += self.inner.content().info(&digest).await?.map_or(0, |blob| blob.allocated);
            }
        }
        if !self.inner.take_away(id).await? {
            return Ok(None);
        }
        record.size = record.size.saturating_add(i64::try_from(stored).unwrap_or(i64::MAX));
        self.removed = true;
        let parents = record.parents.clone();
        let bare = self.inner.db().read(|connection| {
            let mut bare = Vec::new();
            for parent in &parents {
                if rows::children(connection, parent)?.is_empty() {
                    bare.extend(rows::seq_of(connection, parent)?);
                }
            }
            Ok(bare)
        })?;
        if !bare.is_empty() {
            self.add(bare).await?;
        }
        Ok(Some(record))
    }
}

impl Inner {
    /// Removes what nobody uses, of any kind and the least used first, as long as `wanted` says; how many records.
    pub(crate) async fn prune_while(self: &Arc<Self>, wanted: impl Fn() -> Result<bool>) -> Result<usize> {
        // Not the lock of `prune`, which a client that does not read may hold for long.
        let _one_at_a_time = self.reclaiming.lock().await;
        janitor::tidy(self).await?;
        if !wanted()? {
            return Ok(0);
        }
        let mut heap = Heap::new(self, Scope { types: None, before: i64::MAX }, |_| true);
        let mut removed = 0;
        while wanted()? {
            let batch = heap.next(true).await?;
            if batch.is_empty() {
                break;
            }
            for id in batch.into_iter().take(BATCH) {
                removed += usize::from(heap.take_away(&id).await?.is_some());
            }
            janitor::remove(self).await?;
            tokio::task::yield_now().await;
        }
        Ok(removed)
    }

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
