use crate::devices::DeviceEdits;

/// The `PATH` of a step whose environment has none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The host name of a step that asks for none.
pub const DEFAULT_HOSTNAME: &str = "buildkitsandbox";

/// What to run, and under which conditions.
#[derive(Clone, Debug, Default)]
pub struct ProcessSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`, in order. [`DEFAULT_PATH`] is added if there is no `PATH`.
    pub env: Vec<String>,
    /// Working directory, absolute; made if it is missing. Empty is `/`.
    pub cwd: String,
    /// As in an image's configuration: `user`, `user:group`, names or numbers; empty is root.
    pub user: String,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Host name; [`DEFAULT_HOSTNAME`] if there is none.
    pub hostname: Option<String>,
    /// Names and addresses added to `/etc/hosts`, in order.
    pub extra_hosts: Vec<(String, String)>,
    /// Limits; none means the daemon's.
    pub ulimits: Vec<Ulimit>,
    /// The network of the process.
    pub network: NetworkMode,
    /// How tightly it is held.
    pub security: SecurityMode,
    /// The parent control group that the op asks for; the executor's own if there is none.
    pub cgroup_parent: Option<String>,
    /// Whether the root filesystem is mounted read-only.
    pub read_only_root: bool,
    /// Limits of the control group.
    pub resources: LinuxResources,
    /// What devices of the host change about the container.
    pub devices: DeviceEdits,
    /// Whether the directories made on the way to mount points are removed at the end too.
    pub remove_mount_stubs_recursive: bool,
}

/// One resource limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// As in `ulimit` options: `nofile`, `nproc`, `core`, …
    pub name: String,
    /// The limit in force.
    pub soft: u64,
    /// The most it can be raised to.
    pub hard: u64,
}

/// Which network a process gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// What the worker is configured for.
    #[default]
    Sandbox,
    /// That of the host.
    Host,
    /// A loopback device alone.
    None,
}

/// How tightly a process is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SecurityMode {
    /// Default capabilities, system call filter, masked paths.
    #[default]
    Sandbox,
    /// Everything the daemon itself may do.
    Insecure,
}

/// Limits of a step's control group. Zero, or an empty text, is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinuxResources {
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of memory and swap together; -1 for unlimited swap.
    pub memory_swap: i64,
    /// Relative weight of processor time.
    pub cpu_shares: i64,
    /// Microseconds of processor time per period.
    pub cpu_quota: i64,
    /// The period, in microseconds.
    pub cpu_period: i64,
    /// The processors to run on, such as `0-2,5`.
    pub cpuset_cpus: String,
    /// The memory nodes to use.
    pub cpuset_mems: String,
}
