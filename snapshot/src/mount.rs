use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::error::{Error, Result};
use crate::overlay_mount;

/// How a filesystem state is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// One directory as it is.
    Bind {
        /// The directory.
        source: PathBuf,
        /// Whether writing is refused.
        read_only: bool,
    },
    /// Directories stacked by overlayfs.
    Overlay {
        /// Bottom first; at least one, and two without an upper.
        lowers: Vec<PathBuf>,
        /// The directory that takes the changes and its work directory; read-only without.
        upper: Option<(PathBuf, PathBuf)>,
    },
}

impl Mount {
    /// Mounts at `target`, an existing directory, and keeps the mount to this mount namespace's own.
    ///
    /// Two overlays on one upper directory would corrupt each other, so a second mount of a writable state
    /// that this process has mounted already shows the same overlay again.
    pub fn mount_at(&self, target: &Path) -> Result<Mounted> {
        match self {
            Self::Bind { source, read_only } => Mounted::bind(source, target, *read_only),
            Self::Overlay { lowers, upper: None } => {
                overlay_mount::attach(lowers, None, target)?;
                Mounted::adopt(target, None)
            }
            Self::Overlay { lowers, upper: Some((upper, work)) } => {
                let shared = SharedUpper::of(upper);
                let mut places = shared.places();
                match places.first() {
                    Some(mounted) => bind(mounted, target)?,
                    None => overlay_mount::attach(lowers, Some((upper, work)), target)?,
                }
                places.push(target.to_owned());
                drop(places);
                Mounted::adopt(target, Some(shared))
            }
        }
    }

    /// Shows the state at a path of its own, for this process to use.
    ///
    /// A directory that stands for itself is given as it is; that nothing is written to a read-only one is then
    /// up to the caller. A read-only stack is mounted nowhere: it is named through a handle, so that nothing
    /// can be left behind. Other processes can use the path while this one holds the value.
    pub fn with_temp(&self) -> Result<TempMounted> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        match self {
            Self::Bind { source, .. } => {
                if !source.is_dir() {
                    let missing = std::io::Error::from(rustix::io::Errno::NOENT);
                    return Err(Error::io("open directory", source, missing));
                }
                Ok(TempMounted { path: source.clone(), keeps: Keeps::Nothing })
            }
            Self::Overlay { lowers, upper: None } => {
                if let Some(detached) = overlay_mount::detached(lowers, Path::new("a handle"))? {
                    use std::os::fd::AsRawFd as _;
                    let path = format!("/proc/{}/fd/{}", std::process::id(), detached.as_raw_fd());
                    return Ok(TempMounted { path: path.into(), keeps: Keeps::Handle(detached) });
                }
                self.at_temp_dir(&std::env::temp_dir(), COUNTER.fetch_add(1, Ordering::Relaxed))
            }
            Self::Overlay { upper: Some((_, work)), .. } => {
                // Beside the work directory, where a later start finds what a killed process left.
                let place = work.parent().unwrap_or(work);
                self.at_temp_dir(place, COUNTER.fetch_add(1, Ordering::Relaxed))
            }
        }
    }

    /// Whether writing is refused.
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::Bind { read_only, .. } => *read_only,
            Self::Overlay { upper, .. } => upper.is_none(),
        }
    }

    fn at_temp_dir(&self, place: &Path, number: u64) -> Result<TempMounted> {
        let path = place.join(format!("mnt-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).map_err(|source| Error::io("make directory", &path, source))?;
        match self.mount_at(&path) {
            Ok(mounted) => Ok(TempMounted { path, keeps: Keeps::Dir(Some(mounted)) }),
            Err(error) => {
                let _ = std::fs::remove_dir(&path);
                Err(error)
            }
        }
    }
}

/// A mount that is there for as long as this value.
#[derive(Debug)]
pub struct Mounted {
    /// `None` once it is unmounted.
    target: Option<PathBuf>,
    shared: Option<SharedUpper>,
}

impl Mounted {
    /// Shows the file or directory `source` at `target`, which must be of the same kind.
    pub fn bind(source: &Path, target: &Path, read_only: bool) -> Result<Self> {
        bind(source, target)?;
        let mounted = Self::adopt(target, None)?;
        if read_only {
            remount_read_only(target)?;
        }
        Ok(mounted)
    }

    /// Where it is.
    pub fn target(&self) -> &Path {
        self.target.as_deref().unwrap_or(Path::new(""))
    }

    /// Takes the mount away at once; whoever has files of it open keeps them.
    pub fn unmount(mut self) -> Result<()> {
        self.detach()
    }

    fn adopt(target: &Path, shared: Option<SharedUpper>) -> Result<Self> {
        let mounted = Self { target: Some(target.to_owned()), shared };
        rustix::mount::mount_change(target, MountPropagationFlags::PRIVATE)
            .map_err(|errno| Error::io("make private", target, errno))?;
        Ok(mounted)
    }

    fn detach(&mut self) -> Result<()> {
        let Some(target) = self.target.take() else { return Ok(()) };
        let outcome = match &self.shared {
            None => detach(&target),
            Some(shared) => {
                let mut places = shared.places();
                places.retain(|place| *place != target);
                detach(&target)
            }
        };
        if let Some(shared) = self.shared.take() {
            shared.forget();
        }
        outcome
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let target = self.target.clone();
        if let Err(error) = self.detach() {
            tracing::warn!(?target, %error, "mount left behind");
        }
    }
}

/// A mount at a place of its own, there for as long as this value.
#[derive(Debug)]
pub struct TempMounted {
    path: PathBuf,
    keeps: Keeps,
}

#[derive(Debug)]
enum Keeps {
    Nothing,
    Handle(#[expect(dead_code, reason = "held: closing it ends the mount")] OwnedFd),
    Dir(Option<Mounted>),
}

impl TempMounted {
    /// A directory that needs no mount.
    pub(crate) fn unmounted(path: PathBuf) -> Self {
        Self { path, keeps: Keeps::Nothing }
    }

    /// The top directory of what is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempMounted {
    fn drop(&mut self) {
        if let Keeps::Dir(mounted) = &mut self.keeps {
            drop(mounted.take());
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// The places where this process shows the overlay of one upper directory.
#[derive(Clone, Debug)]
pub(crate) struct SharedUpper {
    upper: PathBuf,
    places: Arc<Mutex<Vec<PathBuf>>>,
}

type Uppers = HashMap<PathBuf, Arc<Mutex<Vec<PathBuf>>>>;
static UPPERS: LazyLock<Mutex<Uppers>> = LazyLock::new(Mutex::default);

impl SharedUpper {
    /// Whether this process shows the overlay of this upper directory anywhere.
    pub(crate) fn is_mounted(upper: &Path) -> bool {
        let uppers = UPPERS.lock().unwrap_or_else(PoisonError::into_inner);
        uppers.contains_key(upper)
    }

    fn of(upper: &Path) -> Self {
        let mut uppers = UPPERS.lock().unwrap_or_else(PoisonError::into_inner);
        let places = uppers.entry(upper.to_owned()).or_default().clone();
        Self { upper: upper.to_owned(), places }
    }

    fn places(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the entry if nobody else holds it.
    fn forget(self) {
        let mut uppers = UPPERS.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::strong_count(&self.places) == 2 && self.places().is_empty() {
            uppers.remove(&self.upper);
        }
    }
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    rustix::mount::mount_bind(source, target).map_err(|errno| Error::Mount {
        what: format!("`{}`", source.display()),
        target: target.to_owned(),
        kernel_log: String::new(),
        source: errno.into(),
    })
}

/// The kernel refuses to drop flags of a mount that a user namespace inherited, so they are kept.
fn remount_read_only(target: &Path) -> Result<()> {
    use rustix::fs::StatVfsMountFlags as Has;
    let error = |errno| Error::io("make read-only", target, errno);
    let has = rustix::fs::statvfs(target).map_err(error)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (is, keep) in [
        (Has::NOSUID, MountFlags::NOSUID),
        (Has::NODEV, MountFlags::NODEV),
        (Has::NOEXEC, MountFlags::NOEXEC),
        (Has::NOATIME, MountFlags::NOATIME),
        (Has::NODIRATIME, MountFlags::NODIRATIME),
        (Has::RELATIME, MountFlags::RELATIME),
    ] {
        if has.contains(is) {
            flags |= keep;
        }
    }
    rustix::mount::mount_remount(target, flags, c"").map_err(error)
}

pub(crate) fn detach(target: &Path) -> Result<()> {
    rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(|errno| Error::io("unmount", target, errno))
}

pub(crate) fn open_path(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}
