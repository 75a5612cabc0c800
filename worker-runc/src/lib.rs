//! Processes on this machine through the built-in runtime, or through `runc` or `crun`.
//!
//! [`RuncExecutor`] mounts what a step needs and lets the runtime run it. The runtime is given as little to do as
//! possible: the container's state and control groups are removed by this crate, off the critical path.
#![forbid(unsafe_code)]

mod builtin;
mod bundle;
mod exec;
mod executor;
mod leftovers;
mod mounts;
mod options;
mod output;
mod pumps;
mod recorder;
mod registry;
mod run;
mod runtime;
mod watcher;

pub use crate::executor::RuncExecutor;
pub use crate::options::RuncOptions;
pub use kiln_runtime::Program;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
