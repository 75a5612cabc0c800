#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod address;
mod client;
mod connect;
mod error;
mod layout;
mod request;
mod solve;
mod solve_error;
mod stdio;
mod tls;

pub use crate::address::Address;
pub use crate::client::{Client, Prune, UsageFilter};
pub use crate::connect::ConnectOptions;
pub use crate::error::{Error, Result};
pub use crate::request::{CacheEntry, ExportEntry, ExportTarget, SolveOptions};
pub use crate::solve::SolveOutcome;
pub use crate::solve_error::{SolveError, SourceExcerpt};
pub use crate::tls::TlsFiles;
pub use kiln_api as api;
pub use kiln_session::attach;
