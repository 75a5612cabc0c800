//! What a group's files are told.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use kiln_executor::oci::{Cpu, Memory, Resources};

use super::{Hierarchy, devices};
use crate::error::{Error, Result};

/// What steps may be limited in.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// Makes a group of version 1 and what is above it.
pub(super) fn make_v1(hierarchy: &Hierarchy, dir: &Path) -> Result<()> {
    if !hierarchy.has("cpuset") {
        return fs::create_dir_all(dir).map_err(Error::cgroup("make", dir));
    }
    // Nothing runs in a group of this kind before it is told where.
    let mut above: Vec<&Path> = dir.ancestors().take_while(|above| *above != hierarchy.path).collect();
    above.reverse();
    for dir in above {
        make(dir)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = dir.join(file);
            if read(&own)?.trim().is_empty()
                && let Some(parent) = dir.parent()
            {
                write(&own, &read(&parent.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Makes a group of version 2 and what is above it, with all controllers handed down that can be.
pub(super) fn make_v2(root: &Path, dir: &Path) -> Result<()> {
    let mut above: Vec<&Path> = dir.ancestors().skip(1).take_while(|above| above.starts_with(root)).collect();
    above.reverse();
    for dir in above {
        make(dir)?;
        let known = read(&dir.join("cgroup.controllers"))?;
        let handed_down = read(&dir.join("cgroup.subtree_control"))?;
        let has = |list: &str, name: &str| list.split_whitespace().any(|known| known == name);
        for name in CONTROLLERS.into_iter().filter(|name| has(&known, name) && !has(&handed_down, name)) {
            // A group with processes of its own cannot; a limit that needs it fails by its own name later.
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{name}"));
        }
    }
    make(dir)
}

pub(super) fn set_v1(hierarchy: &Hierarchy, dir: &Path, resources: &Resources) -> Result<()> {
    let set = |file: &str, value: String| write(&dir.join(file), &value);
    if hierarchy.has("devices") {
        devices::set_v1(dir, &resources.devices)?;
    }
    let (memory, cpu) =
        (resources.memory.clone().unwrap_or_default(), resources.cpu.clone().unwrap_or_default());
    if hierarchy.has("memory") {
        if let Some(limit) = memory.limit {
            set("memory.limit_in_bytes", limit.to_string())?;
        }
        if let Some(swap) = memory.swap {
            set("memory.memsw.limit_in_bytes", swap.to_string())?;
        }
    }
    if hierarchy.has("cpu") {
        if let Some(shares) = cpu.shares {
            set("cpu.shares", shares.to_string())?;
        }
        if let Some(period) = cpu.period {
            set("cpu.cfs_period_us", period.to_string())?;
        }
        if let Some(quota) = cpu.quota {
            set("cpu.cfs_quota_us", quota.to_string())?;
        }
    }
    if hierarchy.has("cpuset") {
        set_cpus(dir, &cpu)?;
    }
    Ok(())
}

pub(super) fn set_v2(dir: &Path, resources: &Resources) -> Result<()> {
    devices::set_v2(dir, &resources.devices)?;
    set_limits(dir, resources)
}

fn set_limits(dir: &Path, resources: &Resources) -> Result<()> {
    let set = |file: &str, value: String| write(&dir.join(file), &value);
    let Memory { limit, swap } = resources.memory.clone().unwrap_or_default();
    if let Some(limit) = limit {
        set("memory.max", bytes(limit))?;
    }
    match (swap, limit) {
        (Some(-1), _) => set("memory.swap.max", "max".to_owned())?,
        // What is told is memory and swap together; what is asked for is swap alone.
        (Some(both), Some(limit)) if both >= limit => set("memory.swap.max", bytes(both - limit))?,
        (Some(_), _) => return Err(Error::spec("a limit of memory and swap needs a lower one of memory")),
        (None, _) => {}
    }
    let cpu = resources.cpu.clone().unwrap_or_default();
    if let Some(shares) = cpu.shares {
        set("cpu.weight", weight(shares).to_string())?;
    }
    if cpu.quota.is_some() || cpu.period.is_some() {
        let quota = cpu.quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
        set("cpu.max", format!("{quota} {}", cpu.period.unwrap_or(100_000)))?;
    }
    set_cpus(dir, &cpu)
}

fn set_cpus(dir: &Path, cpu: &Cpu) -> Result<()> {
    for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if !value.is_empty() {
            write(&dir.join(file), value)?;
        }
    }
    Ok(())
}

fn bytes(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// Shares go from 2 to 262144, weights from 1 to 10000.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn make(dir: &Path) -> Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(Error::cgroup("make", dir)(error)),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::cgroup("read", path))
}

pub(super) fn write(path: &Path, value: &str) -> Result<()> {
    // Not `fs::write`: a file that is missing is not to be made.
    let file = fs::File::options().write(true).open(path);
    let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(Error::cgroup("set", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        for (shares, want) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight(shares), want, "{shares}");
        }
    }

    #[test]
    fn limits_of_version_2_are_written() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["memory.max", "memory.swap.max", "cpu.weight", "cpu.max", "cpuset.cpus", "cpuset.mems"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let memory = |limit, swap| Some(Memory { limit, swap });
        let cpu = Some(Cpu { shares: Some(1024), quota: Some(50_000), cpus: "0".into(), ..Cpu::default() });
        let resources = |memory, cpu| Resources { devices: Vec::new(), memory, cpu };
        let set = |asked: Resources| set_limits(dir.path(), &asked);
        set(resources(memory(Some(100), Some(150)), cpu)).unwrap();
        for (file, want) in [
            ("memory.max", "100"),
            ("memory.swap.max", "50"),
            ("cpu.weight", "39"),
            ("cpu.max", "50000 100000"),
            ("cpuset.cpus", "0"),
            ("cpuset.mems", ""),
        ] {
            assert_eq!(fs::read_to_string(dir.path().join(file)).unwrap(), want, "{file}");
        }
        let error = set(resources(memory(Some(100), Some(50)), None)).unwrap_err();
        assert_eq!(error.to_string(), "a limit of memory and swap needs a lower one of memory");
        fs::remove_file(dir.path().join("memory.max")).unwrap();
        let error = set(resources(memory(Some(100), None), None)).unwrap_err().to_string();
        assert!(error.starts_with("cannot set control group `") && error.contains("memory.max"), "{error}");
    }
}
