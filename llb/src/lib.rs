//! The LLB graph language: messages, builder, canonical encoding, digests and rendering.
#![forbid(unsafe_code)]

pub mod pb;

/// Encoded `FileDescriptorSet` of the messages in [`pb`].
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
