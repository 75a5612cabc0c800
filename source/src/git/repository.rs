//! The bare repository that all builds share for one remote.

use std::path::{Path, PathBuf};

use kiln_cache::{CacheManager, MutableRef, RecordOptions, RecordType};
use kiln_snapshot::TempMounted;

use crate::error::{Error, Result};
use crate::git::listing::Resolved;
use crate::git::process::{Ended, Reach, Runner};
use crate::git::request::GitRequest;

/// What a server says that does not give objects by their names.
const UNADVERTISED: [&str; 3] = ["not our ref", "unadvertised object", "no such remote ref"];
/// What one says that gives whole histories only.
const SHALLOW: [&str; 2] = ["depth", "shallow"];

/// How the repository is configured; submodules are added to it.
const CONFIG: &str = "config";
/// The same before any were.
const PRISTINE: &str = "config.kiln";
/// The list of submodules of the last checkout.
const SEEN: &str = "gitmodules.kiln";

/// A bare repository, in use.
#[derive(Debug)]
pub(crate) struct Repository {
    directory: MutableRef,
    mounted: TempMounted,
    /// Where it is.
    pub(crate) path: PathBuf,
}

impl Repository {
    /// Opens the one of this remote, or makes it. The caller holds the remote's turn.
    pub(crate) async fn open(
        cache: &CacheManager,
        runner: &Runner<'_>,
        request: &GitRequest,
        resolved: &Resolved,
    ) -> Result<Self> {
        let is_long = resolved.object.len() == 64;
        let remote = &request.remote;
        let key = format!("git-remote::{remote}{}", if is_long { "::sha256" } else { "" });
        let options = RecordOptions {
            retain: true,
            index: vec![key.clone()],
            ..RecordOptions::new(format!("shared git repo for {remote}"), RecordType::Regular)
        };
        let opened = Self::mount(cache.local_source(&key, options.clone()).await?).await?;
        if !opened.directory.is_fresh() {
            if opened.is_sound(runner).await? {
                return Ok(opened);
            }
            tracing::warn!(%remote, "the shared repository is damaged, a new one is made");
            opened.discard().await?;
            let fresh = Self::mount(cache.local_source(&key, options).await?).await?;
            fresh.init(runner, is_long).await?;
            return Ok(fresh);
        }
        opened.init(runner, is_long).await?;
        Ok(opened)
    }

    async fn mount(directory: MutableRef) -> Result<Self> {
        let mounted = directory.mount().await?.with_temp()?;
        let path = mounted.path().to_owned();
        Ok(Self { directory, mounted, path })
    }

    async fn init(&self, runner: &Runner<'_>, is_long: bool) -> Result<()> {
        let format = if is_long { "--object-format=sha256" } else { "--object-format=sha1" };
        let args = ["init", "--quiet", "--bare", format, "."];
        runner.run(Reach::Local, &self.path, &args).await?.success()?;
        let (config, pristine) = (self.path.join(CONFIG), self.path.join(PRISTINE));
        crate::blocking(move || {
            std::fs::copy(config, pristine).map(drop).map_err(Error::files("a repository"))
        })
        .await
    }

    /// Makes it ready for the submodules that `list`, a file of a checkout, tells of. What is here of submodules is used
    /// again only if the list is the one of the last checkout: addresses are remembered, and may have changed.
    pub(crate) async fn expect_submodules(&self, list: PathBuf) -> Result<()> {
        let path = self.path.clone();
        crate::blocking(move || {
            let failed = || Error::files("the list of submodules");
            let wanted = std::fs::read(list).map_err(failed())?;
            let seen = path.join(SEEN);
            if std::fs::read(&seen).ok().as_deref() != Some(wanted.as_slice()) {
                match std::fs::remove_dir_all(path.join("modules")) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(failed()(error));
                    }
                    _ => {}
                }
            }
            std::fs::copy(path.join(PRISTINE), path.join(CONFIG)).map_err(failed())?;
            std::fs::write(seen, wanted).map_err(failed())
        })
        .await
    }

    async fn is_sound(&self, runner: &Runner<'_>) -> Result<bool> {
        let asked = runner
            .run(Reach::Local, &self.path, &["--git-dir=.", "rev-parse", "--is-bare-repository"])
            .await?;
        // Left by one that was killed.
        for lock in ["shallow.lock", "index.lock", "config.lock"] {
            let _absent = std::fs::remove_file(self.path.join(lock));
        }
        Ok(asked.success().is_ok_and(|output| output.trim() == "true"))
    }

    /// Gives it back, for the next build.
    pub(crate) async fn release(self) -> Result<()> {
        drop(self.mounted);
        Ok(self.directory.release().await?)
    }

    async fn discard(self) -> Result<()> {
        drop(self.mounted);
        Ok(self.directory.discard().await?)
    }

    /// Runs `git` on it.
    pub(crate) async fn git(&self, runner: &Runner<'_>, reach: Reach, args: &[&str]) -> Result<Ended> {
        let mut all = vec!["--git-dir=."];
        all.extend(args);
        runner.run(reach, &self.path, &all).await
    }

    /// Whether the commit that an object names is there.
    async fn has(&self, runner: &Runner<'_>, object: &str) -> Result<bool> {
        let commit = format!("{object}^{{commit}}");
        Ok(self.git(runner, Reach::Local, &["cat-file", "-e", &commit]).await?.status.success())
    }

    /// Sees to it that the object is there, under a name of its own.
    pub(crate) async fn fetch(
        &self,
        runner: &Runner<'_>,
        request: &GitRequest,
        resolved: &Resolved,
    ) -> Result<()> {
        let object = resolved.object.as_str();
        if !self.has(runner, object).await? {
            self.download(runner, request, resolved).await?;
        }
        self.git(runner, Reach::Local, &["update-ref", &own_name(object), object]).await?.success()?;
        Ok(())
    }

    async fn download(&self, runner: &Runner<'_>, request: &GitRequest, resolved: &Resolved) -> Result<()> {
        let object = resolved.object.as_str();
        let remote = request.remote.as_str();
        let mut failed = None;
        // By name first, which every server understands; the name may have moved on meanwhile.
        let believed = request.fetch_by_commit || resolved.name == object;
        let wanted = [Some(resolved.name.as_str()).filter(|_| !believed), Some(object)];
        for what in wanted.into_iter().flatten() {
            let fetched = self.shallow(runner, remote, what).await?;
            match fetched.status.success() {
                true if self.has(runner, object).await? => return Ok(()),
                true => {}
                false if UNADVERTISED.iter().any(|text| fetched.errors.contains(text)) => {
                    failed = Some(fetched)
                }
                false => return Err(fetched.failure()),
            }
        }
        // A server that gives no object by its name gives everything that has names.
        let whole =
            self.whole(runner, remote, &["+refs/heads/*:refs/kiln/heads/*", "+refs/tags/*:refs/kiln/tags/*"]);
        let whole = whole.await?;
        if self.has(runner, object).await? {
            return Ok(());
        }
        if !whole.status.success() {
            return Err(whole.failure());
        }
        let reason = failed.map(|ended| ended.errors.trim().to_owned()).unwrap_or_default();
        Err(Error::NoCommit { reference: resolved.name.clone(), object: object.to_owned(), reason })
    }

    /// Fetches one commit without its history, where the server can do that.
    async fn shallow(&self, runner: &Runner<'_>, remote: &str, what: &str) -> Result<Ended> {
        let args = ["fetch", "--progress", "--depth=1", "--no-tags", "--force", "--", remote, what];
        let fetched = self.git(runner, Reach::Network, &args).await?;
        if !fetched.status.success() && SHALLOW.iter().any(|text| fetched.errors.contains(text)) {
            return self.whole(runner, remote, &[what]).await;
        }
        Ok(fetched)
    }

    /// Fetches with all history.
    async fn whole(&self, runner: &Runner<'_>, remote: &str, what: &[&str]) -> Result<Ended> {
        let mut args = vec!["fetch", "--progress", "--no-tags", "--force"];
        if self.path.join("shallow").exists() {
            args.push("--unshallow");
        }
        args.extend(["--", remote]);
        args.extend(what);
        self.git(runner, Reach::Network, &args).await
    }

    /// The raw object, without its kind.
    pub(crate) async fn object(&self, runner: &Runner<'_>, kind: &str, object: &str) -> Result<Vec<u8>> {
        let ended = self.git(runner, Reach::Local, &["cat-file", kind, object]).await?;
        if ended.status.success() { Ok(ended.output) } else { Err(ended.failure()) }
    }

    /// What the object is: `commit`, `tag` and so on.
    pub(crate) async fn kind(&self, runner: &Runner<'_>, object: &str) -> Result<String> {
        let output = self.git(runner, Reach::Local, &["cat-file", "-t", object]).await?.success()?;
        Ok(output.trim().to_owned())
    }

    /// The commit that the object names.
    pub(crate) async fn commit_of(&self, runner: &Runner<'_>, object: &str) -> Result<String> {
        let commit = format!("{object}^{{commit}}");
        let output = self.git(runner, Reach::Local, &["rev-parse", "--verify", &commit]).await?.success()?;
        Ok(output.trim().to_owned())
    }

    /// When it was committed, in seconds since the epoch.
    pub(crate) async fn committed_at(&self, runner: &Runner<'_>, commit: &str) -> Result<i64> {
        let commit = format!("{commit}^{{commit}}");
        let args = ["show", "--no-patch", "--format=%ct", &commit];
        let output = self.git(runner, Reach::Local, &args).await?.success()?;
        output.trim().parse().map_err(|_| Error::attribute("time of a git commit", output.trim()))
    }
}

/// What keeps an object in the shared repository, and lets others fetch it from there.
pub(crate) fn own_name(object: &str) -> String {
    format!("refs/kiln/objects/{object}")
}

/// A path as an address for `git`.
pub(crate) fn file_url(path: &Path) -> String {
    format!("file://{}", path.display())
}
