//! Include and exclude patterns of build contexts, copies and ignore files.
//!
//! [`Patterns`] is an ordered list in which later entries win and `!` negates; [`Filter`] joins an include and
//! an exclude list for a walk that prunes; [`ignore_file`] reads `.dockerignore`. This crate touches no
//! filesystem: it is told paths, relative to the root of the walk, with `/` between components.
#![forbid(unsafe_code)]

mod clean;
mod error;
mod filter;
mod glob;
mod ignore_file;
mod list;
mod wildcard;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use crate::clean::{clean, clean_absolute};
pub use crate::error::{Error, Result};
pub use crate::filter::{DirState, Filter, Visit};
pub use crate::ignore_file::ignore_file;
pub use crate::list::{MAX_PATTERN_LEN, MAX_PATTERNS, MatchState, Patterns};
pub use crate::wildcard::has_wildcard;
