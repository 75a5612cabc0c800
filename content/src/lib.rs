//! Content-addressed blobs, compression codecs and layer tars.
//!
//! - [`ContentStore`] and [`BlobWriter`] are the ports; [`LocalStore`] keeps blobs in a directory.
//! - [`Descriptor`], [`Manifest`], [`Index`], [`ImageConfig`]: the documents of images, with the field order and
//!   escaping that other engines write, so that equal content has equal bytes.
//! - [`Compression`], [`compressor`], [`decompressor`]: gzip, zstd and none; parallel, and with bytes that do not
//!   depend on the number of threads.
//! - [`tar`]: headers as Go's `archive/tar` reads and writes them.
//! - [`layer`]: tars of layers applied to and made from directories in overlay "upper" form.
//!
//! This crate knows nothing of registries, snapshotters or caches.
#![forbid(unsafe_code)]
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod codec;
mod compression;
mod config;
mod descriptor;
mod error;
pub mod json;
pub mod layer;
mod local;
mod manifest;
pub mod media_type;
mod platform;
mod store;
pub mod tar;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use crate::codec::{
    CodecOptions, CodecPool, Compressor, Decompressor, compress, compressor, decompressor,
};
pub use crate::compression::Compression;
pub use crate::config::{Config, Empty, History, ImageConfig, RootFs};
pub use crate::descriptor::Descriptor;
pub use crate::error::{Error, Result};
pub use crate::local::{Ingest, LocalStore};
pub use crate::manifest::{Index, Manifest};
pub use crate::platform::Platform;
pub use crate::store::{BlobInfo, BlobWriter, ContentStore, ContentStoreExt};
