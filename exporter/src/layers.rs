//! The blobs of a state's layers: taken as they are, compressed anew, or made from the files.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use kiln_cache::{BlobProvider, Layer, LayerBlob, RecordId, Ref};
use kiln_content::layer::{self, DiffInfo, DiffOptions};
use kiln_content::{
    CodecOptions, CodecPool, Compression, ContentStore, ContentStoreExt as _, Descriptor, compressor,
    decompressor, media_type,
};
use kiln_digest::Digest;
use tokio::sync::{Semaphore, mpsc};

use crate::error::{Error, Result};

/// Layers of one state in work at a time. How many really run is for the gate to say.
const LAYERS_AT_A_TIME: usize = 16;
/// Bytes that go from the compressor to the store at a time.
const CHUNK: usize = 512 * 1024;
/// Chunks on their way to the store. The compressor waits while there are more.
const CHUNKS_QUEUED: usize = 4;
/// Marks a layer whose times were brought down to an epoch.
const REWRITTEN: &str = "buildkit/rewritten-timestamp";

/// Which blobs a layer may have.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerOptions {
    /// How new blobs are compressed.
    pub compression: Compression,
    /// How hard; `None` is the codec's default.
    pub level: Option<i32>,
    /// Blobs with another compression are converted.
    pub force: bool,
    /// Layers that are not to be distributed stay marked so.
    pub prefer_nondist: bool,
}

impl LayerOptions {
    /// Reads the options out of attributes; others are left alone.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Unsupported`].
    pub fn parse(attrs: &BTreeMap<String, String>) -> Result<Self> {
        let mut options = Self::default();
        for (key, value) in attrs {
            options.set(key, value)?;
        }
        Ok(options)
    }
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self { compression: Compression::Gzip, level: None, force: false, prefer_nondist: false }
    }
}

/// A layer of an exported image.
#[derive(Clone, Debug)]
pub struct ExportedLayer {
    /// The blob. It is in the content store, or `source` says where it is.
    pub descriptor: Descriptor,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Where it can be fetched; empty when only the content store has it.
    pub source: String,
    /// What made it, for the history of an image that lacks it.
    pub description: String,
    /// When it was made.
    pub created_at: std::time::SystemTime,
}

/// Makes blobs of layers, each once however many exports want it.
#[derive(Debug)]
pub struct LayerMaker {
    content: Arc<dyn ContentStore>,
    pool: CodecPool,
    /// Layers that are read and written at a time, over all exports.
    gate: Semaphore,
    /// Held by whoever makes a blob of a record.
    making: Mutex<HashMap<RecordId, Arc<tokio::sync::Mutex<()>>>>,
}

impl LayerMaker {
    /// Stores blobs in `content`; the threads of `pool` compress all of them.
    pub fn new(content: Arc<dyn ContentStore>, pool: CodecPool) -> Self {
        let gate = Semaphore::new(pool.threads() + 1);
        Self { content, pool, gate, making: Mutex::default() }
    }

    /// Returns the blobs of all layers of a state, bottom first. Blobs that are known are taken as they are, unless
    /// `options` force a compression; lazy ones are not fetched.
    ///
    /// # Errors
    /// Those of the catalogue, the content store and the files.
    ///
    /// # Cancel safety
    /// Blobs that were finished stay.
    pub async fn layers(
        &self,
        state: &Ref,
        options: &LayerOptions,
        provider: &dyn BlobProvider,
    ) -> Result<Vec<ExportedLayer>> {
        let refs = state.layer_refs();
        let work: Vec<_> = refs.iter().map(|layer| self.layer(layer, options, provider).boxed()).collect();
        stream::iter(work).buffered(LAYERS_AT_A_TIME).try_collect().await
    }

    /// Returns the blob of one layer, if there is one that will do.
    ///
    /// # Errors
    /// Those of the content store.
    pub async fn existing(&self, state: &Ref, options: &LayerOptions) -> Result<Option<ExportedLayer>> {
        let Some(known) = state.layers().pop() else { return Err(Error::Interrupted) };
        let blob = self.choose(&known, options).await?;
        Ok(blob.map(|blob| exported(&known, blob)))
    }

    /// Makes a lazy layer present in the content store.
    ///
    /// # Errors
    /// [`Error::Fetch`].
    pub async fn fetch(&self, layer: &ExportedLayer, provider: &dyn BlobProvider) -> Result<()> {
        let digest = layer.descriptor.digest;
        if self.content.has_whole(&layer.descriptor).await? {
            return Ok(());
        }
        provider
            .fetch(&layer.source, &layer.descriptor)
            .await
            .map_err(|source| Error::Fetch { digest, source })
    }

    /// Brings the times in a layer down to an epoch; the result has a diff ID of its own.
    pub(crate) async fn rewrite(
        &self,
        layer: &ExportedLayer,
        options: &LayerOptions,
        epoch: i64,
        provider: &dyn BlobProvider,
    ) -> Result<ExportedLayer> {
        self.fetch(layer, provider).await?;
        let file = self.open(&layer.descriptor.digest).await?;
        let (mut descriptor, diff_id) =
            self.write(options, move |out| layer::rewrite_times(decompress(file)?, out, epoch)).await?;
        descriptor.annotations.insert(REWRITTEN.to_owned(), epoch.to_string());
        Ok(ExportedLayer { descriptor, diff_id, source: String::new(), ..layer.clone() })
    }

    /// Returns the blob of one layer, making it if need be. `state` is the layer with its own chain below it.
    ///
    /// # Errors
    /// As [`layers`](Self::layers).
    ///
    /// # Cancel safety
    /// As [`layers`](Self::layers).
    pub async fn layer(
        &self,
        state: &Ref,
        options: &LayerOptions,
        provider: &dyn BlobProvider,
    ) -> Result<ExportedLayer> {
        let own = |state: &Ref| state.layers().pop();
        let Some(known) = own(state) else { return Err(Error::Interrupted) };
        if let Some(blob) = self.choose(&known, options).await? {
            return Ok(exported(&known, blob));
        }
        let lock = Arc::clone(
            self.making
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(known.record.clone())
                .or_default(),
        );
        let made = {
            let _mine = lock.lock().await;
            // Whoever was first may have made it.
            let known = own(state).unwrap_or(known);
            match self.choose(&known, options).await? {
                Some(blob) => Ok(exported(&known, blob)),
                None => self.make(state, &known, options, provider).await,
            }
        };
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        // The table and we hold it.
        if Arc::strong_count(&lock) == 2
            && let Some(layer) = own(state)
        {
            making.remove(&layer.record);
        }
        made
    }

    /// Finds the blob to use among those that are known and can be had.
    async fn choose(&self, layer: &Layer, options: &LayerOptions) -> Result<Option<LayerBlob>> {
        let fits = |blob: &LayerBlob| compression_of(&blob.descriptor) == options.compression;
        let mut usable = Vec::new();
        for blob in &layer.blobs {
            if !blob.source.is_empty() || self.content.has_whole(&blob.descriptor).await? {
                usable.push(blob);
            }
        }
        let fitting = usable.iter().copied().find(|blob| fits(blob));
        let found = if options.force {
            fitting
        } else {
            // What was pulled stays what it is.
            let pulled = usable.iter().copied().find(|blob| !blob.source.is_empty());
            pulled.or(fitting).or(usable.first().copied())
        };
        Ok(found.cloned())
    }

    async fn make(
        &self,
        state: &Ref,
        layer: &Layer,
        options: &LayerOptions,
        provider: &dyn BlobProvider,
    ) -> Result<ExportedLayer> {
        let any = LayerOptions { force: false, ..options.clone() };
        let (descriptor, diff_id) = match self.choose(layer, &any).await? {
            Some(blob) => {
                let from = exported(layer, blob);
                self.fetch(&from, provider).await?;
                let file = self.open(&from.descriptor.digest).await?;
                let made = self.write(options, move |out| copy_tar(file, out)).await?;
                if made.1 != from.diff_id {
                    return Err(Error::DiffId { expected: from.diff_id, actual: made.1 });
                }
                made
            }
            None => {
                let mut dirs = state.diff_dirs(provider).await?;
                let Some(upper) = dirs.pop() else { return Err(Error::Interrupted) };
                self.write(options, move |out| layer::diff(&upper, &dirs, out, &DiffOptions::default()))
                    .await?
            }
        };
        let blob = LayerBlob { descriptor, diff_id, source: String::new() };
        state.set_blob(&layer.record, blob.clone()).await?;
        Ok(exported(layer, blob))
    }

    /// Stores what `write` writes, compressed.
    async fn write<F>(&self, options: &LayerOptions, write: F) -> Result<(Descriptor, Digest)>
    where
        F: FnOnce(&mut dyn Write) -> kiln_content::Result<DiffInfo> + Send + 'static,
    {
        let _permit = self.gate.acquire().await.map_err(|_| Error::Interrupted)?;
        let compression = options.compression;
        let codec = CodecOptions::new().level(options.level).pool(self.pool.clone());
        let (chunks, mut queue) = mpsc::channel::<Bytes>(CHUNKS_QUEUED);
        let writing = tokio::task::spawn_blocking(move || {
            let sink = ChunkWriter { chunks, buffer: Vec::with_capacity(CHUNK) };
            let mut out = compressor(compression, sink, &codec);
            let info = write(&mut out)?;
            out.finish()
                .map_err(|source| kiln_content::Error::Stream { action: "compress layer", source })?;
            Ok::<_, kiln_content::Error>(info)
        });
        let mut blob = self.content.writer(None).await?;
        while let Some(chunk) = queue.recv().await {
            blob.write(chunk).await?;
        }
        let info = writing.await.map_err(|_| Error::Interrupted)??;
        let size = blob.written();
        let digest = blob.commit(None).await?;
        Ok((Descriptor::new(compression.layer_media_type(true), digest, size), info.diff_id))
    }

    async fn open(&self, digest: &Digest) -> Result<std::fs::File> {
        Ok(self.content.open(digest).await?.ok_or(kiln_content::Error::NotFound(*digest))?)
    }
}

/// Returns the compression that a blob's media type says.
pub(crate) fn compression_of(descriptor: &Descriptor) -> Compression {
    Compression::of_media_type(&descriptor.media_type).unwrap_or(Compression::Uncompressed)
}

/// Returns a layer's descriptor as a manifest has it.
pub(crate) fn manifest_descriptor(layer: &ExportedLayer, options: &LayerOptions, oci: bool) -> Descriptor {
    let mut descriptor = layer.descriptor.clone();
    if !options.prefer_nondist {
        descriptor.media_type = media_type::to_distributable(&descriptor.media_type);
    }
    if !media_type::is_non_distributable(&descriptor.media_type) {
        descriptor.urls.clear();
    }
    descriptor.media_type = if oci {
        media_type::to_oci_layer(&descriptor.media_type)
    } else {
        media_type::to_docker_layer(&descriptor.media_type)
    };
    // What else a pulled manifest said of its layers does not hold for this one.
    descriptor.annotations.retain(|key, _| oci && is_kept(key));
    descriptor.platform = None;
    descriptor
}

fn is_kept(annotation: &str) -> bool {
    [REWRITTEN, "containerd.io/snapshot/stargz/toc.digest", "io.containers.estargz.uncompressed-size"]
        .contains(&annotation)
}

fn exported(layer: &Layer, blob: LayerBlob) -> ExportedLayer {
    ExportedLayer {
        descriptor: blob.descriptor,
        diff_id: blob.diff_id,
        source: blob.source,
        description: layer.description.clone(),
        created_at: layer.created_at,
    }
}

fn decompress(file: std::fs::File) -> kiln_content::Result<impl io::Read> {
    decompressor(io::BufReader::with_capacity(CHUNK, file))
        .map_err(|source| kiln_content::Error::Stream { action: "read layer", source })
}

fn copy_tar(file: std::fs::File, out: &mut dyn Write) -> kiln_content::Result<DiffInfo> {
    let mut reader = kiln_digest::HashingReader::new(decompress(file)?);
    io::copy(&mut reader, out)
        .map_err(|source| kiln_content::Error::Stream { action: "convert layer", source })?;
    let (_, diff_id, size) = reader.finish();
    Ok(DiffInfo { diff_id, size })
}

/// Sends what is written in chunks.
struct ChunkWriter {
    chunks: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let (taken, _) = data.split_at(data.len().min(CHUNK.saturating_sub(self.buffer.len())));
        self.buffer.extend_from_slice(taken);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.chunks.blocking_send(chunk.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
