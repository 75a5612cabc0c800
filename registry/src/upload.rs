//! Bodies of uploads: read from the content store as they are sent.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kiln_content::Descriptor;
use reqwest::Body;

use crate::error::{Error, Result};
use crate::send::Upload;

/// How much is read at a time.
const CHUNK: usize = 256 << 10;

/// A blob of the content store.
pub(crate) struct StoredBlob {
    file: Arc<std::fs::File>,
    size: u64,
    sent: Arc<AtomicU64>,
}

impl StoredBlob {
    pub(crate) fn new(file: std::fs::File, descriptor: &Descriptor) -> Self {
        Self { file: Arc::new(file), size: descriptor.size, sent: Arc::default() }
    }

    /// Returns the count of bytes handed to the connection.
    pub(crate) fn counter(&self) -> Arc<AtomicU64> {
        self.sent.clone()
    }
}

impl Upload for StoredBlob {
    fn body(&self) -> Result<Body> {
        self.sent.store(0, Ordering::Relaxed);
        let state = (self.file.clone(), self.sent.clone(), self.size);
        let stream = futures::stream::try_unfold(state, |(file, sent, size)| async move {
            let at = sent.load(Ordering::Relaxed);
            if at >= size {
                return Ok(None);
            }
            let reader = file.clone();
            let chunk = tokio::task::spawn_blocking(move || read_at(&reader, at, size))
                .await
                .map_err(std::io::Error::other)??;
            sent.store(at + chunk.len() as u64, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Some((chunk, (file, sent, size))))
        });
        Ok(Body::wrap_stream(stream))
    }

    fn progress(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.size)
    }
}

fn read_at(file: &std::fs::File, at: u64, size: u64) -> std::io::Result<Bytes> {
    use std::os::unix::fs::FileExt as _;
    let wanted = usize::try_from(size - at).map_or(CHUNK, |left| left.min(CHUNK));
    let mut buffer = vec![0; wanted];
    let read = file.read_at(&mut buffer, at)?;
    if read == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    buffer.truncate(read);
    Ok(buffer.into())
}

/// Reads a whole stored document.
pub(crate) fn read_all(file: std::fs::File, max: u64, what: &Descriptor) -> Result<Bytes> {
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(Error::content)?;
    if bytes.len() as u64 > max {
        return Err(Error::TooLarge {
            what: what.digest.to_string(),
            actual: bytes.len() as u64,
            limit: max,
        });
    }
    Ok(bytes.into())
}
