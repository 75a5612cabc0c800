//! Layers: tars of filesystem differences, and directories in overlay "upper" form.
//!
//! In that form a character device 0:0 deletes the name below, and a directory with the attribute
//! `trusted.overlay.opaque` (or `user.overlay.opaque`) set to `y` hides everything below it. In a tar, an empty file
//! `.wh.<name>` deletes and one named `.wh..wh..opq` hides.

mod apply;
mod base;
mod changes;
mod diff;
mod overlay;
mod rewrite;

pub use self::apply::{Applied, ApplyLimits, apply};
pub use self::diff::{DiffInfo, DiffOptions, diff};
pub use self::rewrite::rewrite_times;

/// What the name of a deletion in a tar starts with.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// What names that say something else than a deletion start with.
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
/// The name that hides everything below its directory.
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
