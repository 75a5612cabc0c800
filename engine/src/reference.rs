//! Results that are computed when they are read.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_cache::Ref;
use kiln_frontend::{BoxError, Error as FrontendError, FileRange, FileStat, Reference};
use kiln_llb::pb;
use kiln_rootdir::{Kind, Metadata, Root};
use kiln_solver::{CachedResult, ResultRef};
use tokio::sync::OnceCell;

use crate::build::BuildState;
use crate::error::{Error, chain};
use crate::ops::common;

/// How often a result that was found lost is made again.
const MAX_LOST: usize = 8;
/// A file read through a bridge is at most this large.
const MAX_FILE: u64 = 64 << 20;

/// The result of a definition, not solved before somebody reads it.
pub struct SolvedRef {
    build: Arc<BuildState>,
    definition: pb::Definition,
    solved: OnceCell<CachedResult>,
    /// What was solved, or what was made instead once it was found lost.
    read: OnceCell<CachedResult>,
}

impl std::fmt::Debug for SolvedRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SolvedRef")
            .field("ops", &self.definition.def.len())
            .field("solved", &self.solved.initialized())
            .finish()
    }
}

impl SolvedRef {
    pub(crate) fn new(build: Arc<BuildState>, definition: pb::Definition) -> Self {
        Self { build, definition, solved: OnceCell::new(), read: OnceCell::new() }
    }

    /// Solves it, once.
    pub(crate) async fn solve(&self) -> Result<&CachedResult, Error> {
        self.solved.get_or_try_init(|| self.build.solve_definition(&self.definition)).await
    }

    /// The filesystem state, looked at before it is read; `None` is an empty one.
    pub(crate) async fn state(&self) -> Result<Option<Ref>, Error> {
        let state = |result: &ResultRef| common::state(result).map_err(|e| Error::request(e.to_string()));
        let whole = self.read.get_or_try_init(|| async {
            let mut solved = self.solve().await?.clone();
            for _again in 0..MAX_LOST {
                let Some(result) = &solved.result else { break };
                match state(result)?.verify().await {
                    Err(error) if error.is_lost() => self.build.job.lost(result),
                    // What else is wrong shows when it is read.
                    _ => break,
                }
                solved = self.build.solve_definition(&self.definition).await?;
            }
            Ok::<_, Error>(solved)
        });
        whole.await?.result.as_ref().map(state).transpose()
    }

    /// Does something with the root of the state, off the runtime.
    async fn with_root<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> Result<T, FrontendError> + Send + 'static,
    ) -> Result<T, FrontendError> {
        let state = self.state().await.map_err(solve_error)?;
        let mount = match &state {
            None => None,
            Some(state) => {
                let provider = common::provider(&self.build.worker, &self.build.outside_context());
                Some(state.mount(&provider).await.map_err(|e| solve_error(Error::request(chain(&e))))?)
            }
        };
        let done = tokio::task::spawn_blocking(move || {
            let empty;
            let mounted;
            let path = match mount {
                Some(mount) => {
                    mounted = mount.with_temp().map_err(internal)?;
                    mounted.path()
                }
                None => {
                    empty = tempfile::tempdir().map_err(internal)?;
                    empty.path()
                }
            };
            let root = Root::open(path).map_err(internal)?;
            work(&root)
        })
        .await;
        // The state is held until its files have been read.
        drop(state);
        done.map_err(internal)?
    }
}

fn solve_error(error: Error) -> FrontendError {
    FrontendError::Solve { source: Box::new(error), sources: Vec::new() }
}

fn internal(error: impl Into<BoxError>) -> FrontendError {
    let error = error.into();
    FrontendError::Internal {
        message: error.to_string(),
        source: error.source().map(|s| s.to_string().into()),
    }
}

fn not_found_or(error: kiln_rootdir::Error, path: &str) -> FrontendError {
    if error.is_not_found() {
        FrontendError::NotFound { path: path.to_owned() }
    } else {
        FrontendError::internal(chain(&error))
    }
}

#[async_trait]
impl Reference for SolvedRef {
    async fn read_file(&self, path: &str, range: Option<FileRange>) -> Result<Vec<u8>, FrontendError> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let path = path.to_owned();
        self.with_root(move |root| {
            let found = root
                .stat(&path, true)
                .map_err(|e| not_found_or(e, &path))?
                .ok_or_else(|| FrontendError::NotFound { path: path.clone() })?;
            if !found.is_file() {
                return Err(FrontendError::internal(format!("{path} is not a regular file")));
            }
            let mut file = root
                .open_file(&path, &kiln_rootdir::OpenOptions::read())
                .map_err(|e| not_found_or(e, &path))?;
            let limit = match range {
                Some(range) => {
                    file.seek(SeekFrom::Start(range.offset)).map_err(internal)?;
                    range.length.min(MAX_FILE)
                }
                None if found.size > MAX_FILE => {
                    return Err(FrontendError::internal(format!(
                        "{path} has {} bytes, more than the {MAX_FILE} that can be read at once",
                        found.size
                    )));
                }
                None => MAX_FILE,
            };
            let mut data = Vec::new();
            file.take(limit).read_to_end(&mut data).map_err(internal)?;
            Ok(data)
        })
        .await
    }

    async fn read_dir(&self, path: &str, include_pattern: &str) -> Result<Vec<FileStat>, FrontendError> {
        let (path, pattern) = (path.to_owned(), include_pattern.to_owned());
        self.with_root(move |root| {
            let mut entries = root.read_dir_stat(&path).map_err(|e| not_found_or(e, &path))?;
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            let mut stats = Vec::new();
            for (name, metadata) in entries {
                let name = name.to_string_lossy().into_owned();
                if !pattern.is_empty()
                    && !crate::fileop::component_matches(&pattern, &name).map_err(internal)?
                {
                    continue;
                }
                let link = format!("{}/{name}", path.trim_end_matches('/'));
                stats.push(file_stat(root, name, &link, &metadata)?);
            }
            Ok(stats)
        })
        .await
    }

    async fn stat(&self, path: &str) -> Result<FileStat, FrontendError> {
        let path = path.to_owned();
        self.with_root(move |root| {
            let found = root
                .stat(&path, false)
                .map_err(|e| not_found_or(e, &path))?
                .ok_or_else(|| FrontendError::NotFound { path: path.clone() })?;
            let name = path
                .trim_end_matches('/')
                .rsplit('/')
                .next()
                .filter(|n| !n.is_empty())
                .unwrap_or("/")
                .to_owned();
            file_stat(root, name, &path, &found)
        })
        .await
    }

    async fn evaluate(&self) -> Result<(), FrontendError> {
        self.solve().await.map(drop).map_err(solve_error)
    }

    fn definition(&self) -> Option<pb::Definition> {
        Some(self.definition.clone())
    }
}

fn file_stat(root: &Root, name: String, path: &str, metadata: &Metadata) -> Result<FileStat, FrontendError> {
    let linkname = match metadata.kind {
        Kind::Symlink => {
            root.read_link(path).map_err(|e| not_found_or(e, path))?.to_string_lossy().into_owned()
        }
        _ => String::new(),
    };
    Ok(FileStat {
        path: name,
        mode: go_mode(metadata),
        uid: metadata.uid,
        gid: metadata.gid,
        size: if metadata.is_file() { i64::try_from(metadata.size).unwrap_or(i64::MAX) } else { 0 },
        mod_time: metadata
            .mtime
            .seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::from(metadata.mtime.nanoseconds)),
        linkname,
        dev_major: i64::from(metadata.rdev.0),
        dev_minor: i64::from(metadata.rdev.1),
    })
}

/// Mode bits as Go's `fs.FileMode` has them.
fn go_mode(metadata: &Metadata) -> u32 {
    let kind = match metadata.kind {
        Kind::Dir => 1 << 31,
        Kind::Symlink => 1 << 27,
        Kind::BlockDevice => 1 << 26,
        Kind::CharDevice => 1 << 26 | 1 << 21,
        Kind::Fifo => 1 << 25,
        Kind::Socket => 1 << 24,
        Kind::File | Kind::Unknown => 0,
    };
    let special = [(0o4000, 23), (0o2000, 22), (0o1000, 20)];
    let special =
        special.iter().filter(|(bit, _)| metadata.mode & bit != 0).fold(0, |all, (_, go)| all | 1 << go);
    kind | special | (metadata.mode & 0o777)
}
