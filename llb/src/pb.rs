//! The messages of LLB, generated from `proto/ops.proto`.
//!
//! They drop unknown fields and encode in field order; the bytes that a digest is taken of come from the
//! canonical encoder instead.
#![allow(missing_docs, clippy::all, reason = "generated")]

include!(concat!(env!("OUT_DIR"), "/pb.rs"));
