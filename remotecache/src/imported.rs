//! An imported cache as a store of keys.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use kiln_cache::{CacheManager, IMPORTED, LayerBlob, RecordOptions, RecordType, Ref};
use kiln_content::{Compression, ContentStore, ContentStoreExt as _, Descriptor};
use kiln_digest::Digest;
use kiln_exporter::Timestamp;
use kiln_solver::{
    Backlink, CacheRecord, KeyAndSelector, KeyDigest, KeyId, KeySource, Lookup, Origin, OutputIndex,
    RecordId, ResultRef,
};
use tokio::sync::OnceCell;

use crate::config::Config;
use crate::error::Result;
use crate::open::{CacheOrigin, Opened};
use crate::{CREATED_AT, DESCRIPTION, UNCOMPRESSED};

/// Results of this daemon are preferred to imported ones of the same age: they are here already.
const PRIORITY: u32 = 2;
/// How long a cache may take to say whether it has a layer. Beyond that it has not.
const PATIENCE: Duration = Duration::from_secs(20);

/// Numbers the stores of a process, so that no two give the same names.
static STORES: AtomicU64 = AtomicU64::new(0);

/// Where layers of imported results become records, lazily.
#[derive(Clone, Debug)]
pub struct LayerStore {
    /// The catalogue.
    pub cache: CacheManager,
    /// Blobs that are here need not be had from the cache.
    pub content: Arc<dyn ContentStore>,
}

/// What an imported cache knows.
pub struct ImportedKeys {
    /// Part of all names this store gives.
    store: String,
    /// What people call it.
    name: Arc<str>,
    root: Digest,
    config: Config,
    layers: HashMap<Digest, Descriptor>,
    origin: Arc<dyn CacheOrigin>,
    target: LayerStore,
    /// The key of each record.
    keys: Vec<KeyId>,
    /// The records of each key; one, but for records without inputs that are listed twice.
    records: HashMap<KeyId, Vec<usize>>,
    links: HashMap<Link, Vec<usize>>,
    /// Whether the cache has a blob, as far as asked.
    present: Mutex<HashMap<Digest, Arc<OnceCell<bool>>>>,
    /// What was opened, by record and result. Held, so that what turns out to be lost is not opened anew.
    opened: Mutex<HashMap<(usize, usize), Ref>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Link {
    from: KeyId,
    input: usize,
    selector: Option<Digest>,
}

impl ImportedKeys {
    /// Takes up a cache that was opened. `name` is what people call it.
    pub fn new(
        name: &str,
        root: Digest,
        opened: Opened,
        origin: Arc<dyn CacheOrigin>,
        target: LayerStore,
    ) -> Self {
        let store = STORES.fetch_add(1, Ordering::Relaxed).to_string();
        let Opened { config, layers, .. } = opened;
        let key = |(index, record): (usize, &crate::config::Record)| match record.inputs.is_empty() {
            true => KeyId::new(record.digest.to_string()),
            false => KeyId::imported(&store, index),
        };
        let keys: Vec<KeyId> = config.records.iter().enumerate().map(key).collect();
        let mut records: HashMap<KeyId, Vec<usize>> = HashMap::new();
        let mut links: HashMap<Link, Vec<usize>> = HashMap::new();
        for (index, (record, key)) in config.records.iter().zip(&keys).enumerate() {
            records.entry(key.clone()).or_default().push(index);
            for (input, ways) in record.inputs.iter().enumerate() {
                for way in ways {
                    let Some(selector) = selector(&way.selector) else { continue };
                    let from = usize::try_from(way.link).ok().and_then(|link| keys.get(link));
                    let Some(from) = from.cloned() else { continue };
                    links.entry(Link { from, input, selector }).or_default().push(index);
                }
            }
        }
        Self {
            store,
            name: name.into(),
            root,
            config,
            layers,
            origin,
            target,
            keys,
            records,
            links,
            present: Mutex::default(),
            opened: Mutex::default(),
        }
    }

    /// How many records it has.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn find(&self, deps: &[Vec<KeyAndSelector>], digest: &KeyDigest, output: OutputIndex) -> Lookup {
        let wanted = digest.root(output);
        if deps.is_empty() {
            let known = self.records.contains_key(&wanted).then_some(wanted);
            return Lookup { keys: known.into_iter().collect(), reached: Vec::new() };
        }
        let mut lookup = Lookup::default();
        let mut common: Option<Vec<usize>> = None;
        for (input, ways) in deps.iter().enumerate() {
            let mut reached = HashSet::new();
            for KeyAndSelector { key, selector } in ways {
                let link = Link { from: key.clone(), input, selector: *selector };
                reached.extend(self.links.get(&link).into_iter().flatten().copied());
            }
            let fits = |index: &usize| {
                self.config.records.get(*index).is_some_and(|record| {
                    record.inputs.len() == deps.len() && record.digest.to_string() == wanted.as_str()
                })
            };
            reached.retain(fits);
            lookup.reached.push(!reached.is_empty());
            common = Some(match common {
                None => {
                    let mut reached: Vec<_> = reached.into_iter().collect();
                    reached.sort_unstable();
                    reached
                }
                Some(before) => before.into_iter().filter(|index| reached.contains(index)).collect(),
            });
        }
        let found = common.into_iter().flatten();
        lookup.keys = found.filter_map(|index| self.keys.get(index).cloned()).collect();
        lookup
    }

    /// The layers of result number `result` of a record, bottom first; none if the cache does not describe one of them.
    fn chain(&self, record: usize, result: usize) -> Option<Vec<Descriptor>> {
        let record = self.config.records.get(record)?;
        let blobs = match record.layers.get(result) {
            Some(found) => self.config.chain(found.layer),
            None => {
                let chain = record.chains.get(result - record.layers.len())?;
                let blob = |index: &i64| self.config.layer(*index).map(|layer| layer.blob);
                chain.layers.iter().map(blob).collect::<Option<_>>()?
            }
        };
        blobs.iter().map(|blob| self.layers.get(blob).cloned()).collect()
    }

    fn times(&self, record: usize) -> Vec<SystemTime> {
        let Some(record) = self.config.records.get(record) else { return Vec::new() };
        let layers = record.layers.iter().map(|result| &result.created_at);
        let chains = record.chains.iter().map(|result| &result.created_at);
        layers.chain(chains).map(|text| time(Some(text)).unwrap_or(SystemTime::UNIX_EPOCH)).collect()
    }

    fn parse(&self, record: &RecordId) -> Option<(usize, usize)> {
        let rest = record.0.strip_prefix("import:")?.strip_prefix(&*self.store)?;
        let (record, result) = rest.strip_prefix('/')?.split_once('.')?;
        Some((record.parse().ok()?, result.parse().ok()?))
    }

    /// Makes the lazy state of a result; `None` when one of its layers cannot be had.
    async fn open(&self, record: &CacheRecord) -> Result<Option<Ref>> {
        let Some((index, result)) = self.parse(&record.id) else { return Ok(None) };
        let known = self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(&(index, result)).cloned();
        if let Some(known) = known {
            return Ok(Some(known).filter(|known| !known.has_lost_part()));
        }
        let Some(chain) = self.chain(index, result).filter(|chain| !chain.is_empty()) else {
            return Ok(None);
        };
        let asked = futures::future::join_all(chain.iter().map(|blob| self.is_there(blob))).await;
        for there in asked {
            if !there? {
                return Ok(None);
            }
        }
        let source = format!("{IMPORTED}{}", self.origin.layer_source(&self.root));
        let mut top: Option<Ref> = None;
        for descriptor in chain {
            let Some(diff_id) = diff_id(&descriptor) else { return Ok(None) };
            let annotation = |key: &str| descriptor.annotations.get(key).filter(|text| !text.is_empty());
            let description = annotation(DESCRIPTION).map(|text| text.chars().take(1000).collect());
            let mut options = RecordOptions::new(
                description.unwrap_or_else(|| format!("imported {}", descriptor.digest)),
                RecordType::Regular,
            );
            options.created_at = time(annotation(CREATED_AT).map(String::as_str));
            let mut stored = descriptor.clone();
            stored.annotations.clear();
            stored.urls.clear();
            let blob = LayerBlob { descriptor: stored, diff_id, source: source.clone() };
            top = Some(self.target.cache.lazy_layer(top.as_ref(), blob, options).await?);
        }
        let Some(top) = top.filter(|top| !top.has_lost_part()) else { return Ok(None) };
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).insert((index, result), top.clone());
        Ok(Some(top))
    }

    /// Whether a blob can be had, here or there. Asked once.
    async fn is_there(&self, blob: &Descriptor) -> Result<bool> {
        if self.target.content.has_whole(blob).await? {
            return Ok(true);
        }
        let cell = {
            let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(present.entry(blob.digest).or_default())
        };
        let ask = || async {
            match tokio::time::timeout(PATIENCE, self.origin.has(blob)).await {
                Ok(answer) => answer,
                Err(_) => Ok(false),
            }
        };
        cell.get_or_try_init(ask).await.copied()
    }
}

#[async_trait]
impl KeySource for ImportedKeys {
    async fn query(&self, deps: &[Vec<KeyAndSelector>], digest: &KeyDigest, output: OutputIndex) -> Lookup {
        self.find(deps, digest, output)
    }

    fn records(&self, key: &KeyId) -> Vec<CacheRecord> {
        let mut found = Vec::new();
        for record in self.records.get(key).into_iter().flatten() {
            for (result, created_at) in self.times(*record).into_iter().enumerate() {
                if self.chain(*record, result).is_some() {
                    found.push(CacheRecord {
                        id: RecordId(format!("import:{}/{record}.{result}", self.store).into()),
                        created_at,
                        priority: PRIORITY,
                        origin: Origin::Imported(Arc::clone(&self.name)),
                    });
                }
            }
        }
        found
    }

    fn key_of(&self, record: &RecordId) -> Option<KeyId> {
        let (record, _) = self.parse(record)?;
        self.keys.get(record).cloned()
    }

    async fn load(&self, record: &CacheRecord) -> Option<Option<ResultRef>> {
        match self.open(record).await {
            Ok(state) => state.map(|state| Some(Arc::new(state) as ResultRef)),
            Err(error) => {
                let error: &(dyn std::error::Error + 'static) = &error;
                tracing::warn!(cache = %self.name, error, "an imported result cannot be had");
                None
            }
        }
    }

    fn backlinks(&self, key: &KeyId) -> Vec<Backlink> {
        let mut links = Vec::new();
        for record in self.records.get(key).into_iter().flatten() {
            let Some(record) = self.config.records.get(*record) else { continue };
            for (input, ways) in record.inputs.iter().enumerate() {
                for way in ways {
                    let from = usize::try_from(way.link).ok().and_then(|link| self.keys.get(link));
                    if let (Ok(input), Some(from), Some(selector)) =
                        (u32::try_from(input), from, selector(&way.selector))
                    {
                        let digest = KeyId::new(record.digest.to_string());
                        links.push(Backlink { input, from: from.clone(), selector, digest });
                    }
                }
            }
        }
        links
    }
}

impl fmt::Debug for ImportedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImportedKeys")
            .field("name", &self.name)
            .field("records", &self.keys.len())
            .finish_non_exhaustive()
    }
}

/// Reads a selector; the outer `None` is one that no op gives.
fn selector(text: &str) -> Option<Option<Digest>> {
    if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
}

fn time(text: Option<&str>) -> Option<SystemTime> {
    Timestamp::parse(text?)?.to_system_time()
}

/// The digest of a layer's uncompressed tar.
fn diff_id(descriptor: &Descriptor) -> Option<Digest> {
    match descriptor.annotations.get(UNCOMPRESSED) {
        Some(text) => text.parse().ok(),
        None => (Compression::of_media_type(&descriptor.media_type) == Some(Compression::Uncompressed))
            .then_some(descriptor.digest),
    }
}
