#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod canonical;
pub mod caps;
mod definition;
mod error;
pub mod gojson;
pub mod pb;
pub mod platform;
pub mod protojson;
pub mod render;
mod schema;
pub mod state;
mod wire;

pub use crate::canonical::is_canonical_op;
pub use crate::definition::{Entry, RawOp, VertexDigest, canonical_op, marshal_op, walk};
pub use crate::error::{Error, Result};
pub use crate::schema::Schema;
pub use crate::state::State;
pub use crate::wire::Message;

/// Encoded `FileDescriptorSet` of the messages in [`pb`].
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
