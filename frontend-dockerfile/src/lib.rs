//! The Dockerfile language: lines, words, instructions, stages, and their lowering to LLB and an image config.
//!
//! [`DockerfileFrontend`] is the frontend `dockerfile.v0`. What it needs of the world it asks of a
//! [`Bridge`](kiln_frontend::Bridge): files of the context and the configs of base images. Nothing here runs a step,
//! opens a file or talks to a registry. What it produces equals the reference's, op for op.
#![forbid(unsafe_code)]

mod base64;
mod context;
mod csv;
mod epoch;
mod error;
mod frontend;
mod git_url;
mod go;
mod graph;
mod image;
mod instruction;
mod lint;
mod lower;
mod offline;
mod options;
mod parser;
mod paths;
mod platform;
mod reference;
mod shell;
mod source;
mod subrequest;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod text;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use crate::error::{Error, Result};
pub use crate::frontend::{DockerfileFrontend, NAME};
pub use crate::offline::{Files, lint};
pub use crate::source::LineRange;
