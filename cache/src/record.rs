//! What a record is: identity, type, options and layer blobs.

use std::{fmt, str::FromStr, sync::Arc, time::SystemTime};

use kiln_content::Descriptor;
use kiln_digest::Digest;
use rand::Rng;

use crate::{Error, IMPORTED};

/// Identity of a record: 25 characters of `0-9a-z`, random.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId(Arc<str>);

const ID_LEN: usize = 25;
const ID_ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

impl RecordId {
    /// Makes a new random identity.
    pub fn random() -> Self {
        let mut rng = rand::rng();
        let text: String =
            (0..ID_LEN).map(|_| char::from(ID_ALPHABET[rng.random_range(0..ID_ALPHABET.len())])).collect();
        Self(text.into())
    }
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RecordId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let good = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        if good { Ok(Self(text.into())) } else { Err(Error::damaged(text, "not a record id")) }
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a record is for; decides what `prune` takes by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RecordType {
    /// Made by the engine for itself.
    Internal,
    /// A frontend's image or input.
    Frontend,
    /// Files received from a client.
    LocalSource,
    /// A git checkout.
    GitCheckout,
    /// A cache mount of exec steps.
    CacheMount,
    /// A build result.
    #[default]
    Regular,
}

impl RecordType {
    /// Name on the wire and in filters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Frontend => "frontend",
            Self::LocalSource => "source.local",
            Self::GitCheckout => "source.git.checkout",
            Self::CacheMount => "exec.cachemount",
            Self::Regular => "regular",
        }
    }
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "internal" => Self::Internal,
            "frontend" => Self::Frontend,
            "source.local" => Self::LocalSource,
            "source.git.checkout" => Self::GitCheckout,
            "exec.cachemount" => Self::CacheMount,
            _ => Self::Regular,
        }
    }
}

/// How a new record is described and kept.
#[derive(Clone, Debug, Default)]
pub struct RecordOptions {
    /// Shown by `du`, for example `mount / from exec /bin/sh -c make`.
    pub description: String,
    /// What it is for.
    pub record_type: RecordType,
    /// Keep it although no cache key names it (until it is pruned).
    pub retain: bool,
    /// Names under which it can be found again.
    pub index: Vec<String>,
    /// When its content was made; now, when absent.
    pub created_at: Option<SystemTime>,
}

impl RecordOptions {
    /// Options with a description and a type.
    pub fn new(description: impl Into<String>, record_type: RecordType) -> Self {
        Self { description: description.into(), record_type, ..Self::default() }
    }
}

/// A layer's stored form: one blob, the digest of its uncompressed tar, and where it can be fetched.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerBlob {
    /// Media type, digest and size of the blob as stored or as the registry has it.
    pub descriptor: Descriptor,
    /// Digest of the uncompressed layer tar.
    pub diff_id: Digest,
    /// Where it can be fetched again: an image reference or another string that the `BlobProvider` understands.
    /// Empty: only the local content store has it.
    pub source: String,
}

impl LayerBlob {
    /// Whether an imported build cache lends it.
    pub fn is_imported(&self) -> bool {
        self.source.starts_with(IMPORTED)
    }
}

/// One layer of a ref, bottom first in [`Ref::layers`](crate::Ref::layers).
#[derive(Clone, Debug)]
pub struct Layer {
    /// The record that owns it.
    pub record: RecordId,
    /// All known blobs of it; the one it was made from or fetched as comes first.
    pub blobs: Vec<LayerBlob>,
    /// Its snapshot, when it is unpacked.
    pub snapshot: Option<kiln_snapshot::SnapshotId>,
    /// Description of its record.
    pub description: String,
    /// When its content was made.
    pub created_at: SystemTime,
}
