//! Directories of a client.

mod receive;
mod request;

pub use self::receive::Locals;
pub use self::request::{Differ, LocalRequest};
