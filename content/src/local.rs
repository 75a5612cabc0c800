//! Blobs in a directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_digest::{Digest, Hasher};

use crate::descriptor::Descriptor;
use crate::error::{Error, Result};
use crate::local::partials::{Partials, WORTH};
use crate::store::{BlobInfo, BlobWriter, ContentStore};

mod partials;

/// Bytes read at a time.
const READ: usize = 256 << 10;

/// Keeps blobs as `<root>/blobs/sha256/<hex>`; what is being written lies in `<root>/ingest` and is renamed in. What can be
/// gone on with later lies in `<root>/partial`, for a day.
///
/// One process at a time may open a root: opening removes the ingests that an earlier one left, or keeps them as partials.
#[derive(Clone, Debug)]
pub struct LocalStore {
    dirs: Arc<Dirs>,
}

#[derive(Debug)]
struct Dirs {
    blobs: PathBuf,
    ingest: PathBuf,
    partials: Partials,
}

impl LocalStore {
    /// Opens the store under `root`, which is made when it is missing.
    ///
    /// # Errors
    /// [`Error::Io`] when a directory cannot be made or read.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let partials = Partials(root.join("partial"));
        let dirs = Dirs { blobs: root.join("blobs/sha256"), ingest: root.join("ingest"), partials };
        for dir in [&dirs.blobs, &dirs.ingest, &dirs.partials.0] {
            fs::create_dir_all(dir).map_err(Error::io("create directory", dir))?;
        }
        for entry in fs::read_dir(&dirs.ingest).map_err(Error::io("read directory", &dirs.ingest))? {
            let path = entry.map_err(Error::io("read directory", &dirs.ingest))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let digest = name.split_once('.').and_then(|(hex, _)| Digest::from_hex(hex).ok());
            match digest {
                Some(digest) => dirs.partials.keep(&digest, &path),
                None => fs::remove_file(&path),
            }
            .map_err(Error::io("clear away stale ingest", &path))?;
        }
        let partial = &dirs.partials;
        partial.tidy(SystemTime::now()).map_err(Error::io("tidy directory", &partial.0))?;
        Ok(Self { dirs: Arc::new(dirs) })
    }

    /// Returns where the blob is or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dirs.blobs.join(digest.hex())
    }

    /// Starts a blob to be written by a blocking thread.
    ///
    /// # Errors
    /// [`Error::Io`] when no file can be made.
    pub fn ingest(&self, expected: Option<&Descriptor>) -> Result<Ingest> {
        let path = self.dirs.ingest.join(format!("{:032x}", rand::random::<u128>()));
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io("create ingest", &path))?;
        Ok(Ingest {
            dirs: Arc::clone(&self.dirs),
            path: Some(path),
            file,
            hasher: Hasher::new(),
            written: 0,
            expected: expected.map(|descriptor| (descriptor.digest, descriptor.size)),
            kept_as: None,
        })
    }

    /// As [`LocalStore::ingest`], but goes on with what is kept of the blob.
    fn take_up(&self, expected: &Descriptor) -> Result<Ingest> {
        let (digest, size) = (expected.digest, expected.size);
        let path = self.dirs.ingest.join(format!("{}.{:032x}", digest.hex(), rand::random::<u128>()));
        let kept = self.dirs.partials.take(&digest, &path)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(!kept)
            .open(&path)
            .map_err(Error::io("open ingest", &path))?;
        let mut ingest = Ingest {
            dirs: Arc::clone(&self.dirs),
            path: Some(path.clone()),
            file: file.try_clone().map_err(Error::io("open ingest", &path))?,
            hasher: Hasher::new(),
            written: 0,
            expected: Some((digest, size)),
            kept_as: Some(digest),
        };
        let mut buffer = vec![0; READ];
        // One that was not kept is empty.
        loop {
            let read = io::Read::read(&mut file, &mut buffer).map_err(Error::io("read ingest", &path))?;
            if read == 0 {
                break;
            }
            ingest.hasher.update(buffer.get(..read).unwrap_or_default());
            ingest.written += read as u64;
        }
        if ingest.written > size {
            file.set_len(0).map_err(Error::io("empty ingest", &path))?;
            io::Seek::rewind(&mut file).map_err(Error::io("empty ingest", &path))?;
            (ingest.hasher, ingest.written) = (Hasher::new(), 0);
        }
        Ok(ingest)
    }

    fn stat(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        let path = self.path(digest);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => {
                let allocated = metadata.blocks().saturating_mul(512);
                Ok(Some(BlobInfo { digest: *digest, size: metadata.len(), allocated }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("stat blob", path)(error)),
        }
    }

    fn open_file(&self, digest: &Digest) -> Result<Option<File>> {
        let path = self.path(digest);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open blob", path)(error)),
        }
    }

    fn read(&self, digest: &Digest, max: u64) -> Result<Option<Bytes>> {
        use std::io::Read as _;
        let Some(file) = self.open_file(digest)? else { return Ok(None) };
        let size = file.metadata().map_err(Error::io("stat blob", self.path(digest)))?.len();
        if size > max {
            return Err(Error::TooLarge { digest: *digest, size, max });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        file.take(max).read_to_end(&mut bytes).map_err(Error::io("read blob", self.path(digest)))?;
        if Digest::of(&bytes) != *digest {
            tracing::warn!(%digest, "a blob was damaged and is removed");
            self.remove(digest)?;
            return Ok(None);
        }
        Ok(Some(bytes.into()))
    }

    fn entries(&self) -> Result<Vec<BlobInfo>> {
        let mut blobs = Vec::new();
        let dir = &self.dirs.blobs;
        for entry in fs::read_dir(dir).map_err(Error::io("read directory", dir))? {
            let entry = entry.map_err(Error::io("read directory", dir))?;
            // Anything with another name is not ours.
            let Some(digest) = entry.file_name().to_str().and_then(|name| Digest::from_hex(name).ok()) else {
                continue;
            };
            blobs.extend(self.stat(&digest)?);
        }
        blobs.sort_by_key(|blob| blob.digest);
        Ok(blobs)
    }

    fn remove(&self, digest: &Digest) -> Result<()> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove blob", path)(error))
            }
            _ => Ok(()),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        task: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || task(&store)).await.map_err(|_| Error::Interrupted)?
    }
}

#[async_trait]
impl ContentStore for LocalStore {
    async fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        // One stat is shorter than the way to another thread and back.
        self.stat(digest)
    }

    async fn open(&self, digest: &Digest) -> Result<Option<File>> {
        self.open_file(digest)
    }

    async fn read_all(&self, digest: &Digest, max: u64) -> Result<Option<Bytes>> {
        let digest = *digest;
        self.blocking(move |store| store.read(&digest, max)).await
    }

    async fn writer(&self, expected: Option<&Descriptor>) -> Result<Box<dyn BlobWriter>> {
        Ok(Box::new(LocalWriter { ingest: Some(self.ingest(expected)?) }))
    }

    async fn resume(&self, expected: &Descriptor) -> Result<Box<dyn BlobWriter>> {
        let expected = expected.clone();
        let ingest = self.blocking(move |store| store.take_up(&expected)).await?;
        Ok(Box::new(LocalWriter { ingest: Some(ingest) }))
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let digest = *digest;
        self.blocking(move |store| store.remove(&digest)).await
    }

    async fn list(&self) -> Result<Vec<BlobInfo>> {
        self.blocking(Self::entries).await
    }
}

/// A blob being written by a blocking thread. Dropping it abandons it.
#[derive(Debug)]
pub struct Ingest {
    dirs: Arc<Dirs>,
    /// `None` once the file has been renamed.
    path: Option<PathBuf>,
    file: File,
    hasher: Hasher,
    written: u64,
    expected: Option<(Digest, u64)>,
    /// The blob of which this is worth keeping when it is dropped.
    kept_as: Option<Digest>,
}

impl Ingest {
    /// Returns how many bytes were written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Makes the blob visible; see [`BlobWriter::commit`].
    ///
    /// # Errors
    /// [`Error::SizeMismatch`], [`Error::DigestMismatch`]; [`Error::Io`] when the rename fails.
    pub fn commit(mut self, expected: Option<(Digest, u64)>) -> Result<Digest> {
        let actual = std::mem::take(&mut self.hasher).finish();
        // All of it that is not the blob is nothing.
        let kept = self.kept_as.take();
        for (digest, size) in [self.expected, expected].into_iter().flatten() {
            if size != self.written {
                return Err(Error::SizeMismatch { expected: size, actual: self.written });
            }
            if digest != actual {
                return Err(Error::DigestMismatch { expected: digest, actual });
            }
        }
        if let Some(path) = self.path.take() {
            let target = self.dirs.blobs.join(actual.hex());
            if let Err(error) = fs::rename(&path, &target) {
                self.path = Some(path);
                return Err(Error::io("store blob", target)(error));
            }
            if kept.is_some() {
                self.dirs.partials.forget(&actual);
            }
        }
        Ok(actual)
    }

    fn append(&mut self, data: &[u8]) -> Result<()> {
        // What failed half-way is nothing to go on with.
        let kept = self.kept_as.take();
        self.append_all(data)?;
        self.kept_as = kept;
        Ok(())
    }

    fn append_all(&mut self, data: &[u8]) -> Result<()> {
        let total = self.written.saturating_add(data.len() as u64);
        if let Some((_, size)) = self.expected
            && total > size
        {
            return Err(Error::SizeMismatch { expected: size, actual: total });
        }
        let path = || self.path.clone().unwrap_or_default();
        self.file.write_all(data).map_err(|source| Error::Io {
            action: "write ingest",
            path: path(),
            source,
        })?;
        self.hasher.update(data);
        self.written = total;
        Ok(())
    }
}

impl Write for Ingest {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.append(data).map_err(|error| match error {
            Error::Io { source, .. } => source,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        })?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        let done = match self.kept_as.filter(|_| self.written >= WORTH) {
            Some(digest) => self.dirs.partials.keep(&digest, path),
            None => fs::remove_file(path),
        };
        if let Err(error) = done {
            tracing::warn!(%error, path = %path.display(), "cannot clear away abandoned ingest");
        }
    }
}

struct LocalWriter {
    /// Away while a blocking thread writes; a writer whose write was dropped half-way stays without.
    ingest: Option<Ingest>,
}

#[async_trait]
impl BlobWriter for LocalWriter {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        let mut ingest = self.ingest.take().ok_or(Error::Interrupted)?;
        let (ingest, result) = tokio::task::spawn_blocking(move || {
            let result = ingest.append(&data);
            (ingest, result)
        })
        .await
        .map_err(|_| Error::Interrupted)?;
        self.ingest = Some(ingest);
        result
    }

    fn written(&self) -> u64 {
        self.ingest.as_ref().map_or(0, Ingest::written)
    }

    async fn commit(mut self: Box<Self>, expected: Option<(Digest, u64)>) -> Result<Digest> {
        // Renaming is one short call, so no other thread is asked.
        self.ingest.take().ok_or(Error::Interrupted)?.commit(expected)
    }
}

#[cfg(test)]
mod tests;
