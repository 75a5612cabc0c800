//! A layer tar with its times brought down to an epoch.

use std::io::{Read, Write};

use crate::error::Result;
use crate::layer::diff::DiffInfo;

/// Copies the tar `from` to `out`; times after `epoch` (seconds since 1970) become `epoch`.
///
/// # Errors
/// [`crate::Error::InvalidLayer`] when `from` is no tar; those of `out`.
pub fn rewrite_times(from: impl Read, out: impl Write, epoch: i64) -> Result<DiffInfo> {
    let _ = (from, out, epoch);
    Err(crate::Error::InvalidLayer("not written yet".to_owned()))
}
