//! Results that are computed when they are read.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_cache::Ref;
use kiln_frontend::{Error as FrontendError, FileRange, FileStat, Reference};
use kiln_llb::pb;
use kiln_rootdir::Root;
use kiln_solver::{CachedResult, ResultRef};
use tokio::sync::OnceCell;

use crate::build::BuildState;
use crate::error::{Error, chain};
use crate::files;
use crate::ops::common;

/// How often a result that was found lost is made again.
const MAX_LOST: usize = 8;

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
        let done = files::blocking(move || {
            let empty;
            let mounted;
            let path = match mount {
                Some(mount) => {
                    mounted = mount.with_temp().map_err(files::internal)?;
                    mounted.path()
                }
                None => {
                    empty = tempfile::tempdir().map_err(files::internal)?;
                    empty.path()
                }
            };
            let root = Root::open(path).map_err(files::internal)?;
            work(&root)
        })
        .await;
        // The state is held until its files have been read.
        drop(state);
        done
    }
}

fn solve_error(error: Error) -> FrontendError {
    FrontendError::Solve { source: Box::new(error), sources: Vec::new() }
}

#[async_trait]
impl Reference for SolvedRef {
    async fn read_file(&self, path: &str, range: Option<FileRange>) -> Result<Vec<u8>, FrontendError> {
        let path = path.to_owned();
        self.with_root(move |root| files::read(root, &path, range)).await
    }

    async fn read_dir(&self, path: &str, include_pattern: &str) -> Result<Vec<FileStat>, FrontendError> {
        let (path, pattern) = (path.to_owned(), include_pattern.to_owned());
        self.with_root(move |root| files::list(root, &path, &pattern)).await
    }

    async fn stat(&self, path: &str) -> Result<FileStat, FrontendError> {
        let path = path.to_owned();
        self.with_root(move |root| files::stat(root, &path)).await
    }

    async fn evaluate(&self) -> Result<(), FrontendError> {
        self.solve().await.map(drop).map_err(solve_error)
    }

    fn definition(&self) -> Option<pb::Definition> {
        Some(self.definition.clone())
    }
}
