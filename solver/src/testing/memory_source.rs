//! An imported cache in memory.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::key::{KeyDigest, KeyId};
use crate::key_source::{Backlink, KeySource};
use crate::keys::{CacheKeys, CacheRecord, KeyAndSelector, Lookup, Origin, RecordId};
use crate::op::ResultRef;
use crate::testing::MemoryKeys;
use crate::vertex::OutputIndex;

/// Lends what a [`MemoryKeys`] has, under names of its own.
pub struct MemorySource {
    name: String,
    keys: Arc<MemoryKeys>,
    open: watch::Sender<bool>,
    /// How many look-ups it has been asked for.
    asked: AtomicUsize,
    /// How many records it has opened.
    loaded: AtomicUsize,
}

impl MemorySource {
    /// Lends `keys`. No two sources of one name may be in use.
    pub fn new(name: &str, keys: Arc<MemoryKeys>) -> Self {
        Self {
            name: name.to_owned(),
            keys,
            open: watch::Sender::new(true),
            asked: AtomicUsize::new(0),
            loaded: AtomicUsize::new(0),
        }
    }

    /// Answers look-ups only after [`MemorySource::open`].
    #[must_use]
    pub fn closed(self) -> Self {
        self.open.send_replace(false);
        self
    }

    /// Answers from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Returns how many look-ups have come, and how many records were opened.
    pub fn counts(&self) -> (usize, usize) {
        (self.asked.load(Ordering::SeqCst), self.loaded.load(Ordering::SeqCst))
    }

    /// Returns whether a record's result is there.
    pub fn has(&self, record: &RecordId) -> bool {
        self.split(record).is_some_and(|(_, record)| self.keys.has(&record))
    }

    /// Takes note that a result it has lent is gone.
    pub fn lose(&self, result: &ResultRef) {
        self.keys.drop_results(|other| other.is_some_and(|other| Arc::ptr_eq(other, result)));
    }

    /// Finds our name for a key of the store behind.
    fn theirs(&self, key: &KeyId) -> KeyId {
        match key.as_str().strip_prefix('k').and_then(|number| number.parse().ok()) {
            Some(number) => KeyId::imported(&self.name, number),
            None => key.clone(),
        }
    }

    /// Finds the key behind a name, if it is one of ours or one that is the same everywhere.
    fn ours(&self, key: &KeyId) -> Option<KeyId> {
        if !key.is_imported() {
            return key.as_str().starts_with("sha256:").then(|| key.clone());
        }
        let own = KeyId::imported(&self.name, 0);
        let number = key.as_str().strip_prefix(own.as_str().strip_suffix('0')?)?;
        Some(KeyId::new(format!("k{:08}", number.parse::<u64>().ok()?)))
    }

    fn split(&self, record: &RecordId) -> Option<(KeyId, RecordId)> {
        let (key, record) = record.0.strip_prefix(&format!("{}|", self.name))?.split_once('|')?;
        Some((KeyId::new(key), RecordId(record.into())))
    }
}

#[async_trait]
impl KeySource for MemorySource {
    async fn query(&self, deps: &[Vec<KeyAndSelector>], digest: &KeyDigest, output: OutputIndex) -> Lookup {
        self.asked.fetch_add(1, Ordering::SeqCst);
        // The sender is ours, so this ends well.
        let _open = self.open.subscribe().wait_for(|open| *open).await.is_ok();
        let translate = |way: &KeyAndSelector| {
            self.ours(&way.key).map(|key| KeyAndSelector { key, selector: way.selector })
        };
        let deps: Vec<Vec<_>> = deps.iter().map(|ways| ways.iter().filter_map(translate).collect()).collect();
        let mut found = self.keys.query(&deps, digest, output).unwrap_or_default();
        found.keys.iter_mut().for_each(|key| *key = self.theirs(key));
        found
    }

    fn records(&self, key: &KeyId) -> Vec<CacheRecord> {
        let Some(ours) = self.ours(key) else { return Vec::new() };
        let lend = |record: CacheRecord| CacheRecord {
            id: RecordId(format!("{}|{key}|{}", self.name, record.id.0).into()),
            priority: 2,
            origin: Origin::Imported(self.name.as_str().into()),
            ..record
        };
        self.keys.records(&ours).unwrap_or_default().into_iter().map(lend).collect()
    }

    fn key_of(&self, record: &RecordId) -> Option<KeyId> {
        self.split(record).map(|(key, _)| key)
    }

    async fn load(&self, record: &CacheRecord) -> Option<Option<ResultRef>> {
        let (_, id) = self.split(&record.id)?;
        self.loaded.fetch_add(1, Ordering::SeqCst);
        self.keys.load(&CacheRecord { id, ..record.clone() }).await.ok()?
    }

    fn backlinks(&self, key: &KeyId) -> Vec<Backlink> {
        let Some(ours) = self.ours(key) else { return Vec::new() };
        let lend = |link: Backlink| Backlink { from: self.theirs(&link.from), ..link };
        self.keys.backlinks(&ours).unwrap_or_default().into_iter().map(lend).collect()
    }
}

impl fmt::Debug for MemorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemorySource").field(&self.name).finish()
    }
}
