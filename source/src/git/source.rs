//! Finding out what a reference stands for, and bringing it in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln_cache::{CacheManager, RecordOptions, RecordType, Ref};
use kiln_session::Lender;
use kiln_solver::VertexProgress;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::git::access::Access;
use crate::git::checkout::{self, Checkout};
use crate::git::listing::{self, Listings, Resolved};
use crate::git::process::Runner;
use crate::git::repository::Repository;
use crate::git::request::GitRequest;
use crate::turns::Turns;

/// How repositories are read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GitOptions {
    /// A directory for what a run of `git` needs.
    pub scratch: PathBuf,
    /// How long one that speaks with a server may be silent.
    pub stall: Duration,
}

impl GitOptions {
    /// Options with a directory for what a run needs.
    pub fn new(scratch: impl Into<PathBuf>) -> Self {
        Self { scratch: scratch.into(), stall: Duration::from_secs(300) }
    }
}

/// Brings checkouts in.
#[derive(Clone, Debug)]
pub struct Git(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cache: CacheManager,
    options: GitOptions,
    turns: Turns,
}

/// The objects behind a reference, as they are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitObjects {
    /// The commit.
    pub commit: Vec<u8>,
    /// The annotated tag; empty if there is none.
    pub tag: Vec<u8>,
}

/// Whoever a call is for.
#[derive(Clone, Copy, Debug)]
pub struct For<'a> {
    /// Asked for secrets and agents.
    pub lender: &'a Lender,
    /// Told what git says.
    pub progress: &'a VertexProgress,
    /// Ends what runs.
    pub cancel: &'a CancellationToken,
}

impl Git {
    /// Makes a reader over its port.
    #[must_use]
    pub fn new(cache: CacheManager, options: GitOptions) -> Self {
        Self(Arc::new(Inner { cache, options, turns: Turns::default() }))
    }

    /// Finds out what the reference stands for, unless the build knows.
    ///
    /// # Errors
    /// What `git` says; [`Error::GitMismatch`] when it is not what was asked for.
    pub async fn resolve(&self, request: &GitRequest, memory: &Listings, whom: For<'_>) -> Result<Resolved> {
        let resolved = match request.known() {
            Some(known) => known,
            None => {
                let slot = memory.slot(request);
                slot.get_or_try_init(|| self.look_up(request, whom)).await?.clone()
            }
        };
        request.expect(&resolved)?;
        Ok(resolved)
    }

    /// Brings in what the reference stands for.
    ///
    /// # Errors
    /// As [`Git::resolve`].
    ///
    /// # Cancel safety
    /// What runs is ended when `cancel` fires, and waited for. A half-made checkout is thrown away.
    pub async fn snapshot(&self, request: &GitRequest, memory: &Listings, whom: For<'_>) -> Result<Ref> {
        let resolved = self.resolve(request, memory, whom).await?;
        let name = format!("git-snapshot::{}::", request.key(&resolved));
        let _turn = self.turn(request, whom.cancel).await?;
        if let Some((_, found)) = self.0.cache.named(&name).await?.into_iter().next() {
            return Ok(found);
        }
        let access = Access::find(request, whom.lender, &self.0.options.scratch).await?;
        let runner = self.runner(&access, whom);
        self.with_repository(request, &resolved, &runner, async |repository| {
            self.check_commit(request, &resolved, repository, &runner).await?;
            let options = RecordOptions {
                retain: true,
                index: vec![name.clone()],
                ..RecordOptions::new(description(request), RecordType::GitCheckout)
            };
            let directory = self.0.cache.new_mutable(None, options).await?;
            {
                // Alive until everything is written.
                let mounted = directory.mount().await?.with_temp()?;
                let (target, resolved) = (mounted.path(), &resolved);
                let made = Checkout { runner: &runner, repository, request, resolved, target };
                checkout::check_out(made).await?;
            }
            Ok(directory.commit().await?)
        })
        .await
    }

    /// Returns the objects behind the reference.
    ///
    /// # Errors
    /// As [`Git::resolve`].
    pub async fn objects(
        &self,
        request: &GitRequest,
        resolved: &Resolved,
        whom: For<'_>,
    ) -> Result<GitObjects> {
        let _turn = self.turn(request, whom.cancel).await?;
        let access = Access::find(request, whom.lender, &self.0.options.scratch).await?;
        let runner = self.runner(&access, whom);
        self.with_repository(request, resolved, &runner, async |repository| {
            let is_tag = repository.kind(&runner, &resolved.object).await? == "tag";
            let commit = repository.commit_of(&runner, &resolved.object).await?;
            Ok(GitObjects {
                commit: repository.object(&runner, "commit", &commit).await?,
                tag: match is_tag {
                    true => repository.object(&runner, "tag", &resolved.object).await?,
                    false => Vec::new(),
                },
            })
        })
        .await
    }

    /// Does something with the shared repository once the object is in it. Whatever comes of it, the repository is
    /// given back. The caller holds the remote's turn.
    async fn with_repository<T>(
        &self,
        request: &GitRequest,
        resolved: &Resolved,
        runner: &Runner<'_>,
        work: impl AsyncFnOnce(&Repository) -> Result<T>,
    ) -> Result<T> {
        let repository = Repository::open(&self.0.cache, runner, request, resolved).await?;
        let done = async {
            repository.fetch(runner, request, resolved).await?;
            work(&repository).await
        };
        let done = done.await;
        let released = repository.release().await;
        let done = done?;
        released?;
        Ok(done)
    }

    /// A name may be believed, and a commit named by a tag; what came says what it is.
    async fn check_commit(
        &self,
        request: &GitRequest,
        resolved: &Resolved,
        repository: &Repository,
        runner: &Runner<'_>,
    ) -> Result<()> {
        let commit = repository.commit_of(runner, &resolved.object).await?;
        let found =
            Resolved { peeled: Some(commit).filter(|commit| *commit != resolved.object), ..resolved.clone() };
        request.expect(&found)
    }

    /// Waits until no other build uses the remote's repository.
    async fn turn(&self, request: &GitRequest, cancel: &CancellationToken) -> Result<OwnedMutexGuard<()>> {
        tokio::select! {
            turn = self.0.turns.take(request.remote.as_str()) => Ok(turn),
            () = cancel.cancelled() => Err(Error::Cancelled),
        }
    }

    async fn look_up(&self, request: &GitRequest, whom: For<'_>) -> Result<Resolved> {
        let access = Access::find(request, whom.lender, &self.0.options.scratch).await?;
        let runner = self.runner(&access, whom);
        listing::look_up(&runner, &self.0.options.scratch, request).await
    }

    fn runner<'a>(&self, access: &Access, whom: For<'a>) -> Runner<'a> {
        let fixed = [
            ("protocol.file.allow", "user"),
            ("core.hooksPath", "/dev/null"),
            ("core.fsmonitor", "false"),
            ("credential.helper", ""),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            ("fetch.recurseSubmodules", "false"),
            ("init.defaultBranch", "master"),
            ("safe.directory", "*"),
            ("advice.detachedHead", "false"),
        ];
        let mut config: Vec<(String, String)> =
            fixed.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        config.extend(access.config.iter().cloned());
        Runner {
            config,
            env: access.env.clone(),
            cancel: whom.cancel,
            progress: whom.progress,
            stall: self.0.options.stall,
        }
    }
}

fn description(request: &GitRequest) -> String {
    let GitRequest { remote, reference, subdir, .. } = request;
    match subdir.as_str() {
        "" => format!("git snapshot for {remote}#{reference}"),
        subdir => format!("git snapshot for {remote}#{reference}:{subdir}"),
    }
}
