//! The port to further stores of keys: caches that a build imports.

use std::fmt::Debug;

use async_trait::async_trait;
use kiln_digest::Digest;

use crate::key::{KeyDigest, KeyId};
use crate::keys::{CacheRecord, KeyAndSelector, Lookup, RecordId};
use crate::op::ResultRef;
use crate::vertex::OutputIndex;

/// Keys and results of another store, which is only read.
///
/// A job looks into all its sources whenever it looks into the solver's own [`CacheKeys`](crate::CacheKeys), at the
/// same time, and takes the union of what they answer. Every implementation keeps these, and
/// `testing::source_conformance` checks them:
/// 1. `query` answers as [`CacheKeys::query`](crate::CacheKeys::query) does, for what this store has, and changes
///    nothing. The store may open itself in the first call; many may call at once.
/// 2. Keys without inputs have the name they have everywhere ([`KeyDigest::root`], [`KeyId::content`]); all others
///    have names of [`KeyId::imported`] that no other store gives. Names that are not this store's lead nowhere.
/// 3. `records` returns what is known under that very key. Their ids are used by no other store.
/// 4. `key_of` returns the key a record was listed under, and none for records of other stores.
/// 5. `load` returns `None` for a record whose result cannot be had, or that was opened before and found lost since.
///    Opening a result reads none of its bytes.
/// 6. `backlinks` returns the links that lead to a key, and none for keys without inputs.
/// 7. Nothing here fails or blocks a build: a store that cannot be opened, or not in time, is an empty one.
#[async_trait]
pub trait KeySource: Debug + Send + Sync + 'static {
    /// Finds the keys with this op digest and output over these inputs.
    async fn query(&self, deps: &[Vec<KeyAndSelector>], digest: &KeyDigest, output: OutputIndex) -> Lookup;

    /// Returns the results known under `key`.
    fn records(&self, key: &KeyId) -> Vec<CacheRecord>;

    /// Returns the key of a record of this store.
    fn key_of(&self, record: &RecordId) -> Option<KeyId>;

    /// Opens a result. The inner `None` is a nil result, the outer one a miss.
    async fn load(&self, record: &CacheRecord) -> Option<Option<ResultRef>>;

    /// Returns the links that lead to `key`.
    fn backlinks(&self, key: &KeyId) -> Vec<Backlink>;
}

/// A link between two keys, seen from the one it leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backlink {
    /// Which input of the key it is.
    pub input: u32,
    /// The key of that input.
    pub from: KeyId,
    /// Which part of the input matters; none for content keys.
    pub selector: Option<Digest>,
    /// What exported caches call the key it leads to: sha256 of its op digest and output, as [`KeyDigest::root`].
    pub digest: KeyId,
}
