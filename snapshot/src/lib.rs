//! Filesystem states of a build: how they are prepared, committed and mounted.
//!
//! A *snapshot* is the difference directory of one layer in the form of an overlay's upper directory
//! (whiteouts are character devices 0:0, opaque directories have the attribute `trusted.overlay.opaque`, or
//! `user.overlay.opaque` in a user namespace). It knows no parents; a state is a *stack* of snapshots, bottom
//! first. Which stacks exist is known elsewhere: a snapshotter keeps directories and may lose them.
#![forbid(unsafe_code)]

mod difference;
mod error;
mod flatten;
mod in_place;
mod known;
mod marks;
mod mount;
mod mount_table;
mod native;
mod overlay;
mod overlay_mount;
mod skeleton;
mod snapshotter;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod unmounted;
mod usage;

pub use crate::difference::difference;
pub use crate::error::{Error, Result};
pub use crate::in_place::{in_place, may_block};
pub use crate::mount::{Mount, Mounted, TempMounted};
pub use crate::mount_table::detach_below;
pub use crate::native::NativeSnapshotter;
pub use crate::overlay::OverlaySnapshotter;
pub use crate::snapshotter::{SnapshotId, Snapshotter, Usage};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
