//! Compressing and decompressing streams.
//!
//! A stream is cut into blocks of fixed size that are compressed independently of each other's threads, so the bytes
//! depend on the input and the level alone. gzip output is one member: raw deflate blocks, each primed with the 32 KiB
//! before it and ended on a byte boundary, as pigz writes them. zstd output is one frame for each block.

mod decompress;
mod gzip;
mod pool;
mod zstd;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

pub use self::decompress::{Decompressor, decompressor};
pub use self::pool::CodecPool;

use crate::compression::Compression;

/// How to compress.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CodecOptions {
    /// Level in the codec's own scale; `None` is its default. Out of range values are brought into it.
    pub level: Option<i32>,
    /// Threads that share the work; `None` compresses on the caller's thread. The bytes are the same.
    pub pool: Option<CodecPool>,
}

impl CodecOptions {
    /// Default level, on the caller's thread.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the level.
    #[must_use]
    pub fn level(mut self, level: Option<i32>) -> Self {
        self.level = level;
        self
    }

    /// Shares the work with the threads of `pool`.
    #[must_use]
    pub fn pool(mut self, pool: CodecPool) -> Self {
        self.pool = Some(pool);
        self
    }
}

/// One block's part in the stream.
trait BlockCodec: Send + Sync {
    /// Bytes of input in a block.
    fn block_size(&self) -> usize;
    /// How many bytes before a block `compress` wants to see.
    fn history(&self) -> usize;
    /// Compresses one block. `last` is true for the final one, which alone may be empty.
    fn compress(&self, history: &[u8], block: &[u8], last: bool) -> io::Result<Vec<u8>>;
    /// The bytes before the first block.
    fn header(&self) -> Vec<u8>;
    /// Takes note of a block's plain bytes, in order.
    fn trailer(&self, checksum: u32, bytes: u64) -> Vec<u8>;
    /// Whether the checksum of the plain bytes is needed at the end.
    fn wants_checksum(&self) -> bool;
}

/// Compresses what is written to it into `W`. Call [`Compressor::finish`] at the end.
pub struct Compressor<W: Write> {
    out: W,
    state: Option<Blocks>,
}

struct Blocks {
    codec: Arc<dyn BlockCodec>,
    pool: Option<CodecPool>,
    block: Vec<u8>,
    history: Arc<Vec<u8>>,
    pending: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    checksum: flate2::Crc,
    bytes: u64,
    started: bool,
}

/// Compresses into `out`.
///
/// ```
/// use std::io::{Read, Write};
/// use kiln_content::{CodecOptions, Compression, compressor, decompressor};
///
/// let mut writer = compressor(Compression::Gzip, Vec::new(), &CodecOptions::new());
/// writer.write_all(b"hello")?;
/// let packed = writer.finish()?;
/// let mut plain = String::new();
/// decompressor(packed.as_slice())?.read_to_string(&mut plain)?;
/// assert_eq!(plain, "hello");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn compressor<W: Write>(compression: Compression, out: W, options: &CodecOptions) -> Compressor<W> {
    let codec: Arc<dyn BlockCodec> = match compression {
        Compression::Uncompressed => return Compressor { out, state: None },
        Compression::Gzip => Arc::new(gzip::Gzip::new(options.level)),
        Compression::Zstd => Arc::new(zstd::Zstd::new(options.level)),
    };
    let state = Blocks {
        block: Vec::new(),
        history: Arc::default(),
        pending: VecDeque::new(),
        checksum: flate2::Crc::new(),
        bytes: 0,
        started: false,
        pool: options.pool.clone(),
        codec,
    };
    Compressor { out, state: Some(state) }
}

/// Compresses a slice.
///
/// # Errors
/// Those of the codec.
pub fn compress(compression: Compression, data: &[u8], options: &CodecOptions) -> io::Result<Vec<u8>> {
    let mut writer = compressor(compression, Vec::new(), options);
    writer.write_all(data)?;
    writer.finish()
}

impl<W: Write> Compressor<W> {
    /// Writes the end of the stream and returns the inner writer.
    ///
    /// # Errors
    /// Those of the codec and of the inner writer.
    pub fn finish(mut self) -> io::Result<W> {
        if let Some(mut state) = self.state.take() {
            state.submit(&mut self.out, true)?;
            while let Some(receiver) = state.pending.pop_front() {
                self.out.write_all(&received(&receiver)?)?;
            }
            self.out.write_all(&state.codec.trailer(state.checksum.sum(), state.bytes))?;
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let Some(state) = &mut self.state else { return self.out.write(data) };
        if data.is_empty() {
            return Ok(0);
        }
        let room = state.codec.block_size().saturating_sub(state.block.len());
        if room == 0 {
            // The block is sent only when more follows, so that the last one is known as such.
            state.submit(&mut self.out, false)?;
            return self.write(data);
        }
        let (taken, _) = data.split_at(room.min(data.len()));
        state.block.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.state.is_none() { self.out.flush() } else { Ok(()) }
    }
}

impl Blocks {
    fn submit(&mut self, out: &mut impl Write, last: bool) -> io::Result<()> {
        if !self.started {
            self.started = true;
            out.write_all(&self.codec.header())?;
        }
        let capacity = if last { 0 } else { self.codec.block_size() };
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(capacity));
        if self.codec.wants_checksum() {
            self.checksum.update(&block);
        }
        self.bytes += block.len() as u64;
        let kept = block.len().saturating_sub(self.codec.history());
        let history = Arc::new(block.get(kept..).unwrap_or_default().to_vec());
        let before = std::mem::replace(&mut self.history, history);
        let Some(pool) = &self.pool else {
            return out.write_all(&self.codec.compress(&before, &block, last)?);
        };
        let codec = Arc::clone(&self.codec);
        let receiver = pool.run(move || codec.compress(&before, &block, last));
        self.pending.push_back(receiver);
        // Twice as many blocks as threads keep them busy while the oldest is written out.
        while self.pending.len() > pool.threads() * 2 {
            let Some(receiver) = self.pending.pop_front() else { break };
            out.write_all(&received(&receiver)?)?;
        }
        Ok(())
    }
}

fn received(receiver: &Receiver<io::Result<Vec<u8>>>) -> io::Result<Vec<u8>> {
    receiver.recv().map_err(|_| io::Error::other("compression thread stopped"))?
}

impl<W: Write> std::fmt::Debug for Compressor<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").field("compressing", &self.state.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
