//! gzip as one member of independently made deflate blocks.

use std::io;

use flate2::{Compress, Compression, FlushCompress, Status};

use crate::codec::BlockCodec;

/// The window of deflate: what a block may refer back to.
const WINDOW: usize = 32 * 1024;
const BLOCK: usize = 512 * 1024;
const DEFAULT_LEVEL: i32 = 6;

pub(super) struct Gzip {
    level: u32,
}

impl Gzip {
    pub(super) fn new(level: Option<i32>) -> Self {
        let level = level.filter(|level| *level >= 0).unwrap_or(DEFAULT_LEVEL).clamp(0, 9);
        Self { level: level.unsigned_abs() }
    }
}

impl BlockCodec for Gzip {
    fn block_size(&self) -> usize {
        BLOCK
    }

    fn history(&self) -> usize {
        WINDOW
    }

    fn compress(&self, history: &[u8], block: &[u8], last: bool) -> io::Result<Vec<u8>> {
        let mut deflate = Compress::new(Compression::new(self.level), false);
        if !history.is_empty() {
            deflate.set_dictionary(history)?;
        }
        let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
        let mut out = Vec::with_capacity(block.len() / 2 + 1024);
        loop {
            let consumed = usize::try_from(deflate.total_in()).unwrap_or(usize::MAX);
            let rest = block.get(consumed..).unwrap_or_default();
            if out.capacity() - out.len() < 64 {
                out.reserve(block.len() / 4 + 1024);
            }
            let status = deflate.compress_vec(rest, &mut out, flush)?;
            // A flush is complete when all input is taken and the output did not run full.
            let done = deflate.total_in() == block.len() as u64 && out.len() < out.capacity();
            if matches!(status, Status::StreamEnd) || (!last && done) {
                return Ok(out);
            }
        }
    }

    fn header(&self) -> Vec<u8> {
        let extra_flags = match self.level {
            9 => 2,
            1 => 4,
            _ => 0,
        };
        // No name, no time, and "unknown" as the operating system.
        vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, extra_flags, 255]
    }

    fn trailer(&self, checksum: u32, bytes: u64) -> Vec<u8> {
        let mut out = checksum.to_le_bytes().to_vec();
        // The length is kept modulo 2^32.
        let [a, b, c, d, ..] = bytes.to_le_bytes();
        out.extend_from_slice(&[a, b, c, d]);
        out
    }

    fn wants_checksum(&self) -> bool {
        true
    }
}
