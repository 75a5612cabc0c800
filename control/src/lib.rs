//! The gRPC surface of the daemon: the control, gateway and health services over an engine.
//!
//! Wire types stop here; what a build is and does is the engine's.
#![forbid(unsafe_code)]

mod convert;
mod errors;
mod gateway;
mod reason;
mod service;
mod status;

pub use crate::gateway::{FrontendServer, Gateway};
pub use crate::service::{Control, ControlOptions, Version};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
