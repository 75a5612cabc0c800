//! Network namespaces with a name in the filesystem, made before there is a container to use them.

use std::io;
use std::path::Path;

use rustix::mount::mount_bind;
use rustix::thread::UnshareFlags;

use crate::sys;

/// Makes a network namespace with its loopback device on, and a file at `path` that leads to it. Whoever made it
/// unmounts and removes the file. Blocks.
///
/// # Errors
/// If the file is there, or the process may not make namespaces; then nothing is left.
pub fn make_network_namespace(path: &Path) -> io::Result<()> {
    std::fs::File::options().write(true).create_new(true).open(path)?;
    let place = path.to_owned();
    // The namespace belongs to a thread, and this one is for nothing else.
    let made = std::thread::Builder::new().name("network".to_owned()).spawn(move || {
        sys::unshare(UnshareFlags::NEWNET)?;
        sys::loopback_up()?;
        Ok(mount_bind("/proc/thread-self/ns/net", &place)?)
    });
    let made = made.and_then(|thread| {
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread for it ended in a panic")))
    });
    made.inspect_err(|_| drop(std::fs::remove_file(path)))
}
