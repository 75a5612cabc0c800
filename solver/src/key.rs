//! The two identifiers of cache keys: the digest an op computes, and the id a key has in a store.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use kiln_digest::Digest;

use crate::vertex::OutputIndex;

/// What the names that imported caches give begin with.
const IMPORTED: &str = "import:";

/// What an op says identifies it, inputs apart: `sha256:<hex>`, or `random:<hex>` for one valid in this daemon only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyDigest {
    /// Comparable everywhere; may be exported.
    Stable(Digest),
    /// Means nothing outside this daemon; never exported.
    Random(Digest),
}

/// Text that is no key digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid key digest `{0}`")]
pub struct ParseKeyError(String);

impl KeyDigest {
    /// Returns whether it is of the `random:` kind.
    pub const fn is_random(&self) -> bool {
        matches!(self, Self::Random(_))
    }

    /// Returns the id of an input-less key with this digest: sha256 of `<digest>@<output>`, or the text itself for
    /// a random one.
    pub fn root(&self, output: OutputIndex) -> KeyId {
        match self {
            Self::Stable(digest) => KeyId::root(digest, i64::from(output.0)),
            Self::Random(_) => KeyId::new(self.to_string()),
        }
    }
}

impl From<Digest> for KeyDigest {
    fn from(digest: Digest) -> Self {
        Self::Stable(digest)
    }
}

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stable(digest) => fmt::Display::fmt(digest, f),
            Self::Random(digest) => write!(f, "random:{}", digest.hex()),
        }
    }
}

impl FromStr for KeyDigest {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        let parsed = match text.strip_prefix("random:") {
            Some(hex) => Digest::from_hex(hex).map(Self::Random),
            None => text.parse().map(Self::Stable),
        };
        parsed.map_err(|_| ParseKeyError(text.to_owned()))
    }
}

/// The name of a key in a [`CacheKeys`](crate::CacheKeys) store.
///
/// A key without inputs has the same name everywhere ([`KeyDigest::root`]); one with inputs is named by its store.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// Wraps a store's own name of a key.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Returns the id of the input-less key of `digest` and `output`: sha256 of `<digest>@<output>`.
    pub fn root(digest: &Digest, output: i64) -> Self {
        Self::new(Digest::of(format!("{digest}@{output}")).to_string())
    }

    /// Returns the id of the slow key of an input whose content has this digest: its root key with output -1.
    pub fn content(digest: &Digest) -> Self {
        Self::root(digest, -1)
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Names key number `index` of an imported cache. `store` is different for each that is open.
    pub fn imported(store: &str, index: usize) -> Self {
        Self::new(format!("{IMPORTED}{store}/{index}"))
    }

    /// Returns whether an imported cache gave this name: it means nothing to any other store, and nothing later.
    pub fn is_imported(&self) -> bool {
        self.0.starts_with(IMPORTED)
    }

    /// Returns whether this names a root key that is valid in this daemon only.
    pub fn is_random(&self) -> bool {
        self.0.starts_with("random:")
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
