//! The catalogue through its public API, over real stores in temporary directories.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod builds;
mod check;
mod content;
mod format;
mod keys;
mod lazy;
mod mutables;
mod power;
mod recovery;
mod refs;
mod space;
mod space_limit;
mod support;
mod together;
