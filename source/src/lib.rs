//! Where inputs come from: images and local directories.
//!
//! - [`image`]: references are resolved to documents and lazy layers; [`image::ImageProvider`] fetches the layers.
//! - [`local`]: directories of a client, received as a difference to what the last build got.
//! - [`platform`]: which manifest of an index suits a platform.
//!
//! A source gives cache maps and refs; it knows nothing of LLB vertices, and credentials and sessions are lent to it
//! for each call.
#![forbid(unsafe_code)]

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

mod error;
pub mod image;
mod key;
mod lent;
pub mod local;
pub mod platform;
mod progress;

pub use crate::error::{BoxError, Error, Result};
pub use crate::key::{cache_map, key_digest};
pub use crate::lent::{SessionCredentials, SessionLayouts};
