//! The port: a store of blobs named by their digests.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_digest::{Digest, Hasher};

use crate::descriptor::Descriptor;
use crate::error::{Error, Result};

/// Bytes read at a time.
const READ: usize = 256 * 1024;

/// What a store knows of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// The blob's name.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes that it takes in the store.
    pub allocated: u64,
}

/// Keeps blobs by digest.
///
/// Every implementation keeps these, and `testing::conformance` checks them:
/// 1. A blob is visible whole or not at all; what is visible has the digest it is named by.
/// 2. Several writers may write one digest at the same time; each commit succeeds.
/// 3. A dropped writer leaves nothing visible.
/// 4. `delete` of an absent blob succeeds; an open file stays readable after `delete`.
/// 5. A dropped future leaves the store as before the call or as after it, never in between.
/// 6. A writer from `resume` that is dropped may leave what it has written to the next one for that digest, and to no
///    other; one that failed to write or commit leaves nothing.
#[async_trait]
pub trait ContentStore: fmt::Debug + Send + Sync + 'static {
    /// Returns what is known of a blob, or `None` when it is absent.
    async fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>>;

    /// Opens a blob for reading at any offset, or returns `None` when it is absent.
    async fn open(&self, digest: &Digest) -> Result<Option<std::fs::File>>;

    /// Reads a whole blob, or returns `None` when it is absent. One that is not what its name says is damaged: it is
    /// removed, and absent.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when it has more than `max` bytes.
    async fn read_all(&self, digest: &Digest, max: u64) -> Result<Option<Bytes>>;

    /// Starts a blob. With `expected`, writing more than its size fails at once and `commit` checks both.
    async fn writer(&self, expected: Option<&Descriptor>) -> Result<Box<dyn BlobWriter>>;

    /// Starts a blob as `writer` does, or goes on with what an earlier writer from here has left: `written` tells how much
    /// there is, which may be wrong, as `commit` will tell.
    async fn resume(&self, expected: &Descriptor) -> Result<Box<dyn BlobWriter>>;

    /// Removes a blob.
    async fn delete(&self, digest: &Digest) -> Result<()>;

    /// Lists all blobs, ordered by digest.
    async fn list(&self) -> Result<Vec<BlobInfo>>;
}

/// A blob being written. Dropping it abandons it.
#[async_trait]
pub trait BlobWriter: Send {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`Error::SizeMismatch`] when there are more than announced.
    async fn write(&mut self, data: Bytes) -> Result<()>;

    /// Returns how many bytes were written.
    fn written(&self) -> u64;

    /// Makes the blob visible under its digest, after checking it against `expected` (digest and length) and
    /// against what [`ContentStore::writer`] was given.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] and [`Error::SizeMismatch`]; nothing is visible then.
    async fn commit(self: Box<Self>, expected: Option<(Digest, u64)>) -> Result<Digest>;
}

/// Conveniences over any [`ContentStore`].
#[async_trait]
pub trait ContentStoreExt: ContentStore {
    /// Stores `bytes` and returns their digest. Does nothing when they are there; half of them are not.
    async fn put(&self, bytes: Bytes) -> Result<Digest> {
        let digest = Digest::of(&bytes);
        let size = bytes.len() as u64;
        if self.info(&digest).await?.is_none_or(|there| there.size != size) {
            let mut writer = self.writer(None).await?;
            writer.write(bytes).await?;
            writer.commit(Some((digest, size))).await?;
        }
        Ok(digest)
    }

    /// Whether the blob is there.
    async fn contains(&self, digest: &Digest) -> Result<bool> {
        Ok(self.info(digest).await?.is_some())
    }

    /// Whether the blob is there with the length that it should have. One that is damaged is removed.
    async fn has_whole(&self, descriptor: &Descriptor) -> Result<bool> {
        match self.info(&descriptor.digest).await? {
            Some(info) if info.size == descriptor.size => Ok(true),
            Some(info) => {
                // The descriptor comes from outside: it may be what is wrong.
                if !self.is_intact(&descriptor.digest).await? {
                    let (digest, size) = (descriptor.digest, info.size);
                    tracing::warn!(%digest, size, "a blob was damaged and is removed");
                    self.delete(&digest).await?;
                }
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// Reads a blob to its end to see whether it has the digest it is named by. One that is absent has not.
    async fn is_intact(&self, digest: &Digest) -> Result<bool> {
        let Some(mut file) = self.open(digest).await? else { return Ok(false) };
        let hash = move || {
            let mut hasher = Hasher::new();
            let mut buffer = vec![0; READ];
            loop {
                match std::io::Read::read(&mut file, &mut buffer) {
                    Ok(0) => return Ok(hasher.finish()),
                    Ok(count) => hasher.update(buffer.get(..count).unwrap_or_default()),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Error::stream("read blob")(error)),
                }
            }
        };
        let actual = tokio::task::spawn_blocking(hash).await.map_err(|_| Error::Interrupted)??;
        Ok(actual == *digest)
    }

    /// Reads a whole blob that must be there.
    async fn get(&self, digest: &Digest, max: u64) -> Result<Bytes> {
        self.read_all(digest, max).await?.ok_or(Error::NotFound(*digest))
    }
}

impl<S: ContentStore + ?Sized> ContentStoreExt for S {}
