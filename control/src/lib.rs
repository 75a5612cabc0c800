//! The gRPC surface of the daemon: the control, gateway, content and catalogue services over an engine, and the
//! history of builds.
//!
//! Wire types stop here; what a build is and does is the engine's.
#![forbid(unsafe_code)]

mod blobs;
mod catalogue;
mod convert;
mod errors;
mod gateway;
mod history;
mod reason;
mod service;
mod status;

pub use crate::gateway::{FrontendServer, Gateway};
pub use crate::service::{Control, ControlOptions, Version};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
