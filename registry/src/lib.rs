//! A client of the OCI distribution protocol.
//!
//! [`Registry`] resolves references, fetches manifests and blobs (by range, resumed when a transfer
//! breaks or stalls) and pushes images (existence checks and cross-repository mounts first). Which
//! mirrors, schemes and certificates a host uses is decided by [`Config`].
//!
//! The crate stores nothing but short-lived tokens: bytes go to a [`kiln_content::ContentStore`] that
//! the caller brings, and credentials are asked of the caller's [`Credentials`] while a call runs.
//! It knows nothing of platforms, layers or builds.
#![forbid(unsafe_code)]

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

mod access;
mod auth;
mod challenge;
mod client;
mod document;
mod error;
mod fetch;
mod fetch_into;
mod gate;
mod hosts;
mod push;
mod reference;
mod resolve;
mod retry;
mod scope;
mod send;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;
mod token;
mod upload;

pub use crate::access::{
    Access, Anonymous, Credential, Credentials, FixedCredentials, Observer, Secret, Silent, Token,
    TokenRequest,
};
pub use crate::client::Registry;
pub use crate::document::Document;
pub use crate::error::{BoxError, Error, Kind, Result};
pub use crate::fetch::BlobStream;
pub use crate::hosts::{Config, HostConfig, KeyPair};
pub use crate::push::{PushOptions, Supply};
pub use crate::reference::Reference;
