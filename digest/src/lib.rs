//! The sha256 digest value: parse, order, hash while reading or writing.
//!
//! A [`Digest`] is what its text form `sha256:<64 lower case hex digits>` names: 32 bytes, cheap to copy, ordered
//! like its text. [`Hasher`], [`HashingReader`] and [`HashingWriter`] make one from bytes.
//! [`KeyDigest`] also admits `random:`, which marks cache keys that mean nothing outside one daemon.
#![forbid(unsafe_code)]

mod digest;
mod hasher;
mod key;

pub use crate::digest::{Digest, ParseError};
pub use crate::hasher::{Hasher, HashingReader, HashingWriter};
pub use crate::key::KeyDigest;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
