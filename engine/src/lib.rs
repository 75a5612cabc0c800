//! LLB operations on a worker: loading, executing, exporting.
//!
//! - [`load`]: definitions, checked and normalised; [`keys`]: what each op's cache key is made of.
//! - [`fileop`]: file operations on a mounted state.
//! - [`Engine`]: builds from request to response, over a [`Worker`], which is a plain struct of ports.
//! - [`caps`]: what this daemon can do.
//! - [`BuildBridge`]: what frontends, and clients that drive a build themselves, call back through.
#![forbid(unsafe_code)]

mod agents;
mod build;
mod caches;
mod caller;
pub mod caps;
mod container;
mod convert;
mod engine;
mod error;
mod export;
pub mod fileop;
mod files;
mod frontends;
mod gateway;
mod inline_cache;
pub mod keys;
mod lending;
mod limits;
pub mod load;
mod metadata;
mod ops;
mod parallel;
mod reference;
mod resources;
mod secrets;
mod worker;

pub use crate::build::BuildBridge;
pub use crate::container::{Container, ContainerMount, ContainerProcess, ContainerRequest, ProcessPlace};
pub use crate::engine::{BuildRequest, BuildResponse, CacheSpec, Engine, ExporterSpec};
pub use crate::error::{BoxError, Error, ExecError, FrontendExit, Result};
pub use crate::frontends::{BridgeServer, FrontendImages, Frontends};
pub use crate::limits::{BuildLimits, parse_duration};
pub use crate::reference::SolvedRef;
pub use crate::worker::Worker;
pub use kiln_executor::{Exit, Output, ProcessIo, WindowSize};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
