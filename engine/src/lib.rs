//! LLB operations on a worker: loading, executing, exporting.
#![forbid(unsafe_code)]

pub mod fileop;
pub mod keys;
pub mod load;
