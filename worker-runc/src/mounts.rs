//! The op's mounts: made on the host where that is needed, and told to the runtime as bind mounts.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use kiln_executor::oci;
use kiln_executor::{Error, MountKind, Result, StepMount};
use kiln_rootdir::Root;
use kiln_snapshot::{Mount, Mounted};

/// Mounts of a step, there for as long as this value; the last made goes first.
#[derive(Debug, Default)]
pub(crate) struct HostMounts {
    held: Vec<Mounted>,
}

impl HostMounts {
    /// Makes one mount of a step ready, with what has to be mounted for it in `dir`; `number` tells it from others.
    pub(crate) fn add(&mut self, mount: &StepMount, dir: &Path, number: usize) -> Result<oci::Mount> {
        if !mount.dest.is_absolute() {
            let reason = format!("mount point `{}` is not absolute", mount.dest.display());
            return Err(Error::InvalidSpec { reason });
        }
        let access = if mount.read_only { "ro" } else { "rw" };
        match &mount.kind {
            MountKind::Snapshot(snapshot) => {
                let source = self.snapshot(mount, snapshot, dir, number)?;
                Ok(bind(mount, source, vec!["rbind".to_owned(), access.to_owned()]))
            }
            MountKind::Tmpfs { size } => {
                let mut options = vec!["nosuid".to_owned()];
                if mount.read_only {
                    options.push("ro".to_owned());
                }
                if *size > 0 {
                    options.push(format!("size={size}"));
                }
                let (destination, source) = (mount.dest.clone(), PathBuf::from("tmpfs"));
                Ok(oci::Mount { destination, kind: "tmpfs".to_owned(), source, options })
            }
            MountKind::Host { source, options } => {
                let source = match &mount.selector {
                    Some(selector) => self.select(mount, source, selector, dir, number)?,
                    None => source.clone(),
                };
                let mut options = options.clone();
                if !options.iter().any(|option| option == "bind" || option == "rbind") {
                    options.push("rbind".to_owned());
                }
                if mount.read_only && !options.iter().any(|option| option == "ro") {
                    options.push("ro".to_owned());
                }
                Ok(bind(mount, source, options))
            }
        }
    }

    /// Mounts the root filesystem.
    pub(crate) fn add_root(&mut self, root: &StepMount, target: &Path) -> Result<()> {
        let snapshot = match &root.kind {
            MountKind::Snapshot(snapshot) => snapshot,
            MountKind::Tmpfs { .. } | MountKind::Host { .. } => {
                return Err(Error::InvalidSpec { reason: "invalid mount type for /".to_owned() });
            }
        };
        make_dir(target)?;
        match &root.selector {
            None => self.held.push(snapshot.mount_at(target)?),
            Some(selector) => {
                let dir = target.parent().unwrap_or(target);
                let whole = dir.join("whole");
                make_dir(&whole)?;
                self.held.push(snapshot.mount_at(&whole)?);
                self.bind_selected(root, &whole, selector, target)?;
            }
        }
        Ok(())
    }

    fn snapshot(
        &mut self,
        mount: &StepMount,
        snapshot: &Mount,
        dir: &Path,
        number: usize,
    ) -> Result<PathBuf> {
        let whole = match snapshot {
            // It stands for itself: the runtime binds it as it is.
            Mount::Bind { source, .. } => source.clone(),
            Mount::Overlay { .. } => {
                let target = dir.join(format!("mount-{number}"));
                make_dir(&target)?;
                self.held.push(snapshot.mount_at(&target)?);
                target
            }
        };
        match &mount.selector {
            None => Ok(whole),
            Some(selector) => self.select(mount, &whole, selector, dir, number),
        }
    }

    fn select(
        &mut self,
        mount: &StepMount,
        whole: &Path,
        selector: &Path,
        dir: &Path,
        number: usize,
    ) -> Result<PathBuf> {
        let target = dir.join(format!("selected-{number}"));
        self.bind_selected(mount, whole, selector, &target)?;
        Ok(target)
    }

    /// Binds a part by its handle, so that nothing that happens to the path meanwhile leads elsewhere.
    fn bind_selected(
        &mut self,
        mount: &StepMount,
        whole: &Path,
        selector: &Path,
        target: &Path,
    ) -> Result<()> {
        let failed = |source: kiln_rootdir::Error| Error::StepMount {
            dest: mount.dest.clone(),
            source: Box::new(source),
        };
        let root = Root::open(whole).map_err(failed)?;
        let part = root.open_path(selector, true).map_err(failed)?;
        let is_dir = root.stat(selector, true).map_err(failed)?.is_none_or(|found| found.is_dir());
        if is_dir {
            if !target.exists() {
                make_dir(target)?;
            }
        } else {
            std::fs::write(target, "").map_err(|source| Error::io("create", target, source))?;
        }
        let handle = PathBuf::from(format!("/proc/self/fd/{}", part.as_raw_fd()));
        self.held.push(Mounted::bind(&handle, target, false)?);
        Ok(())
    }
}

impl Drop for HostMounts {
    fn drop(&mut self) {
        while let Some(mounted) = self.held.pop() {
            drop(mounted);
        }
    }
}

fn bind(mount: &StepMount, source: PathBuf, options: Vec<String>) -> oci::Mount {
    oci::Mount { destination: mount.dest.clone(), kind: "bind".to_owned(), source, options }
}

pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir).map_err(|source| Error::io("make directory", dir, source))
}
