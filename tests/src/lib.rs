//! Real parts for integration tests, benchmarks and the quick start: a daemon and a registry of one's own.
//!
//! Each part has a directory and a loopback port of its own, waits for a condition when it starts, and is gone when it
//! is dropped.
#![forbid(unsafe_code)]

mod base_image;
mod daemon;
mod files;
mod process;
mod registry;
pub mod vectors;
mod web;

pub use base_image::push_base_image;
pub use daemon::{Daemon, DaemonOptions};
pub use files::{write_script, write_tree};
pub use process::{Binaries, Finished, wait_for};
pub use registry::Registry;
pub use web::{End, WebRequest, WebResponse, WebServer, git_answer};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
