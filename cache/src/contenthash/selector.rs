//! Which part of a ref a content checksum covers.

/// A part of a tree, as an exec mount or a file action names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ContentSelector {
    /// Path inside the tree; empty and `/` are the whole tree.
    pub path: String,
    /// The path holds `*`, `?` or `[…]` to be matched.
    pub wildcard: bool,
    /// Follow a symlink in the last component.
    pub follow_links: bool,
    /// Patterns of what belongs to it, relative to the path; empty: everything.
    pub include: Vec<String>,
    /// Patterns of what does not.
    pub exclude: Vec<String>,
    /// Paths of which something has to be included.
    pub required: Vec<String>,
}
