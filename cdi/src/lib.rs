//! Devices of the host for steps, by CDI specifications.
#![forbid(unsafe_code)]

mod registry;
mod spec;

pub use crate::registry::Registry;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
