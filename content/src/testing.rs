//! An in-memory store and the suite that every store passes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use kiln_digest::Digest;

use crate::descriptor::Descriptor;
use crate::error::{Error, Result};
use crate::store::{BlobInfo, BlobWriter, ContentStore, ContentStoreExt as _};

type Blobs = Arc<Mutex<BTreeMap<Digest, Bytes>>>;

/// Keeps blobs in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    blobs: Blobs,
}

impl MemoryStore {
    /// Makes an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }
}

#[async_trait]
impl ContentStore for MemoryStore {
    async fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        Ok(self.get(digest).map(|bytes| info(digest, &bytes)))
    }

    async fn open(&self, digest: &Digest) -> Result<Option<File>> {
        let Some(bytes) = self.get(digest) else { return Ok(None) };
        let write = || {
            let mut file = tempfile::tempfile()?;
            file.write_all(&bytes)?;
            file.rewind()?;
            Ok(file)
        };
        write().map(Some).map_err(Error::stream("copy blob"))
    }

    async fn read_all(&self, digest: &Digest, max: u64) -> Result<Option<Bytes>> {
        match self.get(digest) {
            Some(bytes) if bytes.len() as u64 > max => {
                Err(Error::TooLarge { digest: *digest, size: bytes.len() as u64, max })
            }
            found => Ok(found),
        }
    }

    async fn writer(&self, expected: Option<&Descriptor>) -> Result<Box<dyn BlobWriter>> {
        let expected = expected.map(|descriptor| (descriptor.digest, descriptor.size));
        Ok(Box::new(MemoryWriter { blobs: Arc::clone(&self.blobs), expected, data: Vec::new() }))
    }

    async fn resume(&self, expected: &Descriptor) -> Result<Box<dyn BlobWriter>> {
        self.writer(Some(expected)).await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<BlobInfo>> {
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(blobs.iter().map(|(digest, bytes)| info(digest, bytes)).collect())
    }
}

fn info(digest: &Digest, bytes: &Bytes) -> BlobInfo {
    let size = bytes.len() as u64;
    BlobInfo { digest: *digest, size, allocated: size }
}

struct MemoryWriter {
    blobs: Blobs,
    expected: Option<(Digest, u64)>,
    data: Vec<u8>,
}

#[async_trait]
impl BlobWriter for MemoryWriter {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        let actual = (self.data.len() + data.len()) as u64;
        match self.expected {
            Some((_, expected)) if actual > expected => Err(Error::SizeMismatch { expected, actual }),
            _ => {
                self.data.extend_from_slice(&data);
                Ok(())
            }
        }
    }

    fn written(&self) -> u64 {
        self.data.len() as u64
    }

    async fn commit(self: Box<Self>, expected: Option<(Digest, u64)>) -> Result<Digest> {
        let actual = Digest::of(&self.data);
        for (digest, size) in [self.expected, expected].into_iter().flatten() {
            if size != self.written() {
                return Err(Error::SizeMismatch { expected: size, actual: self.written() });
            }
            if digest != actual {
                return Err(Error::DigestMismatch { expected: digest, actual });
            }
        }
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).insert(actual, self.data.into());
        Ok(actual)
    }
}

/// Checks the numbered sentences of [`ContentStore`] on an empty store.
///
/// # Panics
/// When one of them does not hold.
#[expect(clippy::unwrap_used, clippy::panic, reason = "a test suite reports by panicking")]
pub async fn conformance(store: &dyn ContentStore) {
    use std::io::Read as _;

    let hello = Digest::of("hello");
    assert_eq!(store.info(&hello).await.unwrap(), None);
    assert!(store.open(&hello).await.unwrap().is_none());
    assert_eq!(store.read_all(&hello, 10).await.unwrap(), None);
    store.delete(&hello).await.unwrap();

    // 1: whole or not at all.
    let mut writer = store.writer(None).await.unwrap();
    writer.write(Bytes::from_static(b"hel")).await.unwrap();
    assert_eq!(store.list().await.unwrap(), []);
    writer.write(Bytes::from_static(b"lo")).await.unwrap();
    assert_eq!(writer.written(), 5);
    assert_eq!(writer.commit(Some((hello, 5))).await.unwrap(), hello);
    let info = store.info(&hello).await.unwrap().map(|info| (info.digest, info.size));
    assert_eq!(info, Some((hello, 5)));
    assert_eq!(store.read_all(&hello, 5).await.unwrap().as_deref(), Some(b"hello".as_slice()));
    assert!(matches!(store.read_all(&hello, 4).await, Err(Error::TooLarge { size: 5, max: 4, .. })));

    // 1: under its own digest only.
    for (digest, size) in [(hello, 6), (Digest::of("other"), 5), (hello, 4)] {
        let mut writer = store.writer(None).await.unwrap();
        writer.write(Bytes::from_static(b"jello")).await.unwrap();
        assert!(writer.commit(Some((digest, size))).await.is_err());
    }
    let announced = Descriptor::new("", Digest::of("jello"), 5);
    let mut writer = store.writer(Some(&announced)).await.unwrap();
    writer.write(Bytes::from_static(b"jell")).await.unwrap();
    match writer.commit(None).await {
        Err(Error::SizeMismatch { expected: 5, actual: 4 }) => {}
        other => panic!("short content: {other:?}"),
    }
    let mut writer = store.writer(Some(&announced)).await.unwrap();
    assert!(writer.write(Bytes::from_static(b"jelly beans")).await.is_err());
    drop(writer);
    assert_eq!(store.list().await.unwrap().len(), 1);

    // 2: several writers of one digest.
    let mut writers = Vec::new();
    for _ in 0..3 {
        let mut writer = store.writer(Some(&announced)).await.unwrap();
        writer.write(Bytes::from_static(b"jello")).await.unwrap();
        writers.push(writer);
    }
    for writer in writers {
        assert_eq!(writer.commit(None).await.unwrap(), announced.digest);
    }

    // 3: a dropped writer.
    let mut writer = store.writer(None).await.unwrap();
    writer.write(Bytes::from_static(b"gone")).await.unwrap();
    drop(writer);
    assert_eq!(store.info(&Digest::of("gone")).await.unwrap(), None);

    // 6: what was left is gone on with, unless it is wrong.
    let text = Bytes::from("0123456789".repeat(20_000));
    let large = Descriptor::new("", Digest::of(&text), 200_000);
    for (begun, ends_well) in [("0123456789".repeat(15_000), true), ("wrong".repeat(30_000), false)] {
        let mut writer = store.resume(&large).await.unwrap();
        assert_eq!(writer.written(), 0);
        writer.write(begun.into()).await.unwrap();
        drop(writer);
        assert_eq!(store.info(&large.digest).await.unwrap(), None);
        assert_eq!(store.writer(Some(&large)).await.unwrap().written(), 0);
        let mut writer = store.resume(&large).await.unwrap();
        let there = usize::try_from(writer.written()).unwrap();
        assert!(there == 0 || there == 150_000, "{there}");
        writer.write(text.slice(there..)).await.unwrap();
        assert_eq!(writer.commit(None).await.is_ok(), ends_well || there == 0);
        assert_eq!(store.resume(&large).await.unwrap().written(), 0);
        store.delete(&large.digest).await.unwrap();
    }

    // 4: deletion with an open file.
    let mut file = store.open(&hello).await.unwrap().unwrap();
    store.delete(&hello).await.unwrap();
    assert_eq!(store.info(&hello).await.unwrap(), None);
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");

    // The conveniences, and the order of the list.
    let empty = store.put(Bytes::new()).await.unwrap();
    assert_eq!(empty, Digest::of(""));
    store.put(Bytes::from_static(b"hello")).await.unwrap();
    let listed: Vec<_> = store.list().await.unwrap().into_iter().map(|blob| blob.digest).collect();
    let mut sorted = listed.clone();
    sorted.sort();
    assert_eq!(listed, sorted);
    assert_eq!(listed.len(), 3);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_conforms() {
        conformance(&MemoryStore::new()).await;
    }
}
