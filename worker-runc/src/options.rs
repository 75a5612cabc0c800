use std::path::PathBuf;

use kiln_executor::{DnsConfig, Networks};
use kiln_runtime::Program;

/// How a [`RuncExecutor`](crate::RuncExecutor) runs processes.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RuncOptions {
    /// The directory for bundles, state and shared files; made if missing. One executor at a time may use it.
    pub root: PathBuf,
    /// The runtime: `builtin`, which is the default, a name looked up in `PATH`, or a path.
    pub binary: Option<String>,
    /// The program that the built-in runtime starts as its helper.
    pub helper: Program,
    /// The networks of steps; the host's for those that ask for none in particular, if nothing else is given.
    pub networks: Networks,
    /// Name resolution in steps.
    pub dns: DnsConfig,
    /// The parent control group of steps that ask for none.
    pub cgroup_parent: Option<String>,
    /// Whether the daemon may not manage control groups and `/sys`.
    pub rootless: bool,
    /// The AppArmor profile of steps.
    pub apparmor_profile: Option<String>,
}

impl RuncOptions {
    /// The defaults, in `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), ..Self::default() }
    }
}
