//! The layer tar of an upper directory.

use std::io::Write;
use std::path::{Path, PathBuf};

use kiln_digest::Digest;

use crate::error::Result;

/// How to make a layer tar.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DiffOptions {
    /// Later modification times become this one (seconds since 1970).
    pub latest_mtime: Option<i64>,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffInfo {
    /// Digest of the tar.
    pub diff_id: Digest,
    /// Length of the tar in bytes.
    pub size: u64,
}

/// Writes the layer tar of `upper`, a directory in overlay upper form over `lowers` (of the same form, bottom first).
///
/// What equals the state below is left out, as is the deletion of what is not there. Blocking; run it on a thread
/// of its own.
///
/// # Errors
/// [`crate::Error::Redirect`] when `upper` has renamed directories; those of the filesystem and of `out`.
pub fn diff(upper: &Path, lowers: &[PathBuf], out: impl Write, options: &DiffOptions) -> Result<DiffInfo> {
    let _ = (upper, lowers, out, options);
    Err(crate::Error::InvalidLayer("not written yet".to_owned()))
}
