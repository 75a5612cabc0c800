//! Content checksums: what a cache key says about a part of a tree.

mod selector;

pub use self::selector::ContentSelector;

/// Checksums of one record, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Tree;
