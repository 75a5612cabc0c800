//! From a bare repository to files.

use std::path::Path;

use kiln_rootdir::{Kind, Root, Time};

use crate::error::{Error, Result};
use crate::git::listing::Resolved;
use crate::git::process::{Reach, Runner};
use crate::git::repository::{Repository, file_url, own_name};
use crate::git::request::{GitRequest, Mtime};

/// Submodules, all the way down, without history.
const SUBMODULES: [&str; 6] = ["submodule", "update", "--init", "--recursive", "--depth=1", "--progress"];
/// Where a repository says what its submodules are.
const LIST: &str = ".gitmodules";
/// The longest such list, in bytes; `git` itself warns of longer ones.
const MAX_LIST: usize = 1 << 20;
const GIT_DIR: &str = ".git";
/// Directories in directories, beyond these, are not looked into.
const MAX_DEPTH: usize = 512;

/// What is checked out, and where.
#[derive(Clone, Copy)]
pub(crate) struct Checkout<'a> {
    pub(crate) runner: &'a Runner<'a>,
    pub(crate) repository: &'a Repository,
    pub(crate) request: &'a GitRequest,
    pub(crate) resolved: &'a Resolved,
    /// An empty directory.
    pub(crate) target: &'a Path,
}

/// Writes what is asked for.
pub(crate) async fn check_out(checkout: Checkout<'_>) -> Result<()> {
    let Checkout { runner, repository, request, resolved, target } = checkout;
    let keep = request.keep_git_dir && request.subdir.is_empty();
    match keep {
        true => with_repository(checkout).await?,
        false => files_alone(checkout).await?,
    }
    let time = match request.mtime {
        Mtime::Checkout => None,
        Mtime::Commit => Some(repository.committed_at(runner, resolved.commit_sha()).await?),
    };
    let (target, subdir) = (target.to_owned(), request.subdir.clone());
    crate::blocking(move || {
        let root = Root::open(&target)?;
        if !keep {
            remove_links_to_repositories(&root)?;
        }
        if !subdir.is_empty() {
            move_up(&root, &subdir)?;
        }
        match time {
            Some(seconds) => set_times(&root, Time { seconds, nanoseconds: 0 }, 0),
            None => Ok(()),
        }
    })
    .await
}

/// The files; everything else stays in the shared repository.
async fn files_alone(Checkout { runner, repository, request, resolved, target }: Checkout<'_>) -> Result<()> {
    let mut runner = runner.clone();
    let text = |path: &Path| path.display().to_string();
    runner.env.push(("GIT_DIR".to_owned(), text(&repository.path)));
    runner.env.push(("GIT_WORK_TREE".to_owned(), text(target)));
    // Where relative addresses of submodules start from; no file says so.
    runner.config.push(("remote.origin.url".to_owned(), request.remote.to_string()));
    let commit = resolved.commit_sha();
    // What was checked out last is no part of this.
    let index = repository.path.join("index");
    crate::blocking(move || match std::fs::remove_file(index) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::files("a checkout")(error)),
        _ => Ok(()),
    })
    .await?;
    runner.run(Reach::Local, target, &["read-tree", commit]).await?.success()?;
    runner.run(Reach::Local, target, &["checkout-index", "--all", "--force"]).await?.success()?;
    if has_submodules(request, target)? {
        repository.expect_submodules(target.join(LIST)).await?;
        submodules(&runner, target).await?;
    }
    Ok(())
}

/// The files and a repository of their own, which knows nothing of this machine.
async fn with_repository(
    Checkout { runner, repository, request, resolved, target }: Checkout<'_>,
) -> Result<()> {
    let format = if resolved.object.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
    let local = async |args: &[&str]| runner.run(Reach::Local, target, args).await?.success();
    let object = resolved.object.as_str();
    let shared = file_url(&repository.path);
    local(&["init", "--quiet", format, "."]).await?;
    local(&["remote", "add", "origin", &shared]).await?;
    let from = own_name(object);
    let named = format!("{from}:{}", resolved.name);
    // A commit that has no name gets none.
    let wanted = if resolved.name == object { &from } else { &named };
    local(&["fetch", "--quiet", "-u", "--depth=1", "--no-tags", "--", "origin", wanted]).await?;
    local(&["checkout", "--quiet", "--force", "FETCH_HEAD"]).await?;
    local(&["remote", "set-url", "origin", request.remote.as_str()]).await?;
    if has_submodules(request, target)? {
        submodules(runner, target).await?;
    }
    local(&["reflog", "expire", "--all", "--expire=now"]).await?;
    let leftover = target.join(GIT_DIR).join("FETCH_HEAD");
    crate::blocking(move || {
        // It names the shared repository.
        let _absent = std::fs::remove_file(leftover);
        Ok(())
    })
    .await
}

fn has_submodules(request: &GitRequest, target: &Path) -> Result<bool> {
    match std::fs::symlink_metadata(target.join(LIST)) {
        Ok(found) if found.is_file() && !request.skip_submodules => {
            if found.len() > MAX_LIST as u64 {
                return Err(Error::GitOutput { what: LIST.to_owned(), limit: MAX_LIST });
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

async fn submodules(runner: &Runner<'_>, target: &Path) -> Result<()> {
    runner.run(Reach::Network, target, &SUBMODULES).await?.success().map(drop)
}

/// Submodules leave files that say where their repositories are; those stay behind.
fn remove_links_to_repositories(root: &Root) -> Result<()> {
    let mut todo = vec![(root.try_clone()?, 0)];
    while let Some((dir, depth)) = todo.pop() {
        for (name, found) in dir.read_dir_stat("/")? {
            match found.kind {
                Kind::File if name == GIT_DIR => dir.remove_file(&name)?,
                Kind::Dir if depth < MAX_DEPTH => todo.push((dir.open_dir(&name)?, depth + 1)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Leaves only what is in `subdir`, at the top. No link is followed on the way there.
fn move_up(root: &Root, subdir: &str) -> Result<()> {
    let missing = || Error::NoSubdir { subdir: subdir.to_owned() };
    let mut path = String::new();
    for part in subdir.split('/') {
        path.push('/');
        path.push_str(part);
        match root.stat(&path, false)? {
            Some(found) if found.is_dir() => {}
            _ => return Err(missing()),
        }
    }
    let names = || -> Result<Vec<std::ffi::OsString>> {
        Ok(root.read_dir_stat("/")?.into_iter().map(|(name, _)| name).collect())
    };
    // No file of a repository has such a name.
    let aside = "\u{1}subdir";
    root.rename(&path, aside)?;
    for name in names()?.into_iter().filter(|name| name != aside) {
        root.remove_all(&name)?;
    }
    let wanted = root.open_dir(aside)?;
    for (name, _) in wanted.read_dir_stat("/")? {
        root.rename(Path::new(aside).join(&name), &name)?;
    }
    Ok(root.remove_dir(aside)?)
}

/// Sets the times of everything, from the leaves up.
fn set_times(dir: &Root, time: Time, depth: usize) -> Result<()> {
    for (name, found) in dir.read_dir_stat("/")? {
        if found.is_dir() && depth < MAX_DEPTH {
            set_times(&dir.open_dir(&name)?, time, depth + 1)?;
        }
        dir.set_times(&name, time, time, true)?;
    }
    if depth == 0 {
        dir.set_times("/", time, time, false)?;
    }
    Ok(())
}
