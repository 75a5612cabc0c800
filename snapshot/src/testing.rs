//! For tests of this crate and others: a snapshotter of plain directories, and the conformance suite.

pub mod conformance;
mod plain;
mod scribble;

pub use self::plain::PlainSnapshotter;
pub use self::scribble::{describe, scribble};
