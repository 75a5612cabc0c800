//! Refs: counted leases on immutable records.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use kiln_snapshot::{Mount, SnapshotId, Usage};
use rusqlite::Transaction;

use crate::{
    BlobProvider, Error, Layer, LayerBlob, RecordId, RecordType, Result,
    db::rows::{self, Kind, RecordRow},
    manager::Inner,
};

/// Layers that a state may list. Beyond this each is listed once.
const MAX_SEQUENCE: usize = 10_000;

/// A lease on an immutable filesystem state.
///
/// While a `Ref` is alive, its record and everything below it stay. A clone shares the lease.
/// A record that was committed but neither saved with a cache key nor finalized is gone with its last `Ref`.
#[derive(Clone)]
pub struct Ref(pub(crate) Arc<Record>);

impl fmt::Debug for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ref").field(&self.0.id.as_str()).field(&self.0.description).finish()
    }
}

impl PartialEq for Ref {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}
impl Eq for Ref {}

/// A record in memory.
pub(crate) struct Record {
    inner: Arc<Inner>,
    id: RecordId,
    kind: Kind,
    /// With positions, which count for a diff.
    parents: Vec<(i64, Ref)>,
    /// The layers of a merge or diff, bottom first; a layer finds its own by walking down.
    stack: Vec<Ref>,
    description: String,
    record_type: RecordType,
    created_at: SystemTime,
    names: Vec<String>,
    state: Mutex<State>,
    /// Of a merge or difference: what lies below its layers, once that is known.
    skeleton: tokio::sync::OnceCell<Option<SnapshotId>>,
    /// Held by whoever makes the snapshot; the next in line takes over when that one goes away.
    pub(crate) unpacking: tokio::sync::Mutex<()>,
    /// Held by whoever computes checksums.
    pub(crate) checksums: tokio::sync::Mutex<Option<crate::contenthash::Tree>>,
}

/// What changes during a record's life.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Its row is in the database.
    pub(crate) published: bool,
    /// Its data has gone and cannot be had again.
    pub(crate) lost: bool,
    /// Its snapshot has not been looked at since it was found in the catalogue.
    pub(crate) suspect: bool,
    /// A mutable record at rest: once nobody reads it and nothing was built on it, it may change.
    pub(crate) borrowed: bool,
    pub(crate) retain: bool,
    pub(crate) snapshot: Option<SnapshotId>,
    pub(crate) usage: Option<Usage>,
    pub(crate) blobs: Vec<LayerBlob>,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("id", &self.id.as_str())
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// What a new record is made of.
#[derive(Debug)]
pub(crate) struct NewRecord {
    pub(crate) id: RecordId,
    pub(crate) kind: Kind,
    pub(crate) parents: Vec<(i64, Ref)>,
    pub(crate) stack: Vec<Ref>,
    pub(crate) description: String,
    pub(crate) record_type: RecordType,
    pub(crate) created_at: SystemTime,
    pub(crate) names: Vec<String>,
    pub(crate) state: State,
}

impl Record {
    pub(crate) fn new(inner: &Arc<Inner>, new: NewRecord) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            id: new.id,
            kind: new.kind,
            parents: new.parents,
            stack: new.stack,
            description: new.description,
            record_type: new.record_type,
            created_at: new.created_at,
            names: new.names,
            state: Mutex::new(new.state),
            skeleton: tokio::sync::OnceCell::new(),
            unpacking: tokio::sync::Mutex::default(),
            checksums: tokio::sync::Mutex::default(),
        })
    }

    pub(crate) fn id(&self) -> &RecordId {
        &self.id
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The row that says what this record is.
    pub(crate) fn row(&self) -> RecordRow {
        let state = self.state().clone();
        RecordRow {
            id: self.id.clone(),
            kind: self.kind,
            mutable: state.borrowed,
            dirty: false,
            snapshot: state.snapshot,
            usage: state.usage,
            description: self.description.clone(),
            record_type: self.record_type,
            retain: state.retain,
            created_at: self.created_at,
            last_used_at: None,
            usage_count: 0,
            parents: self.parents.iter().map(|(position, parent)| (*position, parent.id().clone())).collect(),
            blobs: state.blobs,
            names: self.names.clone(),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Long chains are taken apart in a loop: dropping one inside the other would run out of stack.
        let mut below: Vec<Ref> =
            self.parents.drain(..).map(|(_, parent)| parent).chain(self.stack.drain(..)).collect();
        if self.record_type == RecordType::LocalSource
            && let Some(tree) = self.checksums.get_mut().take()
        {
            self.inner.trees.keep(&self.id, tree);
        }
        self.inner.left(&self.id, self.state.get_mut().unwrap_or_else(PoisonError::into_inner));
        while let Some(Ref(record)) = below.pop() {
            if let Some(mut record) = Arc::into_inner(record) {
                below
                    .extend(record.parents.drain(..).map(|(_, parent)| parent).chain(record.stack.drain(..)));
            }
        }
    }
}

impl Ref {
    /// Identity of its record.
    pub fn id(&self) -> &RecordId {
        &self.0.id
    }

    /// What it is, for people.
    pub fn description(&self) -> &str {
        &self.0.description
    }

    /// What it is for.
    pub fn record_type(&self) -> RecordType {
        self.0.record_type
    }

    /// When its content was made.
    pub fn created_at(&self) -> SystemTime {
        self.0.created_at
    }

    /// Whether the catalogue would still have it if this process ended now.
    pub fn is_published(&self) -> bool {
        self.0.state().published
    }

    /// Whether it is a merge of others.
    pub fn is_merge(&self) -> bool {
        self.0.kind == Kind::Merge
    }

    /// Records directly below it, bottom first.
    pub fn parents(&self) -> Vec<Self> {
        self.0.parents.iter().map(|(_, parent)| parent.clone()).collect()
    }

    /// The nearest record from here down whose layers were not all made on each other.
    fn combined(&self) -> Option<&Self> {
        let mut next = Some(self);
        while let Some(current) = next {
            if current.0.kind != Kind::Layer {
                return Some(current);
            }
            next = current.0.parents.first().map(|(_, parent)| parent);
        }
        None
    }

    /// The snapshots to mount, bottom first, for layers that are all unpacked.
    pub(crate) async fn lowers(&self) -> Result<Vec<SnapshotId>> {
        let snapshots = self.snapshots()?;
        let Some(combined) = self.combined() else { return Ok(snapshots) };
        let skeleton = combined.0.skeleton.get_or_try_init(|| self.make_skeleton()).await?.clone();
        Ok(skeleton.into_iter().chain(snapshots).collect())
    }

    /// Sees to it that what lies below layers that were not made on each other is there.
    pub(crate) async fn make_skeleton(&self) -> Result<Option<SnapshotId>> {
        let Some(combined) = self.combined() else { return Ok(None) };
        Ok(self.0.inner.snapshotter().skeleton(&combined.snapshots()?).await?)
    }

    /// The records that own its layers, bottom first. Where a merge has one layer several times, the topmost stays:
    /// it hides the others.
    pub(crate) fn stack(&self) -> Vec<Self> {
        let mut stack: Vec<Self> = self.top_down().cloned().collect();
        stack.reverse();
        stack
    }

    /// The same, top first.
    pub(crate) fn top_down(&self) -> TopDown<'_> {
        TopDown { next: Some(self), below: [].iter().rev() }
    }

    /// Its layers, bottom first.
    pub fn layers(&self) -> Vec<Layer> {
        let layer = |owner: &Self| {
            let state = owner.0.state();
            Layer {
                record: owner.id().clone(),
                blobs: state.blobs.clone(),
                snapshot: state.snapshot.clone(),
                description: owner.0.description.clone(),
                created_at: owner.0.created_at,
            }
        };
        self.stack().iter().map(layer).collect()
    }

    /// The refs of the single layers, bottom first; `refs()[n].layers()` is not the state up to layer n but that
    /// layer's own chain.
    pub fn layer_refs(&self) -> Vec<Self> {
        self.stack()
    }

    /// The refs of its layers as images and caches list them, bottom first: what was merged twice is there twice.
    pub fn layer_sequence(&self) -> Vec<Self> {
        let mut top_down = Vec::new();
        let mut todo = vec![self.clone()];
        while let Some(current) = todo.pop() {
            match current.0.kind {
                Kind::Layer => {
                    let below = current.0.parents.first().map(|(_, parent)| parent.clone());
                    top_down.push(current);
                    todo.extend(below);
                }
                Kind::Compared => top_down.push(current),
                Kind::Merge => todo.extend(current.0.parents.iter().map(|(_, parent)| parent.clone())),
                Kind::Diff => top_down.extend(current.0.stack.iter().rev().cloned()),
            }
            if top_down.len().max(todo.len()) > MAX_SEQUENCE {
                // Merges of merges double with each level; the layers that count are fewer.
                return self.stack();
            }
        }
        top_down.reverse();
        top_down
    }

    /// A read-only view of it. Layers that are not unpacked yet are fetched and unpacked first.
    ///
    /// # Errors
    /// [`Error::Lost`] when a layer has gone and nobody can provide it: a miss, the step has to run again.
    pub async fn mount(&self, provider: &dyn BlobProvider) -> Result<Mount> {
        // Each round mends one layer that has gone from the store.
        for _round in 0..=self.top_down().count() {
            self.unpack_all(provider).await?;
            let mounted = match self.lowers().await {
                Ok(lowers) => self.0.inner.snapshotter().view(&lowers).await,
                Err(Error::Snapshot(error)) => Err(error),
                Err(error) => return Err(error),
            };
            match mounted {
                Err(kiln_snapshot::Error::NotFound { id }) => self.gone_from_store(&id).await?,
                other => return Ok(other?),
            }
        }
        Err(Error::Lost(self.id().clone()))
    }

    /// Fetches and unpacks every layer that is not there yet, in parallel.
    ///
    /// # Cancel safety
    /// Other callers that wait for the same layer go on with providers of their own.
    pub async fn unlazy(&self, provider: &dyn BlobProvider) -> Result<()> {
        if self.is_unpacked() {
            return Ok(());
        }
        self.unpack_all(provider).await.map(drop)
    }

    /// The difference directories of its layers, bottom first, for whoever makes a layer tar. Layers that are not
    /// unpacked yet are fetched and unpacked first.
    ///
    /// # Errors
    /// As [`Ref::mount`].
    pub async fn diff_dirs(&self, provider: &dyn BlobProvider) -> Result<Vec<std::path::PathBuf>> {
        let stack = self.stack();
        'again: for _round in 0..=stack.len() {
            let snapshots = self.unpack_all(provider).await?;
            let mut dirs = Vec::with_capacity(snapshots.len());
            for snapshot in &snapshots {
                match self.0.inner.snapshotter().diff_dir(snapshot).await {
                    Err(kiln_snapshot::Error::NotFound { id }) => {
                        self.gone_from_store(&id).await?;
                        continue 'again;
                    }
                    dir => dirs.push(dir?),
                }
            }
            return Ok(dirs);
        }
        Err(Error::Lost(self.id().clone()))
    }

    pub(crate) fn is_unpacked(&self) -> bool {
        self.top_down().all(|layer| layer.0.state().snapshot.is_some())
    }

    /// The snapshot of its topmost layer, if it has layers and that one is unpacked.
    pub(crate) fn top_snapshot(&self) -> Option<SnapshotId> {
        self.top_down().next()?.0.state().snapshot.clone()
    }

    /// The snapshots of its layers, bottom first, all of them there as far as the catalogue knows.
    pub(crate) fn snapshots(&self) -> Result<Vec<SnapshotId>> {
        let snapshot = |layer: &Self| {
            layer.0.state().snapshot.clone().ok_or_else(|| Error::NotUnpacked(layer.id().clone()))
        };
        let mut snapshots = self.top_down().map(snapshot).collect::<Result<Vec<_>>>()?;
        snapshots.reverse();
        Ok(snapshots)
    }

    /// Adds a blob to one of its layers (another compression, or the first one made for it).
    pub async fn set_blob(&self, layer: &RecordId, blob: LayerBlob) -> Result<()> {
        let Some(owner) = self.stack().into_iter().find(|owner| owner.id() == layer) else {
            return Err(Error::damaged(layer.as_str(), format!("not a layer of `{}`", self.id())));
        };
        owner.add_blob(blob).await
    }

    pub(crate) async fn add_blob(&self, blob: LayerBlob) -> Result<()> {
        {
            let mut state = self.0.state();
            match state.blobs.iter_mut().find(|known| known.descriptor.digest == blob.descriptor.digest) {
                Some(known) if known.source == blob.source || blob.source.is_empty() => return Ok(()),
                // An image stays where it was pulled from; only a cache gives way to another.
                Some(known) if blob.is_imported() && !known.source.is_empty() && !known.is_imported() => {
                    return Ok(());
                }
                Some(known) => known.source.clone_from(&blob.source),
                None => state.blobs.push(blob.clone()),
            }
            if !state.published {
                return Ok(());
            }
        }
        let id = self.id().clone();
        self.0.inner.db().write(move |transaction| rows::add_blob(transaction, &id, &blob)).await
    }

    /// Puts it and everything below it into the catalogue without a cache key; it stays until it is pruned.
    pub async fn finalize(&self) -> Result<()> {
        self.0.state().retain = true;
        let records = Arc::new(self.unpublished());
        let committed = Arc::clone(&records);
        let id = self.id().clone();
        self.0
            .inner
            .db()
            .write_then(
                move |transaction| {
                    publish(transaction, &records)?;
                    rows::retain(transaction, &id)
                },
                move |()| mark_published(&committed),
            )
            .await
    }

    /// Records from here down that the database does not have, parents before children.
    pub(crate) fn unpublished(&self) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        let mut seen = HashSet::new();
        let mut todo = vec![(self.clone(), false)];
        while let Some((next, parents_done)) = todo.pop() {
            if parents_done {
                found.push(next);
            } else if !next.is_published() && seen.insert(next.id().clone()) {
                let parents = next.parents();
                todo.push((next, true));
                todo.extend(parents.into_iter().map(|parent| (parent, false)));
            }
        }
        found
    }
}

/// The layers of a state, top first; see [`Ref::top_down`].
#[derive(Clone, Debug)]
pub(crate) struct TopDown<'a> {
    next: Option<&'a Ref>,
    /// Those of a merge or difference, once it is reached.
    below: std::iter::Rev<std::slice::Iter<'a, Ref>>,
}

impl<'a> Iterator for TopDown<'a> {
    type Item = &'a Ref;

    fn next(&mut self) -> Option<&'a Ref> {
        let Some(current) = self.next.take() else { return self.below.next() };
        match current.0.kind {
            Kind::Layer => {
                self.next = current.0.parents.first().map(|(_, parent)| parent);
                Some(current)
            }
            // Its parents are what it was computed from; it stands on none of them.
            Kind::Compared => Some(current),
            Kind::Merge | Kind::Diff => {
                self.below = current.0.stack.iter().rev();
                self.below.next()
            }
        }
    }
}

/// Writes the rows of records that were pending; [`mark_published`] has to follow when that is committed.
pub(crate) fn publish(transaction: &Transaction<'_>, records: &[Ref]) -> Result<()> {
    for record in records {
        rows::insert(transaction, &record.0.row())?;
    }
    Ok(())
}

/// Notes that rows are committed. Whoever runs this holds the records, so none is dropped as pending in between.
pub(crate) fn mark_published(records: &[Ref]) {
    for record in records {
        record.0.state().published = true;
    }
}
