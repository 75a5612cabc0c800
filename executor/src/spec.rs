//! The OCI runtime spec of a step.

use std::path::{Path, PathBuf};

use kiln_rootdir::Root;

use crate::devices::DeviceNode;
use crate::error::{Error, Result};
use crate::network::NetworkNamespace;
use crate::oci;
use crate::port::ContainerId;
use crate::process::{DEFAULT_HOSTNAME, DEFAULT_PATH, LinuxResources, ProcessSpec, SecurityMode};
use crate::seccomp;

/// What a sandboxed step may do: mask a80425fb.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Capabilities by their numbers in the kernel.
pub const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Character devices that every step may use, besides terminals: null, random, full, tty, zero, urandom,
/// console, pseudo-terminals, ptmx.
const DEVICES: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(8)),
    (1, Some(7)),
    (5, Some(0)),
    (1, Some(5)),
    (1, Some(9)),
    (5, Some(1)),
    (136, None),
    (5, Some(2)),
];

/// Nodes that an insecure step finds, whether the host has them or not.
const INSECURE_DEVICES: [(&str, i64, i64); 6] = [
    ("/dev/kmsg", 1, 11),
    ("/dev/cuse", 10, 203),
    ("/dev/fuse", 10, 229),
    ("/dev/kvm", 10, 232),
    ("/dev/net/tun", 10, 200),
    ("/dev/loop-control", 10, 237),
];
/// The loop devices that an insecure step finds beyond the first free one.
const EXTRA_LOOPS: i64 = 7;

/// The group of terminals.
const TTY_GROUP: u32 = 5;
/// How terminals are mounted; last, whose they are.
const TERMINALS: [&str; 6] = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];

/// What the spec of a step is made from, besides what the step itself asks for.
#[derive(Clone, Debug)]
pub struct Surroundings<'a> {
    /// Its name.
    pub id: &'a ContainerId,
    /// Where its root filesystem is mounted.
    pub rootfs: &'a Path,
    /// Who it runs as.
    pub user: oci::User,
    /// The op's mounts, in any order.
    pub mounts: Vec<oci::Mount>,
    /// The file for `/etc/hosts`.
    pub hosts: &'a Path,
    /// The file for `/etc/resolv.conf`.
    pub resolv_conf: &'a Path,
    /// Its network.
    pub network: &'a NetworkNamespace,
    /// What kind of machine it runs on.
    pub machine: &'a Machine,
}

/// What is the same for all steps of a worker.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Whether control groups are of version 2 alone, and have a namespace.
    pub unified_cgroups: bool,
    /// The parent group of steps that ask for none.
    pub cgroup_parent: Option<String>,
    /// Whether the daemon may not manage control groups and `/sys`.
    pub rootless: bool,
    /// The AppArmor profile of sandboxed steps.
    pub apparmor_profile: Option<String>,
    /// Whether there are system call filters.
    pub seccomp: bool,
    /// Whether the group that terminals usually belong to has no number in the daemon's user namespace.
    pub no_tty_group: bool,
}

impl Machine {
    /// Looks at the machine this process runs on.
    pub fn detect() -> Self {
        Self {
            unified_cgroups: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            seccomp: seccomp::is_supported(),
            no_tty_group: !has_group(TTY_GROUP),
            ..Self::default()
        }
    }
}

/// Makes the spec of a step.
pub fn make(process: &ProcessSpec, around: Surroundings<'_>) -> Result<oci::Spec> {
    let insecure = process.security == SecurityMode::Insecure;
    let machine = around.machine;
    Ok(oci::Spec {
        oci_version: "1.0.2".to_owned(),
        process: oci_process(process, around.user.clone(), machine)?,
        root: oci::Root { path: around.rootfs.to_owned(), readonly: process.read_only_root },
        hostname: process.hostname.clone().unwrap_or_else(|| DEFAULT_HOSTNAME.to_owned()),
        linux: oci::Linux {
            resources: (!machine.rootless)
                .then(|| resources(&process.resources, &process.devices.nodes, insecure)),
            cgroups_path: (!machine.rootless)
                .then(|| cgroups_path(around.id, process.cgroup_parent.as_deref(), machine)),
            namespaces: namespaces(around.network, machine),
            devices: devices(process, &around.user, insecure),
            seccomp: match machine.seccomp && !insecure {
                true => Some(seccomp::default_filter()?),
                false => None,
            },
            masked_paths: if insecure { Vec::new() } else { owned(&MASKED_PATHS) },
            readonly_paths: if insecure { Vec::new() } else { owned(&READ_ONLY_PATHS) },
            ..oci::Linux::default()
        },
        mounts: mounts(&around, &process.devices.mounts, insecure),
    })
}

/// The process part alone, as `exec` wants it.
pub fn oci_process(process: &ProcessSpec, user: oci::User, machine: &Machine) -> Result<oci::Process> {
    if process.args.is_empty() {
        return Err(Error::InvalidSpec { reason: "no command to run".to_owned() });
    }
    let all = process.args.iter().chain(&process.env).chain([&process.cwd]);
    if all.into_iter().any(|text| text.contains('\0')) {
        return Err(Error::InvalidSpec { reason: "zero byte in the command or its environment".to_owned() });
    }
    let insecure = process.security == SecurityMode::Insecure;
    let mut env = process.env.clone();
    env.extend(process.devices.env.iter().cloned());
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    let mut user = user;
    for group in &process.devices.groups {
        if !user.additional_gids.contains(group) {
            user.additional_gids.push(*group);
        }
    }
    Ok(oci::Process {
        terminal: process.tty,
        user,
        args: process.args.clone(),
        env,
        cwd: working_dir(process),
        capabilities: if insecure { all_capabilities()? } else { default_capabilities() },
        rlimits: process
            .ulimits
            .iter()
            .map(|limit| oci::Rlimit {
                kind: format!("RLIMIT_{}", limit.name.to_uppercase()),
                hard: limit.hard,
                soft: limit.soft,
            })
            .collect(),
        no_new_privileges: false,
        apparmor_profile: machine.apparmor_profile.clone().filter(|_| !insecure),
        selinux_label: None,
        oom_score_adj: None,
    })
}

/// The working directory of a process, absolute.
pub fn working_dir(process: &ProcessSpec) -> String {
    if process.cwd.is_empty() { "/".to_owned() } else { process.cwd.clone() }
}

/// Makes the working directory in a root filesystem if it is missing, with each directory on the way owned by
/// the user.
pub fn make_working_dir(root: &Root, process: &ProcessSpec, user: &oci::User) -> Result<()> {
    let cwd = working_dir(process);
    if cwd == "/" {
        return Ok(());
    }
    if !cwd.starts_with('/') {
        return Err(Error::InvalidSpec { reason: format!("working directory `{cwd}` is not absolute") });
    }
    let failed = Error::root("make the working directory");
    let made = root.mkdir_all(&cwd, 0o755).and_then(|created| {
        if (user.uid, user.gid) == (0, 0) {
            return Ok(());
        }
        created.iter().try_for_each(|path| root.chown(path, user.uid, user.gid))
    });
    made.map_err(failed)
}

/// The control group of a step, from the root of each hierarchy.
pub fn cgroups_path(id: &ContainerId, parent: Option<&str>, machine: &Machine) -> String {
    let parent = parent.filter(|parent| !parent.is_empty()).or(machine.cgroup_parent.as_deref());
    match parent.unwrap_or_default() {
        "" => format!("/buildkit/{id}"),
        parent if parent.contains(".slice") && parent.ends_with(':') => format!("{parent}{id}"),
        parent => clean(&format!("/{parent}/buildkit/{id}")),
    }
}

/// The path without `.`, `..` and doubled slashes, none of which may reach above the root.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn mounts(around: &Surroundings<'_>, of_devices: &[oci::Mount], insecure: bool) -> Vec<oci::Mount> {
    let sys = if insecure { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &TERMINALS[..TERMINALS.len() - usize::from(around.machine.no_tty_group)],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
    ];
    for (destination, file) in [("/etc/resolv.conf", around.resolv_conf), ("/etc/hosts", around.hosts)] {
        mounts.push(mount(destination, "bind", file, &["nosuid", "noexec", "nodev", "rbind", "ro"]));
    }
    mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &[sys, "nosuid", "noexec", "nodev"]));
    let mut own = around.mounts.clone();
    own.sort_by(|a, b| a.destination.as_os_str().cmp(b.destination.as_os_str()));
    for mount in own.into_iter().chain(of_devices.iter().cloned()) {
        match mounts.iter_mut().find(|known| known.destination == mount.destination) {
            Some(known) => *known = mount,
            None => mounts.push(mount),
        }
    }
    if around.machine.rootless {
        mounts.retain(|mount| !mount.destination.starts_with("/sys"));
    }
    mounts
}

fn mount(destination: &str, kind: &str, source: impl Into<PathBuf>, options: &[&str]) -> oci::Mount {
    oci::Mount {
        destination: destination.into(),
        kind: kind.to_owned(),
        source: source.into(),
        options: owned(options),
    }
}

fn namespaces(network: &NetworkNamespace, machine: &Machine) -> Vec<oci::Namespace> {
    let mut kinds = vec!["pid", "ipc", "uts", "mount"];
    if machine.unified_cgroups {
        kinds.push("cgroup");
    }
    let mut namespaces: Vec<oci::Namespace> =
        kinds.into_iter().map(|kind| oci::Namespace { kind: kind.to_owned(), path: None }).collect();
    let network = match network {
        NetworkNamespace::Host => return namespaces,
        NetworkNamespace::Empty => None,
        NetworkNamespace::At(path) => Some(path.clone()),
    };
    namespaces.push(oci::Namespace { kind: "network".to_owned(), path: network });
    namespaces
}

fn devices(process: &ProcessSpec, user: &oci::User, insecure: bool) -> Vec<oci::Device> {
    let mut devices = if insecure && !in_user_namespace() { insecure_devices() } else { Vec::new() };
    for node in &process.devices.nodes {
        devices.retain(|device| device.path != node.path);
        devices.push(oci::Device {
            path: node.path.clone(),
            kind: node.kind.clone(),
            major: node.major,
            minor: node.minor,
            file_mode: node.file_mode,
            uid: node.uid.unwrap_or(user.uid),
            gid: node.gid.unwrap_or(user.gid),
        });
    }
    devices
}

fn resources(asked: &LinuxResources, nodes: &[DeviceNode], insecure: bool) -> oci::Resources {
    let rule = |allow, kind: Option<&str>, major, minor| oci::DeviceRule {
        allow,
        kind: kind.map(str::to_owned),
        major,
        minor,
        access: "rwm".to_owned(),
    };
    let mut devices = vec![rule(false, None, None, None)];
    if insecure {
        devices.extend([rule(true, Some("c"), None, None), rule(true, Some("b"), None, None)]);
    } else {
        devices.extend(DEVICES.map(|(major, minor)| rule(true, Some("c"), Some(major), minor)));
    }
    devices.extend(nodes.iter().map(|node| oci::DeviceRule {
        allow: true,
        kind: Some(if node.kind == "b" { "b" } else { "c" }.to_owned()),
        major: Some(node.major),
        minor: Some(node.minor),
        access: node.access.clone(),
    }));
    let limit = |value: i64| (value != 0).then_some(value);
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let memory = oci::Memory { limit: limit(asked.memory), swap: limit(asked.memory_swap) };
    let cpu = oci::Cpu {
        shares: positive(asked.cpu_shares),
        quota: limit(asked.cpu_quota),
        period: positive(asked.cpu_period),
        cpus: asked.cpuset_cpus.clone(),
        mems: asked.cpuset_mems.clone(),
    };
    oci::Resources {
        devices,
        memory: (memory != oci::Memory::default()).then_some(memory),
        cpu: (cpu != oci::Cpu::default()).then_some(cpu),
    }
}

fn default_capabilities() -> oci::Capabilities {
    let set = owned(&DEFAULT_CAPABILITIES);
    oci::Capabilities {
        bounding: set.clone(),
        effective: set.clone(),
        permitted: set,
        ..oci::Capabilities::default()
    }
}

/// Every capability the daemon has, in all five sets.
fn all_capabilities() -> Result<oci::Capabilities> {
    let path = Path::new("/proc/self/status");
    let status = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    let set: Vec<String> = CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(number, _)| mask & (1 << number) != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect();
    Ok(oci::Capabilities {
        bounding: set.clone(),
        effective: set.clone(),
        permitted: set.clone(),
        inheritable: set.clone(),
        ambient: set,
    })
}

fn insecure_devices() -> Vec<oci::Device> {
    let device = |path: String, kind: &str, major, minor| oci::Device {
        path,
        kind: kind.to_owned(),
        major,
        minor,
        file_mode: 0o666,
        uid: 0,
        gid: 0,
    };
    let mut devices: Vec<oci::Device> = INSECURE_DEVICES
        .iter()
        .map(|(path, major, minor)| device((*path).to_owned(), "c", *major, *minor))
        .collect();
    for minor in 0..=first_free_loop() + EXTRA_LOOPS {
        devices.push(device(format!("/dev/loop{minor}"), "b", 7, minor));
    }
    devices
}

/// The lowest loop device without a file behind it.
fn first_free_loop() -> i64 {
    (0..256).find(|minor| !Path::new(&format!("/sys/block/loop{minor}/loop")).exists()).unwrap_or(0)
}

/// Whether this process is in a user namespace other than the machine's first.
pub fn in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| {
        let fields: Vec<&str> = map.split_whitespace().collect();
        fields != ["0", "0", "4294967295"]
    })
}

/// Whether a group has a number in this process's user namespace.
fn has_group(gid: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    map.lines().any(|line| {
        let fields: Vec<u32> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        matches!(fields.as_slice(), [first, _, count] if gid >= *first && gid - first < *count)
    })
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
