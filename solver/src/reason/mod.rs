//! Why a vertex had to run: what results were made of, and how that differs from what is wanted now.
//!
//! While a vertex runs, its op is asked for a [`Fingerprint`], which is saved with the result as a [`Memo`]. The memos
//! that come nearest to it tell why nothing was found: see [`Miss`]. Nothing here takes part in a decision.

mod choose;
mod fingerprint;
mod memo;
mod miss;
mod study;
#[cfg(test)]
mod tests;

pub use crate::reason::fingerprint::{Component, Fingerprint};
pub use crate::reason::memo::{GoneWhy, Memo, MemoInput, Remembered, Wanted};
pub use crate::reason::miss::{Change, ContentChange, Difference, Miss};
pub(crate) use crate::reason::study::{InputFacts, RunFacts, Study, study};
