//! For tests of this crate and others: a snapshotter of plain directories, and the conformance suite.

pub mod conformance;
mod plain;

pub use self::plain::PlainSnapshotter;
