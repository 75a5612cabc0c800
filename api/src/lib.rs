//! Messages and services of the BuildKit wire protocols.
//!
//! Generated from `proto/`, client and server both, with the JSON form of [`errdetails`]: what the messages mean is decided by
//! the crates that speak them. The messages of the graph itself are [`kiln_llb::pb`].
#![forbid(unsafe_code)]

pub mod errdetails;

mod packages {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

pub use crate::packages::containerd::services::content::v1 as content;
pub use crate::packages::errdefs;
pub use crate::packages::fsutil::types as fsutil;
pub use crate::packages::google::rpc;
pub use crate::packages::kiln::v1 as kiln;
pub use crate::packages::moby::buildkit::secrets::v1 as secrets;
pub use crate::packages::moby::buildkit::v1 as control;
pub use crate::packages::moby::buildkit::v1::sourcepolicy::policysession;
pub use crate::packages::moby::buildkit::v1::{apicaps, frontend as gateway, sourcepolicy, types};
pub use crate::packages::moby::exporter::v1 as exporter;
pub use crate::packages::moby::filesync::v1 as filesync;
pub use crate::packages::moby::sshforward::v1 as sshforward;
pub use crate::packages::moby::upload::v1 as upload;
pub use crate::packages::opentelemetry::proto::collector::trace::v1 as trace;
pub use crate::packages::stack;
pub use kiln_llb::pb;

/// Encoded `FileDescriptorSet` of every message and service here, imports included.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
