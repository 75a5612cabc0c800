#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod answer;
mod error;
mod excerpts;
mod go;
pub mod metadata;
pub mod options;
mod report;
mod run;
mod table;
mod template;
mod usage;

pub use crate::answer::{Call, Method};
pub use crate::error::{Error, Result};
pub use crate::go::{Duration, bytes, io_text, quote, short_bytes, timestamp, timestamp_text};
pub use crate::report::{describe, report, rpc_text};
pub use crate::run::{Build, Explain, Warnings, follow, random_id, warning};
pub use crate::table::Table;
pub use crate::template::Format;
pub use crate::usage::{UsageJson, row, summary, verbose_rows};
