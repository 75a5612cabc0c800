//! Files opened by hostile paths under a root that they cannot leave.
//!
//! A [`Root`] is an opened directory. Every path given to it is resolved by the kernel (`openat2`, Linux 5.6)
//! as if that directory were `/`: symbolic links are followed, absolute ones start at the root, `..` stops
//! there, and magic links (`/proc/<pid>/root` and their kind) are refused.
//!
//! The crate does blocking calls only and knows nothing of layers, owners' names or patterns.
#![forbid(unsafe_code)]

mod attributes;
mod entries;
mod error;
mod metadata;
mod open;
mod remove;
mod resolve;
mod root;
#[cfg(test)]
mod tests;

pub use crate::entries::Entry;
pub use crate::error::{Error, Result};
pub use crate::metadata::{Kind, Metadata, Time};
pub use crate::open::OpenOptions;
pub use crate::root::Root;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
