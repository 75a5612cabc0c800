//! What can go wrong in the catalogue.

use std::{io, path::PathBuf};

use crate::{record::RecordId, space::Room};

/// The result of catalogue calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure that a capability lent from outside (a blob provider) reports.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A failed catalogue call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The catalogue was written by a later version of this program.
    #[error(
        "catalogue `{path}` has format {found}, this program knows formats up to {known}: use the newer program or another root directory"
    )]
    NewerFormat {
        /// The database file.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// The database refused a statement.
    #[error("catalogue database: {0}")]
    Database(#[from] rusqlite::Error),
    /// A row holds something that no version of this program writes.
    #[error("catalogue row of `{id}` is damaged: {what}")]
    Damaged {
        /// Which row.
        id: String,
        /// What is wrong with it.
        what: String,
    },
    /// The snapshot store failed.
    #[error(transparent)]
    Snapshot(#[from] kiln_snapshot::Error),
    /// The content store failed.
    #[error(transparent)]
    Content(#[from] kiln_content::Error),
    /// A file of the catalogue or of a mounted tree could not be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A record has neither its snapshot nor a way to get it back; the catalogue has forgotten it.
    #[error("record `{0}` has lost its data: it has to be made again")]
    Lost(RecordId),
    /// A lazy layer was used where its files are needed and nobody could provide them.
    #[error("layer `{0}` is not unpacked yet")]
    NotUnpacked(RecordId),
    /// A layer could not be provided.
    #[error("failed to fetch layer `{digest}`: {source}")]
    Fetch {
        /// The layer's blob.
        digest: String,
        /// The provider's reason.
        source: BoxError,
    },
    /// A layer's bytes do not have the diff ID that its image promised.
    #[error("layer `{digest}` unpacks to diff ID `{got}`, expected `{expected}`")]
    DiffId {
        /// The layer's blob.
        digest: String,
        /// What the image config says.
        expected: String,
        /// What the bytes say.
        got: String,
    },
    /// A content checksum was asked for a path that does not exist. The text is what clients of the reference see.
    #[error("{0}")]
    ContentPath(String),
    /// A filter or pattern does not parse.
    #[error("invalid filter `{filter}`: {reason}")]
    Filter {
        /// As given.
        filter: String,
        /// Why not.
        reason: String,
    },
    /// Less of the disk is free than has to stay free.
    #[error(
        "no space left on device for builds: {free} are free, {floor} have to stay free, and nothing is left that no build uses; free some space, or set lower limits (kiln.hardMinFreeSpace, kiln.hardMinFreeInodes)"
    )]
    NoSpace {
        /// What is free.
        free: Room,
        /// What has to be.
        floor: Room,
    },
    /// Something this version does not do yet.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The catalogue is closed.
    #[error("the catalogue is closed")]
    Closed,
}

impl Error {
    /// Whether data of a record has gone: a miss, to be made again, rather than a failure.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::NotUnpacked(_))
    }

    /// Whether a blob is at fault: it could not be had, or is not what was promised.
    pub(crate) fn is_of_blob(&self) -> bool {
        matches!(self, Self::Fetch { .. } | Self::DiffId { .. } | Self::Content(_))
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
    pub(crate) fn damaged(id: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Damaged { id: id.into(), what: what.into() }
    }
}
