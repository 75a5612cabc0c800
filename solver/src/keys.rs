//! The port to the store of cache keys and records.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use kiln_digest::Digest;

use crate::error::Result;
use crate::key::{KeyDigest, KeyId};
use crate::key_source::Backlink;
use crate::op::ResultRef;
use crate::reason::{Memo, Remembered, Wanted};
use crate::vertex::OutputIndex;

/// Knows which results exist for which keys.
///
/// Keys form a graph: a link leads from the key of an input, by (input number, output, op digest, selector), to the
/// key of its user. Links exist without records too: what lies below a record stays findable. Every implementation
/// keeps these, and `testing::conformance` checks them:
/// 1. `query` without deps returns the root key ([`KeyDigest::root`]) if the store knows it, else nothing.
/// 2. `query` with deps walks, for each dep, the links of all its alternatives (union) and returns the keys reached
///    from every dep (intersection), without duplicates; `reached[i]` says whether dep `i` reached any.
///    A dep without alternatives reaches none. `query` changes nothing.
/// 3. An alternative's selector, the op digest, the output and the input number all have to be equal for a link.
/// 4. `records` returns what `save` attached to that very key, in no particular order, without records known gone.
/// 5. `save` names the key as `query` would find it (root key; else the first key found; else a new one), then makes
///    sure that every alternative of every dep links to it and attaches the result. The result's own pending records,
///    the keys, the links and the attachment of one call are published together or not at all.
/// 6. `save` returns one id per `NewKey`, in order. Saving the same result twice under a key leaves one record.
/// 7. `link` adds the links of `save` to an existing key and nothing else. Unknown input ids are not an error.
///    `random:` alternatives are left out of it.
/// 8. `load` returns `None` for a record whose result is gone; such a record is not listed again.
/// 9. `lost` makes sure that records of this result are not loaded again.
/// 10. A missing match is never stored.
/// 11. `adopt` takes a chain of keys over from another store, parents first: each is named and linked as by `save`,
///     where names that earlier ones have in the chain stand for their new names; the last one gets the result, as of
///     `created_at`. It returns their names, in order. All is published together or not at all.
/// 12. `backlinks` returns the links that lead to a key; `siblings` the other keys without inputs that share a result
///     with it.
/// 13. `save_with` is `save`, and saves the memo under the keys in the same transaction, in place of an older one. A
///     memo goes with its key in the end; for some time after its result has gone it may stay to tell so.
/// 14. `near` returns a bounded number of memos of this output: those saved with that name, that kin, one of those
///     digests or that first input; newer ones rather than older ones. They come without listings, which `listing`
///     returns by the memo's key and the input's number as long as they are kept.
/// 15. `query_all` answers each as `query` would have at some moment of the call.
#[async_trait]
pub trait CacheKeys: Debug + Send + Sync + 'static {
    /// Finds the keys with this op digest and output over these inputs. Short and synchronous; no network.
    fn query(&self, deps: &[Vec<KeyAndSelector>], digest: &KeyDigest, output: OutputIndex) -> Result<Lookup>;

    /// Does several look-ups for less than one at a time takes; the answers in order.
    fn query_all(&self, asked: &[Asked<'_>]) -> Result<Vec<Lookup>> {
        asked.iter().map(|asked| self.query(asked.deps, asked.digest, asked.output)).collect()
    }

    /// Returns the results known under `key`.
    fn records(&self, key: &KeyId) -> Result<Vec<CacheRecord>>;

    /// Opens a result. The inner `None` is a nil result (an empty filesystem), the outer one a miss.
    async fn load(&self, record: &CacheRecord) -> Result<Option<Option<ResultRef>>>;

    /// Publishes a result under one or several keys, in one transaction.
    ///
    /// # Cancel safety
    /// A dropped future has published all or nothing.
    async fn save(&self, keys: &[NewKey], result: Option<&ResultRef>) -> Result<Vec<KeyId>>;

    /// Publishes a result as `save` does, with what it was made of. A store that remembers nothing needs no more than
    /// this; one that wraps another hands the memo on.
    ///
    /// # Cancel safety
    /// As `save`.
    async fn save_with(
        &self,
        keys: &[NewKey],
        result: Option<&ResultRef>,
        memo: Option<&Memo>,
    ) -> Result<Vec<KeyId>> {
        let _ = memo;
        self.save(keys, result).await
    }

    /// Returns what is remembered that comes near to what is wanted. Short and synchronous; no network. Decides nothing.
    fn near(&self, wanted: &Wanted<'_>) -> Result<Vec<Remembered>> {
        let _ = wanted;
        Ok(Vec::new())
    }

    /// Returns what was written down of the content of an input of a remembered step.
    fn listing(&self, key: &KeyId, input: usize) -> Result<Option<Vec<u8>>> {
        let _ = (key, input);
        Ok(None)
    }

    /// Makes `to` findable through the inputs of `key` from now on.
    async fn link(&self, key: &NewKey, to: &KeyId) -> Result<()>;

    /// Takes over a result of another store, with the keys that lead to it.
    ///
    /// # Cancel safety
    /// A dropped future has published all or nothing.
    async fn adopt(
        &self,
        chain: &[(KeyId, NewKey)],
        result: Option<&ResultRef>,
        created_at: SystemTime,
    ) -> Result<Vec<KeyId>>;

    /// Returns the links that lead to `key`, for exports.
    fn backlinks(&self, key: &KeyId) -> Result<Vec<Backlink>>;

    /// Returns the other keys without inputs under which a result of `key` is known, for exports.
    fn siblings(&self, key: &KeyId) -> Result<Vec<KeyId>>;

    /// Takes note that the physical part of a result is gone.
    async fn lost(&self, result: &ResultRef) -> Result<()>;
}

/// One alternative for an input of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyAndSelector {
    /// The input's key.
    pub key: KeyId,
    /// Which part of the input matters; none for content keys.
    pub selector: Option<Digest>,
}

/// One of several look-ups.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Per input, its known alternatives.
    pub deps: &'a [Vec<KeyAndSelector>],
    /// The op's digest.
    pub digest: &'a KeyDigest,
    /// The edge's output.
    pub output: OutputIndex,
}

/// What a look-up found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// The keys reached from every input.
    pub keys: Vec<KeyId>,
    /// Per input, whether it reached any key at all.
    pub reached: Vec<bool>,
}

/// A key to save a result under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NewKey {
    /// The op's digest.
    pub digest: KeyDigest,
    /// The edge's output.
    pub output: OutputIndex,
    /// Per input, its known alternatives.
    pub deps: Vec<Vec<KeyAndSelector>>,
}

/// The name of a record, as the store gives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId(pub Arc<str>);

/// A result that is known under some key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRecord {
    /// Names the record in its store; equal ids are the same record.
    pub id: RecordId,
    /// When the result was made. The newest one is preferred.
    pub created_at: SystemTime,
    /// On equal times the lower number is preferred.
    pub priority: u32,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a record comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// Made or kept here.
    Local,
    /// Found in an imported cache, with that cache's name.
    Imported(Arc<str>),
}
