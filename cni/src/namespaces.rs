use std::fmt;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Error, Result};

/// Network namespaces that have a name in the filesystem.
///
/// 1. After `make(path)` the file at `path` leads to a namespace of its own, whose loopback device is on.
/// 2. After `remove(path)` there is no such file; what uses the namespace keeps it. It is no error if there was none,
///    or only what is left of one after a restart of the machine.
pub trait Namespaces: fmt::Debug + Send + Sync + 'static {
    /// Makes a namespace. Blocks.
    fn make(&self, path: &Path) -> Result<()>;

    /// Removes one. Blocks.
    fn remove(&self, path: &Path) -> Result<()>;

    /// Whether there is one, and not only the file that it was at.
    fn exists(&self, path: &Path) -> bool;
}

/// Those of the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelNamespaces;

impl Namespaces for KernelNamespaces {
    fn make(&self, path: &Path) -> Result<()> {
        kiln_runtime::make_network_namespace(path).map_err(Error::io("make the network namespace", path))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(Error::io("unmount the network namespace", path)(error)),
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", path)(error))
            }
            _ => Ok(()),
        }
    }

    fn exists(&self, path: &Path) -> bool {
        const NSFS: u32 = 0x6e73_6673;
        rustix::fs::statfs(path).is_ok_and(|found| u32::try_from(found.f_type).is_ok_and(|kind| kind == NSFS))
    }
}
