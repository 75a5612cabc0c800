//! A spec made ready for the new process: numbers instead of names, checked, and no decision left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_executor::oci;
use kiln_executor::spec::CAPABILITIES;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::mount_plan::MountPlan;

/// What the new process does before it becomes the step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) process: ProcessPlan,
    pub(crate) root: PathBuf,
    pub(crate) read_only_root: bool,
    pub(crate) hostname: String,
    pub(crate) mounts: Vec<MountPlan>,
    pub(crate) devices: Vec<Node>,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) read_only: Vec<PathBuf>,
    pub(crate) sysctl: BTreeMap<String, String>,
    /// Namespaces to enter that are there already, by path.
    pub(crate) join_network: Option<PathBuf>,
    pub(crate) new_network: bool,
    pub(crate) new_cgroup: bool,
    pub(crate) user_namespace: bool,
    /// Device nodes cannot be made: the host's are shown in their places.
    pub(crate) bind_devices: bool,
    /// Where version 1 hierarchies are mounted outside, and the container's group in each, for `cgroup` mounts.
    pub(crate) cgroup_v1: Vec<(String, PathBuf)>,
    pub(crate) keyring: String,
}

/// The process part, which `exec` has too.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProcessPlan {
    pub(crate) terminal: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) capabilities: Capabilities,
    pub(crate) rlimits: Vec<(u32, u64, u64)>,
    pub(crate) no_new_privileges: bool,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) apparmor_profile: Option<String>,
    pub(crate) selinux_label: Option<String>,
    /// Instructions of the system call filter.
    pub(crate) filter: Option<Vec<u64>>,
}

/// Capability sets as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capabilities {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

/// A device node to make.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) path: PathBuf,
    pub(crate) block: bool,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Plan {
    /// Takes a spec apart. `filter` is its system call filter, compiled.
    pub(crate) fn new(id: &str, spec: &oci::Spec, filter: Option<Vec<u64>>) -> Result<Self> {
        let linux = &spec.linux;
        if let Some(path) = linux.cgroups_path.as_deref().filter(|path| !path.starts_with('/')) {
            return Err(Error::spec(format!(
                "control group `{path}` is not an absolute path, and the built-in runtime takes no other"
            )));
        }
        let namespaces = Namespaces::new(linux)?;
        if linux.mount_label.is_some() {
            return Err(Error::spec("mount labels are not supported"));
        }
        for path in linux.masked_paths.iter().chain(&linux.readonly_paths) {
            absolute(Path::new(path))?;
        }
        Ok(Self {
            process: ProcessPlan::new(&spec.process, filter)?,
            root: absolute(&spec.root.path)?,
            read_only_root: spec.root.readonly,
            hostname: spec.hostname.clone(),
            mounts: spec.mounts.iter().map(MountPlan::new).collect::<Result<_>>()?,
            devices: linux.devices.iter().map(Node::new).collect::<Result<_>>()?,
            masked: linux.masked_paths.iter().map(PathBuf::from).collect(),
            read_only: linux.readonly_paths.iter().map(PathBuf::from).collect(),
            sysctl: sysctl(&linux.sysctl, &namespaces)?,
            join_network: namespaces.network_path.clone(),
            new_network: namespaces.network && namespaces.network_path.is_none(),
            new_cgroup: namespaces.cgroup,
            user_namespace: namespaces.user,
            bind_devices: namespaces.user || kiln_executor::spec::in_user_namespace(),
            cgroup_v1: Vec::new(),
            keyring: format!("_ses.{id}"),
        })
    }
}

/// The namespaces that a spec asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Namespaces {
    pub(crate) ipc: bool,
    pub(crate) network: bool,
    pub(crate) network_path: Option<PathBuf>,
    pub(crate) cgroup: bool,
    pub(crate) user: bool,
}

impl Namespaces {
    pub(crate) fn new(linux: &oci::Linux) -> Result<Self> {
        let mut found = Self::default();
        let (mut pid, mut uts, mut mount) = (false, false, false);
        for namespace in &linux.namespaces {
            match (namespace.kind.as_str(), &namespace.path) {
                ("network", Some(path)) => {
                    found.network = true;
                    found.network_path = Some(absolute(path)?);
                }
                (kind, Some(_)) => {
                    return Err(Error::spec(format!("joining a {kind} namespace is not supported")));
                }
                ("pid", None) => pid = true,
                ("uts", None) => uts = true,
                ("mount", None) => mount = true,
                ("ipc", None) => found.ipc = true,
                ("network", None) => found.network = true,
                ("cgroup", None) => found.cgroup = true,
                ("user", None) => found.user = true,
                (kind, None) => {
                    return Err(Error::spec(format!("namespaces of kind {kind} are not supported")));
                }
            }
        }
        // The death of a container rests on the first of these, and everything else on the last.
        for (there, kind) in [(pid, "pid"), (uts, "uts"), (found.ipc, "ipc"), (mount, "mount")] {
            if !there {
                return Err(Error::spec(format!("a container without a {kind} namespace is not supported")));
            }
        }
        if found.user != (!linux.uid_mappings.is_empty() && !linux.gid_mappings.is_empty()) {
            return Err(Error::spec("a user namespace needs uidMappings and gidMappings, and they need it"));
        }
        Ok(found)
    }

    /// The kinds to make at once, as flags for `clone3`. Those of mounts and control groups come later, when
    /// what they start from is settled.
    pub(crate) fn clone_flags(&self) -> u64 {
        let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        if self.user {
            flags |= libc::CLONE_NEWUSER;
        }
        if self.network && self.network_path.is_none() {
            flags |= libc::CLONE_NEWNET;
        }
        flags as u64
    }
}

impl Namespaces {
    /// The kinds that another process of the container has to enter. It is in the one of process ids from the start.
    pub(crate) fn join_flags(&self) -> u64 {
        let mut flags = libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWNS;
        for (has, kind) in [
            (self.user, libc::CLONE_NEWUSER),
            (self.network, libc::CLONE_NEWNET),
            (self.cgroup, libc::CLONE_NEWCGROUP),
        ] {
            if has {
                flags |= kind;
            }
        }
        flags as u64
    }
}

impl ProcessPlan {
    pub(crate) fn new(process: &oci::Process, filter: Option<Vec<u64>>) -> Result<Self> {
        if process.args.is_empty() {
            return Err(Error::spec("no command to run"));
        }
        let sets = &process.capabilities;
        Ok(Self {
            terminal: process.terminal,
            uid: process.user.uid,
            gid: process.user.gid,
            groups: process.user.additional_gids.clone(),
            args: process.args.clone(),
            env: process.env.clone(),
            cwd: process.cwd.clone(),
            capabilities: Capabilities {
                bounding: mask(&sets.bounding)?,
                effective: mask(&sets.effective)?,
                permitted: mask(&sets.permitted)?,
                inheritable: mask(&sets.inheritable)?,
                ambient: mask(&sets.ambient)?,
            },
            rlimits: process.rlimits.iter().map(rlimit).collect::<Result<_>>()?,
            no_new_privileges: process.no_new_privileges,
            oom_score_adj: process.oom_score_adj,
            apparmor_profile: process.apparmor_profile.clone(),
            selinux_label: process.selinux_label.clone(),
            filter,
        })
    }
}

impl Node {
    fn new(device: &oci::Device) -> Result<Self> {
        let number = |value: i64| {
            u32::try_from(value)
                .map_err(|_| Error::spec(format!("device `{}` has a negative number", device.path)))
        };
        let block = match device.kind.as_str() {
            "c" | "u" => false,
            "b" => true,
            kind => return Err(Error::spec(format!("device `{}` is of unknown kind {kind}", device.path))),
        };
        Ok(Self {
            path: absolute(Path::new(&device.path))?,
            block,
            major: number(device.major)?,
            minor: number(device.minor)?,
            mode: device.file_mode,
            uid: device.uid,
            gid: device.gid,
        })
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    match path.is_absolute() {
        true => Ok(path.to_owned()),
        false => Err(Error::spec(format!("`{}` is not absolute", path.display()))),
    }
}

fn mask(names: &[String]) -> Result<u64> {
    names.iter().try_fold(0, |mask, name| match CAPABILITIES.iter().position(|known| known == name) {
        Some(number) => Ok(mask | 1 << number),
        None => Err(Error::spec(format!("capability {name} is not known"))),
    })
}

fn rlimit(limit: &oci::Rlimit) -> Result<(u32, u64, u64)> {
    let number = match limit.kind.as_str() {
        "RLIMIT_CPU" => libc::RLIMIT_CPU,
        "RLIMIT_FSIZE" => libc::RLIMIT_FSIZE,
        "RLIMIT_DATA" => libc::RLIMIT_DATA,
        "RLIMIT_STACK" => libc::RLIMIT_STACK,
        "RLIMIT_CORE" => libc::RLIMIT_CORE,
        "RLIMIT_RSS" => libc::RLIMIT_RSS,
        "RLIMIT_NPROC" => libc::RLIMIT_NPROC,
        "RLIMIT_NOFILE" => libc::RLIMIT_NOFILE,
        "RLIMIT_MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "RLIMIT_AS" => libc::RLIMIT_AS,
        "RLIMIT_LOCKS" => libc::RLIMIT_LOCKS,
        "RLIMIT_SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "RLIMIT_MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => libc::RLIMIT_NICE,
        "RLIMIT_RTPRIO" => libc::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => libc::RLIMIT_RTTIME,
        other => return Err(Error::spec(format!("resource limit {other} is not known"))),
    };
    Ok((number, limit.soft, limit.hard))
}

/// Only settings that belong to a namespace of the container: any other would be the host's.
fn sysctl(asked: &BTreeMap<String, String>, namespaces: &Namespaces) -> Result<BTreeMap<String, String>> {
    const IPC: [&str; 8] =
        ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
    for name in asked.keys() {
        let own = match name.split_once('.') {
            Some(("net", _)) => namespaces.network,
            Some(("fs", rest)) => rest.starts_with("mqueue."),
            Some(("kernel", rest)) => IPC.contains(&rest) || rest == "domainname",
            _ => false,
        };
        if !own || name.contains('/') || name.contains("..") {
            return Err(Error::spec(format!("sysctl {name} is not in a namespace of the container")));
        }
    }
    Ok(asked.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> oci::Spec {
        let namespace = |kind: &str| oci::Namespace { kind: kind.into(), path: None };
        let mut spec = oci::Spec::default();
        spec.process.args = vec!["true".into()];
        spec.root.path = "/r".into();
        spec.linux.namespaces = ["pid", "ipc", "uts", "mount"].map(namespace).into();
        spec
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut oci::Spec), want: &str) {
        let mut spec = spec();
        change(&mut spec);
        let got = Plan::new("x", &spec, None);
        match got {
            Ok(_) => assert_eq!(want, ""),
            Err(error) => assert_eq!(error.to_string(), want),
        }
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        check(|_| {}, "");
        check(|s| s.process.args.clear(), "no command to run");
        check(|s| s.root.path = "r".into(), "`r` is not absolute");
        check(|s| drop(s.linux.namespaces.remove(0)), "a container without a pid namespace is not supported");
        check(
            |s| s.linux.namespaces.push(oci::Namespace { kind: "time".into(), path: None }),
            "namespaces of kind time are not supported",
        );
        check(
            |s| s.linux.namespaces.push(oci::Namespace { kind: "user".into(), path: None }),
            "a user namespace needs uidMappings and gidMappings, and they need it",
        );
        check(
            |s| s.process.capabilities.bounding = vec!["CAP_FLY".into()],
            "capability CAP_FLY is not known",
        );
        check(
            |s| s.process.rlimits = vec![oci::Rlimit { kind: "RLIMIT_FUN".into(), soft: 1, hard: 1 }],
            "resource limit RLIMIT_FUN is not known",
        );
        for name in ["kernel.panic", "vm.swappiness", "net.core.somaxconn", "kernel.shmmax/../panic"] {
            check(
                |s| drop(s.linux.sysctl.insert(name.into(), "1".into())),
                &format!("sysctl {name} is not in a namespace of the container"),
            );
        }
        check(|s| drop(s.linux.sysctl.insert("kernel.shmmax".into(), "1".into())), "");
    }

    #[test]
    fn capabilities_are_bits() {
        let names = kiln_executor::spec::DEFAULT_CAPABILITIES.map(str::to_owned);
        assert_eq!(mask(&names).unwrap(), 0xa804_25fb);
    }
}
