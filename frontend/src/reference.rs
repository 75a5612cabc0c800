use std::any::Any;
use std::fmt;

use async_trait::async_trait;
use kiln_llb::pb;

use crate::error::Result;

/// A result of a solve: a filesystem that may not have been computed yet.
///
/// Every implementation keeps these:
/// 1. Reading evaluates first; what fails then is an [`Error::Solve`](crate::Error::Solve).
/// 2. Paths are relative to the root of the result with or without a leading `/`, links are followed inside that root,
///    and nothing outside it is ever read.
/// 3. A path that does not exist is [`Error::NotFound`](crate::Error::NotFound) with that path.
/// 4. Two references to one result may be used at the same time.
///
/// `Any` is there for the engine, which gets its own type back from what a frontend returns.
#[async_trait]
pub trait Reference: Any + fmt::Debug + Send + Sync {
    /// Reads a file, whole or in part. A range past the end gives what is there.
    async fn read_file(&self, path: &str, range: Option<FileRange>) -> Result<Vec<u8>>;

    /// Lists a directory, sorted by name. The pattern, if not empty, selects names (`*`, `?`, `[]`).
    async fn read_dir(&self, path: &str, include_pattern: &str) -> Result<Vec<FileStat>>;

    /// Describes one path, without following a link in its last component.
    async fn stat(&self, path: &str) -> Result<FileStat>;

    /// Computes the result now, so that its errors show now.
    async fn evaluate(&self) -> Result<()>;

    /// The graph that gives this result, where the bridge can tell.
    fn definition(&self) -> Option<pb::Definition>;
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// What is known about a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileStat {
    /// Name within its directory (for `read_dir`), or the path asked for.
    pub path: String,
    /// Type and permission bits as Go's `fs.FileMode` has them, which is what travels on the wire.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: i64,
    /// Modification time in nanoseconds since the epoch.
    pub mod_time: i64,
    /// Target of a symbolic link.
    pub linkname: String,
    /// Major number of a device.
    pub dev_major: i64,
    /// Minor number of a device.
    pub dev_minor: i64,
}
