//! Control groups: where they are, a container's own, their limits and their end.

mod devices;
mod limits;
mod usage;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use kiln_executor::oci;
use kiln_executor::samples::Sample;
use rustix::process::{Pid, Signal};

use crate::error::{Error, Result};

/// How deep groups inside a container's are looked at.
const MAX_DEPTH: usize = 32;
/// How long a group is waited for that still has dying processes.
const REMOVE_PATIENCE: Duration = Duration::from_secs(5);

/// Where the control group hierarchies of this machine are mounted.
#[derive(Clone, Debug, Default)]
pub struct Hierarchies {
    /// Those of version 1.
    pub v1: Vec<Hierarchy>,
    /// The one of version 2.
    pub v2: Option<PathBuf>,
}

/// A hierarchy of version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub path: PathBuf,
    /// What it controls: `cpu`, `memory`, …
    controllers: Vec<String>,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }
}

impl Hierarchies {
    /// Looks at the mounts of this process.
    pub fn detect() -> Self {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self::parse(&table)
    }

    fn parse(table: &str) -> Self {
        let mut found = Self::default();
        for line in table.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut fields = filesystem.split(' ');
            match fields.next() {
                Some("cgroup") => {
                    let options = fields.next_back().unwrap_or_default();
                    let controllers = options.split(',').map(str::to_owned).collect();
                    found.v1.push(Hierarchy { path: point, controllers });
                }
                Some("cgroup2") if found.v2.is_none() => found.v2 = Some(point),
                _ => {}
            }
        }
        found
    }
}

/// The groups of one container, one in each hierarchy.
#[derive(Clone, Debug)]
pub struct ContainerGroups {
    /// In the hierarchies of version 1, in their order.
    v1: Vec<(Hierarchy, PathBuf)>,
    /// Where the hierarchy of version 2 is mounted, and the group in it.
    unified: Option<(PathBuf, PathBuf)>,
}

impl ContainerGroups {
    /// The groups at `path`, counted from the root of each hierarchy. Only absolute paths are known to be.
    pub fn new(hierarchies: &Hierarchies, path: Option<&str>) -> Self {
        let Some(relative) = path.and_then(|path| path.strip_prefix('/')).filter(|path| !path.is_empty())
        else {
            return Self { v1: Vec::new(), unified: None };
        };
        Self {
            v1: hierarchies.v1.iter().map(|known| (known.clone(), known.path.join(relative))).collect(),
            unified: hierarchies.v2.as_ref().map(|root| (root.clone(), root.join(relative))),
        }
    }

    /// Makes the groups, with these limits. Groups that are there already are set up again. Blocks.
    pub fn make(&self, resources: &oci::Resources) -> Result<()> {
        for (hierarchy, dir) in &self.v1 {
            limits::make_v1(hierarchy, dir)?;
        }
        if let Some((root, dir)) = &self.unified {
            limits::make_v2(root, dir)?;
        }
        self.limit(resources)
    }

    /// Sets limits. Blocks.
    pub(crate) fn limit(&self, resources: &oci::Resources) -> Result<()> {
        for (hierarchy, dir) in &self.v1 {
            limits::set_v1(hierarchy, dir, resources)?;
        }
        match &self.unified {
            // Beside version 1, this hierarchy controls nothing.
            Some((_, dir)) if self.v1.is_empty() => limits::set_v2(dir, resources),
            _ => Ok(()),
        }
    }

    /// The group of version 2, open.
    pub(crate) fn open_unified(&self) -> Result<Option<OwnedFd>> {
        let Some((_, dir)) = &self.unified else { return Ok(None) };
        File::open(dir).map(|file| Some(file.into())).map_err(Error::cgroup("open", dir))
    }

    /// The files through which groups of version 1 are entered, open.
    pub(crate) fn open_entries(&self) -> Result<Vec<OwnedFd>> {
        let open = |dir: &Path| {
            let path = dir.join("cgroup.procs");
            let file = File::options().write(true).open(&path);
            file.map(OwnedFd::from).map_err(Error::cgroup("open", &path))
        };
        self.v1.iter().map(|(_, dir)| open(dir)).collect()
    }

    /// The groups of version 1 with the names under which a container sees them.
    pub(crate) fn v1_names(&self) -> Vec<(String, PathBuf)> {
        let name = |hierarchy: &Hierarchy| {
            hierarchy.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        self.v1.iter().map(|(hierarchy, dir)| (name(hierarchy), dir.clone())).collect()
    }

    fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.v1.iter().map(|(_, dir)| dir.as_path()).chain(self.unified.iter().map(|(_, dir)| dir.as_path()))
    }

    /// Gives the groups of version 1 the names that `to` has for them; the one of version 2 keeps its own. On an error
    /// they come back as they are now.
    pub(crate) fn rename(mut self, to: &Self) -> std::result::Result<Self, (Self, Error)> {
        for number in 0..self.v1.len() {
            let (Some((_, from)), Some((_, to))) = (self.v1.get_mut(number), to.v1.get(number)) else {
                continue;
            };
            if let Err(source) = std::fs::rename(&*from, to) {
                let error = Error::cgroup("rename", from)(source);
                return Err((self, error));
            }
            from.clone_from(to);
        }
        Ok(self)
    }

    /// Removes the groups right below these whose names begin with `prefix` and in which nothing is.
    pub(crate) fn remove_empty(&self, prefix: &str) {
        for dir in self.dirs().flat_map(children) {
            if dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)) {
                let _ = std::fs::remove_dir(dir);
            }
        }
    }

    /// Kills every process in the groups. Returns whether there was any.
    pub fn kill(&self) -> bool {
        if let Some((_, unified)) = &self.unified {
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
    pub fn oom_kills(&self) -> u64 {
        let v1 = self.v1.iter().filter(|(hierarchy, _)| hierarchy.has("memory"));
        v1.map(|(_, dir)| dir.join("memory.oom_control"))
            .chain(self.unified.iter().map(|(_, dir)| dir.join("memory.events")))
            .filter_map(|file| std::fs::read_to_string(file).ok())
            .filter_map(|text| {
                let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
                count.trim().parse::<u64>().ok()
            })
            .sum()
    }

    /// What the processes in the groups have used by now. Blocks.
    pub fn sample(&self) -> Sample {
        let mut sample = Sample::at(SystemTime::now());
        for (hierarchy, dir) in &self.v1 {
            usage::read_v1(hierarchy, dir, &mut sample);
        }
        match &self.unified {
            // Beside version 1, this hierarchy counts nothing.
            Some((_, dir)) if self.v1.is_empty() => usage::read_v2(dir, &mut sample),
            _ => {}
        }
        sample
    }

    /// Kills what is left, then removes the groups. Blocks.
    pub fn remove(&self) {
        let deadline = Instant::now() + REMOVE_PATIENCE;
        for dir in self.dirs() {
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
        for dir in self.dirs() {
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
        let controllers = vec!["rw".to_owned(), "pids".to_owned()];
        assert_eq!(both.v1, [Hierarchy { path: "/sys/fs/cgroup/pids".into(), controllers }]);
        assert_eq!(both.v2, Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let groups = ContainerGroups::new(&both, Some("/buildkit/x"));
        assert_eq!(groups.dirs().count(), 2);
        assert_eq!(ContainerGroups::new(&both, Some("/")).dirs().count(), 0, "never the root itself");
        assert_eq!(ContainerGroups::new(&both, Some("a.slice:x")).dirs().count(), 0);
    }
}
