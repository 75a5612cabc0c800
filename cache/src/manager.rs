//! The manager: opens the catalogue, finds and makes records.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use kiln_content::ContentStore;
use kiln_digest::Digest;
use kiln_snapshot::Snapshotter;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    BlobProvider, Error, LayerBlob, RecordId, RecordOptions, Ref, Result, SourceCheck,
    db::{
        Database, bulk,
        rows::{self, Kind, RecordRow},
    },
    janitor::{self, Janitor},
    live::{Lease, Live},
    losses::Counters,
    making::Making,
    reference::{NewRecord, Record, State},
    space::{Disks, FilesystemOf, Room, Space},
};

/// What a catalogue is opened with.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// Directory of the catalogue's own files; made when missing.
    pub root: PathBuf,
    /// Where snapshots are.
    pub snapshotter: Arc<dyn Snapshotter>,
    /// Where blobs are.
    pub content: Arc<dyn ContentStore>,
    /// How often what was written is made safe against a power loss.
    pub checkpoint: Duration,
    /// Layers unpacked at the same time.
    pub max_unpacks: usize,
    /// What of the disk stays free, whatever is built.
    pub floor: Room,
    /// How long work waits for room before it fails.
    pub patience: Duration,
    /// Tells what is free; the filesystem of `root`, when absent.
    pub disk: Option<Arc<dyn Disks>>,
}

impl CacheOptions {
    /// Options with the usual intervals and limits.
    pub fn new(
        root: impl Into<PathBuf>,
        snapshotter: Arc<dyn Snapshotter>,
        content: Arc<dyn ContentStore>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            root: root.into(),
            snapshotter,
            content,
            checkpoint: Duration::from_secs(5),
            max_unpacks: cores.max(2),
            floor: Room::default(),
            patience: Duration::from_secs(60),
            disk: None,
        }
    }
}

/// The catalogue and everything that is found through it. Clones share one catalogue.
#[derive(Clone, Debug)]
pub struct CacheManager(pub(crate) Arc<Inner>);

/// What a lazy layer stands on, and its diff ID.
type LayerKey = (Option<RecordId>, Digest);

#[derive(Debug)]
pub(crate) struct Inner {
    root: PathBuf,
    db: Database,
    snapshotter: Arc<dyn Snapshotter>,
    content: Arc<dyn ContentStore>,
    pub(crate) live: Live,
    pub(crate) janitor: Janitor,
    pub(crate) making: Making,
    pub(crate) losses: Counters,
    pub(crate) space: Arc<Space>,
    pub(crate) trees: crate::contenthash::Trees,
    /// Layers known by what they stand on and their diff ID, for those that no row names yet.
    layers: Mutex<HashMap<LayerKey, Weak<Record>>>,
    /// One at a time finds or makes a lazy layer.
    lazy: tokio::sync::Mutex<()>,
    /// One at a time finds or makes a cache mount or local source.
    pub(crate) naming: tokio::sync::Mutex<()>,
    /// One at a time removes records for space.
    pub(crate) pruning: tokio::sync::Mutex<()>,
    /// One at a time removes records because the disk is full.
    pub(crate) reclaiming: tokio::sync::Mutex<()>,
    pub(crate) shared_mounts: Mutex<HashMap<String, Weak<crate::mutable::MutableInner>>>,
    pub(crate) unpacks: tokio::sync::Semaphore,
    /// Tells which sources of layers are still there; all, until it is set.
    sources: OnceLock<Arc<dyn SourceCheck>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

impl CacheManager {
    /// Opens the catalogue, making it when there is none.
    ///
    /// # Errors
    /// [`Error::NewerFormat`] when a later version of this program wrote it.
    pub async fn open(options: CacheOptions) -> Result<Self> {
        let disk = options.disk.unwrap_or_else(|| Arc::new(FilesystemOf(options.root.clone())));
        let root = options.root.clone();
        let db = blocking(move || {
            std::fs::create_dir_all(&root).map_err(Error::io(format!("make `{}`", root.display())))?;
            Database::open(&root.join("catalogue.db"))
        })
        .await?;
        let inner = Arc::new(Inner {
            root: options.root,
            db,
            snapshotter: options.snapshotter,
            content: options.content,
            live: Live::default(),
            janitor: Janitor::default(),
            making: Making::default(),
            losses: Counters::default(),
            space: Space::new(disk, options.floor, options.patience),
            trees: crate::contenthash::Trees::default(),
            layers: Mutex::default(),
            lazy: tokio::sync::Mutex::default(),
            naming: tokio::sync::Mutex::default(),
            pruning: tokio::sync::Mutex::default(),
            reclaiming: tokio::sync::Mutex::default(),
            shared_mounts: Mutex::default(),
            unpacks: tokio::sync::Semaphore::new(options.max_unpacks.max(1)),
            sources: OnceLock::new(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        });
        crate::recovery::recover(&inner).await?;
        inner.tasks.spawn(janitor::run(Arc::downgrade(&inner), inner.cancel.clone(), options.checkpoint));
        inner.tasks.spawn(crate::space::watch(Arc::downgrade(&inner), inner.cancel.clone()));
        Ok(Self(inner))
    }

    /// Writes what is pending, makes it safe and closes the catalogue. Refs that are still alive lose their meaning.
    pub async fn close(&self) -> Result<()> {
        self.0.cancel.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        janitor::tidy(&self.0).await?;
        janitor::checkpoint(&self.0).await?;
        crate::recovery::mark_clean(&self.0).await?;
        let inner = Arc::clone(&self.0);
        blocking(move || {
            inner.db.close();
            Ok(())
        })
        .await
    }

    /// Asks `check` from now on which sources of lazy layers are still there. Only the first call counts.
    pub fn check_sources(&self, check: Arc<dyn SourceCheck>) {
        // Whoever composes the daemon does this once.
        let _first = self.0.sources.set(check);
    }

    /// Finds a record. `None`: there is none (any more), or it is being written to.
    pub async fn get(&self, id: &RecordId) -> Result<Option<Ref>> {
        self.0.load(id)
    }

    /// A layer on `parent` that is known by its blob; nothing is fetched. The same layer on the same parent is one
    /// record, whoever asks for it.
    pub async fn lazy_layer(
        &self,
        parent: Option<&Ref>,
        blob: LayerBlob,
        options: RecordOptions,
    ) -> Result<Ref> {
        let inner = &self.0;
        let _one_at_a_time = inner.lazy.lock().await;
        let key = (parent.map(|parent| parent.id().clone()), blob.diff_id);
        let pending =
            inner.layers.lock().unwrap_or_else(PoisonError::into_inner).get(&key).and_then(Weak::upgrade);
        let mut found = pending.map(Ref);
        if found.is_none() && parent.is_none_or(Ref::is_published) {
            for id in inner.db.read(|connection| rows::by_diff_id(connection, key.0.as_ref(), &key.1))? {
                found = inner.load(&id)?.filter(|candidate| !candidate.0.state().lost);
                if found.is_some() {
                    break;
                }
            }
        }
        if let Some(found) = found {
            found.add_blob(blob).await?;
            return Ok(found);
        }
        let made = inner.make(NewRecord {
            id: RecordId::random(),
            kind: Kind::Layer,
            parents: parent.map(|parent| (0, parent.clone())).into_iter().collect(),
            stack: Vec::new(),
            description: options.description,
            record_type: options.record_type,
            created_at: options.created_at.unwrap_or_else(SystemTime::now),
            names: options.index,
            state: State { retain: options.retain, blobs: vec![blob], ..State::default() },
        });
        let mut layers = inner.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.retain(|_, record| record.strong_count() > 0);
        layers.insert(key, Arc::downgrade(&made.0));
        Ok(made)
    }

    /// One state out of several, later ones on top. `None`: nothing to merge.
    pub async fn merge(&self, refs: &[Ref], options: RecordOptions) -> Result<Option<Ref>> {
        match refs {
            [] => Ok(None),
            [only] => Ok(Some(only.clone())),
            several => {
                let parents = (0..).zip(several.iter().cloned()).collect();
                let stack = crate::stack::merge(several)?;
                Ok(Some(self.0.make(NewRecord::listed(Kind::Merge, parents, stack, options))))
            }
        }
    }

    /// What `upper` has over `lower`. `None`: nothing, or both are empty.
    ///
    /// Where `upper` was built on `lower`, these are layers that are there, and both stay lazy. Else they are unpacked
    /// with `provider` and compared, and the result is a layer of its own.
    ///
    /// # Errors
    /// As [`Ref::mount`].
    ///
    /// # Cancel safety
    /// A dropped call leaves nothing behind.
    pub async fn diff(
        &self,
        lower: Option<&Ref>,
        upper: Option<&Ref>,
        provider: &dyn BlobProvider,
        options: RecordOptions,
    ) -> Result<Option<Ref>> {
        match (lower, upper) {
            (None, None) => return Ok(None),
            (None, Some(upper)) => return Ok(Some(upper.clone())),
            _ => {}
        }
        let parents = [(0, lower), (1, upper)];
        let parents = parents.into_iter().filter_map(|(at, parent)| Some((at, parent?.clone()))).collect();
        match crate::stack::diff(lower, upper) {
            Some(stack) if stack.is_empty() => Ok(None),
            Some(stack) => Ok(Some(self.0.make(NewRecord::listed(Kind::Diff, parents, stack, options)))),
            None => {
                let (snapshot, usage) = crate::compare::compare(&self.0, lower, upper, provider).await?;
                let mut new = NewRecord::listed(Kind::Compared, parents, Vec::new(), options);
                new.state.snapshot = Some(snapshot);
                new.state.usage = Some(usage);
                Ok(Some(self.0.make(new)))
            }
        }
    }

    /// Keeps a small fact under a name (an ETag, a ref list); `None` removes it.
    pub async fn set_fact(&self, name: &str, value: Option<Vec<u8>>) -> Result<()> {
        let name = format!("fact:{name}");
        self.0.db.write(move |transaction| crate::db::set_meta(transaction, &name, value.as_deref())).await
    }

    /// A fact kept earlier.
    pub async fn fact(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.0.db.read(|connection| crate::db::meta(connection, &format!("fact:{name}")))
    }

    /// Protects a blob that is no layer from the collector, until `release_blobs(owner)` or `expires`.
    pub async fn lease_blob(&self, owner: &str, digest: Digest, expires: Option<SystemTime>) -> Result<()> {
        let owner = owner.to_owned();
        self.0.db.write(move |transaction| crate::db::lease_blob(transaction, &owner, &digest, expires)).await
    }

    /// Ends an owner's leases; blobs that nobody else wants go at the next collection.
    pub async fn release_blobs(&self, owner: &str) -> Result<()> {
        let owner = owner.to_owned();
        let freed = self.0.db.write(move |transaction| crate::db::release_blobs(transaction, &owner)).await?;
        self.0.janitor.remove_blobs(freed);
        Ok(())
    }
}

impl NewRecord {
    fn listed(kind: Kind, parents: Vec<(i64, Ref)>, stack: Vec<Ref>, options: RecordOptions) -> Self {
        Self {
            id: RecordId::random(),
            kind,
            parents,
            stack,
            description: options.description,
            record_type: options.record_type,
            created_at: options.created_at.unwrap_or_else(SystemTime::now),
            names: options.index,
            state: State { retain: options.retain, ..State::default() },
        }
    }
}

impl Inner {
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
    pub(crate) fn db(&self) -> &Database {
        &self.db
    }
    pub(crate) fn snapshotter(&self) -> &Arc<dyn Snapshotter> {
        &self.snapshotter
    }
    /// Whether the source of a lazy layer is still there.
    pub(crate) fn has_source(&self, source: &str) -> bool {
        !source.is_empty() && self.sources.get().is_none_or(|check| check.may_have(source))
    }
    pub(crate) fn content(&self) -> &Arc<dyn ContentStore> {
        &self.content
    }

    /// Makes a record that is pending until it is published.
    pub(crate) fn make(self: &Arc<Self>, new: NewRecord) -> Ref {
        let record = Record::new(self, new);
        self.live.enter(&record);
        Ref(record)
    }

    /// The last ref on a record has gone.
    pub(crate) fn left(&self, id: &RecordId, state: &State) {
        if state.published {
            self.janitor.touch(id, SystemTime::now());
        } else {
            self.janitor.remove_snapshots(state.snapshot.iter().cloned());
            self.janitor.remove_blobs(state.blobs.iter().map(|blob| blob.descriptor.digest));
        }
        self.live.leave(id);
    }

    /// Finds a record in memory or in the database. A few point reads.
    pub(crate) fn load(self: &Arc<Self>, wanted: &RecordId) -> Result<Option<Ref>> {
        let mut holds = Holds { inner: self, ids: HashSet::new() };
        let mut ready: HashMap<RecordId, Ref> = HashMap::new();
        let mut rows: HashMap<RecordId, RecordRow> = HashMap::new();
        let mut todo = vec![wanted.clone()];
        while let Some(id) = todo.last().cloned() {
            if ready.contains_key(&id) {
                todo.pop();
                continue;
            }
            if !holds.ids.contains(&id) {
                match self.live.lease(&id) {
                    Lease::Live(record) => {
                        ready.insert(id, Ref(record));
                        continue;
                    }
                    Lease::Refused => return Ok(None),
                    Lease::Held => {
                        holds.ids.insert(id.clone());
                    }
                }
                if id == *wanted {
                    // Read once it is held: from now on neither it nor what it stands on is collected.
                    rows = self.db.read(|connection| bulk::chain(connection, &id))?;
                }
                // A mutable record that was not left at rest has unknown content.
                if rows.get(&id).is_none_or(|row| row.dirty) {
                    return Ok(None);
                }
            }
            let missing: Vec<RecordId> = rows
                .get(&id)
                .into_iter()
                .flat_map(|row| row.parents.iter().map(|(_, parent)| parent))
                .filter(|parent| !ready.contains_key(*parent))
                .cloned()
                .collect();
            if !missing.is_empty() {
                // A row can only name parents that were there before it, so this ends.
                todo.extend(missing);
                continue;
            }
            let Some(row) = rows.remove(&id) else { return Ok(None) };
            let record = self.revive(row, &ready)?;
            let live = self.live.unhold(&id, Some(&record));
            holds.ids.remove(&id);
            ready.insert(id, Ref(live.unwrap_or(record)));
        }
        Ok(ready.remove(wanted))
    }

    fn revive(self: &Arc<Self>, row: RecordRow, ready: &HashMap<RecordId, Ref>) -> Result<Arc<Record>> {
        let parents: Vec<(i64, Ref)> =
            row.parents.iter().filter_map(|(at, id)| Some((*at, ready.get(id)?.clone()))).collect();
        let stack = match row.kind {
            Kind::Layer | Kind::Compared => Vec::new(),
            Kind::Merge => {
                crate::stack::merge(&parents.iter().map(|(_, parent)| parent.clone()).collect::<Vec<_>>())?
            }
            Kind::Diff => {
                let side =
                    |wanted: i64| parents.iter().find(|(at, _)| *at == wanted).map(|(_, parent)| parent);
                crate::stack::diff(side(0), side(1))
                    .ok_or_else(|| Error::damaged(row.id.as_str(), "its states do not stand on each other"))?
            }
        };
        Ok(Record::new(
            self,
            NewRecord {
                id: row.id,
                kind: row.kind,
                parents,
                stack,
                description: row.description,
                record_type: row.record_type,
                created_at: row.created_at,
                names: row.names,
                state: State {
                    published: true,
                    lost: false,
                    suspect: true,
                    borrowed: row.mutable,
                    retain: row.retain,
                    snapshot: row.snapshot,
                    usage: row.usage,
                    blobs: row.blobs,
                },
            },
        ))
    }
}

/// Ends the holds of a load that did not come to its end.
struct Holds<'a> {
    inner: &'a Inner,
    ids: HashSet<RecordId>,
}

impl Drop for Holds<'_> {
    fn drop(&mut self) {
        for id in &self.ids {
            self.inner.live.unhold(id, None);
        }
    }
}

/// Runs blocking work off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(f).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => Err(Error::Closed),
        },
    }
}
