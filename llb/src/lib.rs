//! The LLB graph language: messages, builder, canonical encoding, digests and rendering.
