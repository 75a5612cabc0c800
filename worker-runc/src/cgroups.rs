use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How deep groups inside a container's are looked at.
const MAX_DEPTH: usize = 32;
/// How long a group is waited for that still has dying processes.
const REMOVE_PATIENCE: Duration = Duration::from_secs(5);

/// Where the control group hierarchies of this machine are mounted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hierarchies {
    pub(crate) v1: Vec<PathBuf>,
    pub(crate) v2: Option<PathBuf>,
}

impl Hierarchies {
    pub(crate) fn detect() -> Self {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self::parse(&table)
    }

    fn parse(table: &str) -> Self {
        let mut found = Self::default();
        for line in table.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
            match filesystem.split(' ').next() {
                Some("cgroup") => found.v1.push(point),
                Some("cgroup2") if found.v2.is_none() => found.v2 = Some(point),
                _ => {}
            }
        }
        found
    }
}

/// The groups of one container, one in each hierarchy.
#[derive(Clone, Debug)]
pub(crate) struct ContainerGroups {
    dirs: Vec<PathBuf>,
    unified: Option<PathBuf>,
}

impl ContainerGroups {
    /// The groups at `path`, counted from the root of each hierarchy. Only absolute paths are known to be.
    pub(crate) fn new(hierarchies: &Hierarchies, path: Option<&str>) -> Self {
        let Some(relative) = path.and_then(|path| path.strip_prefix('/')).filter(|path| !path.is_empty())
        else {
            return Self { dirs: Vec::new(), unified: None };
        };
        let unified = hierarchies.v2.as_ref().map(|root| root.join(relative));
        let dirs = hierarchies.v1.iter().map(|root| root.join(relative)).chain(unified.clone()).collect();
        Self { dirs, unified }
    }

    /// Kills every process in the groups. Returns whether there was any.
    pub(crate) fn kill(&self) -> bool {
        if let Some(unified) = &self.unified {
            // Certain, and at once; Linux 5.14.
            let _ = std::fs::write(unified.join("cgroup.kill"), "1");
        }
        let pids = self.processes();
        for pid in &pids {
            if let Some(pid) = Pid::from_raw(*pid) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        !pids.is_empty()
    }

    /// How often the kernel killed a process in the container for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.dirs
            .iter()
            .flat_map(|dir| [dir.join("memory.events"), dir.join("memory.oom_control")])
            .filter_map(|file| std::fs::read_to_string(file).ok())
            .filter_map(|text| {
                let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
                count.trim().parse::<u64>().ok()
            })
            .sum()
    }

    /// Kills what is left, then removes the groups. Blocks.
    pub(crate) fn remove(&self) {
        let deadline = Instant::now() + REMOVE_PATIENCE;
        for dir in &self.dirs {
            while !remove_tree(dir, 0) {
                if Instant::now() > deadline {
                    tracing::warn!(dir = %dir.display(), "control group left behind");
                    break;
                }
                self.kill();
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn processes(&self) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for dir in &self.dirs {
            collect(dir, 0, &mut pids);
        }
        pids
    }
}

fn collect(dir: &Path, depth: usize, pids: &mut BTreeSet<i32>) {
    let Ok(text) = std::fs::read_to_string(dir.join("cgroup.procs")) else { return };
    // A process of another pid namespace shows as 0.
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    if depth < MAX_DEPTH {
        for child in children(dir) {
            collect(&child, depth + 1, pids);
        }
    }
}

/// Whether the group is gone.
fn remove_tree(dir: &Path, depth: usize) -> bool {
    use std::io::ErrorKind;
    match std::fs::remove_dir(dir) {
        Ok(()) => return true,
        Err(error) if error.kind() == ErrorKind::NotFound => return true,
        Err(_) if depth == MAX_DEPTH => return false,
        Err(_) => {}
    }
    for child in children(dir) {
        remove_tree(&child, depth + 1);
    }
    match std::fs::remove_dir(dir) {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_each_kind() {
        let v1 = "31 30 0:1 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let v2 = "32 30 0:2 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n";
        let both = Hierarchies::parse(&format!("{v1}{v2}broken line\n"));
        assert_eq!(both.v1, [PathBuf::from("/sys/fs/cgroup/pids")]);
        assert_eq!(both.v2, Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let groups = ContainerGroups::new(&both, Some("/buildkit/x"));
        assert_eq!(groups.dirs.len(), 2);
        assert!(ContainerGroups::new(&both, Some("/")).dirs.is_empty(), "never the root itself");
        assert!(ContainerGroups::new(&both, Some("a.slice:x")).dirs.is_empty());
    }
}
