//! Containers from an OCI runtime spec, without a runtime to install.
//!
//! A [`Runtime`] has a helper process: the daemon's own program, started again under another name, with one thread.
//! It does nothing but make processes on demand, in new namespaces and in their control groups. A new process
//! becomes the step by itself, by the plan that the daemon sends it. The daemon never forks: it has many threads.
//!
//! The numbered contract is in the crate's README. What a step asks for, snapshots and networks are not this
//! crate's business, and neither is waiting for a step's end: there are descriptors to wait for.

mod become_step;
pub mod cgroups;
mod child;
mod error;
mod helper;
mod mount_plan;
mod netns;
mod plan;
mod rootfs;
mod rootless;
mod runtime;
mod seccomp;
mod spares;
#[expect(unsafe_code, reason = "namespaces, filters and programs come through bare system calls")]
mod sys;
mod wire;

pub use crate::error::{Error, Result};
pub use crate::helper::{is_helper, run_helper};
pub use crate::netns::make_network_namespace;
pub use crate::rootless::{Ids, enter_user_namespace};
pub use crate::runtime::{Container, Options, Process, Program, Runtime, Stdio, Terminal, watch};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
