//! Processes on this machine through an OCI runtime.
//!
//! [`RuncExecutor`] mounts what a step needs, writes a bundle and lets `runc` or `crun` run it. The runtime is
//! given as little to do as possible: the container's state and control groups are removed by this crate, off
//! the critical path.
#![forbid(unsafe_code)]

mod bundle;
mod cgroups;
mod exec;
mod executor;
mod leftovers;
mod mounts;
mod options;
mod output;
mod registry;
mod run;
mod runtime;
mod watcher;

pub use crate::executor::RuncExecutor;
pub use crate::options::RuncOptions;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
