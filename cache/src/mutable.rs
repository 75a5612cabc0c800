//! Mutable records: what a step writes into, received contexts, cache mounts.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use kiln_snapshot::{Mount, SnapshotId, TempMounted};
use kiln_solver::GoneWhy;

use crate::{
    CacheManager, ChangeLog, Error, RecordId, RecordOptions, RecordType, Ref, Result,
    contenthash::transferred,
    db::rows::{self, Kind, RecordRow},
    manager::Inner,
    reference::{NewRecord, Record, State, mark_published, publish},
    space::{Working, room},
};

/// How a cache mount is shared between steps that run at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// All write into one directory.
    #[default]
    Shared,
    /// Each has one of its own.
    Private,
    /// One after another.
    Locked,
}

/// A directory that is being written to; one holder, or several clones of it.
///
/// The last clone dropped without [`commit`](Self::commit): a cache mount stays as it is for the next user, anything
/// else is discarded.
#[derive(Clone, Debug)]
pub struct MutableRef(pub(crate) Arc<MutableInner>);

pub(crate) struct MutableInner {
    inner: Arc<Inner>,
    id: RecordId,
    snapshot: SnapshotId,
    parent: Option<Ref>,
    options: RecordOptions,
    /// Its row is in the database: it is found again by name.
    named: bool,
    fresh: bool,
    /// What a transfer changes, once somebody says so.
    changes: OnceLock<Arc<ChangeLog>>,
    committed: AtomicBool,
    /// What is written takes space, and may have to stop for want of it.
    working: Working,
}

impl fmt::Debug for MutableInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MutableRef").field("id", &self.id.as_str()).finish_non_exhaustive()
    }
}

impl MutableRef {
    /// Identity of its record; the same after `commit`.
    pub fn id(&self) -> &RecordId {
        &self.0.id
    }

    /// Nothing was ever written to it: it holds what its parent has, or nothing.
    pub fn is_fresh(&self) -> bool {
        self.0.fresh
    }

    /// What it is, for people.
    pub fn description(&self) -> &str {
        &self.0.options.description
    }

    /// What it stands on.
    pub fn parent(&self) -> Option<&Ref> {
        self.0.parent.as_ref()
    }

    /// Where a transfer tells every change that it makes, so that checksums follow instead of being computed again.
    /// Once this was called, what is not told has not changed.
    pub fn changes(&self) -> Arc<ChangeLog> {
        Arc::clone(self.0.changes.get_or_init(Arc::default))
    }

    /// Resolves when whoever writes to it has to stop, because the disk is full; says so.
    pub async fn out_of_space(&self) -> Error {
        self.0.working.stop().cancelled().await;
        self.0.working.reason()
    }

    /// Its read-write mount. Layers that have gone from the store are unpacked again, as far as their blobs are still
    /// here.
    ///
    /// # Errors
    /// [`Error::NotUnpacked`] if they are not: call [`Ref::unlazy`] on the parent.
    pub async fn mount(&self) -> Result<Mount> {
        let mut rounds = 0;
        if let Some(parent) = &self.0.parent {
            parent.verify().await?;
            rounds = parent.top_down().count() + 1;
        }
        loop {
            let lowers = self.lowers().await?;
            let mount = self.0.inner.snapshotter().active_mount(&self.0.snapshot, &lowers).await;
            match (mount, &self.0.parent) {
                // Each round mends one layer, or what lies below all of them.
                (Err(kiln_snapshot::Error::NotFound { id }), Some(parent))
                    if id != self.0.snapshot && rounds > 0 =>
                {
                    parent.mend(&id).await?;
                    rounds -= 1;
                }
                (mount, _) => return Ok(mount?),
            }
        }
    }

    /// The directory to make something new in, at `path` or below, if that needs no mount; see
    /// [`Snapshotter::to_make`](kiln_snapshot::Snapshotter::to_make).
    pub async fn to_make(&self, path: &Path) -> Result<Option<TempMounted>> {
        let lowers = self.lowers().await?;
        Ok(self.0.inner.snapshotter().to_make(&self.0.snapshot, &lowers, path).await?)
    }

    async fn lowers(&self) -> Result<Vec<SnapshotId>> {
        match &self.0.parent {
            Some(parent) => parent.lowers().await,
            None => Ok(Vec::new()),
        }
    }

    /// Makes it an immutable state, pending until a cache key is saved for it or it is finalized.
    ///
    /// A named one (a received context) stays usable: once the returned ref and its clones are gone, the next holder
    /// can change it again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] while clones of it are alive.
    ///
    /// # Cancel safety
    /// A dropped call leaves it discarded or committed, never in between.
    pub async fn commit(self) -> Result<Ref> {
        let Some(mine) = Arc::into_inner(self.0) else {
            return Err(Error::Unsupported("committing a directory that others write to".into()));
        };
        if mine.named { mine.rest().await } else { mine.freeze().await }
    }

    /// Gives it back. A named one is found again by its name, with what is in it; others are discarded.
    pub async fn release(self) -> Result<()> {
        let Some(mine) = Arc::into_inner(self.0) else { return Ok(()) };
        if mine.named {
            mine.rest().await.map(drop)
        } else {
            drop(mine);
            Ok(())
        }
    }

    /// Throws it away with what is in it, named or not.
    pub async fn discard(self) -> Result<()> {
        let Some(mine) = Arc::into_inner(self.0) else { return Ok(()) };
        if mine.named {
            mine.forget().await?;
        }
        Ok(())
    }
}

impl MutableInner {
    fn record(&self, state: State) -> NewRecord {
        NewRecord {
            id: self.id.clone(),
            kind: Kind::Layer,
            parents: self.parent.iter().map(|parent| (0, parent.clone())).collect(),
            stack: Vec::new(),
            description: self.options.description.clone(),
            record_type: self.options.record_type,
            created_at: self.options.created_at.unwrap_or_else(SystemTime::now),
            names: self.options.index.clone(),
            state,
        }
    }

    /// Commits the snapshot: it never changes again.
    async fn freeze(self) -> Result<Ref> {
        let usage = self.inner.snapshotter().commit(&self.snapshot).await?;
        self.committed.store(true, Ordering::Relaxed);
        let made = self.inner.make(self.record(State {
            retain: self.options.retain,
            snapshot: Some(self.snapshot.clone()),
            usage: Some(usage),
            ..State::default()
        }));
        if self.options.retain || !self.options.index.is_empty() {
            made.finalize().await?;
        }
        Ok(made)
    }

    /// Leaves the directory as it is, with its size measured, and gives a view of it.
    async fn rest(self) -> Result<Ref> {
        // While somebody reads it, it is a committed snapshot like any other; the next holder opens it again.
        let usage = Some(self.inner.snapshotter().commit(&self.snapshot).await?);
        let changes = self.changes.get().map(|changes| changes.take());
        let tree = transferred(&self.inner, &self.id, self.fresh, changes).await?;
        let (id, snapshot) = (self.id.clone(), self.snapshot.clone());
        self.inner
            .db()
            .write(move |transaction| {
                rows::set_snapshot(transaction, &id, Some(&snapshot), usage)?;
                rows::set_dirty(transaction, &id, false)
            })
            .await?;
        self.committed.store(true, Ordering::Relaxed);
        let record = Record::new(
            &self.inner,
            self.record(State {
                published: true,
                borrowed: true,
                retain: true,
                snapshot: Some(self.snapshot.clone()),
                usage,
                ..State::default()
            }),
        );
        if let Ok(mut checksums) = record.checksums.try_lock() {
            *checksums = tree;
        }
        // Entering ends the exclusive use.
        self.inner.live.enter(&record);
        Ok(Ref(record))
    }

    async fn forget(&self) -> Result<()> {
        let id = self.id.clone();
        let forgotten = self.inner.db().write(move |transaction| rows::forget(transaction, &id)).await?;
        self.inner.janitor.remove_forgotten(forgotten);
        self.committed.store(true, Ordering::Relaxed);
        self.inner.live.leave_exclusive(&self.id);
        Ok(())
    }
}

impl Drop for MutableInner {
    fn drop(&mut self) {
        if self.committed.load(Ordering::Relaxed) {
            return;
        }
        if !self.named {
            self.inner.janitor.remove_snapshots([self.snapshot.clone()]);
        } else if self.options.record_type == RecordType::CacheMount {
            self.inner.janitor.rest(self.id.clone(), self.snapshot.clone());
        } else {
            // Its checksums no longer say what is in it.
            self.inner.janitor.forget(self.id.clone());
        }
        self.inner.live.leave_exclusive(&self.id);
    }
}

impl CacheManager {
    /// An empty directory over `parent`, for a step to write into. The parent's layers must be unpacked.
    ///
    /// # Errors
    /// [`Error::NotUnpacked`] when a layer of `parent` is lazy: call [`Ref::unlazy`] before. [`Error::NoSpace`] when the
    /// disk is full, and nothing that could go is left on it.
    pub async fn new_mutable(&self, parent: Option<&Ref>, options: RecordOptions) -> Result<MutableRef> {
        room(&self.0).await?;
        self.0.new_mutable(parent, options, false).await
    }

    /// The directory kept under `key` that is free, or a new one. One user at a time; who comes meanwhile gets another.
    ///
    /// Dropped without `commit`, it is discarded: what is in it is no longer known.
    pub async fn local_source(&self, key: &str, options: RecordOptions) -> Result<MutableRef> {
        room(&self.0).await?;
        let _one_at_a_time = self.0.naming.lock().await;
        match self.0.take_free(key).await? {
            (Some(free), _) => Ok(free),
            (None, _) => self.0.new_named(key, None, options).await,
        }
    }

    /// A free directory kept under `key`, if there is one.
    pub async fn mutable_by_index(&self, key: &str) -> Result<Option<MutableRef>> {
        room(&self.0).await?;
        let _one_at_a_time = self.0.naming.lock().await;
        Ok(self.0.take_free(key).await?.0)
    }

    /// The cache mount of this key. `parent` is what a new one starts from.
    ///
    /// # Cancel safety
    /// A dropped call takes nothing; `Locked` waits without holding anything.
    pub async fn cache_mount(
        &self,
        key: &str,
        sharing: Sharing,
        parent: Option<&Ref>,
        options: RecordOptions,
    ) -> Result<MutableRef> {
        let key = match parent {
            Some(parent) => format!("cache-dir:{key}:{}", parent.id()),
            None => format!("cache-dir:{key}"),
        };
        room(&self.0).await?;
        loop {
            let released = self.0.live.released();
            tokio::pin!(released);
            released.as_mut().enable();
            {
                let _one_at_a_time = self.0.naming.lock().await;
                if sharing == Sharing::Shared
                    && let Some(shared) = self.0.shared_mount(&key)
                {
                    return Ok(shared);
                }
                let got = match self.0.take_free(&key).await? {
                    (Some(free), _) => Some(free),
                    (None, busy) if busy && sharing != Sharing::Private => None,
                    (None, _) => Some(self.0.new_named(&key, parent, options.clone()).await?),
                };
                if let Some(got) = got {
                    if sharing == Sharing::Shared {
                        let mut mounts = self.0.shared_mounts.lock().unwrap_or_else(PoisonError::into_inner);
                        mounts.retain(|_, mount| mount.strong_count() > 0);
                        mounts.insert(key, Arc::downgrade(&got.0));
                    }
                    return Ok(got);
                }
            }
            released.await;
        }
    }

    /// Forgets the cache mounts of these ids that nobody uses, with what is in them.
    pub async fn prune_cache_mounts(&self, keys: &[String]) -> Result<()> {
        for key in keys {
            let _one_at_a_time = self.0.naming.lock().await;
            let own = format!("cache-dir:{key}");
            // Those that started from a base have its id behind theirs.
            let mut names =
                self.0.db().read(|connection| rows::names_below(connection, &format!("{own}:")))?;
            names.push(own);
            for name in names {
                while let (Some(free), _) = self.0.take_free(&name).await? {
                    free.discard().await?;
                }
            }
        }
        Ok(())
    }
}

impl Inner {
    fn shared_mount(&self, key: &str) -> Option<MutableRef> {
        let mounts = self.shared_mounts.lock().unwrap_or_else(PoisonError::into_inner);
        mounts.get(key)?.upgrade().map(MutableRef)
    }

    /// Takes a record of this name that nobody uses; else tells whether there are busy ones.
    async fn take_free(self: &Arc<Self>, name: &str) -> Result<(Option<MutableRef>, bool)> {
        // Those let go a moment ago are put in order first, so that they are found at rest.
        crate::janitor::settle_mutables(self).await?;
        let mut busy = false;
        for (id, mutable, dirty) in self.db().read(|connection| rows::by_name(connection, name))? {
            if !mutable {
                continue;
            }
            if !self.live.take_exclusive(&id) {
                busy = true;
                continue;
            }
            let taking = Taking { inner: self, id: &id, done: false };
            let Some(row) = self.db().read(|connection| rows::load(connection, &id))? else { continue };
            let present = match &row.snapshot {
                Some(snapshot) => self.snapshotter().exists(snapshot).await?,
                None => false,
            };
            let parent = match row.parents.first() {
                Some((_, parent)) => self.load(parent)?,
                None => None,
            };
            let whole = present && (row.parents.is_empty() || parent.is_some());
            if !whole || (dirty && row.record_type != RecordType::CacheMount) {
                let gone = id.clone();
                let forgotten = self.db().write(move |transaction| rows::forget(transaction, &gone)).await?;
                self.janitor.remove_forgotten(forgotten);
                continue;
            }
            let Some(snapshot) = row.snapshot else { continue };
            if !self.db().read(|connection| rows::children(connection, &id))?.is_empty() {
                // Something was built on it: it stays as it is, and is not found by name any more.
                let kept = id.clone();
                self.db().write(move |transaction| rows::make_immutable(transaction, &kept)).await?;
                continue;
            }
            let working = self.space.begin(&snapshot);
            let taken = id.clone();
            self.db()
                .write(move |transaction| {
                    // What leads to its content ends with the first write to it.
                    crate::db::keys::release_results(transaction, &taken, GoneWhy::Pruned)?;
                    rows::touch(transaction, &taken, 1, SystemTime::now())?;
                    rows::set_dirty(transaction, &taken, true)
                })
                .await?;
            self.snapshotter().reopen(&snapshot).await?;
            taking.keep();
            return Ok((
                Some(MutableRef(Arc::new(MutableInner {
                    inner: Arc::clone(self),
                    id,
                    snapshot,
                    parent,
                    options: RecordOptions {
                        description: row.description,
                        record_type: row.record_type,
                        retain: true,
                        index: row.names,
                        created_at: Some(row.created_at),
                    },
                    named: true,
                    fresh: false,
                    changes: OnceLock::new(),
                    committed: AtomicBool::new(false),
                    working,
                }))),
                busy,
            ));
        }
        Ok((None, busy))
    }

    async fn new_named(
        self: &Arc<Self>,
        name: &str,
        parent: Option<&Ref>,
        mut options: RecordOptions,
    ) -> Result<MutableRef> {
        if !options.index.iter().any(|known| known == name) {
            options.index.push(name.to_owned());
        }
        options.retain = true;
        self.new_mutable(parent, options, true).await
    }

    async fn new_mutable(
        self: &Arc<Self>,
        parent: Option<&Ref>,
        mut options: RecordOptions,
        named: bool,
    ) -> Result<MutableRef> {
        if let Some(lazy) = parent.filter(|parent| !parent.is_unpacked()) {
            return Err(Error::NotUnpacked(lazy.id().clone()));
        }
        let created_at = *options.created_at.get_or_insert_with(SystemTime::now);
        let id = RecordId::random();
        let snapshot = SnapshotId::new(id.as_str())?;
        let working = self.space.begin(&snapshot);
        self.making.begin(&snapshot);
        let made = MutableInner {
            inner: Arc::clone(self),
            id: id.clone(),
            snapshot: snapshot.clone(),
            parent: parent.cloned(),
            options,
            named: false,
            fresh: true,
            changes: OnceLock::new(),
            committed: AtomicBool::new(false),
            working,
        };
        loop {
            let top = parent.and_then(Ref::top_snapshot);
            match (self.snapshotter().prepare(&snapshot, top.as_ref()).await, parent) {
                (Err(kiln_snapshot::Error::NotFound { id }), Some(parent)) => parent.mend(&id).await?,
                (prepared, _) => break prepared?,
            }
        }
        let mut made = made;
        if named {
            self.live.take_exclusive(&id);
            made.named = true;
            let row = RecordRow {
                id,
                kind: Kind::Layer,
                mutable: true,
                dirty: true,
                snapshot: Some(snapshot),
                usage: None,
                description: made.options.description.clone(),
                record_type: made.options.record_type,
                retain: true,
                created_at,
                last_used_at: Some(created_at),
                usage_count: 1,
                parents: made.parent.iter().map(|parent| (0, parent.id().clone())).collect(),
                blobs: Vec::new(),
                names: made.options.index.clone(),
            };
            let pending = Arc::new(made.parent.as_ref().map(Ref::unpublished).unwrap_or_default());
            let committed = Arc::clone(&pending);
            self.db()
                .write_then(
                    move |transaction| {
                        publish(transaction, &pending)?;
                        rows::insert(transaction, &row)
                    },
                    move |()| mark_published(&committed),
                )
                .await?;
        }
        Ok(MutableRef(Arc::new(made)))
    }
}

/// Ends the exclusive use of a record when taking it did not work out.
struct Taking<'a> {
    inner: &'a Inner,
    id: &'a RecordId,
    done: bool,
}

impl Taking<'_> {
    fn keep(mut self) {
        self.done = true;
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.inner.live.leave_exclusive(self.id);
        }
    }
}
