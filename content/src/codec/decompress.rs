//! Decompression, by what the first bytes say.

use std::fmt;
use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use crate::compression::Compression;

/// The largest window a zstd frame may ask for, as a power of two: 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const BUFFER: usize = 128 * 1024;

/// The plain bytes of a stream of any known compression.
pub struct Decompressor<R: Read> {
    inner: Inner<R>,
    left: u64,
}

enum Inner<R: Read> {
    Plain(Prefixed<R>),
    Gzip(Box<MultiGzDecoder<Prefixed<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Prefixed<R>>>),
}

type Prefixed<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, R>>;

/// Reads the first bytes of `reader` and decompresses accordingly.
///
/// # Errors
/// Those of the reader.
pub fn decompressor<R: Read>(mut reader: R) -> io::Result<Decompressor<R>> {
    let mut start = Vec::with_capacity(Compression::MAGIC_BYTES);
    reader.by_ref().take(Compression::MAGIC_BYTES as u64).read_to_end(&mut start)?;
    let compression = Compression::detect(&start);
    let input = BufReader::with_capacity(BUFFER, io::Cursor::new(start).chain(reader));
    let inner = match compression {
        Compression::Uncompressed => Inner::Plain(input),
        Compression::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(input))),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Inner::Zstd(Box::new(decoder))
        }
    };
    Ok(Decompressor { inner, left: u64::MAX })
}

impl<R: Read> Decompressor<R> {
    /// Fails reading beyond `bytes` plain bytes, so that a small stream cannot fill the disk.
    #[must_use]
    pub fn with_limit(mut self, bytes: u64) -> Self {
        self.left = bytes;
        self
    }

    /// Returns the compression that was found.
    pub fn compression(&self) -> Compression {
        match self.inner {
            Inner::Plain(_) => Compression::Uncompressed,
            Inner::Gzip(_) => Compression::Gzip,
            Inner::Zstd(_) => Compression::Zstd,
        }
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.inner {
            Inner::Plain(reader) => reader.read(buffer)?,
            Inner::Gzip(reader) => reader.read(buffer)?,
            Inner::Zstd(reader) => reader.read(buffer)?,
        };
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other("decompressed content is larger than allowed")),
        }
        Ok(count)
    }
}

impl<R: Read> fmt::Debug for Decompressor<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").field("compression", &self.compression()).finish_non_exhaustive()
    }
}
