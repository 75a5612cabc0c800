//! Layers: tars of filesystem differences, and directories in overlay "upper" form.
//!
//! In that form a character device 0:0 deletes the name below, and a directory with the attribute
//! `trusted.overlay.opaque` (or `user.overlay.opaque`) set to `y` hides everything below it.

mod apply;
mod base;
mod diff;
mod rewrite;

pub use self::apply::{Applied, ApplyLimits, apply};
pub use self::diff::{DiffInfo, DiffOptions, diff};
pub use self::rewrite::rewrite_times;
