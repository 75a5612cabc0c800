//! What a store remembers of a result beside its keys.

use std::time::SystemTime;

use crate::key::{KeyDigest, KeyId};
use crate::keys::KeyAndSelector;
use crate::reason::fingerprint::Fingerprint;
use crate::vertex::OutputIndex;

/// What a result was made of, saved with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memo {
    /// The vertex's name.
    pub name: String,
    /// What its op was made of.
    pub fingerprint: Fingerprint,
    /// Its inputs, the first ones if there are very many.
    pub inputs: Vec<MemoInput>,
    /// A key that a memo of the very same step was saved with and that is not known any more. What is not known under
    /// another name is to have this one again, so that the steps above are recognised too.
    pub again: Option<KeyId>,
}

/// What is remembered of an input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoInput {
    /// The name of the vertex that made it.
    pub name: String,
    /// What its op wrote down of its content, for [`Op::content_change`](crate::Op::content_change). To be saved; what
    /// is [remembered](crate::CacheKeys::near) comes without it.
    pub listing: Option<Vec<u8>>,
}

/// What memos are asked for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Wanted<'a> {
    /// The vertex's name.
    pub name: &'a str,
    /// Of what it is a version; may be empty.
    pub kin: &'a str,
    /// The op digests.
    pub digests: &'a [KeyDigest],
    /// The output.
    pub output: OutputIndex,
    /// Per input, its known alternatives.
    pub deps: &'a [Vec<KeyAndSelector>],
}

/// A memo with the key it was saved with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The memo.
    pub memo: Memo,
    /// The name of the key.
    pub key: KeyId,
    /// The op digest of the key.
    pub digest: KeyDigest,
    /// Per input as far as the memo has inputs, the alternatives of the key that hold beyond one session.
    pub deps: Vec<Vec<KeyAndSelector>>,
    /// When the result was saved.
    pub created_at: SystemTime,
    /// When and why there is no result any more.
    pub gone: Option<(SystemTime, GoneWhy)>,
}

/// Why a result is there no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GoneWhy {
    /// It was removed to make room, or because somebody asked for it.
    Pruned,
    /// Its data could not be found.
    Lost,
}

impl Memo {
    /// Makes a memo.
    pub fn new(name: impl Into<String>, fingerprint: Fingerprint, inputs: Vec<MemoInput>) -> Self {
        Self { name: name.into(), fingerprint, inputs, again: None }
    }
}

impl MemoInput {
    /// Makes an input's part of a memo.
    pub fn new(name: impl Into<String>, listing: Option<Vec<u8>>) -> Self {
        Self { name: name.into(), listing }
    }
}
