//! The fsutil protocol: one side lists a tree, the other asks for the files it lacks.
//!
//! Everything here works on [`Message`]s in two channels and knows no transport; [`walk`] and the writing side
//! touch the disk through a [`kiln_rootdir::Root`] only. Follows tonistiigi/fsutil (send.go, receive.go).

mod compare;
mod content;
mod disk;
mod follow;
mod message;
mod order;
mod plan;
mod receiver;
mod sender;
mod stat;
mod tree;
mod walk;

pub use crate::fsutil::message::Message;
pub use crate::fsutil::order::{Order, compare_paths};
pub use crate::fsutil::receiver::{
    Change, ChangeKind, Differ, Limits, OnChange, OnProgress, Progress, ReceiveOptions, Seed, Stats, receive,
};
pub use crate::fsutil::sender::send;
pub use crate::fsutil::stat::{GoMode, Stat};
pub use crate::fsutil::tree::{Content, DirTree, FileTree, MergedTree, NamedTree, Tree};
pub use crate::fsutil::walk::{MapStat, WalkOptions, walk};
