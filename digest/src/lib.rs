//! The sha256 digest value: parse, order, hash while reading or writing.
//!
//! A [`Digest`] is what its text form `sha256:<64 lower case hex digits>` names: 32 bytes, cheap to copy, ordered
//! like its text. [`Hasher`], [`HashingReader`] and [`HashingWriter`] make one from bytes.
#![forbid(unsafe_code)]

mod digest;
mod hasher;

pub use crate::digest::{Digest, ParseError};
pub use crate::hasher::{Hasher, HashingReader, HashingWriter};
