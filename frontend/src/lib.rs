//! Frontends: what turns a build's input into LLB, and what it may call back for while doing so.
//!
//! Ports and plain data. A [`Frontend`] gets a [`FrontendRequest`] and a [`Bridge`]; through the bridge it solves
//! graphs, reads files of results ([`Reference`]) and resolves what sources stand for. This crate runs nothing and
//! knows no language; `testing` has a bridge made of data.
#![forbid(unsafe_code)]

mod bridge;
mod builtin;
mod error;
mod named_context;
mod reference;
mod request;
mod result;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use crate::bridge::{
    Bridge, CacheImport, GitMetadata, HttpMetadata, ImageMetadata, OciStore, ResolveMode, ResolveRequest,
    SolveRequest, SourceMetadata, Warning,
};
pub use crate::builtin::builtin;
pub use crate::error::{BoxError, Error, ErrorKind, ErrorSource, Result};
pub use crate::named_context::{NamedContext, NamedContexts};
pub use crate::reference::{FileRange, FileStat, Reference};
pub use crate::request::{Frontend, FrontendRequest, WorkerInfo};
pub use crate::result::{Attestation, AttestationKind, FrontendResult, InTotoSubject, References};
pub use kiln_llb::pb;
