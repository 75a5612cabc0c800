//! Cache keys in the catalogue: the solver's store.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use async_trait::async_trait;
use futures::future::try_join_all;
use kiln_solver::{
    Asked, Backlink, CacheKeys, CacheRecord, GoneWhy, KeyAndSelector, KeyDigest, KeyId, Lookup, Memo, NewKey,
    Origin, OutputIndex, Remembered, ResultRef, ResultValue, Wanted,
};
use rusqlite::{Connection, Transaction};

use crate::{
    CacheManager, Error, RecordId, Ref, Result,
    db::{
        self,
        keys::{self, Link},
        rows,
    },
    manager::Inner,
    memos,
    reference::{mark_published, publish},
};

/// Results made here are preferred less than imported ones of the same age.
const LOCAL_PRIORITY: u32 = 1;

/// So many look-ups take longer than starting a thread that does half of them.
const WORTH_A_THREAD: usize = 128;

impl ResultValue for Ref {}

impl CacheManager {
    /// The store of cache keys, for the solver. Its results are [`Ref`]s.
    pub fn keys(&self) -> Arc<dyn CacheKeys> {
        Arc::new(CatalogueKeys(Arc::clone(&self.0)))
    }
}

#[derive(Debug)]
struct CatalogueKeys(Arc<Inner>);

impl From<Error> for kiln_solver::Error {
    fn from(error: Error) -> Self {
        Self::keys(error.to_string(), error)
    }
}

#[async_trait]
impl CacheKeys for CatalogueKeys {
    fn query(
        &self,
        deps: &[Vec<KeyAndSelector>],
        digest: &KeyDigest,
        output: OutputIndex,
    ) -> kiln_solver::Result<Lookup> {
        Ok(self.0.db().read(|connection| {
            // Every statement outside a transaction takes and leaves the file's locks for itself.
            let many = deps.iter().map(Vec::len).sum::<usize>() > 1;
            let _one_view = if many { Some(connection.unchecked_transaction()?) } else { None };
            find(connection, deps, digest, output)
        })?)
    }

    fn query_all(&self, asked: &[Asked<'_>]) -> kiln_solver::Result<Vec<Lookup>> {
        if let [one] = asked {
            return Ok(vec![self.query(one.deps, one.digest, one.output)?]);
        }
        let find_all = |asked: &[Asked<'_>]| {
            self.0.db().read(|connection| {
                let _one_view = connection.unchecked_transaction()?;
                asked.iter().map(|asked| find(connection, asked.deps, asked.digest, asked.output)).collect()
            })
        };
        if asked.len() < WORTH_A_THREAD {
            return Ok(find_all(asked)?);
        }
        // Readers of the database do not wait for each other.
        let (own, others) = asked.split_at(asked.len() / 2);
        let (own, others) = std::thread::scope(|scope| {
            let others = scope.spawn(|| find_all(others));
            (find_all(own), others.join())
        });
        let mut found: Vec<Lookup> = own?;
        found.extend(others.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        Ok(found)
    }

    fn records(&self, key: &KeyId) -> kiln_solver::Result<Vec<CacheRecord>> {
        let found = self.0.db().read(|connection| keys::results(connection, key.as_str()))?;
        let record = |(id, created_at): (String, i64)| CacheRecord {
            id: kiln_solver::RecordId(id.into()),
            created_at: rows::time(created_at),
            priority: LOCAL_PRIORITY,
            origin: Origin::Local,
        };
        Ok(found.into_iter().map(record).collect())
    }

    async fn load(&self, record: &CacheRecord) -> kiln_solver::Result<Option<Option<ResultRef>>> {
        if record.id.0.is_empty() {
            return Ok(Some(None));
        }
        let Ok(id) = record.id.0.parse::<RecordId>() else { return Ok(None) };
        let Some(found) = self.0.load(&id)? else {
            self.forget_results_of_missing(id).await?;
            return Ok(None);
        };
        match found.check().await {
            Ok(()) => Ok(Some(Some(Arc::new(found)))),
            Err(Error::Lost(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn save(&self, keys: &[NewKey], result: Option<&ResultRef>) -> kiln_solver::Result<Vec<KeyId>> {
        self.save_with(keys, result, None).await
    }

    async fn save_with(
        &self,
        keys: &[NewKey],
        result: Option<&ResultRef>,
        memo: Option<&Memo>,
    ) -> kiln_solver::Result<Vec<KeyId>> {
        let save = Save::new(result)?;
        let (keys, memo) = (keys.to_vec(), memo.cloned());
        let now = rows::nanos(SystemTime::now());
        let saved = self.0.db().write_then(
            move |transaction| {
                publish(transaction, &save.pending)?;
                let mut ids = Vec::with_capacity(keys.len());
                for key in &keys {
                    let id = add(transaction, key, memo.as_ref())?;
                    if let Some(record) = &save.record {
                        keys::add_result(transaction, id.as_str(), record, now)?;
                        if let Some(memo) = &memo {
                            memos::save(transaction, &id, key, memo, now)?;
                        }
                    }
                    ids.push(id);
                }
                Ok((ids, save))
            },
            |(_ids, save)| mark_published(&save.pending),
        );
        Ok(saved.await?.0)
    }

    fn near(&self, wanted: &Wanted<'_>) -> kiln_solver::Result<Vec<Remembered>> {
        Ok(self.0.db().read(|connection| memos::near(connection, wanted))?)
    }

    fn listing(&self, key: &KeyId, input: usize) -> kiln_solver::Result<Option<Vec<u8>>> {
        let input = i64::try_from(input).unwrap_or(i64::MAX);
        Ok(self.0.db().read(|connection| db::memos::listing(connection, key.as_str(), input))?)
    }

    async fn link(&self, key: &NewKey, to: &KeyId) -> kiln_solver::Result<()> {
        let (key, to) = (key.clone(), to.clone());
        let added = self.0.db().write(move |transaction| {
            if !keys::is_known(transaction, to.as_str())? {
                return Ok(());
            }
            for_each_link(&key, |from, link| {
                if from.starts_with("random:") {
                    return Ok(());
                }
                keys::add_link(transaction, from, link, to.as_str())
            })
        });
        Ok(added.await?)
    }

    async fn adopt(
        &self,
        chain: &[(KeyId, NewKey)],
        result: Option<&ResultRef>,
        created_at: SystemTime,
    ) -> kiln_solver::Result<Vec<KeyId>> {
        let save = Save::new(result)?;
        let chain = chain.to_vec();
        let saved = self.0.db().write_then(
            move |transaction| {
                publish(transaction, &save.pending)?;
                let mut names: HashMap<KeyId, KeyId> = HashMap::with_capacity(chain.len());
                let mut ids = Vec::with_capacity(chain.len());
                for (theirs, mut key) in chain {
                    for way in key.deps.iter_mut().flatten() {
                        if let Some(ours) = names.get(&way.key) {
                            way.key = ours.clone();
                        }
                    }
                    let id = add(transaction, &key, None)?;
                    names.insert(theirs, id.clone());
                    ids.push(id);
                }
                if let (Some(id), Some(record)) = (ids.last(), &save.record) {
                    keys::add_result(transaction, id.as_str(), record, rows::nanos(created_at))?;
                }
                Ok((ids, save))
            },
            |(_ids, save)| mark_published(&save.pending),
        );
        Ok(saved.await?.0)
    }

    fn backlinks(&self, key: &KeyId) -> kiln_solver::Result<Vec<Backlink>> {
        let found = self.0.db().read(|connection| keys::sources(connection, key.as_str()))?;
        let mut links = Vec::with_capacity(found.len());
        for (from, link) in found {
            let (Ok(input), Ok(output)) = (u32::try_from(link.input), u32::try_from(link.output)) else {
                continue;
            };
            let digest: KeyDigest = link
                .digest
                .parse()
                .map_err(|_| Error::damaged(key.as_str(), format!("link with digest `{}`", link.digest)))?;
            let selector = match link.selector.as_str() {
                "" => None,
                text => {
                    Some(text.parse().map_err(|_| Error::damaged(key.as_str(), "link with a bad selector"))?)
                }
            };
            let digest = digest.root(OutputIndex(output));
            links.push(Backlink { input, from: KeyId::new(from), selector, digest });
        }
        Ok(links)
    }

    fn siblings(&self, key: &KeyId) -> kiln_solver::Result<Vec<KeyId>> {
        let found = self.0.db().read(|connection| keys::root_siblings(connection, key.as_str()))?;
        Ok(found.into_iter().map(KeyId::new).collect())
    }

    async fn lost(&self, result: &ResultRef) -> kiln_solver::Result<()> {
        if let Some(result) = result.downcast::<Ref>() {
            result.lose().await?;
        }
        Ok(())
    }
}

/// A result on its way into the catalogue.
struct Save {
    /// The record's id, empty for the empty result. None when it has lost its data meanwhile: it is not worth a
    /// record then; the links still are.
    record: Option<String>,
    /// Records that the database does not have yet.
    pending: Vec<Ref>,
    /// Keeps the record from being collected before its key is committed.
    _held: Option<Ref>,
}

impl Save {
    fn new(result: Option<&ResultRef>) -> Result<Self> {
        let empty = Self { record: Some(String::new()), pending: Vec::new(), _held: None };
        let Some(value) = result else { return Ok(empty) };
        let result = value.downcast::<Ref>().ok_or_else(|| {
            Error::Unsupported(format!("saving a result that is not of this catalogue: {value:?}"))
        })?;
        if result.has_lost_part() {
            return Ok(Self { record: None, ..empty });
        }
        let record = Some(result.id().to_string());
        Ok(Self { record, pending: result.unpublished(), _held: Some(result.clone()) })
    }
}

impl CatalogueKeys {
    /// A result whose record is not there is not listed again, unless the record is only being written to.
    async fn forget_results_of_missing(&self, id: RecordId) -> Result<()> {
        self.0
            .db()
            .write(move |transaction| {
                if rows::seq_of(transaction, &id)?.is_none() {
                    keys::release_results(transaction, &id, GoneWhy::Lost)?;
                }
                Ok(())
            })
            .await
    }
}

impl Ref {
    /// Whether it or something it stands on has lost its data.
    pub fn has_lost_part(&self) -> bool {
        self.0.state().lost || self.top_down().any(|layer| layer.0.state().lost)
    }

    /// Looks whether every layer is unpacked or can still be had.
    async fn check(&self) -> Result<()> {
        if self.has_lost_part() {
            return Err(Error::Lost(self.id().clone()));
        }
        let (mut snapshots, mut lazy) = (Vec::new(), Vec::new());
        for layer in self.stack() {
            let snapshot = layer.0.state().snapshot.clone();
            match snapshot {
                Some(snapshot) => {
                    layer.suspect();
                    snapshots.push(snapshot);
                }
                None => lazy.push(layer),
            }
        }
        for gone in self.0.inner().snapshotter().missing(snapshots).await? {
            self.gone_from_store(&gone).await?;
        }
        try_join_all(lazy.iter().map(Self::check_lazy)).await.map(drop)
    }

    async fn check_lazy(&self) -> Result<()> {
        let blobs = self.0.state().blobs.clone();
        if self.by_nearness(blobs).await?.is_empty() {
            self.lose().await?;
            return Err(Error::Lost(self.id().clone()));
        }
        Ok(())
    }
}

fn find(
    connection: &Connection,
    deps: &[Vec<KeyAndSelector>],
    digest: &KeyDigest,
    output: OutputIndex,
) -> Result<Lookup> {
    if deps.is_empty() {
        let root = digest.root(output);
        let known = keys::is_known(connection, root.as_str())?;
        return Ok(Lookup { keys: known.then_some(root).into_iter().collect(), reached: Vec::new() });
    }
    let mut reached = Vec::with_capacity(deps.len());
    let mut common: Option<Vec<String>> = None;
    for (input, alternatives) in (0_i64..).zip(deps) {
        let mut targets: Vec<String> = Vec::new();
        for alternative in alternatives {
            let link = link(input, digest, output, alternative);
            targets.extend(keys::targets(connection, alternative.key.as_str(), &link)?);
        }
        reached.push(!targets.is_empty());
        common = Some(match common {
            None => {
                let mut seen = HashSet::new();
                targets.into_iter().filter(|target| seen.insert(target.clone())).collect()
            }
            Some(before) => before.into_iter().filter(|key| targets.contains(key)).collect(),
        });
    }
    Ok(Lookup { keys: common.unwrap_or_default().into_iter().map(KeyId::new).collect(), reached })
}

/// Makes a key known, with all its links; returns its name.
fn add(transaction: &Transaction<'_>, key: &NewKey, memo: Option<&Memo>) -> Result<KeyId> {
    let id = name(transaction, key, memo)?;
    keys::add_key(transaction, id.as_str())?;
    for_each_link(key, |from, link| keys::add_link(transaction, from, link, id.as_str()))?;
    Ok(id)
}

/// The name under which a key is saved: its root, the first found, the one it has had before, or a new one.
fn name(transaction: &Transaction<'_>, key: &NewKey, memo: Option<&Memo>) -> Result<KeyId> {
    if key.deps.is_empty() {
        return Ok(key.digest.root(key.output));
    }
    let found = find(transaction, &key.deps, &key.digest, key.output)?;
    if let Some(found) = found.keys.into_iter().next() {
        return Ok(found);
    }
    let former = memo.map(|memo| memos::former_name(transaction, key, memo)).transpose()?.flatten();
    Ok(former.unwrap_or_else(|| KeyId::new(RecordId::random().to_string())))
}

fn for_each_link(key: &NewKey, mut each: impl FnMut(&str, &Link) -> Result<()>) -> Result<()> {
    for (input, alternatives) in (0_i64..).zip(&key.deps) {
        for alternative in alternatives {
            each(alternative.key.as_str(), &link(input, &key.digest, key.output, alternative))?;
        }
    }
    Ok(())
}

fn link(input: i64, digest: &KeyDigest, output: OutputIndex, alternative: &KeyAndSelector) -> Link {
    Link {
        input,
        output: i64::from(output.0),
        digest: digest.to_string(),
        selector: alternative.selector.map(|selector| selector.to_string()).unwrap_or_default(),
    }
}
