//! Secret files of a running step, on a filesystem in memory of their own.

use std::path::{Path, PathBuf};

use kiln_executor::StepMount;
use kiln_llb::pb;
use kiln_rootdir::{OpenOptions, Root};
use kiln_solver::OpError;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::ops::common::blocking;

/// A secret is at most 500 KiB at the client; a step's secrets together may take this many bytes.
const SIZE: &str = "size=16m,mode=0700";

/// The secret files of one step. They are gone with [`SecretFiles::close`], or at the latest when dropped.
#[derive(Debug)]
pub(crate) struct SecretFiles {
    scratch: PathBuf,
    dir: Option<SecretDir>,
    count: usize,
}

#[derive(Debug)]
struct SecretDir(PathBuf);

impl SecretFiles {
    pub(crate) fn new(scratch: &Path) -> Self {
        Self { scratch: scratch.to_owned(), dir: None, count: 0 }
    }

    /// Writes a secret and says how to mount it at `dest`.
    pub(crate) async fn mount(
        &mut self,
        dest: &str,
        options: &pb::SecretOpt,
        data: Vec<u8>,
    ) -> Result<StepMount, OpError> {
        if self.dir.is_none() {
            let scratch = self.scratch.clone();
            self.dir = Some(blocking(move || SecretDir::make(&scratch)).await?);
        }
        let Some(SecretDir(dir)) = &self.dir else { return Err(OpError::failed("no directory for secrets")) };
        let (dir, name) = (dir.clone(), self.count.to_string());
        self.count += 1;
        let source = dir.join(&name);
        let (mode, uid, gid) = (options.mode & 0o777, options.uid, options.gid);
        blocking(move || {
            use std::io::Write as _;
            let root = Root::open(&dir).map_err(OpError::failed)?;
            let mut file = root.open_file(&name, &OpenOptions::create_new(0o600)).map_err(OpError::failed)?;
            file.write_all(&data).map_err(OpError::failed)?;
            root.chown(&name, uid, gid).map_err(OpError::failed)?;
            root.chmod(&name, mode).map_err(OpError::failed)
        })
        .await?;
        let mut flags = vec!["ro", "rbind", "nodev", "nosuid"];
        if mode & 0o111 == 0 {
            flags.push("noexec");
        }
        Ok(StepMount::host(dest, source, &flags))
    }

    /// Removes the files.
    pub(crate) async fn close(mut self) {
        if let Some(dir) = self.dir.take()
            && let Err(error) = tokio::task::spawn_blocking(move || drop(dir)).await
        {
            tracing::warn!(%error, "secret files were not removed");
        }
    }
}

impl SecretDir {
    fn make(scratch: &Path) -> Result<Self, OpError> {
        let dir =
            tempfile::Builder::new().prefix("secrets-").tempdir_in(scratch).map_err(OpError::failed)?.keep();
        let made = Self(dir);
        mount(
            "tmpfs",
            &made.0,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            Some(&*std::ffi::CString::new(SIZE).map_err(OpError::failed)?),
        )
        .map_err(OpError::failed)?;
        Ok(made)
    }
}

impl Drop for SecretDir {
    fn drop(&mut self) {
        // Nothing is mounted there if making it failed half way.
        unmount(&self.0, UnmountFlags::DETACH).ok();
        if let Err(error) = std::fs::remove_dir(&self.0) {
            tracing::warn!(dir = %self.0.display(), %error, "directory of secrets not removed");
        }
    }
}
