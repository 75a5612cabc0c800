//! The LLB graph language: messages, builder, canonical encoding, digests and rendering.
#![doc = ""]
#![forbid(unsafe_code)]

pub mod caps;
mod definition;
mod error;
pub mod gojson;
pub mod pb;
pub mod platform;
pub mod protojson;
pub mod render;
mod schema;
mod wire;

pub use crate::definition::{Entry, RawOp, VertexDigest, canonical_op, marshal_op, walk};
pub use crate::error::{Error, Result};
pub use crate::schema::Schema;
pub use crate::wire::Message;

/// Encoded `FileDescriptorSet` of the messages in [`pb`].
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
