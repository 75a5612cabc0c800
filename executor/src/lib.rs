//! The port for running processes, and the OCI runtime spec made for a step.
//!
//! Everything a step can observe is decided here: mounts and their order, users, environment, files under
//! `/etc`, capabilities, limits. Backends (`kiln-worker-runc` and others) only carry it out. The crate knows
//! nothing of LLB and starts no process.
#![forbid(unsafe_code)]

mod devices;
pub mod emulation;
mod error;
mod etc_files;
mod network;
pub mod oci;
mod port;
mod process;
mod resolv_conf;
pub mod samples;
mod seccomp;
pub mod spec;
mod step_mount;
mod stubs;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod users;

pub use crate::devices::{Device, DeviceEdits, DeviceNode, Devices, NoDevices, requested};
pub use crate::error::{Error, Result};
pub use crate::etc_files::EtcFiles;
pub use crate::network::{Network, NetworkLease, NetworkNamespace, NetworkRequest, Networks};
pub use crate::port::{ContainerId, Executor, Exit, Output, ProcessIo, Started, WindowSize};
pub use crate::process::{
    DEFAULT_HOSTNAME, DEFAULT_PATH, LinuxResources, NetworkMode, ProcessSpec, SecurityMode, Ulimit,
};
pub use crate::resolv_conf::DnsConfig;
pub use crate::step_mount::{MountKind, StepMount};
pub use crate::stubs::MountStubs;
pub use crate::users::find_user;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
