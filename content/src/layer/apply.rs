//! A layer's tar unpacked into an upper directory.

use std::io::Read;
use std::path::Path;

use kiln_digest::Digest;

use crate::error::Result;

/// What a layer may ask for.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ApplyLimits {
    /// Bytes of the tar stream.
    pub bytes: u64,
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of a name or link target.
    pub name: usize,
}

impl Default for ApplyLimits {
    /// 1 TiB, 50 million entries, names of 4096 bytes.
    fn default() -> Self {
        Self { bytes: 1 << 40, entries: 50_000_000, name: 4096 }
    }
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the tar stream as it was read, to its very end.
    pub diff_id: Digest,
    /// Length of the tar stream in bytes.
    pub size: u64,
    /// Bytes of file content that were written.
    pub bytes: u64,
    /// Entries that were made.
    pub inodes: u64,
}

/// Unpacks an uncompressed layer tar into `dest`, an empty directory, in overlay upper form.
///
/// Blocking; run it on a thread of its own. On failure `dest` holds a part and is to be thrown away.
///
/// # Errors
/// [`crate::Error::InvalidLayer`] for what no layer may contain or what goes beyond `limits`,
/// [`crate::Error::Entry`] for an entry the filesystem refused.
pub fn apply(tar: impl Read, dest: &Path, limits: &ApplyLimits) -> Result<Applied> {
    let _ = (tar, dest, limits);
    Err(crate::Error::InvalidLayer("not written yet".to_owned()))
}
