//! Files with the same bytes on every machine: half of them noise, half of them words.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::Result;

/// Longer than the match window of any compressor at its default level, so that repeating it gains them nothing.
const TILE: usize = 16 << 20;
const RUN: usize = 1 << 10;
const WORDS: &[&str] = &[
    "layer ",
    "digest ",
    "mount ",
    "of ",
    "the ",
    "snapshot ",
    "and ",
    "build ",
    "cache\n",
    "step ",
    "from ",
    "context ",
    "to ",
    "image ",
    "is ",
    "commit.\n",
];

/// A stretch of half-compressible bytes that depends on the seed only.
#[derive(Debug)]
pub(super) struct Payload {
    tile: Vec<u8>,
    random: SplitMix,
}

impl Payload {
    /// Makes the bytes of `seed`.
    pub(super) fn new(seed: u64) -> Self {
        let mut random = SplitMix(seed);
        let mut tile = Vec::with_capacity(TILE + RUN);
        while tile.len() < TILE {
            for _ in 0..RUN / 8 {
                tile.extend_from_slice(&random.next().to_le_bytes());
            }
            let end = tile.len() + RUN;
            while tile.len() < end {
                let mut bits = random.next();
                for _ in 0..16 {
                    tile.extend_from_slice(WORDS[(bits & 15) as usize].as_bytes());
                    bits >>= 4;
                }
            }
            tile.truncate(end);
        }
        tile.truncate(TILE);
        Self { tile, random }
    }

    /// Writes a file of `size` bytes.
    pub(super) fn write(&self, path: &Path, size: u64) -> Result<()> {
        let mut file = File::create(path)?;
        let mut left = size;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(TILE).min(TILE);
            file.write_all(&self.tile[..part])?;
            left -= part as u64;
        }
        Ok(())
    }

    /// Writes a small file, up to 4 KiB from anywhere in the stretch.
    pub(super) fn write_small(&mut self, path: &Path) -> Result<()> {
        let size = 1 + self.below(4096);
        let start = self.below(TILE - size);
        Ok(std::fs::write(path, &self.tile[start..start + size])?)
    }

    fn below(&mut self, bound: usize) -> usize {
        // The remainder's bias does not matter to payloads, and it is below 2^64 either way.
        (self.random.next() % bound as u64) as usize
    }
}

/// Sebastiano Vigna's splitmix64: enough noise that no compressor finds anything in it.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
