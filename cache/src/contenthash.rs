//! Content checksums: what a cache key says about a part of a tree.
//!
//! Digests are those of moby/buildkit: cache/contenthash, so that exported caches hit on either side. A [`Tree`]
//! holds what is known of one record; it is filled lazily from a mounted view, or from the change events of a
//! received context.

mod answer;
mod changes;
mod header;
mod listing;
mod select;
mod selector;
mod store;
mod tree;
mod wildcard;

pub use self::answer::nil_content_digest;
pub(crate) use self::answer::{Trees, transferred};
pub use self::changes::{ChangeLog, ContentChange};
pub use self::header::{ContentHeader, EntryKind};
pub use self::listing::ListingChange;
pub use self::selector::ContentSelector;
pub(crate) use self::tree::Tree;

#[cfg(test)]
mod tests;
