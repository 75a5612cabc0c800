//! Looking whether the catalogue and the stores agree, and mending what does not.

use std::{collections::HashSet, fmt, sync::Arc, time::SystemTime};

use kiln_content::ContentStoreExt as _;
use kiln_digest::Digest;
use kiln_snapshot::SnapshotId;
use tokio::sync::mpsc;

use crate::{
    CacheManager, Error, RecordId, Ref, Result,
    db::{
        bulk, check,
        rows::{self, RecordRow},
    },
    janitor,
    manager::{Inner, blocking},
    recovery::orphans,
    unpack::lose,
};

/// Snapshots looked up at a time.
const BATCH: usize = 256;

/// How to look.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Also reads every blob to its end and compares its digest.
    pub digests: bool,
    /// Mends what is found: what is damaged becomes a miss, what nobody wants goes.
    pub repair: bool,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckSummary {
    /// Records.
    pub records: u64,
    /// Snapshots of records.
    pub snapshots: u64,
    /// Blobs in the store.
    pub blobs: u64,
    /// Things that were found.
    pub findings: u64,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fault {
    /// The database contradicts itself.
    Database,
    /// The ledger is not the sum of what it counts.
    Ledger,
    /// A record's snapshot has gone.
    SnapshotMissing,
    /// A record's snapshot does not have all its files, or not all of them in full.
    SnapshotDamaged,
    /// A layer has neither a snapshot nor a blob that can be had.
    LayerUnavailable,
    /// A blob is not what its name says.
    BlobDamaged,
    /// A leased blob has gone.
    LeaseWithoutBlob,
    /// A lease has ended.
    LeaseEnded,
    /// A key has a result whose record is not there.
    ResultWithoutRecord,
    /// A link leads to a key that is not known.
    LinkWithoutKey,
    /// A key leads nowhere.
    IdleKey,
    /// No record has this snapshot.
    SnapshotOrphaned,
    /// No record and no lease has this blob.
    BlobOrphaned,
}

/// How bad a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// It only takes space.
    Litter,
    /// The stores have lost something: fetched, unpacked or made again when it is wanted.
    Miss,
    /// The catalogue is not what a transaction leaves. This is a defect, of the program or of the disk.
    Corrupt,
}

impl Fault {
    /// Its name, for clients.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Ledger => "ledger",
            Self::SnapshotMissing => "snapshot-missing",
            Self::SnapshotDamaged => "snapshot-damaged",
            Self::LayerUnavailable => "layer-unavailable",
            Self::BlobDamaged => "blob-damaged",
            Self::LeaseWithoutBlob => "lease-without-blob",
            Self::LeaseEnded => "lease-ended",
            Self::ResultWithoutRecord => "result-without-record",
            Self::LinkWithoutKey => "link-without-key",
            Self::IdleKey => "idle-key",
            Self::SnapshotOrphaned => "snapshot-orphaned",
            Self::BlobOrphaned => "blob-orphaned",
        }
    }

    /// How bad it is.
    pub fn gravity(self) -> Gravity {
        match self {
            Self::Database | Self::Ledger | Self::ResultWithoutRecord | Self::LinkWithoutKey => {
                Gravity::Corrupt
            }
            Self::SnapshotMissing
            | Self::SnapshotDamaged
            | Self::LayerUnavailable
            | Self::BlobDamaged
            | Self::LeaseWithoutBlob => Gravity::Miss,
            Self::LeaseEnded | Self::IdleKey | Self::SnapshotOrphaned | Self::BlobOrphaned => Gravity::Litter,
        }
    }
}

impl Gravity {
    /// Its name, for clients.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Litter => "litter",
            Self::Miss => "miss",
            Self::Corrupt => "corrupt",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub fault: Fault,
    /// The record, snapshot, blob or key that it is about.
    pub subject: String,
    /// More about it, for people.
    pub detail: String,
    /// It has been mended.
    pub mended: bool,
}

impl CacheManager {
    /// Compares the catalogue with the stores; each thing found is sent. Builds may go on meanwhile: what they are
    /// making is not taken for an orphan. Ends early when nobody receives any more.
    ///
    /// # Errors
    /// Those of the database and the stores, where they cannot even be looked at.
    ///
    /// # Cancel safety
    /// Every finding is either mended or untouched.
    pub async fn check(&self, options: CheckOptions, found: mpsc::Sender<Finding>) -> Result<CheckSummary> {
        let _one_at_a_time = self.0.pruning.lock().await;
        janitor::tidy(&self.0).await?;
        let mut checking = Checking { inner: &self.0, options, found, summary: CheckSummary::default() };
        match checking.run().await {
            Err(Stop::Failed(error)) => Err(error),
            Ok(()) | Err(Stop::Unheard) => Ok(checking.summary),
        }
    }
}

/// Why looking ends early.
enum Stop {
    Failed(Error),
    /// Nobody receives any more.
    Unheard,
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

struct Checking<'a> {
    inner: &'a Arc<Inner>,
    options: CheckOptions,
    found: mpsc::Sender<Finding>,
    summary: CheckSummary,
}

impl Checking<'_> {
    async fn run(&mut self) -> Result<(), Stop> {
        self.tables().await?;
        // Damaged blobs go first: then it is known which layers can still be had.
        self.blobs().await?;
        self.records().await?;
        self.snapshots().await?;
        self.leases().await?;
        if self.options.repair {
            janitor::remove(self.inner).await?;
        }
        Ok(())
    }

    async fn tell(
        &mut self,
        fault: Fault,
        subject: impl Into<String>,
        detail: impl Into<String>,
        mended: bool,
    ) -> Result<(), Stop> {
        self.summary.findings += 1;
        let finding = Finding { fault, subject: subject.into(), detail: detail.into(), mended };
        self.found.send(finding).await.map_err(|_closed| Stop::Unheard)
    }

    /// Rows that contradict each other.
    async fn tables(&mut self) -> Result<(), Stop> {
        let inner = Arc::clone(self.inner);
        let (damage, ledger, results, links, idle) = blocking(move || {
            inner.db().read(|connection| {
                // One view of them all, while others write.
                let _view = connection.unchecked_transaction()?;
                Ok((
                    check::damage(connection)?,
                    check::wrong_ledger(connection)?,
                    check::stray_results(connection)?,
                    check::stray_links(connection)?,
                    check::idle_keys(connection)?,
                ))
            })
        })
        .await?;
        let mend = self.options.repair;
        if mend && !(results.is_empty() && links.is_empty() && idle.is_empty()) {
            self.inner.db().write(check::drop_strays).await?;
        }
        for line in damage {
            let detail = "stop the daemon and move the catalogue away: everything is built and fetched anew";
            self.tell(Fault::Database, line, detail, false).await?;
        }
        if let Some((says, is)) = ledger {
            if mend {
                self.inner.db().write(check::mend_ledger).await?;
            }
            let detail = format!("{} bytes and {} inodes, not {} and {}", is.0, is.1, says.0, says.1);
            self.tell(Fault::Ledger, "snapshots", detail, mend).await?;
        }
        for (key, record) in results {
            self.tell(Fault::ResultWithoutRecord, key, format!("record {record}"), mend).await?;
        }
        for key in links {
            self.tell(Fault::LinkWithoutKey, key, "", mend).await?;
        }
        for key in idle {
            self.tell(Fault::IdleKey, key, "", mend).await?;
        }
        Ok(())
    }

    async fn blobs(&mut self) -> Result<(), Stop> {
        let used: HashSet<Digest> = self
            .inner
            .live
            .records()
            .iter()
            .flat_map(|record| record.state().blobs.iter().map(|b| b.descriptor.digest).collect::<Vec<_>>())
            .collect();
        for blob in self.inner.content().list().await? {
            self.summary.blobs += 1;
            let digest = blob.digest;
            let named = self.inner.db().read(|connection| rows::blob_is_named(connection, &digest))?;
            if !named && !used.contains(&digest) {
                // A build may be about to use it and nothing says so: only a start knows that nobody does.
                let detail = format!("{} bytes, removed at the next start", blob.size);
                self.tell(Fault::BlobOrphaned, digest.to_string(), detail, false).await?;
                continue;
            }
            let expected = self.inner.db().read(|connection| rows::blob_size(connection, &digest))?;
            let whole = expected.is_none_or(|size| size == blob.size);
            let intact = whole && (!self.options.digests || self.inner.content().is_intact(&digest).await?);
            if !intact {
                if self.options.repair {
                    self.inner.content().delete(&digest).await?;
                }
                let detail = match expected {
                    Some(size) if !whole => format!("{} bytes of {size}", blob.size),
                    _ => "its bytes have another digest".to_owned(),
                };
                self.tell(Fault::BlobDamaged, digest.to_string(), detail, self.options.repair).await?;
            }
        }
        Ok(())
    }

    async fn records(&mut self) -> Result<(), Stop> {
        let mut seq = 0;
        loop {
            let inner = Arc::clone(self.inner);
            let page = blocking(move || inner.db().read(|connection| bulk::page(connection, seq))).await?;
            let Some((last, rows)) = page else { return Ok(()) };
            seq = last;
            for row in rows {
                self.summary.records += 1;
                self.record(row).await?;
            }
        }
    }

    async fn record(&mut self, row: RecordRow) -> Result<(), Stop> {
        if !row.kind.has_snapshot() {
            return Ok(());
        }
        let Some(snapshot) = row.snapshot.clone() else {
            if !row.mutable && !self.can_be_had(&row).await? {
                let mended = self.forget(&row.id).await?;
                self.tell(Fault::LayerUnavailable, row.id.as_str(), row.description, mended).await?;
            }
            return Ok(());
        };
        self.summary.snapshots += 1;
        let now = match self.inner.snapshotter().usage(&snapshot).await {
            Ok(now) => Some(now),
            Err(kiln_snapshot::Error::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        // What is still written to has no size of its own yet.
        let (fault, detail) = match (now, row.usage.filter(|_| !row.mutable)) {
            (None, _) => (Fault::SnapshotMissing, String::new()),
            (Some(now), Some(then)) if !then.is_still(&now) => (
                Fault::SnapshotDamaged,
                format!("{} files of {}, {} bytes of {}: ", now.inodes, then.inodes, now.length, then.length),
            ),
            _ => return Ok(()),
        };
        if self.is_not_current(&row.id, &snapshot)? {
            return Ok(());
        }
        let mended = self.demote(&row, &snapshot).await?;
        self.tell(fault, row.id.as_str(), detail + &row.description, mended).await
    }

    /// Whether the record has been removed, or got another snapshot, since it was read.
    fn is_not_current(&self, id: &RecordId, snapshot: &SnapshotId) -> Result<bool> {
        let now = self.inner.db().read(|connection| rows::load(connection, id))?;
        Ok(now.is_none_or(|row| row.snapshot.as_ref() != Some(snapshot)))
    }

    async fn can_be_had(&self, row: &RecordRow) -> Result<bool> {
        for blob in &row.blobs {
            if !blob.source.is_empty() || self.inner.content().has_whole(&blob.descriptor).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes a layer lazy again, or a miss.
    async fn demote(&self, row: &RecordRow, snapshot: &SnapshotId) -> Result<bool> {
        if !self.options.repair {
            return Ok(false);
        }
        if row.mutable {
            // A cache mount begins anew.
            let taken = self.inner.live.take_exclusive(&row.id);
            if taken {
                let id = row.id.clone();
                let gone = self.inner.db().write(move |transaction| rows::forget(transaction, &id)).await;
                self.inner.live.leave_exclusive(&row.id);
                self.inner.janitor.remove_forgotten(gone?);
            }
            return Ok(taken);
        }
        match self.inner.load(&row.id)? {
            // Its holders, if there are any, learn of it too.
            Some(held) => match Ref::gone_from_store(&held, snapshot).await {
                Ok(()) | Err(Error::Lost(_)) => {}
                Err(error) => return Err(error),
            },
            None => return self.forget(&row.id).await,
        }
        self.inner.janitor.remove_snapshots([snapshot.clone()]);
        Ok(true)
    }

    async fn forget(&self, id: &RecordId) -> Result<bool> {
        if self.options.repair {
            lose(self.inner, id.clone()).await?;
        }
        Ok(self.options.repair)
    }

    async fn snapshots(&mut self) -> Result<(), Stop> {
        for batch in self.inner.snapshotter().list().await?.chunks(BATCH) {
            for orphan in orphans(self.inner, batch)? {
                if self.options.repair {
                    self.inner.janitor.remove_snapshots([orphan.clone()]);
                }
                self.tell(Fault::SnapshotOrphaned, orphan.as_str(), "", self.options.repair).await?;
            }
        }
        Ok(())
    }

    async fn leases(&mut self) -> Result<(), Stop> {
        let now = rows::nanos(SystemTime::now());
        for (owner, text, ended) in self.inner.db().read(|connection| check::leases(connection, now))? {
            let here = match text.parse::<Digest>() {
                Ok(digest) => self.inner.content().contains(&digest).await?,
                Err(_) => false,
            };
            let fault = match (ended, here) {
                (true, _) => Fault::LeaseEnded,
                (false, false) => Fault::LeaseWithoutBlob,
                (false, true) => continue,
            };
            if self.options.repair {
                let (owner, digest) = (owner.clone(), text.clone());
                let drop = move |transaction: &rusqlite::Transaction<'_>| {
                    check::drop_lease(transaction, &owner, &digest)
                };
                self.inner.db().write(drop).await?;
                if let Ok(digest) = text.parse::<Digest>() {
                    self.inner.janitor.remove_blobs([digest]);
                }
            }
            self.tell(fault, text, format!("lease of {owner}"), self.options.repair).await?;
        }
        Ok(())
    }
}
