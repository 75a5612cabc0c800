//! Directories of a client.

mod request;

pub use self::request::{Differ, LocalRequest};
