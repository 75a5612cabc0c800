//! Networks of steps by CNI plugins.
//!
//! A [`CniNetwork`] makes a network namespace, lets the plugins of a [`NetworkList`] connect it, and keeps it for the
//! next step. The numbered contract is in the crate's README.
#![forbid(unsafe_code)]

mod config;
mod counters;
mod error;
mod namespaces;
mod network;
mod plugins;
mod pool;
mod record;

pub use crate::config::NetworkList;
pub use crate::error::{Error, Result};
pub use crate::namespaces::{KernelNamespaces, Namespaces};
pub use crate::network::{CniNetwork, CniOptions};
pub use crate::plugins::Plugins;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
