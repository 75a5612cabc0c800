//! Keys and records in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::error::Result;
use crate::key::{KeyDigest, KeyId};
use crate::key_source::Backlink;
use crate::keys::{CacheKeys, CacheRecord, KeyAndSelector, Lookup, NewKey, Origin, RecordId};
use crate::op::ResultRef;
use crate::reason::{GoneWhy, Memo, Remembered, Wanted};
use crate::vertex::OutputIndex;

/// Memos that one question finds.
const MAX_NEAR: usize = 16;

/// Keeps keys, links and results in memory, as plainly as can be.
#[derive(Debug, Default)]
pub struct MemoryKeys(Mutex<Store>);

#[derive(Debug, Default)]
struct Store {
    keys: BTreeSet<KeyId>,
    links: HashMap<(KeyAndSelector, Link), BTreeSet<KeyId>>,
    records: BTreeMap<KeyId, Vec<CacheRecord>>,
    results: BTreeMap<RecordId, Option<ResultRef>>,
    /// Records by the address of their result, which they keep alive.
    by_address: HashMap<usize, RecordId>,
    memos: BTreeMap<KeyId, (OutputIndex, Remembered)>,
    clock: u64,
    named: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Link {
    input: usize,
    digest: KeyDigest,
    output: OutputIndex,
}

impl MemoryKeys {
    /// Makes an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns how many keys have records.
    pub fn saved(&self) -> usize {
        self.lock().records.values().filter(|records| !records.is_empty()).count()
    }

    /// Returns how many links there are.
    pub fn links(&self) -> usize {
        self.lock().links.values().map(BTreeSet::len).sum()
    }

    /// Drops all results for which `gone` holds, as a prune would; keys and links stay.
    pub fn drop_results(&self, mut gone: impl FnMut(Option<&ResultRef>) -> bool) {
        let mut store = self.lock();
        store.results.retain(|_, result| !gone(result.as_ref()));
        store.forget_gone(GoneWhy::Pruned);
    }

    /// Makes results unloadable for which `broken` holds, while their records stay listed.
    pub fn break_results(&self, mut broken: impl FnMut(&RecordId) -> bool) {
        let mut store = self.lock();
        store.results.retain(|id, _| !broken(id));
        let Store { results, by_address, .. } = &mut *store;
        by_address.retain(|_, id| results.contains_key(id));
    }

    /// Forgets what is valid in one daemon only, as a restart does.
    pub fn forget_random(&self) {
        let mut store = self.lock();
        store.keys.retain(|key| !key.is_random());
        store.records.retain(|key, _| !key.is_random());
        store.links.retain(|(from, link), _| !from.key.is_random() && !link.digest.is_random());
    }

    /// Returns whether a record's result is there.
    pub fn has(&self, record: &RecordId) -> bool {
        self.lock().results.contains_key(record)
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CacheKeys for MemoryKeys {
    fn query(&self, deps: &[Vec<KeyAndSelector>], digest: &KeyDigest, output: OutputIndex) -> Result<Lookup> {
        Ok(self.lock().query(deps, digest, output))
    }

    fn records(&self, key: &KeyId) -> Result<Vec<CacheRecord>> {
        Ok(self.lock().records.get(key).cloned().unwrap_or_default())
    }

    async fn load(&self, record: &CacheRecord) -> Result<Option<Option<ResultRef>>> {
        let mut store = self.lock();
        let result = store.results.get(&record.id).cloned();
        if result.is_none() {
            store.forget_gone(GoneWhy::Lost);
        }
        Ok(result)
    }

    async fn save(&self, keys: &[NewKey], result: Option<&ResultRef>) -> Result<Vec<KeyId>> {
        Ok(self.lock().save(keys, result))
    }

    async fn save_with(
        &self,
        keys: &[NewKey],
        result: Option<&ResultRef>,
        memo: Option<&Memo>,
    ) -> Result<Vec<KeyId>> {
        let mut store = self.lock();
        let ids = store.save(keys, result);
        for ((id, key), memo) in ids.iter().zip(keys).zip(memo.into_iter().cycle()) {
            let lasting =
                |dep: &Vec<KeyAndSelector>| dep.iter().filter(|d| !d.key.is_random()).cloned().collect();
            let remembered = Remembered {
                memo: memo.clone(),
                key: id.clone(),
                digest: key.digest,
                deps: key.deps.iter().take(memo.inputs.len()).map(lasting).collect(),
                created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(store.clock),
                gone: None,
            };
            store.memos.insert(id.clone(), (key.output, remembered));
        }
        Ok(ids)
    }

    fn near(&self, wanted: &Wanted<'_>) -> Result<Vec<Remembered>> {
        let base = |deps: &[Vec<KeyAndSelector>]| -> BTreeSet<KeyId> {
            deps.first().into_iter().flatten().map(|dep| dep.key.clone()).collect()
        };
        let comes_near = |remembered: &&Remembered| {
            remembered.memo.name == wanted.name
                || (!wanted.kin.is_empty() && remembered.memo.fingerprint.kin() == wanted.kin)
                || wanted.digests.contains(&remembered.digest)
                || !base(&remembered.deps).is_disjoint(&base(wanted.deps))
        };
        let mut near: Vec<_> = self
            .lock()
            .memos
            .values()
            .filter(|(output, _)| *output == wanted.output)
            .map(|(_, remembered)| remembered)
            .filter(comes_near)
            .cloned()
            .collect();
        near.iter_mut()
            .flat_map(|remembered| &mut remembered.memo.inputs)
            .for_each(|input| input.listing = None);
        near.sort_by_key(|remembered| std::cmp::Reverse(remembered.created_at));
        near.truncate(MAX_NEAR);
        Ok(near)
    }

    fn listing(&self, key: &KeyId, input: usize) -> Result<Option<Vec<u8>>> {
        let store = self.lock();
        let known = store.memos.get(key).and_then(|(_, remembered)| remembered.memo.inputs.get(input));
        Ok(known.and_then(|input| input.listing.clone()))
    }

    async fn link(&self, key: &NewKey, to: &KeyId) -> Result<()> {
        let mut store = self.lock();
        if store.keys.contains(to) {
            store.link(key, to, |key| !key.is_random());
        }
        Ok(())
    }

    async fn adopt(
        &self,
        chain: &[(KeyId, NewKey)],
        result: Option<&ResultRef>,
        created_at: SystemTime,
    ) -> Result<Vec<KeyId>> {
        Ok(self.lock().adopt(chain, result, created_at))
    }

    fn backlinks(&self, key: &KeyId) -> Result<Vec<Backlink>> {
        let store = self.lock();
        let mut links: Vec<Backlink> = Vec::new();
        for ((from, link), targets) in &store.links {
            if targets.contains(key) {
                links.push(Backlink {
                    input: u32::try_from(link.input).unwrap_or(u32::MAX),
                    from: from.key.clone(),
                    selector: from.selector,
                    digest: link.digest.root(link.output),
                });
            }
        }
        links.sort();
        Ok(links)
    }

    fn siblings(&self, key: &KeyId) -> Result<Vec<KeyId>> {
        let store = self.lock();
        let ids = |key: &KeyId| store.records.get(key).into_iter().flatten().map(|record| record.id.clone());
        let own: BTreeSet<RecordId> = ids(key).collect();
        let linked: BTreeSet<&KeyId> = store.links.values().flatten().collect();
        let shares = |other: &&KeyId| {
            *other != key && !linked.contains(other) && ids(other).any(|record| own.contains(&record))
        };
        Ok(store.keys.iter().filter(shares).cloned().collect())
    }

    async fn lost(&self, result: &ResultRef) -> Result<()> {
        let mut store = self.lock();
        store.results.retain(|_, other| !other.as_ref().is_some_and(|other| Arc::ptr_eq(other, result)));
        store.forget_gone(GoneWhy::Lost);
        Ok(())
    }
}

impl Store {
    fn query(&self, deps: &[Vec<KeyAndSelector>], digest: &KeyDigest, output: OutputIndex) -> Lookup {
        if deps.is_empty() {
            let root = digest.root(output);
            let keys = self.keys.contains(&root).then_some(root);
            return Lookup { keys: keys.into_iter().collect(), reached: Vec::new() };
        }
        let reach = |(input, dep): (usize, &Vec<KeyAndSelector>)| -> BTreeSet<KeyId> {
            let link = Link { input, digest: *digest, output };
            dep.iter()
                .filter_map(|from| self.links.get(&(from.clone(), link.clone())))
                .flatten()
                .cloned()
                .collect()
        };
        let reached: Vec<_> = deps.iter().enumerate().map(reach).collect();
        let common = |key: &KeyId| reached.iter().all(|keys| keys.contains(key));
        let keys = reached[0].iter().filter(|key| common(key)).cloned().collect();
        Lookup { keys, reached: reached.iter().map(|keys| !keys.is_empty()).collect() }
    }

    fn save(&mut self, keys: &[NewKey], result: Option<&ResultRef>) -> Vec<KeyId> {
        self.clock += 1;
        let created_at = SystemTime::UNIX_EPOCH + Duration::from_secs(self.clock);
        let record = self.record(result, created_at);
        let ids: Vec<_> = keys.iter().map(|key| self.name(key)).collect();
        ids.iter().for_each(|id| self.attach(id, &record));
        ids
    }

    fn adopt(
        &mut self,
        chain: &[(KeyId, NewKey)],
        result: Option<&ResultRef>,
        created_at: SystemTime,
    ) -> Vec<KeyId> {
        self.clock += 1;
        let record = self.record(result, created_at);
        let mut names: HashMap<&KeyId, KeyId> = HashMap::new();
        let mut ids = Vec::new();
        for (theirs, key) in chain {
            let mut key = key.clone();
            for way in key.deps.iter_mut().flatten() {
                if let Some(ours) = names.get(&way.key) {
                    way.key = ours.clone();
                }
            }
            let id = self.name(&key);
            names.insert(theirs, id.clone());
            ids.push(id);
        }
        if let Some(last) = ids.last() {
            self.attach(last, &record);
        }
        ids
    }

    /// Makes the record of a result, or finds it.
    fn record(&mut self, result: Option<&ResultRef>, created_at: SystemTime) -> CacheRecord {
        let address = result.map(|result| Arc::as_ptr(result).cast::<()>().addr());
        let known = address.and_then(|address| self.by_address.get(&address)).cloned();
        let id = known.unwrap_or_else(|| RecordId(Arc::from(format!("r{:08}", self.clock))));
        self.by_address.extend(address.map(|address| (address, id.clone())));
        self.results.entry(id.clone()).or_insert_with(|| result.cloned());
        CacheRecord { id, created_at, priority: 1, origin: Origin::Local }
    }

    /// Finds or makes a key, and links it.
    fn name(&mut self, key: &NewKey) -> KeyId {
        let found = self.query(&key.deps, &key.digest, key.output).keys;
        let id = match found.into_iter().next() {
            Some(id) => id,
            None if key.deps.is_empty() => key.digest.root(key.output),
            None => {
                self.named += 1;
                KeyId::new(format!("k{:08}", self.named))
            }
        };
        self.keys.insert(id.clone());
        self.link(key, &id, |_| true);
        id
    }

    fn attach(&mut self, key: &KeyId, record: &CacheRecord) {
        let records = self.records.entry(key.clone()).or_default();
        if records.iter().all(|other| other.id != record.id) {
            records.push(record.clone());
        }
    }

    fn link(&mut self, key: &NewKey, to: &KeyId, linked: impl Fn(&KeyId) -> bool) {
        for (input, dep) in key.deps.iter().enumerate() {
            for from in dep.iter().filter(|from| linked(&from.key)) {
                let link = Link { input, digest: key.digest, output: key.output };
                self.links.entry((from.clone(), link)).or_default().insert(to.clone());
            }
        }
    }

    fn forget_gone(&mut self, why: GoneWhy) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(self.clock);
        let Self { records, results, by_address, memos, .. } = self;
        by_address.retain(|_, id| results.contains_key(id));
        for records in records.values_mut() {
            records.retain(|record| results.contains_key(&record.id));
        }
        for (key, (_, memo)) in memos {
            if records.get(key).is_none_or(Vec::is_empty) {
                memo.gone.get_or_insert((now, why));
            }
        }
    }
}
