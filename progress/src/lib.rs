//! The progress of a build as people and programs read it.
//!
//! A [`Display`] takes [`SolveStatus`] updates and writes them in one of the modes of the reference's clients: plain
//! lines, a live screen, JSON lines, or nothing. It has no clock of its own but the one it is given, and no I/O but
//! the writer.
#![forbid(unsafe_code)]

mod display;
mod explain;
mod format;
mod plain;
mod rawjson;
mod reason;
mod status;
mod trace;
mod tty;

pub use crate::display::{Display, Mode, is_terminal};
pub use crate::explain::Explanation;
pub use crate::reason::{Difference, Reason};
pub use crate::status::{
    Log, Position, ProgressGroup, Range, SolveStatus, SourceInfo, Status, Timestamp, Vertex, Warning,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
