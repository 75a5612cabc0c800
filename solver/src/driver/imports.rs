//! Imported caches of jobs: look-ups in them beside the solver's own store, and taking over what is found.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::join_all;

use crate::driver::calls::find;
use crate::driver::{Shared, State};
use crate::error::Result;
use crate::key::KeyId;
use crate::key_source::{Backlink, KeySource};
use crate::keys::{CacheKeys, CacheRecord, KeyAndSelector, Lookup, NewKey, RecordId};
use crate::op::ResultRef;
use crate::scheduler::{Event, Found, JobId, Loaded, Query};
use crate::tables::{HashMap, HashSet};

/// The caches that a job has imported.
#[derive(Default)]
pub(crate) struct Imports(Mutex<Known>);

#[derive(Default)]
struct Known {
    sources: Vec<Arc<dyn KeySource>>,
    /// By which op digest and inputs a key was found: what the solver's own store has to know to find it too.
    found: HashMap<KeyId, NewKey>,
    /// What the solver's own store calls the keys taken over so far.
    adopted: HashMap<KeyId, KeyId>,
}

impl Imports {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, source: Arc<dyn KeySource>) {
        self.lock().sources.push(source);
    }

    fn sources(&self) -> Vec<Arc<dyn KeySource>> {
        self.lock().sources.clone()
    }

    fn remember(&self, keys: &[KeyId], by: &NewKey) {
        let mut state = self.lock();
        for key in keys {
            match state.found.get_mut(key) {
                None => drop(state.found.insert(key.clone(), by.clone())),
                Some(known) => known.deps.iter_mut().zip(&by.deps).for_each(|(known, by)| {
                    for way in by {
                        if !known.contains(way) {
                            known.push(way.clone());
                        }
                    }
                }),
            }
        }
    }

    fn source_of(&self, record: &RecordId) -> Option<(Arc<dyn KeySource>, KeyId)> {
        self.sources().into_iter().find_map(|source| source.key_of(record).map(|key| (source, key)))
    }

    /// Returns what has to be taken over for `key` to be found, parents first; nothing if it cannot be.
    fn chain(&self, key: &KeyId) -> Vec<(KeyId, NewKey)> {
        let state = self.lock();
        let (mut chain, mut done, mut open) = (Vec::new(), HashSet::default(), HashSet::default());
        let mut todo = vec![(key.clone(), false)];
        while let Some((key, below_done)) = todo.pop() {
            let Some(by) = state.found.get(&key).filter(|_| !done.contains(&key)) else { continue };
            if !below_done && open.insert(key.clone()) {
                todo.push((key, true));
                let below = by.deps.iter().flatten().map(|way| &way.key);
                todo.extend(below.filter(|key| !open.contains(*key)).map(|key| (key.clone(), false)));
                continue;
            }
            if !below_done {
                // A store that is its own ancestor: this way leads in a circle and is left out.
                continue;
            }
            let mut own = NewKey { deps: Vec::new(), ..by.clone() };
            for ways in &by.deps {
                let usable = |way: &&KeyAndSelector| {
                    !way.key.is_imported() || done.contains(&way.key) || state.adopted.contains_key(&way.key)
                };
                let named = |way: &KeyAndSelector| KeyAndSelector {
                    key: state.adopted.get(&way.key).unwrap_or(&way.key).clone(),
                    selector: way.selector,
                };
                own.deps.push(ways.iter().filter(usable).map(named).collect());
            }
            if own.deps.iter().all(|ways| !ways.is_empty()) {
                chain.push((key.clone(), own));
                done.insert(key);
            }
        }
        if chain.last().is_some_and(|(last, _)| last == key) { chain } else { Vec::new() }
    }

    /// Opens a record, and takes it over into `keys` with the keys that lead to it.
    async fn load(
        &self,
        keys: &dyn CacheKeys,
        source: &dyn KeySource,
        key: KeyId,
        record: &CacheRecord,
    ) -> Option<Loaded> {
        let result = source.load(record).await?;
        let chain = self.chain(&key);
        let mut adopted = None;
        if !chain.is_empty() {
            match keys.adopt(&chain, result.as_ref(), record.created_at).await {
                Ok(names) => {
                    let mut state = self.lock();
                    state.adopted.extend(chain.into_iter().map(|(key, _)| key).zip(names.iter().cloned()));
                    adopted = names.into_iter().next_back();
                }
                // The result is as good as before; only later builds will not find it.
                Err(error) => tracing::warn!(%error, %key, "cannot keep an imported result"),
            }
        }
        Some(Loaded { result, adopted })
    }
}

impl fmt::Debug for Imports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.sources()).finish()
    }
}

/// Answers a look-up out of all stores: the union of what they know.
pub(crate) async fn find_everywhere(
    keys: &dyn CacheKeys,
    imports: &[Arc<Imports>],
    query: &Query,
) -> Result<Found> {
    let asked = imports.iter().flat_map(|imports| imports.sources().into_iter().map(move |s| (imports, s)));
    let answers = join_all(asked.map(|(imports, source)| async move {
        let mut all = Lookup { keys: Vec::new(), reached: vec![false; query.deps.len()] };
        for digest in &query.digests {
            let answer = source.query(&query.deps, digest, query.output).await;
            let by = NewKey { digest: *digest, output: query.output, deps: query.deps.clone() };
            imports.remember(&answer.keys, &by);
            all.keys.extend(answer.keys);
            all.reached.iter_mut().zip(answer.reached).for_each(|(all, reached)| *all |= reached);
        }
        (source, all)
    }))
    .await;
    // After the imports, so that what another build has saved while they were opened is seen.
    let mut found = find(keys, query)?;
    let mut reached = vec![std::mem::take(&mut found.reached)];
    for (source, answer) in answers {
        for key in answer.keys {
            let records = if query.records { source.records(&key) } else { Vec::new() };
            match found.keys.iter_mut().find(|(known, _)| *known == key) {
                None => found.keys.push((key, records)),
                Some((_, known)) => {
                    let fresh = |record: &CacheRecord| known.iter().all(|known| known.id != record.id);
                    let fresh: Vec<_> = records.into_iter().filter(fresh).collect();
                    known.extend(fresh);
                }
            }
        }
        reached.push(answer.reached);
    }
    found.reached = united(query.deps.len(), &reached);
    Ok(found)
}

/// An input counts as reached only if every store reaches it that reaches any: a store that lacks one way in may have
/// another, which would not be tried if a second store stood in for it.
fn united(inputs: usize, stores: &[Vec<bool>]) -> Vec<bool> {
    let knowing: Vec<_> = stores.iter().filter(|reached| reached.contains(&true)).collect();
    let all = |input: usize| knowing.iter().all(|reached| reached.get(input) == Some(&true));
    (0..inputs).map(|input| !knowing.is_empty() && all(input)).collect()
}

impl State {
    pub(crate) fn imports_of(&self, jobs: &[JobId]) -> Vec<Arc<Imports>> {
        let jobs = jobs.iter().filter_map(|job| self.jobs.get(job));
        jobs.filter_map(|job| job.imports.clone()).collect()
    }

    pub(crate) fn all_imports(&self) -> Vec<Arc<Imports>> {
        self.jobs.values().filter_map(|job| job.imports.clone()).collect()
    }
}

impl Shared {
    /// Answers a look-up of jobs with imports, in a task of its own: it may take long.
    pub(super) fn look_everywhere(self: &Arc<Self>, query: Query, imports: Vec<Arc<Imports>>) {
        let shared = Arc::clone(self);
        let task = async move {
            let found = find_everywhere(&*shared.keys, &imports, &query).await;
            let later = {
                let mut state = shared.lock();
                shared.apply(&mut state, Event::Queried { query: query.id, found })
            };
            shared.follow_up(later).await;
        };
        self.tracker.spawn_on(task, &self.runtime);
    }

    /// Opens a record of the solver's own store or of any job's imports.
    pub(super) async fn load(&self, record: &CacheRecord) -> Result<Option<Loaded>> {
        let imports = self.lock().all_imports();
        load_everywhere(&*self.keys, &imports, record).await
    }
}

/// Opens a record of `keys` or of an imported cache.
pub(crate) async fn load_everywhere(
    keys: &dyn CacheKeys,
    imports: &[Arc<Imports>],
    record: &CacheRecord,
) -> Result<Option<Loaded>> {
    for imports in imports {
        if let Some((source, key)) = imports.source_of(&record.id) {
            return Ok(imports.load(keys, &*source, key, record).await);
        }
    }
    let loaded = keys.load(record).await?;
    Ok(loaded.map(|result| Loaded { result, adopted: None }))
}

/// All stores of keys as one job sees them, for exports.
#[derive(Clone)]
pub struct JobKeys {
    shared: Arc<Shared>,
    imports: Option<Arc<Imports>>,
}

impl JobKeys {
    pub(super) fn new(shared: Arc<Shared>, imports: Option<Arc<Imports>>) -> Self {
        Self { shared, imports }
    }

    /// Returns the results known under `key` in any store.
    ///
    /// # Errors
    /// Those of the solver's own store.
    pub fn records(&self, key: &KeyId) -> Result<Vec<CacheRecord>> {
        let mut records = self.shared.keys.records(key)?;
        for record in self.sources().iter().flat_map(|source| source.records(key)) {
            if records.iter().all(|known| known.id != record.id) {
                records.push(record);
            }
        }
        Ok(records)
    }

    /// Opens a record; `None` is a miss.
    ///
    /// # Errors
    /// Those of the solver's own store.
    pub async fn load(&self, record: &CacheRecord) -> Result<Option<Option<ResultRef>>> {
        Ok(self.shared.load(record).await?.map(|loaded| loaded.result))
    }

    /// Returns the links that lead to `key` in any store.
    ///
    /// # Errors
    /// Those of the solver's own store.
    pub fn backlinks(&self, key: &KeyId) -> Result<Vec<Backlink>> {
        let mut links = self.shared.keys.backlinks(key)?;
        links.extend(self.sources().iter().flat_map(|source| source.backlinks(key)));
        Ok(links)
    }

    /// Returns the other keys without inputs that share a result with `key`.
    ///
    /// # Errors
    /// Those of the solver's own store.
    pub fn siblings(&self, key: &KeyId) -> Result<Vec<KeyId>> {
        self.shared.keys.siblings(key)
    }

    fn sources(&self) -> Vec<Arc<dyn KeySource>> {
        self.imports.as_ref().map(|imports| imports.sources()).unwrap_or_default()
    }
}

impl fmt::Debug for JobKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobKeys").field("imports", &self.imports).finish_non_exhaustive()
    }
}
