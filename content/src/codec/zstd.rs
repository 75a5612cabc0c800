//! zstd as one frame for each block.

use std::io;

use crate::codec::BlockCodec;

const BLOCK: usize = 4 * 1024 * 1024;
const DEFAULT_LEVEL: i32 = 3;

pub(super) struct Zstd {
    level: i32,
}

impl Zstd {
    pub(super) fn new(level: Option<i32>) -> Self {
        // Zero means the default to the library as well.
        Self { level: level.filter(|level| *level > 0).unwrap_or(DEFAULT_LEVEL).min(22) }
    }
}

impl BlockCodec for Zstd {
    fn block_size(&self) -> usize {
        BLOCK
    }

    fn history(&self) -> usize {
        0
    }

    fn compress(&self, _history: &[u8], block: &[u8], _last: bool) -> io::Result<Vec<u8>> {
        let mut compressor = zstd::bulk::Compressor::new(self.level)?;
        compressor.include_checksum(true)?;
        compressor.compress(block)
    }

    fn header(&self) -> Vec<u8> {
        Vec::new()
    }

    fn trailer(&self, _checksum: u32, _bytes: u64) -> Vec<u8> {
        Vec::new()
    }

    fn wants_checksum(&self) -> bool {
        false
    }
}
