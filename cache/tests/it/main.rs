//! The catalogue through its public API, over real stores in temporary directories.
#![allow(missing_docs, reason = "tests")]

mod keys;
mod lazy;
mod mutables;
mod recovery;
mod refs;
mod space;
mod support;
