//! The port for running processes, and the OCI runtime spec made for a step.
//!
//! Everything a step can observe is decided here: mounts and their order, users, environment, files under
//! `/etc`, capabilities, limits. Backends (`kiln-worker-runc` and others) only carry it out. The crate knows
//! nothing of LLB and starts no process.
#![forbid(unsafe_code)]

mod error;
mod port;
mod process;
mod step_mount;

pub use crate::error::{Error, Result};
pub use crate::port::{ContainerId, Executor, Exit, Output, ProcessIo, Started, WindowSize};
pub use crate::process::{
    DEFAULT_HOSTNAME, DEFAULT_PATH, LinuxResources, NetworkMode, ProcessSpec, SecurityMode, Ulimit,
};
pub use crate::step_mount::{MountKind, StepMount};
