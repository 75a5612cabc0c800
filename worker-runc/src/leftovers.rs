//! What an executor that was killed leaves behind.

use std::path::Path;

use kiln_executor::{ContainerId, Error, Result};
use kiln_rootdir::Root;
use kiln_runtime::cgroups::{ContainerGroups, Hierarchies};
use rustix::process::Signal;

use crate::bundle::{GROUP_FILE, remove_dir};
use crate::run::read_pid;

/// The longest name of a control group that is read.
const MAX_GROUP: u64 = 16 * 1024;

/// Kills containers of an earlier process, and removes their mounts, groups, bundles and state.
pub(crate) fn clean(root: &Path, state: &Path, hierarchies: &Hierarchies) -> Result<()> {
    let failed = Error::root("list containers");
    let dir = Root::open(root).map_err(Error::root("open"))?;
    let mut cleaned = 0;
    for entry in dir.read_dir("/").map_err(failed)? {
        let Some(name) = entry.name.to_str() else { continue };
        if entry.kind != kiln_rootdir::Kind::Dir || ContainerId::new(name).is_err() {
            continue;
        }
        let bundle = root.join(name);
        let group = dir.read(Path::new(name).join(GROUP_FILE), MAX_GROUP).unwrap_or_default();
        let groups = ContainerGroups::new(hierarchies, std::str::from_utf8(&group).ok());
        kill_first(&dir, name, &bundle);
        groups.kill();
        kiln_snapshot::detach_below(&bundle)?;
        groups.remove();
        remove_dir(&bundle);
        cleaned += 1;
    }
    remove_dir(state);
    if cleaned > 0 {
        tracing::info!(cleaned, "containers of an earlier process removed");
    }
    Ok(())
}

/// Kills the container's first process, and so all of it. The number in the file may belong to somebody else by
/// now; a process of the container has the bundle's root filesystem for its root.
fn kill_first(dir: &Root, name: &str, bundle: &Path) {
    let Ok(entries) = dir.read_dir(name) else { return };
    let files =
        entries.iter().filter(|entry| entry.name.to_str().is_some_and(|name| name.starts_with("pid-")));
    for pid in files.filter_map(|file| read_pid(&bundle.join(&file.name))) {
        let its_root = identity(&Path::new("/proc").join(pid.to_string()).join("root"));
        if its_root.is_some() && its_root == identity(&bundle.join("rootfs")) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    path.metadata().ok().map(|found| (found.dev(), found.ino()))
}
