//! What was received of blobs whose transfer broke off, kept for a while.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kiln_digest::Digest;

use crate::error::{Error, Result};

/// Less than this is not worth being kept.
pub(super) const WORTH: u64 = 64 << 10;
/// How many are kept, and how long.
const MAX: usize = 32;
const AGE: Duration = Duration::from_secs(24 * 3600);

/// `<root>/partial`, with a file per blob.
#[derive(Debug)]
pub(super) struct Partials(pub(super) PathBuf);

impl Partials {
    fn path(&self, digest: &Digest) -> PathBuf {
        self.0.join(digest.hex())
    }

    /// Takes what there is of a blob to `path`; returns whether there is anything.
    pub(super) fn take(&self, digest: &Digest, path: &Path) -> Result<bool> {
        match fs::rename(self.path(digest), path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("take up ingest", path)(error)),
        }
    }

    /// Keeps the file at `path` as what there is of a blob.
    pub(super) fn keep(&self, digest: &Digest, path: &Path) -> io::Result<()> {
        fs::rename(path, self.path(digest))?;
        self.tidy(SystemTime::now())
    }

    /// The blob is there: nothing of it is kept any more.
    pub(super) fn forget(&self, digest: &Digest) {
        // None is there as a rule, and one that stays goes with its age.
        let _ = fs::remove_file(self.path(digest));
    }

    /// Removes what is too old or too much.
    pub(super) fn tidy(&self, now: SystemTime) -> io::Result<()> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            all.push((entry.metadata()?.modified()?, entry.path()));
        }
        all.sort();
        let too_many = all.len().saturating_sub(MAX);
        for (at, (modified, path)) in all.into_iter().enumerate() {
            if at < too_many || now.duration_since(modified).is_ok_and(|age| age > AGE) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}
